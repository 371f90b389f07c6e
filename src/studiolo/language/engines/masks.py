"""Constraints for engines that show their logits: which tokens may come next, by llguidance."""

from __future__ import annotations

import llguidance
import llguidance.numpy
import numpy as np
import torch
from torch import Tensor

from studiolo.language.engines.completer import Constraint
from studiolo.language.engines.constraints import lark


class Guide:
    """What `constraint` allows, token after token.

    Raises:
        InvalidRequestError, UnsupportedError: as of `constraints.lark`.
    """

    def __init__(self, tokenizer: llguidance.LLTokenizer, constraint: Constraint) -> None:
        self._matcher = llguidance.LLMatcher(tokenizer, lark(constraint))
        self._mask = llguidance.numpy.allocate_token_bitmask(1, tokenizer.vocab_size)

    def allowed(self, vocabulary: int) -> Tensor:
        """bool [vocabulary]: the tokens that may come next."""
        llguidance.numpy.fill_next_token_bitmask(self._matcher, self._mask, 0)
        bits = np.unpackbits(self._mask[0].view(np.uint8), bitorder="little")[:vocabulary].astype(bool)
        allowed = torch.zeros(vocabulary, dtype=torch.bool)
        allowed[: len(bits)] = torch.from_numpy(bits)
        return allowed

    def take(self, token: int) -> None:
        """Goes on to after `token`."""
        self._matcher.consume_token(token)

    @property
    def ended(self) -> bool:
        """Whether nothing can be added any more."""
        return bool(self._matcher.is_stopped())

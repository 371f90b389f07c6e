"""Constraints for engines that show their logits: which tokens may come next, by llguidance."""

from __future__ import annotations

import json
from typing import Any

import llguidance
import llguidance.numpy
import numpy as np
import torch
from torch import Tensor

from studiolo.language.engines.completer import Constraint
from studiolo.language.errors import UnsupportedError


class Guide:
    """What `constraint` allows, token after token.

    Raises:
        UnsupportedError: it cannot be enforced; says why.
    """

    def __init__(self, tokenizer: llguidance.LLTokenizer, constraint: Constraint) -> None:
        text = grammar(constraint)
        if complaint := llguidance.LLMatcher.validate_grammar(text, tokenizer):
            raise UnsupportedError(f"the constraint cannot be enforced: {complaint}", where=constraint.kind)
        self._matcher = llguidance.LLMatcher(tokenizer, text)
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


def grammar(constraint: Constraint) -> str:
    """The constraint in llguidance's own form."""
    if constraint.kind == "gbnf":
        raise UnsupportedError("GBNF is llama.cpp's own form", where="gbnf", remedy="Write it in Lark.")
    rule: Any = constraint.rule
    if constraint.kind == "json":
        return llguidance.LLMatcher.grammar_from_json_schema(
            {} if rule is True else rule, overrides={"whitespace_flexible": False}
        )
    if constraint.kind == "regex":
        return llguidance.LLMatcher.grammar_from_regex(rule)
    if constraint.kind == "choice":
        return llguidance.LLMatcher.grammar_from_lark("start: " + " | ".join(map(json.dumps, rule)))
    return llguidance.LLMatcher.grammar_from_lark(rule)

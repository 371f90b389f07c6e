"""From logits to the next token, for one sequence."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor

from studiolo.language.engines.completer import Sampling


class Sampler:
    """Draws the tokens of one sequence by its own generator: the same seed, the same draws, whoever else is
    served.

    Penalties are those of OpenAI's API: presence once, frequency as often as the token was made
    (https://platform.openai.com/docs/api-reference/chat/create). Temperature 0 takes the likeliest token.
    """

    def __init__(self, sampling: Sampling) -> None:
        self.sampling = sampling
        self._generator = torch.Generator()
        if sampling.seed is None:
            self._generator.seed()
        else:
            self._generator.manual_seed(sampling.seed % 2**63)

    def draw(self, logits: Tensor, made: Sequence[int], allowed: Tensor | None) -> int:
        """The next token id.

        Args:
            logits: [V], float32.
            made: the tokens of the answer so far.
            allowed: bool [V], or None for all.
        """
        logits = self._penalised(self._biased(logits), made)
        if allowed is not None:
            logits = logits.masked_fill(~allowed, -torch.inf)
        temperature = 1.0 if self.sampling.temperature is None else self.sampling.temperature
        if temperature == 0:
            return int(logits.argmax())
        probabilities = self._cut(torch.softmax(logits / temperature, -1))
        return int(torch.multinomial(probabilities, 1, generator=self._generator))

    def _biased(self, logits: Tensor) -> Tensor:
        if not self.sampling.bias:
            return logits
        tokens, more = zip(*self.sampling.bias, strict=True)
        return logits.index_add(0, torch.tensor(tokens), torch.tensor(more, dtype=logits.dtype))

    def _penalised(self, logits: Tensor, made: Sequence[int]) -> Tensor:
        presence = self.sampling.presence_penalty or 0.0
        frequency = self.sampling.frequency_penalty or 0.0
        if not made or not (presence or frequency):
            return logits
        tokens, counts = torch.tensor(made).unique(return_counts=True)
        return logits.index_add(0, tokens, -(presence + frequency * counts).to(logits.dtype))

    def _cut(self, probabilities: Tensor) -> Tensor:
        """Only the `top_k` likeliest, and of them the fewest that hold `top_p` (Holtzman et al. 2020)."""
        top_k, top_p = self.sampling.top_k or 0, self.sampling.top_p or 1.0
        if not top_k and top_p >= 1:
            return probabilities
        ordered, order = probabilities.sort(descending=True)
        drop = torch.zeros_like(ordered, dtype=torch.bool)
        if top_k:
            drop[top_k:] = True
        kept = ordered.masked_fill(drop, 0)
        before = kept.cumsum(-1) - kept
        kept = kept.masked_fill(before >= top_p * kept.sum(), 0)
        return torch.zeros_like(probabilities).scatter(0, order, kept)

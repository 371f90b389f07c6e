"""What tokens cost."""

from __future__ import annotations

from pydantic import Field

from studiolo.language.conversation import Usage, Value
from studiolo.language.errors import UnsupportedError


class Rates(Value):
    """US dollars per token. `thoughts` (and their summaries) cost as much as the answer and `cached` as much
    as the prompt where they have no rate of their own."""

    prompt: float = Field(ge=0)
    answer: float = Field(ge=0)
    thoughts: float | None = Field(default=None, ge=0)
    cached: float | None = Field(default=None, ge=0)
    prompt_by_modality: dict[str, float] = Field(default_factory=dict)
    """Rates of prompt tokens that are not text, where they differ, such as {"audio": 1.0e-6}."""


class Price(Rates):
    """The rates of a model at an upstream, and those of its batches, if it takes any."""

    batch: Rates | None = None


def cost(usage: Usage, price: Price, *, batch: bool = False) -> float:
    """What a request cost, in US dollars: each kind of token at its own rate.

    Which part of a mixed prompt was cached is not told by any upstream; the same share of every modality is
    taken to be.

    Raises:
        UnsupportedError: a batch, where no rates for batches are known.
    """
    rates: Rates | None = price.batch if batch else price
    if rates is None:
        raise UnsupportedError("no price for batches is known", where="price.batch")
    cached = rates.prompt if rates.cached is None else rates.cached
    thoughts = rates.answer if rates.thoughts is None else rates.thoughts
    fresh = usage.prompt - usage.cached
    return (
        fresh * _mean_prompt_rate(usage, rates)
        + usage.cached * cached
        + usage.answer * rates.answer
        + (usage.thoughts + usage.summaries) * thoughts
    )


def _mean_prompt_rate(usage: Usage, rates: Rates) -> float:
    if not usage.prompt:
        return rates.prompt
    special = {
        name: count for name, count in usage.prompt_by_modality.items() if name in rates.prompt_by_modality
    }
    plain = usage.prompt - sum(special.values())
    whole = plain * rates.prompt + sum(
        rates.prompt_by_modality[name] * count for name, count in special.items()
    )
    return whole / usage.prompt

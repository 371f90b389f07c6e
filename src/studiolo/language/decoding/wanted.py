"""What is to be decoded."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, replace

from studiolo.language.decoding.thinking import Channel, ThoughtPlan
from studiolo.language.decoding.tools import ToolPlan
from studiolo.language.engines.completer import Completion, Constraint, Sampling, Tokens


@dataclass(frozen=True)
class Wanted:
    """A request, ready to be decoded.

    Attributes:
        prompt: tokens up to where the thought, or else the answer, begins.
        max_tokens: of thought and answer together.
        context: tokens that prompt and all that is made may have together.
        stop: texts at which the answer ends.
        constraint: what the answer's words must match.
        summarise: the completion that sums a thought up, if its summary is to be shown in its place.
    """

    prompt: Tokens
    max_tokens: int
    context: int
    sampling: Sampling
    stop: tuple[str, ...]
    channel: Channel
    thought: ThoughtPlan
    tools: ToolPlan | None = None
    constraint: Constraint | None = None
    logprobs: int | None = None
    summarise: Callable[[str], Completion] | None = None


def seeded(wanted: Wanted, candidate: int) -> Wanted:
    """The same for another candidate: another seed, if there is one."""
    seed = wanted.sampling.seed
    return (
        wanted if seed is None else replace(wanted, sampling=replace(wanted.sampling, seed=seed + candidate))
    )

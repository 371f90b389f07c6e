"""How long a model thinks before it answers, to the token.

A thought is a completion of its own: it begins behind the opening tag, is bounded by what the budget has
left, and ends at the closing tag. When the budget is spent, we close the thought, and the answer begins as a
new completion behind it; the engine has all of that prompt in its cache.

What is counted: every token that the engine makes while a thought is open is a token of thought, its closing
tag among them if the model wrote it; every one made later is one of the answer. So both sum up to what the
engine made, but for summaries of thoughts (see `summary`). Tags that we write are counted nowhere: they are
part of the next completion's prompt.
"""

from __future__ import annotations

from dataclasses import dataclass

from studiolo.language.conversation import Level, Show, Thinking, ThinkingMode
from studiolo.language.decoding.template import ChatTemplate, Segment
from studiolo.language.errors import InvalidRequestError

LEVELS = {Level.MINIMAL: 128, Level.LOW: 1024, Level.MEDIUM: 8192, Level.HIGH: 24576}
"""Most tokens of thought by level; low to high as Google maps OpenAI's `reasoning_effort` for Gemini 2.5."""

DYNAMIC_SHARE = 0.75
"""Part of the room that thoughts without a budget may take, so that an answer always has the rest."""


@dataclass(frozen=True)
class Channel:
    """Where a model puts its thoughts.

    Attributes:
        open: tag before a thought, as it is written; `close`: the tag behind it.
        before: white space that goes before the closing tag, `after` behind it.
        native: the model was trained to it; else it is asked for in the system text.
        unasked: it thinks where nobody says anything of it, unless the template shuts the channel.
    """

    open: str
    close: str
    before: str
    after: str
    native: bool = True
    unasked: bool = True


NATIVE = (
    Channel("<think>\n", "</think>", "\n", "\n\n"),  # Qwen 3, DeepSeek R1, SmolLM3
    Channel("<|channel>thought\n", "<channel|>", "", "", unasked=False),  # Gemma 4
    Channel("[THINK]", "[/THINK]", "", ""),  # Magistral, Ministral 3 Reasoning
)
EMULATED = Channel("<think>\n", "</think>", "\n", "\n\n", native=False, unasked=False)

INSTRUCTION = (
    "Before you answer, think it through step by step between <think> and </think>."
    " The answer comes after that."
)


def channel_of(template: ChatTemplate) -> Channel:
    """The channel that the template speaks of, or the emulated one."""
    source = template.source or ""
    found = [channel for channel in NATIVE if channel.open.strip() in source.replace("\\n", "\n")]
    return found[0] if found and found[0].close in source else EMULATED


@dataclass(frozen=True)
class ThoughtPlan:
    """At most so many tokens of thought (0: none), and what of them is shown."""

    budget: int
    show: Show = Show.HIDDEN


def plan(thinking: Thinking | None, *, room: int) -> ThoughtPlan:
    """What a request's wish comes to.

    Args:
        thinking: the wish; None for a model that thinks by itself.
        room: tokens that thoughts and answer may have together.

    Raises:
        InvalidRequestError: a mode without its budget or level, or a budget that leaves no token for the
            answer.
    """
    thinking = thinking or Thinking(mode=ThinkingMode.DYNAMIC)
    within = max(1, int(room * DYNAMIC_SHARE))
    if thinking.mode is ThinkingMode.OFF:
        return ThoughtPlan(0)
    if thinking.mode is ThinkingMode.DYNAMIC:
        return ThoughtPlan(min(within, LEVELS[Level.HIGH]), thinking.show)
    if thinking.mode is ThinkingMode.LEVEL:
        if thinking.level is None:
            raise InvalidRequestError("no level is named", where="config.thinking.level", remedy="Name one.")
        return ThoughtPlan(min(within, LEVELS[thinking.level]), thinking.show)
    if thinking.budget is None:
        raise InvalidRequestError("no budget is named", where="config.thinking.budget", remedy="Name one.")
    if thinking.budget >= room:
        raise InvalidRequestError(
            f"a budget of {thinking.budget} leaves nothing of {room} tokens for the answer",
            where="config.thinking.budget",
            remedy="Make it smaller, or max_tokens (within the context) larger.",
        )
    return ThoughtPlan(thinking.budget, thinking.show)


def wished(thinking: Thinking | None) -> bool | None:
    """Whether a thought is to come; None leaves it to the model."""
    if thinking is None:
        return None
    return thinking.mode is not ThinkingMode.OFF and (
        thinking.mode is not ThinkingMode.BUDGET or thinking.budget != 0
    )


def thinks_by_itself(channel: Channel, prompt: list[Segment]) -> bool:
    """Whether the model thinks where nothing is wished: it has a channel, and its `prompt` does not shut
    it."""
    tail = _tail(prompt)
    return tail.endswith(channel.open.strip()) or (channel.unasked and not _shut(tail, channel))


def opening(prompt: list[Segment], channel: Channel, *, think: bool) -> str:
    """What to add to a prompt so that a thought is open (`think`), or so that none can come.

    A channel that is not native is left alone where no thought is to come.
    """
    tail = _tail(prompt)
    is_open, is_shut = tail.endswith(channel.open.strip()), _shut(tail, channel)
    if think:
        return "" if is_open else channel.open
    if is_open:
        return channel.before + channel.close + channel.after
    return (
        channel.open + channel.before + channel.close + channel.after
        if channel.native and not is_shut
        else ""
    )


def _tail(prompt: list[Segment]) -> str:
    """The template's own last words."""
    text, special = prompt[-1] if prompt else ("", False)
    return text.rstrip() if special else ""


def _shut(tail: str, channel: Channel) -> bool:
    return tail.endswith(channel.close)

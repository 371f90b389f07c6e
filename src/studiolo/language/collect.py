"""From a stream of deltas to one response."""

from __future__ import annotations

from collections.abc import AsyncIterable, Iterable

from studiolo.language.conversation import (
    Candidate,
    Content,
    Delta,
    FinishReason,
    Part,
    Response,
    Role,
    Text,
    Thought,
    TokenLogprob,
    Usage,
    Verdict,
)


class Collector:
    """Takes deltas as they come; `response()` is what they amount to so far."""

    def __init__(self) -> None:
        self._parts: dict[int, list[Part]] = {}
        self._logprobs: dict[int, list[TokenLogprob]] = {}
        self._verdicts: dict[int, tuple[Verdict, ...]] = {}
        self._finish: dict[int, tuple[FinishReason, str | None]] = {}
        self._prompt_verdicts: tuple[Verdict, ...] = ()
        self._usage, self._model = Usage(), ""
        self._blocked: FinishReason | None = None
        self._notes: list[str] = []

    def add(self, delta: Delta) -> None:
        index = delta.candidate
        if delta.part is not None:
            join(self._parts.setdefault(index, []), delta.part)
        if delta.logprobs:
            self._logprobs.setdefault(index, []).extend(delta.logprobs)
        if delta.finish is not None:
            self._finish[index] = delta.finish, delta.finish_message
        if delta.blocked is not None:
            self._blocked, self._prompt_verdicts = delta.blocked, delta.verdicts
        elif delta.verdicts:
            self._verdicts[index] = delta.verdicts
        self._usage = delta.usage or self._usage
        self._model = delta.model or self._model
        self._notes += [note for note in delta.notes if note not in self._notes]

    def response(self) -> Response:
        """A candidate that has not finished yet counts as cut off."""
        indices = sorted(self._parts.keys() | self._finish.keys())
        return Response(
            candidates=tuple(self._candidate(index) for index in indices),
            usage=self._usage,
            model=self._model,
            blocked=self._blocked,
            verdicts=self._prompt_verdicts,
            notes=tuple(self._notes),
        )

    def _candidate(self, index: int) -> Candidate:
        finish, message = self._finish.get(index, (FinishReason.LENGTH, None))
        return Candidate(
            content=Content(role=Role.MODEL, parts=tuple(self._parts.get(index, ()))),
            finish=finish,
            finish_message=message,
            logprobs=tuple(self._logprobs.get(index, ())),
            verdicts=self._verdicts.get(index, ()),
        )


def join(parts: list[Part], more: Part) -> None:
    """Adds a part; texts and thoughts grow together with one of their kind before them."""
    last = parts[-1] if parts else None
    if isinstance(last, Text) and isinstance(more, Text):
        parts[-1] = Text(text=last.text + more.text)
    elif isinstance(last, Thought) and isinstance(more, Thought):
        parts[-1] = Thought(text=last.text + more.text, signature=more.signature or last.signature)
    else:
        parts.append(more)


async def collected(stream: AsyncIterable[Delta]) -> Response:
    """The whole response, when the stream has ended."""
    collector = Collector()
    async for delta in stream:
        collector.add(delta)
    return collector.response()


def collected_now(deltas: Iterable[Delta]) -> Response:
    """The same of deltas that are all there."""
    collector = Collector()
    for delta in deltas:
        collector.add(delta)
    return collector.response()

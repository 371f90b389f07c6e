"""Holding an answer back until its sentence has been judged."""

from __future__ import annotations

import json
import re

from studiolo.language.conversation import Call, Delta, FinishReason, Part, Text, Thought
from studiolo.language.safety.judging import Judge

LONGEST = 400
"""Characters after which a sentence is judged though it has not ended (tables, scripts without stops)."""

# The end of a sentence is seen when the next one begins: "3.14" ends none.
_END = re.compile(r"[.!?…؟।]['\"”’»)\]]*\s+|[。！？]['\"”’»)\]]*|\n+")


class Held:
    """The deltas of one candidate that have not been judged yet: at most one sentence of words.

    Each sentence is judged together with the one before it, since harm may lie in what two say together.
    """

    def __init__(self, judge: Judge) -> None:
        self.judge = judge
        self.reason: FinishReason | None = None
        self._waiting: list[Delta] = []
        self._before = ""

    async def add(self, delta: Delta) -> list[Delta]:
        """What may be given out now that `delta` has come; nothing any more once `reason` is set."""
        free = []
        if delta.finish or not _continues(self._waiting, delta.part):
            free += await self.rest()
        if self.reason:
            return free
        if isinstance(delta.part, Text | Thought):
            self._waiting.append(delta)
            text = self._text()
            whole = delta.finish is not None or len(text) >= LONGEST
            free += await self._free(len(text) if whole else _last_end(text))
        elif await self._heard(_words(delta.part)):
            free.append(delta)
        return free

    async def rest(self) -> list[Delta]:
        """All that waits, its sentence being at its end."""
        return await self._free(len(self._text()))

    async def _free(self, end: int) -> list[Delta]:
        """Judges the waiting text up to `end`, and takes it out."""
        text = self._text()[:end]
        if not await self._heard(text):
            return []
        self._before = text[-LONGEST:] or self._before
        free = []
        while self._waiting and end >= (length := len(_text(self._waiting[0].part))):
            free.append(self._waiting.pop(0))
            end -= length
        if self._waiting and end and not self._waiting[0].logprobs:  # these belong to the whole of a delta
            head, self._waiting[0] = _split(self._waiting[0], end)
            free.append(head)
        return free

    async def _heard(self, text: str) -> bool:
        """Whether all is well."""
        if text and self.reason is None:
            self.reason = await self.judge.hear(self._before + text)
        return self.reason is None

    def _text(self) -> str:
        return "".join(_text(delta.part) for delta in self._waiting)


def _continues(waiting: list[Delta], part: Part | None) -> bool:
    """Whether a part goes on with the words that wait."""
    return not waiting or part is None or type(waiting[-1].part) is type(part)


def _last_end(text: str) -> int:
    """Where the last whole sentence of `text` ends; 0 if there is none."""
    return max((found.end() for found in _END.finditer(text)), default=0)


def _text(part: Part | None) -> str:
    return part.text if isinstance(part, Text | Thought) else ""


def _split(delta: Delta, end: int) -> tuple[Delta, Delta]:
    """A delta of words in two: up to `end`, and from there on with all else that it tells."""
    assert isinstance(delta.part, Text | Thought)
    head, tail = (
        delta.part.model_copy(update={"text": text})
        for text in (delta.part.text[:end], delta.part.text[end:])
    )
    told = {"part": head, "finish": None, "usage": None, "verdicts": ()}
    return delta.model_copy(update=told), delta.model_copy(update={"part": tail})


def _words(part: Part | None) -> str:
    """What there is to judge in a part that comes whole."""
    return json.dumps(part.arguments, ensure_ascii=False) if isinstance(part, Call) else ""

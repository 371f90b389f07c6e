"""From tokens to text that can be given out: no broken characters, no part of a stop text."""

from __future__ import annotations

from collections.abc import Callable, Sequence

_UNFINISHED = "\ufffd"


class TextStream:
    """Takes tokens one by one; gives the text that is certain by now.

    A character may be spread over several tokens, and a token may look different alone and after others; so
    each is decoded together with the few before it. What could still become a stop text is held back.

    Args:
        detokenize: tokens to text; bytes that are no whole character come out as U+FFFD.
        stop: the texts at which to end.

    Attributes:
        stopped: the stop text that was met; nothing comes after it.
    """

    def __init__(self, detokenize: Callable[[Sequence[int]], str], stop: Sequence[str] = ()) -> None:
        self._detokenize = detokenize
        self._stop = [text for text in stop if text]
        self._tokens: list[int] = []
        self._context = 0  # from here on tokens are decoded ...
        self._read = 0  # ... and up to here their text has been taken
        self._held = ""
        self.stopped: str | None = None

    def add(self, token: int) -> str:
        """The text that is certain with `token`; often empty."""
        self._tokens.append(token)
        before = self._detokenize(self._tokens[self._context : self._read])
        now = self._detokenize(self._tokens[self._context :])
        if now.endswith(_UNFINISHED) or len(now) <= len(before):
            return ""
        self._context, self._read = self._read, len(self._tokens)
        return self._certain(now[len(before) :])

    def end(self) -> str:
        """What is left when no token comes any more."""
        before = self._detokenize(self._tokens[self._context : self._read])
        now = self._detokenize(self._tokens[self._context :])
        self._context = self._read = len(self._tokens)
        out = self._certain(now[len(before) :].rstrip(_UNFINISHED))
        if self.stopped is None:
            out, self._held = out + self._held, ""
        return out

    def _certain(self, text: str) -> str:
        """Adds `text` to what is held and takes from it what no stop text can begin in."""
        if self.stopped is not None:
            return ""
        held = self._held + text
        met = [(held.find(stop), stop) for stop in self._stop if stop in held]
        if met:
            at, self.stopped = min(met, key=lambda found: found[0])
            self._held = ""
            return held[:at]
        keep = max((_overlap(held, stop) for stop in self._stop), default=0)
        self._held = held[len(held) - keep :]
        return held[: len(held) - keep]


def _overlap(text: str, stop: str) -> int:
    """The length of the longest end of `text` that is a beginning of `stop`, not all of it."""
    longest = min(len(text), len(stop) - 1)
    return next((size for size in range(longest, 0, -1) if text.endswith(stop[:size])), 0)

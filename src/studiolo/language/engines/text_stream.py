"""From tokens to text that can be given out: no broken characters, no part of a stop text."""

from __future__ import annotations

from collections.abc import Callable, Sequence

from studiolo.language.engines.pieces import StopFilter

_UNFINISHED = "\ufffd"


class TextStream:
    """Takes tokens one by one; gives the text that is certain by now.

    A character may be spread over several tokens, and a token may look different alone and after others; so
    each is decoded together with the few before it. What could still become a stop text is held back.

    Args:
        detokenize: tokens to text; bytes that are no whole character come out as U+FFFD.
        stop: the texts at which to end.
    """

    def __init__(self, detokenize: Callable[[Sequence[int]], str], stop: Sequence[str] = ()) -> None:
        self._detokenize = detokenize
        self._stops = StopFilter(stop)
        self._tokens: list[int] = []
        self._context = 0  # from here on tokens are decoded ...
        self._read = 0  # ... and up to here their text has been taken

    @property
    def stopped(self) -> str | None:
        """The stop text that was met; nothing comes after it."""
        return self._stops.met

    def add(self, token: int) -> str:
        """The text that is certain with `token`; often empty."""
        self._tokens.append(token)
        before = self._detokenize(self._tokens[self._context : self._read])
        now = self._detokenize(self._tokens[self._context :])
        if now.endswith(_UNFINISHED) or len(now) <= len(before):
            return ""
        self._context, self._read = self._read, len(self._tokens)
        return self._stops.feed(now[len(before) :])

    def end(self) -> str:
        """What is left when no token comes any more."""
        before = self._detokenize(self._tokens[self._context : self._read])
        now = self._detokenize(self._tokens[self._context :])
        self._context = self._read = len(self._tokens)
        out = self._stops.feed(now[len(before) :].rstrip(_UNFINISHED))
        return out + self._stops.flush()

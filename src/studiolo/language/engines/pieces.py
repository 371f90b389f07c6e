"""Texts that come in pieces: stop texts are found across them, and no part of one is let out."""

from __future__ import annotations

from collections.abc import Sequence


class StopFilter:
    """Holds back what may be the beginning of a stop text, and cuts where one is complete.

    Of several, the one that is complete first counts, and of those the longest; so the result does not
    depend on how the text was cut into pieces.
    """

    def __init__(self, stops: Sequence[str]) -> None:
        self._stops = tuple(stops)
        self._held = ""
        self.met: str | None = None
        """The stop text that was found; after that nothing more comes out."""

    def feed(self, text: str) -> str:
        """What of the text so far may be given out."""
        if self.met is not None:
            return ""
        whole, self._held = self._held + text, ""
        if not self._stops:
            return whole
        found = [(start + len(stop), start, stop) for stop in self._stops if (start := whole.find(stop)) >= 0]
        if found:
            _, start, self.met = min(found)
            return whole[:start]
        ready = len(whole) - max(_overlap(whole, stop) for stop in self._stops)
        self._held = whole[ready:]
        return whole[:ready]

    def flush(self) -> str:
        """What was held back, when nothing more follows."""
        held, self._held = self._held, ""
        return held


def _overlap(text: str, stop: str) -> int:
    """Length of the longest end of `text` with which `stop` begins, without being it whole."""
    return next((n for n in range(min(len(text), len(stop) - 1), 0, -1) if text.endswith(stop[:n])), 0)

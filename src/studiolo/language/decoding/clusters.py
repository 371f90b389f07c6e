"""Where a stream may be cut so that nothing that is seen as one thing arrives in two pieces."""

from __future__ import annotations

import unicodedata

_JOINER = "\u200d"
_FENCES = "`~"
_LONGEST = 64
"""Characters that are held back at most; beyond that it is no letter any more."""


class Smoother:
    """Gives text on in pieces that end between letters and outside of code-fence markers.

    Held back are: a run of backticks or tildes, of which there may be more; a last letter that is not ASCII,
    for marks, joiners and flags may follow that belong to it. Nothing is changed: the pieces sum up to what
    came in.
    """

    def __init__(self) -> None:
        self._held = ""

    def add(self, text: str) -> str:
        """What can go out now."""
        text = self._held + text
        cut = _cut(text)
        if len(text) - cut > _LONGEST:
            cut = len(text)
        self._held = text[cut:]
        return text[:cut]

    def end(self) -> str:
        """The rest."""
        rest, self._held = self._held, ""
        return rest


def _cut(text: str) -> int:
    end = len(text)
    if end and text[-1] in _FENCES:
        return len(text.rstrip(text[-1]))
    if not end or text[-1].isascii():
        return end
    start = end - 1
    while start > 0 and _belongs(text[start - 1], text[start]):
        start -= 1
    return start


def _belongs(before: str, letter: str) -> bool:
    """Whether a letter goes on what stands before it (Unicode UAX 29, the part that matters in streams)."""
    if letter == _JOINER or before == _JOINER or unicodedata.category(letter).startswith("M"):
        return True
    if 0x1F3FB <= ord(letter) <= 0x1F3FF or 0xE0020 <= ord(letter) <= 0xE007F:  # skin tones, tags of flags
        return True
    return _regional(before) and _regional(letter)


def _regional(letter: str) -> bool:
    return 0x1F1E6 <= ord(letter) <= 0x1F1FF

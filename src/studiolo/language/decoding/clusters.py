"""Where a stream may be cut so that nothing that is seen as one thing arrives in two pieces.

What is seen as one letter is a grapheme cluster of Unicode (https://www.unicode.org/reports/tr29/). Whether
one is whole is only known when the next character is there: a mark may follow on any.
"""

from __future__ import annotations

import unicodedata

_FENCES = "`~"
_LONGEST = 64
"""Characters that are held back at most; beyond that it is no letter any more."""


class Smoother:
    """Gives text on in pieces that end between letters and outside of code-fence markers.

    Held back are: a run of backticks or tildes, of which there may be more; else the last letter, for marks,
    joiners and flags may follow that belong to it. Nothing is changed: the pieces sum up to what came in.
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
    """Where the last letter begins, or the run of fence characters that it is in."""
    if not text or _ends(text[-1]):
        return len(text)
    start = len(text) - 1
    while start > 0 and (
        _belongs(text, start) or (text[start] in _FENCES and text[start - 1] == text[start])
    ):
        start -= 1
    return start


def _ends(letter: str) -> bool:
    """Nothing can follow that belongs to it: line ends and other controls, but "\\r" may have its "\\n"."""
    return letter != "\r" and unicodedata.category(letter) in ("Cc", "Zl", "Zp")


def _belongs(text: str, index: int) -> bool:
    """Whether a letter goes on what stands before it, or may: where in doubt it does (UAX 29)."""
    before, letter = text[index - 1], text[index]
    if _ends(before) or _ends(letter) or before == "\r":
        return before == "\r" and letter == "\n"
    return (
        _extends(letter)
        or before in _PREPENDED
        or before == _JOINER
        or (_regional(before) and _regional(letter))
        or (_hangul(before) and _hangul(letter) and not (_is_syllable(before) and _is_syllable(letter)))
        or (unicodedata.category(letter) == "Lo" and _behind_virama(text, index))
    )


_JOINER, _NON_JOINER = "\u200d", "\u200c"
_EXTENDING = {_JOINER, _NON_JOINER, "\uff9e", "\uff9f", "\u0e33", "\u0eb3"}
"""Those that go on a letter, and are no marks by their category."""
_PREPENDED = frozenset(
    map(chr, (*range(0x600, 0x606), 0x6DD, 0x70F, 0x890, 0x891, 0x8E2, 0xD4E, 0x110BD, 0x110CD, 0x111C2))
) | frozenset(
    map(chr, (0x111C3, 0x113D1, 0x1193F, 0x11941, 0x11A3A, *range(0x11A84, 0x11A8A), 0x11D46, 0x11F02))
)
"""Those that go before a letter, such as the Arabic number sign (Grapheme_Cluster_Break=Prepend)."""


def _extends(letter: str) -> bool:
    skin_tone_or_tag = 0x1F3FB <= ord(letter) <= 0x1F3FF or 0xE0020 <= ord(letter) <= 0xE007F
    return unicodedata.category(letter).startswith("M") or letter in _EXTENDING or skin_tone_or_tag


def _behind_virama(text: str, index: int) -> bool:
    """Whether an Indic consonant is written into the one before it."""
    while index > 0 and _extends(text[index - 1]):
        index -= 1
        if unicodedata.combining(text[index]) == 9:
            return True
    return False


def _regional(letter: str) -> bool:
    return 0x1F1E6 <= ord(letter) <= 0x1F1FF


def _hangul(letter: str) -> bool:
    code = ord(letter)
    return (
        0x1100 <= code <= 0x11FF
        or 0xA960 <= code <= 0xA97F
        or 0xD7B0 <= code <= 0xD7FF
        or _is_syllable(letter)
    )


def _is_syllable(letter: str) -> bool:
    return 0xAC00 <= ord(letter) <= 0xD7A3

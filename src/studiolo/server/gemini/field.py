"""What is told of a field of the Gemini dialect."""

from __future__ import annotations

from dataclasses import dataclass, replace
from enum import StrEnum


class Support(StrEnum):
    """SUPPORTED: does what Google says of it. EMULATED: nearly; the note says how not. IGNORED: taken, and
    without effect here; the note says why. REFUSED: an error, unless it asks for nothing (null, false, an
    empty list or text, or an enum's *_UNSPECIFIED)."""

    SUPPORTED = "supported"
    EMULATED = "emulated"
    IGNORED = "ignored"
    REFUSED = "refused"


@dataclass(frozen=True)
class Field:
    """One field.

    Attributes:
        type: `text`, `integer`, `number`, `flag`, `bytes`, `json` (any value), `object`, `time` (RFC 3339),
            `duration` ("3.5s"), or the name of an enum or a message below.
        many: a list of these; one alone is taken for a list of one.
        keyed: an object whose values are of `type`.
        least, most: the range of a number.
    """

    type: str
    note: str = ""
    support: Support = Support.SUPPORTED
    many: bool = False
    keyed: bool = False
    least: float | None = None
    most: float | None = None


def emulated(type_: str, note: str) -> Field:
    return Field(type_, note, Support.EMULATED)


def ignored(type_: str, note: str) -> Field:
    return Field(type_, note, Support.IGNORED)


def refused(note: str, type_: str = "json") -> Field:
    return Field(type_, note, Support.REFUSED)


def several(field: Field | str) -> Field:
    return replace(Field(field) if isinstance(field, str) else field, many=True)

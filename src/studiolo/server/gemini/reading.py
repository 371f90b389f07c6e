"""From JSON to the messages of `fields`, as Google's own reader takes it.

camelCase or snake_case, whole numbers as 5.0 or "5", enums in any case, one value where a list is wanted. All
that is wrong is found and told at once, in Google's words, with paths in snake_case.
"""

from __future__ import annotations

import base64
import binascii
import json
import math
import re
from collections.abc import Callable, Mapping
from datetime import UTC, datetime, timedelta
from functools import lru_cache
from typing import Any, NamedTuple

from studiolo.language.errors import InvalidRequestError
from studiolo.server.gemini.fields import ENUMS, MESSAGES, Field, Support


class Violation(NamedTuple):
    """What is wrong with a field."""

    field: str
    description: str


class WireError(InvalidRequestError):
    """A body that is none of its message. `violations` are all that is wrong with it."""

    def __init__(self, violations: list[Violation]) -> None:
        super().__init__(
            "\n".join(violation.description for violation in violations), where=violations[0].field or None
        )
        self.violations = tuple(violations)


def read(message: str, value: Any, where: str = "") -> dict[str, Any]:
    """The fields of a message that are set, by their names in camelCase, in Python's types.

    Raises:
        WireError: unknown or refused fields, values of another type or out of range.
    """
    reader = _Reader()
    made = reader.message(message, value, where)
    if reader.violations:
        raise WireError(reader.violations)
    assert made is not None
    return made


@lru_cache(maxsize=1024)
def snake(name: str) -> str:
    return re.sub(r"(?<=[a-z0-9])[A-Z]", lambda match: "_" + match[0].lower(), name)


def camel(name: str) -> str:
    # The underscore of _responseJsonSchema, its name while it was new, goes too.
    return re.sub(r"(?<=[a-z0-9])_([a-z0-9])", lambda match: match[1].upper(), name.lstrip("_"))


class _Wrong(Exception):  # noqa: N818
    """A value of another type; its text is the name of the type that is wanted."""


class _Reader:
    def __init__(self) -> None:
        self.violations: list[Violation] = []

    def message(self, name: str, value: Any, where: str) -> dict[str, Any] | None:
        if not isinstance(value, Mapping):
            self._add(where, _invalid(where, f"type.googleapis.com/{name}", value))
            return None
        known, made = MESSAGES[name], {}
        for key, given in value.items():
            field_name = key if key in known else camel(key)
            place = f"{where}.{snake(field_name)}" if where else snake(field_name)
            if field_name not in known:
                at = f" at '{where}'" if where else ""
                self._add(
                    where,
                    f'Invalid JSON payload received. Unknown name "{key[:100]}"{at}: Cannot find field.',
                )
            elif field_name in made:
                self._add(place, f"Invalid value at '{place}': it is there twice, in both spellings.")
            elif given is not None and (read := self._field(known[field_name], given, place)) is not None:
                made[field_name] = read
        return made

    def _field(self, field: Field, value: Any, where: str) -> Any:
        if field.support is Support.REFUSED:
            if not _asks_nothing(value):
                self._add(where, f"'{where}' is not supported: {field.note}.")
            return None
        if field.keyed:
            if not isinstance(value, Mapping):
                return self._wrong(where, "an object", value)
            return {key: self._one(field, item, f"{where}.{key}") for key, item in value.items()}
        if field.many:
            items = value if isinstance(value, list) else [value]
            return [self._one(field, item, f"{where}[{index}]") for index, item in enumerate(items)]
        return self._one(field, value, where)

    def _one(self, field: Field, value: Any, where: str) -> Any:
        if field.type in MESSAGES:
            return self.message(field.type, value, where)
        if field.type in ENUMS:
            if isinstance(value, str) and value.upper() in ENUMS[field.type]:
                return value.upper()
            return self._wrong(where, f"type.googleapis.com/{field.type}", value)
        try:
            made = _SCALARS[field.type](value)
        except _Wrong as wrong:
            return self._wrong(where, str(wrong), value)
        if isinstance(made, int | float) and not isinstance(made, bool):
            self._check_range(field, made, where)
        return made

    def _check_range(self, field: Field, value: float, where: str) -> None:
        if field.least is not None and value < field.least:
            self._add(where, f"'{where}' must be at least {field.least:g}, and it is {value}.")
        if field.most is not None and value > field.most:
            self._add(where, f"'{where}' must be at most {field.most:g}, and it is {value}.")

    def _wrong(self, where: str, wanted: str, value: Any) -> None:
        self._add(where, _invalid(where, wanted, value))

    def _add(self, where: str, description: str) -> None:
        if len(self.violations) < 20:
            self.violations.append(Violation(where, description))


def _invalid(where: str, wanted: str, value: Any) -> str:
    shown = json.dumps(value, ensure_ascii=True)
    shown = shown if len(shown) <= 100 else f"{shown[:100]}..."
    return f"Invalid value at '{where}' ({wanted}), {shown}"


def _asks_nothing(value: Any) -> bool:
    return value in (None, False, "", []) or (isinstance(value, str) and value.endswith("UNSPECIFIED"))


def _text(value: Any) -> str:
    if not isinstance(value, str):
        raise _Wrong("TYPE_STRING")
    _check_unicode(value)
    return value


def _check_unicode(text: str) -> None:
    """JSON can spell half a character (\\ud800), which no text of Unicode has."""
    try:
        text.encode()
    except UnicodeEncodeError:
        raise _Wrong("TYPE_STRING, in Unicode") from None


def _flag(value: Any) -> bool:
    if not isinstance(value, bool):
        raise _Wrong("TYPE_BOOL")
    return value


def _number(value: Any) -> float:
    """Also from a string, as the JSON form of protocol buffers allows."""
    if isinstance(value, bool) or not isinstance(value, int | float | str):
        raise _Wrong("TYPE_FLOAT")
    try:
        number = float(value)
    except (ValueError, OverflowError):
        raise _Wrong("TYPE_FLOAT") from None
    if not math.isfinite(number):
        raise _Wrong("TYPE_FLOAT")
    return number


def _integer(value: Any) -> int:
    try:
        number = _number(value)
    except _Wrong:
        raise _Wrong("TYPE_INT32") from None
    if not number.is_integer() or abs(number) >= 2**53:
        raise _Wrong("TYPE_INT32")
    return int(number)


def _bytes(value: Any) -> bytes:
    """Base64 in the standard's alphabet or that of URLs, with padding or without."""
    text = _text(value).replace("-", "+").replace("_", "/").rstrip("=")
    try:
        return base64.b64decode(text + "=" * (-len(text) % 4), validate=True)
    except (binascii.Error, ValueError):
        raise _Wrong("TYPE_BYTES") from None


def _json(value: Any) -> Any:
    _check_unicode(json.dumps(value, ensure_ascii=False))
    return value


def _object(value: Any) -> dict[str, Any]:
    if not isinstance(value, dict):
        raise _Wrong("type.googleapis.com/google.protobuf.Struct")
    _json(value)
    return value


def _duration(value: Any) -> timedelta:
    match = re.fullmatch(r"(-?\d{1,12}(?:\.\d{1,9})?)s", value) if isinstance(value, str) else None
    if match is None or abs(float(match[1])) > 315_576_000_000:  # ten thousand years, as the type has it
        raise _Wrong("type.googleapis.com/google.protobuf.Duration")
    try:
        return timedelta(seconds=float(match[1]))
    except OverflowError:
        raise _Wrong("type.googleapis.com/google.protobuf.Duration") from None


def _time(value: Any) -> datetime:
    """With `Z`, an offset, or neither, which is UTC."""
    try:
        time = datetime.fromisoformat(_text(value))
        return time.replace(tzinfo=time.tzinfo or UTC).astimezone(UTC)
    except (ValueError, OverflowError, _Wrong):
        raise _Wrong("type.googleapis.com/google.protobuf.Timestamp") from None


_SCALARS: dict[str, Callable[[Any], Any]] = {
    "text": _text, "flag": _flag, "number": _number, "integer": _integer, "bytes": _bytes,
    "object": _object, "json": _json, "duration": _duration, "time": _time,
}  # fmt: skip

"""What all wire types of the OpenAI dialect have in common: strict reading, and how each field stands.

A request is read into the types of `chat_wire`, `responses_wire` and `embeddings`. They are the one table of
what this server does with each field: every field carries how it stands, and a field that is not there is
refused. `standings` reads the table out.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from enum import StrEnum
from typing import Any, TypeVar, get_args

from pydantic import BaseModel, ConfigDict, GetCoreSchemaHandler, ValidationError
from pydantic_core import CoreSchema, ErrorDetails, PydanticCustomError, core_schema

from studiolo.language.errors import InvalidRequestError, UnsupportedError


class Standing(StrEnum):
    """EMULATED: done by other means than OpenAI's. IGNORED: read, and of no effect, on purpose. REFUSED: an
    error, unless the value asks for nothing. EXTENSION: not OpenAI's, and supported."""

    SUPPORTED = "supported"
    EMULATED = "emulated"
    IGNORED = "ignored"
    REFUSED = "refused"
    EXTENSION = "extension"


@dataclass(frozen=True)
class Known:
    """How a field stands, and what a user should know of it.

    Attributes:
        harmless: values of a refused field that ask for nothing, beside None.
    """

    standing: Standing
    note: str = ""
    harmless: tuple[Any, ...] = ()

    def __get_pydantic_core_schema__(self, source: Any, handler: GetCoreSchemaHandler) -> CoreSchema:
        schema = handler(source)
        if self.standing is not Standing.REFUSED:
            return schema
        return core_schema.no_info_after_validator_function(self._refuse, schema)

    def _refuse(self, value: Any) -> Any:
        if value is None or value in self.harmless:
            return value
        raise PydanticCustomError("unsupported", "not supported: {note}", {"note": self.note})


def emulated(note: str) -> Known:
    return Known(Standing.EMULATED, note)


def ignored(note: str) -> Known:
    return Known(Standing.IGNORED, note)


def refused(note: str, *harmless: Any) -> Known:
    return Known(Standing.REFUSED, note, harmless)


def extension(note: str) -> Known:
    return Known(Standing.EXTENSION, note)


class Wire(BaseModel):
    """A JSON object of a request: no unknown fields, no numbers in place of texts."""

    model_config = ConfigDict(extra="forbid", strict=True, frozen=True, allow_inf_nan=False)


W = TypeVar("W", bound=Wire)


def read(kind: type[W], data: Any, *, texts: bool = False) -> W:
    """The object that `data`, as JSON, is; or with `texts` a form, whose numbers are written as texts.

    Raises:
        UnsupportedError: a field that is refused.
        InvalidRequestError: it is none; `where` is the path of the field, such as messages[0].content.
    """
    if not isinstance(data, Mapping):
        raise InvalidRequestError("the body is no JSON object", remedy="Send an object.")
    try:
        return kind.model_validate(data, strict=False if texts else None)
    except ValidationError as error:
        raise _told(error.errors(include_url=False)[0], data) from None


def _told(detail: ErrorDetails, data: Any) -> InvalidRequestError:
    where = _path(detail, data) or None
    match detail["type"]:
        case "unsupported":
            return UnsupportedError(detail["msg"], where=where, remedy="Leave it out.")
        case "missing":
            return InvalidRequestError("missing: this parameter is required", where=where)
        case "extra_forbidden":
            return InvalidRequestError("unknown parameter", where=where, remedy="Leave it out.")
        case _:
            return InvalidRequestError(detail["msg"], where=where)


def _path(detail: ErrorDetails, data: Any) -> str:
    """The path within the data: of pydantic's own, the names of branches of unions are left out."""
    path, at = "", data
    for number, step in enumerate(detail["loc"]):
        if isinstance(at, list) and isinstance(step, int):
            path, at = f"{path}[{step}]", at[step] if step < len(at) else None
        elif isinstance(at, Mapping) and step in at:
            path, at = f"{path}.{step}", at[step]
        elif detail["type"] == "missing" and number == len(detail["loc"]) - 1:
            path = f"{path}.{step}"
    return path.removeprefix(".")


def standings(kind: type[Wire], prefix: str = "") -> Iterator[tuple[str, Known]]:
    """Every field of a request with those of the objects in it, by path, in their order."""
    seen: set[tuple[type[Wire], str]] = set()
    yield from _standings(kind, prefix, seen)


def _standings(
    kind: type[Wire], prefix: str, seen: set[tuple[type[Wire], str]]
) -> Iterator[tuple[str, Known]]:
    if (kind, prefix) in seen:
        return
    seen.add((kind, prefix))
    for name, field in kind.model_fields.items():
        known = next((item for item in field.metadata if isinstance(item, Known)), Known(Standing.SUPPORTED))
        path = f"{prefix}{field.alias or name}"
        yield path, known
        for inner in _inner(field.annotation):
            tag = _tag(inner)
            yield from standings(inner, f"{path}({tag})." if tag else f"{path}.")


def _inner(annotation: Any) -> Iterator[type[Wire]]:
    """The objects that a type speaks of."""
    if isinstance(annotation, type) and issubclass(annotation, Wire):
        yield annotation
    for part in get_args(annotation):
        yield from _inner(part)


def _tag(kind: type[Wire]) -> str:
    """What tells the object from others in its place: its role or type."""
    for name in ("role", "type"):
        if name in kind.model_fields and (values := get_args(kind.model_fields[name].annotation)):
            return "|".join(str(value) for value in values if isinstance(value, str))
    return ""

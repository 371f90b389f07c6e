"""Calls as Gemma 4 writes them: `call:weather{city:<|"|>Rome<|"|>,days:3}`.

Keys are bare and in the order of the alphabet, texts stand between two `<|"|>` as they are (there are no
escapes, so no text may contain that mark), all else is as in JSON without white space. So says the model's
chat template (`format_argument` in google/gemma-4's chat_template.jinja).

The grammar is made from the parameters' schemas. Some schemas it cannot express: texts with a pattern or a
format (regular expressions cannot be told to leave the mark out and be searched for at once), values of any
kind, objects with names that are not declared, and what JSON Schema says across values (oneOf, allOf,
uniqueItems, ...). For these the calls of the request are written in another form.
"""

from __future__ import annotations

import json
import re
from collections.abc import Mapping
from typing import Any

from studiolo.language.decoding.schema import ASSERTIONS, Schema, fault
from studiolo.language.errors import UnsupportedError

QUOTE = '<|"|>'
_ANY = "(?s:.*)"
_QUOTE_WITHIN = _ANY + r"<\|\"\|>" + _ANY
_KEY = re.compile(r"[A-Za-z0-9_$.-]+")
_TIGHT = {"whitespace_flexible": False}
_NUMBERS = frozenset(["type", "minimum", "maximum", "exclusiveMinimum", "exclusiveMaximum", "multipleOf"])


def grammar(functions: Mapping[str, Schema]) -> str:
    """One call to one of the functions, as a grammar of llguidance.

    Args:
        functions: the schema of each one's arguments, normalised, by name.

    Raises:
        UnsupportedError: a schema that this form cannot express.
    """
    rules = _Rules()
    calls = [
        f"{_literal('call:' + name)} {rules.value(schema, schema, name)}"
        for name, schema in functions.items()
    ]
    return "\n".join(["start: " + " | ".join(calls), *rules.written])


class _Rules:
    """The rules of a grammar that is being written."""

    def __init__(self) -> None:
        self.written: list[str] = []
        self._of_reference: dict[tuple[str, str], str] = {}
        self._count = 0

    def _named(self, kind: str) -> str:
        self._count += 1
        return f"{kind}{self._count}"

    def _rule(self, body: str, name: str | None = None) -> str:
        name = name or self._named("r")
        self.written.append(f"{name}: {body}")
        return name

    def value(self, schema: Any, root: Schema, function: str) -> str:
        """What stands for a value of the schema in a rule."""
        if not isinstance(schema, dict):
            raise _inexpressible("a value of any kind", function)
        said = schema.keys() & ASSERTIONS
        if "$ref" in said:
            _only(said, {"$ref"}, function)
            return self._reference(str(schema["$ref"]), root, function)
        if said & {"enum", "const"}:
            return self._choice(schema, root, function)
        if "anyOf" in said:
            _only(said, {"anyOf"}, function)
            branches = [self.value(branch, root, function) for branch in schema["anyOf"]]
            return self._rule(" | ".join(branches))
        kinds = schema.get("type")
        if isinstance(kinds, list):
            one_each = [self.value(_of_kind(schema, kind), root, function) for kind in kinds]
            return self._rule(" | ".join(one_each))
        return self._of_type(schema, str(kinds), root, function)

    def _of_type(self, schema: Schema, kind: str, root: Schema, function: str) -> str:
        said = schema.keys() & ASSERTIONS
        if kind == "string":
            _only(said, {"type", "minLength", "maxLength"}, function)
            return self._text(schema)
        if kind == "array":
            _only(said, {"type", "items", "minItems", "maxItems"}, function)
            return self._array(schema, root, function)
        if kind == "object":
            _only(said, {"type", "properties", "required", "additionalProperties"}, function)
            return self._object(schema, root, function)
        if kind in ("integer", "number", "boolean", "null"):
            _only(said, _NUMBERS, function)
            held = {key: schema[key] for key in sorted(said)}
            return self._rule("%json " + json.dumps({"x-guidance": _TIGHT} | held))
        raise _inexpressible("a value of any kind", function)

    def _reference(self, reference: str, root: Schema, function: str) -> str:
        key = (function, reference)
        if key not in self._of_reference:
            self._of_reference[key] = name = self._named("r")
            self._rule(self.value(_at(reference, root, function), root, function), name)
        return self._of_reference[key]

    def _choice(self, schema: Schema, root: Schema, function: str) -> str:
        values = schema["enum"] if "enum" in schema else [schema["const"]]
        whole = {**schema, "$defs": root.get("$defs", {})}
        texts = [_scalar(value, function) for value in values if not fault(value, whole)]
        if not texts:
            raise _inexpressible("a choice of nothing", function)
        return self._rule(" | ".join(_literal(text) for text in texts))

    def _text(self, schema: Schema) -> str:
        """As one terminal: the engine takes the longest match of each, which would run into the mark."""
        name, most = self._named("TEXT"), schema.get("maxLength", "")
        length = f"(?s:.{{{schema.get('minLength', 0)},{most}}})"
        self.written += [
            f"{name}: {_literal(QUOTE)} {name}_INNER {_literal(QUOTE)}",
            f"{name}_INNER: /{length}/ & ~/{_QUOTE_WITHIN}/",
        ]
        return name

    def _array(self, schema: Schema, root: Schema, function: str) -> str:
        least, most = schema.get("minItems", 0), schema.get("maxItems")
        if most == 0:
            return '"[]"'
        item = self.value(schema.get("items"), root, function)
        more = f'("," {item}){{{max(least - 1, 0)},{"" if most is None else most - 1}}}'
        items = f"{item} {more}"
        return self._rule(f'"[" {items} "]"' if least else f'"[" ({items})? "]"')

    def _object(self, schema: Schema, root: Schema, function: str) -> str:
        properties, required = schema.get("properties", {}), set(schema.get("required", ()))
        if not properties and schema.get("additionalProperties") is not False:
            raise _inexpressible("an object of any names", function)
        if required - properties.keys():
            raise _inexpressible("a required name that is not declared", function)
        first = more = '""'  # what may follow where nothing, and where something, stands before
        for key in sorted(properties, key=str.lower, reverse=True):
            if not _KEY.fullmatch(key):
                raise _inexpressible(f"the name {key!r}", function)
            member = f"{_literal(key + ':')} {self.value(properties[key], root, function)}"
            if key in required:
                first, more = self._rule(f"{member} {more}"), self._rule(f'"," {member} {more}')
            else:
                first, more = (
                    self._rule(f"{member} {more} | {first}"),
                    self._rule(f'"," {member} {more} | {more}'),
                )
        return self._rule(f'"{{" {first} "}}"')


def _of_kind(schema: Schema, kind: str) -> Schema:
    """The schema for one of its types: what it says of other types is left out."""
    own = {
        "string": {"minLength", "maxLength", "pattern", "format"},
        "array": {"items", "minItems", "maxItems", "uniqueItems", "prefixItems"},
        "object": {"properties", "required", "additionalProperties", "patternProperties"},
        "integer": _NUMBERS,
        "number": _NUMBERS,
    }
    foreign = set().union(*own.values()) - set(own.get(kind, ()))
    return {key: value for key, value in schema.items() if key not in foreign} | {"type": kind}


def _at(reference: str, root: Schema, function: str) -> Any:
    """What a reference within the schema leads to (RFC 6901)."""
    found: Any = root
    for step in reference.removeprefix("#").split("/")[1:]:
        key = step.replace("~1", "/").replace("~0", "~")
        if not isinstance(found, dict) or key not in found:
            raise _inexpressible(f"the reference {reference!r}", function)
        found = found[key]
    return found


def _scalar(value: Any, function: str) -> str:
    if isinstance(value, str) and QUOTE not in value:
        return f"{QUOTE}{value}{QUOTE}"
    if value is None or isinstance(value, bool | int | float):
        return json.dumps(value)
    raise _inexpressible(f"the value {json.dumps(value)[:40]}", function)


def _literal(text: str) -> str:
    return json.dumps(text, ensure_ascii=False)


def _only(said: set[str], known: set[str] | frozenset[str], function: str) -> None:
    if unknown := said - known:
        raise _inexpressible(f"the keyword {min(unknown)!r}", function)


def _inexpressible(what: str, function: str) -> UnsupportedError:
    return UnsupportedError(f"Gemma's form of calls cannot express {what}", where=f"tools.{function}")


# --- reading -----------------------------------------------------------------------------------------------


def parsed(text: str) -> tuple[str, dict[str, Any]]:
    """Name and arguments of a call.

    Raises:
        ValueError: it is none.
    """
    name, brace, rest = text.removeprefix("call:").partition("{")
    if not text.startswith("call:") or not brace:
        raise ValueError("no call")
    arguments, end = _read_object(brace + rest, 0)
    if brace + rest != (brace + rest)[:end]:
        raise ValueError("something stands behind the call")
    return name, arguments


def _read(text: str, at: int) -> tuple[Any, int]:
    """The value that begins there, and where it ends."""
    if text.startswith(QUOTE, at):
        end = text.index(QUOTE, at + len(QUOTE))
        return text[at + len(QUOTE) : end], end + len(QUOTE)
    if text.startswith("{", at):
        return _read_object(text, at)
    if text.startswith("[", at):
        return _read_array(text, at)
    return json.JSONDecoder().raw_decode(text, at)


def _read_object(text: str, at: int) -> tuple[dict[str, Any], int]:
    made: dict[str, Any] = {}
    at += 1
    while not text.startswith("}", at):
        colon = text.index(":", at)
        made[text[at:colon]], at = _read(text, colon + 1)
        at = _behind_comma(text, at, "}")
    return made, at + 1


def _read_array(text: str, at: int) -> tuple[list[Any], int]:
    made: list[Any] = []
    at += 1
    while not text.startswith("]", at):
        item, at = _read(text, at)
        made.append(item)
        at = _behind_comma(text, at, "]")
    return made, at + 1


def _behind_comma(text: str, at: int, end: str) -> int:
    if text.startswith(",", at):
        return at + 1
    if not text.startswith(end, at):
        raise ValueError(f"neither a comma nor {end!r} at {at}")
    return at

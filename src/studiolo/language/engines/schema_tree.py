"""Where schemas lie within a JSON Schema (2020-12), and what is not one although it looks like it: the values
of `const`, `enum`, `default` and the like."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from typing import Any, cast

Schema = dict[str, Any]

ONE = frozenset(
    {
        "additionalProperties",
        "items",
        "not",
        "if",
        "then",
        "else",
        "contains",
        "propertyNames",
        "unevaluatedItems",
        "unevaluatedProperties",
        "contentSchema",
    }
)
"""Keywords with a schema."""
LIST = frozenset(["allOf", "anyOf", "oneOf", "prefixItems"])
"""Keywords with a list of schemas."""
MAP = frozenset(["properties", "patternProperties", "dependentSchemas", "$defs", "definitions"])
"""Keywords with schemas by name."""


def walk(schema: Any, where: str) -> Iterator[tuple[str, Schema]]:
    """The schema and all within it, each with its place."""
    if isinstance(schema, Mapping):
        yield where, cast(Schema, schema)
        for key, inner in within(schema):
            yield from walk(inner, f"{where}.{key}")


def within(schema: Mapping[str, Any]) -> Iterator[tuple[str, Any]]:
    """The schemas one level below, each with its place."""
    for key, value in schema.items():
        if key in ONE:
            yield key, value
        elif key in LIST and isinstance(value, list | tuple):
            yield from ((f"{key}[{index}]", item) for index, item in enumerate(value))
        elif key in MAP and isinstance(value, Mapping):
            yield from ((f"{key}.{name}", item) for name, item in value.items())


def changed(schema: Any, change: Callable[[Schema], Schema]) -> Any:
    """The schema with `change` made to it and to all within it, the inner ones first."""
    if not isinstance(schema, Mapping):
        return schema
    made: Schema = {}
    for key, value in schema.items():
        if key in ONE:
            value = changed(value, change)
        elif key in LIST and isinstance(value, list | tuple):
            value = [changed(item, change) for item in value]
        elif key in MAP and isinstance(value, Mapping):
            value = {name: changed(item, change) for name, item in value.items()}
        made[key] = value
    return change(made)

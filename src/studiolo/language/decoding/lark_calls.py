"""Calls of functions whose input is a text of a Lark grammar, not JSON.

Such a text would have to be escaped within a string, where no grammar could follow it. So the name stands on
a line of its own, and the text as it is below it, up to the end of the call:

    <tool_call>
    sql
    SELECT name FROM towns
    </tool_call>

Other functions of the same request are called in JSON, as always (`forms.EMULATED`).
"""

from __future__ import annotations

import json
from collections.abc import Iterator, Mapping
from typing import Any

from studiolo.language.conversation import Call, Tool
from studiolo.language.decoding.forms import Named, call_schema
from studiolo.language.decoding.schema import Schema
from studiolo.language.engines.completer import Constraint
from studiolo.language.engines.constraints import problem
from studiolo.language.errors import UnsupportedError

INPUT = "input"
"""The one argument of such a function."""
_ONE_LINE = {"x-guidance": {"whitespace_flexible": False, "item_separator": ", ", "key_separator": ": "}}


def checked(tool: Tool) -> str:
    """The grammar of a tool's input.

    Raises:
        UnsupportedError: it cannot be enforced; says why.
    """
    grammar = tool.grammar or ""
    if found := problem(Constraint("lark", grammar)):
        raise UnsupportedError(
            f"this grammar cannot be enforced: {found}",
            where=f"tools.{tool.name}.grammar",
            remedy="See llguidance's dialect of Lark: docs/syntax.md there.",
        )
    return grammar


def constraint(schemas: Mapping[str, Schema], grammars: Mapping[str, str]) -> Constraint:
    """What one call is held to, from the schemas of all functions and the grammars of some."""
    branches, rules = list[str](), list[str]()
    if plain := {name: held for name, held in schemas.items() if name not in grammars}:
        branches.append("in_json")
        rules.append(f"in_json: %json {json.dumps(_ONE_LINE | call_schema(plain))}")
    for number, (name, grammar) in enumerate(grammars.items()):
        branches.append(f"{json.dumps(_head(name))} input_{number}")
        rules.append(f"input_{number}: %lark {{\n{grammar}\n}}")
    return Constraint("lark", "\n".join([f"start: {' | '.join(branches)}", *rules]))


def read(text: str, grammars: Mapping[str, str]) -> list[Named]:
    """The call in what the model wrote; none if it is in JSON."""
    for name in grammars:
        if text.startswith(head := _head(name)):
            return [(name, {INPUT: text.removeprefix(head)})]
    return []


def written(call: Call) -> str:
    """A call as the model writes it, without the tags."""
    return _head(call.name) + str(call.arguments.get(INPUT, ""))


def told(grammars: Mapping[str, str]) -> Iterator[str]:
    """What the model is told of each: how it is called, and with what."""
    for name, grammar in grammars.items():
        yield (
            f"To call {name}, write only its name, {name}, on the first line, and its input below it, "
            f"as it is and not as JSON. The input is of this grammar:\n{grammar}"
        )


def arguments() -> dict[str, Any]:
    """The schema of the one argument."""
    return {
        "type": "object",
        "properties": {INPUT: {"type": "string"}},
        "required": [INPUT],
        "additionalProperties": False,
    }


def _head(name: str) -> str:
    # It must not begin as a call in JSON does: llguidance's lexer takes the longest literal it can, and would
    # not go back to the other.
    return f"{name}\n"

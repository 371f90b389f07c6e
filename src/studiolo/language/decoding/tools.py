"""Functions that a model may call: how they are told to it, and what its calls are held to.

Calls are written as `<tool_call>` {"name": ..., "arguments": {...}} `</tool_call>`: the form of Hermes and
Qwen. Templates that know this form declare the tools themselves; for all others (no tools in the template, or
another way to write them) the tools are described in the system text and the same form is asked for. Between
the tags the model is held to one of the declared functions with arguments of its schema, so that a call is
sound whenever it is whole.
"""

from __future__ import annotations

import json
import uuid
from dataclasses import dataclass
from typing import Any

from studiolo.language.conversation import Call, Request, Tool, ToolMode
from studiolo.language.decoding import schema as schemas
from studiolo.language.decoding.schema import Schema
from studiolo.language.decoding.template import Vault
from studiolo.language.decoding.turns import CALL_CLOSE, CALL_OPEN
from studiolo.language.engines.completer import Constraint
from studiolo.language.errors import InvalidRequestError, UpstreamError

MAX_CALLS = 32
"""Calls of one turn; a small model may not know where to end."""


@dataclass(frozen=True)
class ToolPlan:
    """The functions that one request allows, checked.

    Attributes:
        tools: they, in the order of the request.
        schemas: of each one's arguments, normalised, by name.
        forced: a call is to come, whatever the model thinks.
        parallel: several may come.
    """

    tools: tuple[Tool, ...]
    schemas: dict[str, Schema]
    forced: bool
    parallel: bool

    @property
    def constraint(self) -> Constraint:
        """What stands between the tags."""
        return Constraint("json", call_schema(self.schemas))

    def call(self, text: str) -> Call:
        """What was written between the tags.

        Raises:
            UpstreamError: the engine did not hold the model to the constraint.
        """
        try:
            said = json.loads(text)
            name, arguments = said["name"], said["arguments"]
            wrong = schemas.fault(arguments, self.schemas[name])
        except (ValueError, KeyError, TypeError) as error:
            wrong = repr(error)
        if wrong:
            raise UpstreamError(
                f"the engine's call is not of the form it was held to ({wrong})",
                where="tools",
                remedy="Try again; if it comes again, report it with the tools.",
            )
        return Call(name=name, arguments=arguments, id=f"call_{uuid.uuid4().hex[:16]}")


def plan(request: Request, keywords: frozenset[str] | None = None) -> ToolPlan | None:
    """What the request allows, or None where no call is to come (no tools, or mode NONE: they are not told
    then).

    Raises:
        InvalidRequestError: a name that is declared twice or not at all, parameters that are no object, a
            call that is demanded where there is no function.
        UnsupportedError: parameters that cannot be enforced.
    """
    choice = request.tool_choice
    names = [tool.name for tool in request.tools]
    if twice := {name for name in names if names.count(name) > 1}:
        raise InvalidRequestError(
            f"declared twice: {', '.join(sorted(twice))}", where="tools", remedy="Rename one."
        )
    if unknown := set(choice.allowed or ()) - set(names):
        raise InvalidRequestError(
            f"no such function: {', '.join(sorted(unknown))}",
            where="tool_choice.allowed",
            remedy=f"Declared are: {', '.join(names) or 'none'}.",
        )
    tools = tuple(tool for tool in request.tools if choice.allowed is None or tool.name in choice.allowed)
    if choice.mode is ToolMode.ANY and not tools:
        raise InvalidRequestError(
            "a call is demanded, but no function is allowed", where="tool_choice.mode", remedy="Declare one."
        )
    if choice.mode is ToolMode.NONE or not tools:
        return None
    arguments = {tool.name: _arguments(tool, keywords) for tool in tools}
    return ToolPlan(tools, arguments, choice.mode is ToolMode.ANY, choice.parallel)


def _arguments(tool: Tool, keywords: frozenset[str] | None) -> Schema:
    """The schema of a tool's arguments; none declared means none allowed."""
    where = f"tools.{tool.name}.parameters"
    if not tool.parameters:
        return {"type": "object", "properties": {}, "additionalProperties": False}
    schema = schemas.normalised(tool.parameters, where=where)
    schema.setdefault("type", "object")
    if schema["type"] != "object":
        raise InvalidRequestError(
            "parameters must be an object", where=where, remedy='Say {"type": "object", ...}.'
        )
    if (
        "properties" not in schema
        and "$ref" not in schema
        and not schema.keys() & {"anyOf", "oneOf", "allOf"}
    ):
        schema.setdefault("properties", {})
    schemas.enforceable(schema, keywords, where=where)
    return schema


def call_schema(arguments: dict[str, Schema]) -> Schema:
    """The schema of one call to one of the functions. Their own references are led to where they lie now."""
    calls: list[Schema] = []
    definitions: dict[str, Schema] = {}
    for index, (name, schema) in enumerate(arguments.items()):
        held = schema
        if any("$ref" in inner for _, inner in schemas.walk(schema, "")):
            definitions[f"f{index}"] = _moved(schema, f"#/$defs/f{index}")
            held = {"$ref": f"#/$defs/f{index}"}
        calls.append(
            {
                "type": "object",
                "properties": {"name": {"const": name}, "arguments": held},
                "required": ["name", "arguments"],
                "additionalProperties": False,
            }
        )
    whole: Schema = calls[0] if len(calls) == 1 else {"anyOf": calls}
    return {**whole, "$defs": definitions} if definitions else whole


def _moved(value: Any, root: str) -> Any:
    """A schema whose references to its own root lead to `root`."""
    if isinstance(value, list):
        return [_moved(item, root) for item in value]
    if not isinstance(value, dict):
        return value
    return {
        key: root + item[1:] if key == "$ref" and isinstance(item, str) else _moved(item, root)
        for key, item in value.items()
    }


def declarations(tools: tuple[Tool, ...], vault: Vault) -> list[dict[str, Any]]:
    """As templates take them; what people wrote is hidden."""
    declared = []
    for tool in tools:
        function: dict[str, Any] = {
            "name": tool.name,
            "description": vault.hide(tool.description),
            "parameters": vault.hide_json(tool.parameters or {"type": "object", "properties": {}}),
        }
        declared.append({"type": "function", "function": function})
    return declared


def instruction(plan: ToolPlan, vault: Vault) -> str:
    """The system text for models whose template does not know tools."""
    lines = [
        vault.hide(json.dumps(_description(tool), ensure_ascii=False), wanted=True) for tool in plan.tools
    ]
    number = "one or more functions" if plan.parallel else "one function"
    return (
        f"You may call {number} to help with the user's request. The functions, one a line:\n"
        + "\n".join(lines)
        + f"\nTo call a function, write its name and arguments as JSON:\n{CALL_OPEN}\n"
        + f'{{"name": "function name", "arguments": {{"parameter": "value"}}}}\n{CALL_CLOSE}\n'
        + ("Call one now." if plan.forced else "If no function is of help, answer in words.")
    )


def _description(tool: Tool) -> dict[str, Any]:
    told: dict[str, Any] = {"name": tool.name}
    if tool.description:
        told["description"] = tool.description
    return {**told, "parameters": tool.parameters or {}}

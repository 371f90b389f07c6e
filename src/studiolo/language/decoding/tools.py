"""Functions that a model may call: how they are told to it, and what its calls are held to.

Calls are written in one of the forms of `forms`. Where it is the template's own, the template declares the
functions; else they are described in the system text. Once a call is opened, the model is held to one of the
declared functions with arguments of its schema, so that a call is sound whenever it is whole.
"""

from __future__ import annotations

import json
import uuid
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import Any

from studiolo.language.conversation import Call, Format, FormatKind, Request, Tool, ToolMode
from studiolo.language.decoding import lark_calls
from studiolo.language.decoding import schema as schemas
from studiolo.language.decoding.forms import EMULATED, Form
from studiolo.language.decoding.schema import Schema
from studiolo.language.decoding.template import Vault
from studiolo.language.engines.completer import Constraint
from studiolo.language.engines.constraints import problem
from studiolo.language.errors import InvalidRequestError, UnsupportedError, UpstreamError

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
        form: how they are written.
        grammars: what the inputs of some are held to, in place of a schema.
    """

    tools: tuple[Tool, ...]
    schemas: dict[str, Schema]
    forced: bool
    parallel: bool
    form: Form = EMULATED
    grammars: Mapping[str, str] = field(default_factory=dict)

    def constraint(self, name: str | None = None) -> Constraint:
        """What stands behind an opening; behind the name, where that is chosen before.

        Raises:
            UnsupportedError: the form cannot express a function's parameters.
        """
        if self.grammars:
            return lark_calls.constraint(self.schemas, self.grammars)
        held = self.schemas if name is None else {name: self.schemas[name]}
        return self.form.constraint(held, MAX_CALLS if self.parallel else 1)

    def calls(self, text: str) -> list[Call]:
        """What was written behind an opening.

        Raises:
            UpstreamError: the engine did not hold the model to the constraint.
        """
        try:
            made = lark_calls.read(text, self.grammars) or self.form.read(text)
            faults = [schemas.fault(arguments, self.schemas[name]) for name, arguments in made]
            wrong = next(filter(None, faults), "")
        except (ValueError, KeyError, TypeError) as error:
            wrong = repr(error)
        if wrong:
            raise UpstreamError(
                f"the engine's call is not of the form it was held to ({wrong})",
                where="tools",
                remedy="Try again; if it comes again, report it with the tools.",
            )
        return [
            Call(name=name, arguments=arguments, id=f"call_{uuid.uuid4().hex[:16]}")
            for name, arguments in made
        ]


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
    arguments = {
        tool.name: _arguments(tool, keywords) if tool.grammar is None else lark_calls.arguments()
        for tool in tools
    }
    grammars = {tool.name: lark_calls.checked(tool) for tool in tools if tool.grammar is not None}
    forced = choice.mode is ToolMode.ANY
    return ToolPlan(tools, arguments, forced, choice.parallel, grammars=grammars)


def fits(form: Form, plan: ToolPlan | None, wanted: Format) -> bool:
    """Whether a request's functions, and an answer of the wanted form beside them, can be had in this form of
    calls."""
    if plan is None:
        return True
    if plan.grammars:  # no model was trained to calls of these
        return False
    if not form.tagged and not plan.forced and wanted.kind is not FormatKind.TEXT:
        return False
    try:
        return not any(problem(replace(plan, form=form).constraint(name)) for name in _steps(form, plan))
    except UnsupportedError:
        return False


def _steps(form: Form, plan: ToolPlan) -> Sequence[str | None]:
    return list(plan.schemas) if form.apart else [None]


def _arguments(tool: Tool, keywords: frozenset[str] | None) -> Schema:
    """The schema of a tool's arguments; none declared means none allowed."""
    where = f"tools.{tool.name}.parameters"
    if not tool.parameters:
        return {"type": "object", "properties": {}, "additionalProperties": False}
    schema = _without_more(schemas.normalised(tool.parameters, where=where))
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


_COMPOSED = {
    *("$ref", "allOf", "anyOf", "oneOf", "not", "if", "then", "else"),
    *("dependentSchemas", "patternProperties", "unevaluatedProperties"),
}


def _without_more(schema: Schema) -> Schema:
    """The schema without arguments that it does not name, where it says nothing of such: a function has no
    use for them, and small models fill them with what they have read in the schema."""
    if schema.keys() & _COMPOSED:
        return schema
    made = dict(schema)
    if "properties" in made:
        made.setdefault("additionalProperties", False)
        made["properties"] = {key: _inner_without_more(value) for key, value in made["properties"].items()}
    if "items" in made:
        made["items"] = _inner_without_more(made["items"])
    return made


def _inner_without_more(schema: Any) -> Any:
    return _without_more(schema) if isinstance(schema, dict) else schema


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
    if plan.grammars:
        lines += [vault.hide(text, wanted=True) for text in lark_calls.told(plan.grammars)]
    number = "one or more functions" if plan.parallel else "one function"
    return (
        f"You may call {number} to help with the user's request. The functions, one a line:\n"
        + "\n".join(lines)
        + f"\nTo call a function, write its name and arguments as JSON:\n{EMULATED.openings[0]}\n"
        + f'{{"name": "function name", "arguments": {{"parameter": "value"}}}}{EMULATED.close}\n'
        + ("Call one now." if plan.forced else "If no function is of help, answer in words.")
    )


def _description(tool: Tool) -> dict[str, Any]:
    told: dict[str, Any] = {"name": tool.name}
    if tool.grammar is not None:
        return told | {"description": tool.description, "input": "a text of the grammar below"}
    if tool.description:
        told["description"] = tool.description
    return {**told, "parameters": tool.parameters or {}}

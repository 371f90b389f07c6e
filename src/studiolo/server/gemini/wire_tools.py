"""Functions of the Gemini dialect's messages: their declarations, and which of them are to be called."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from typing import Any

from studiolo.language.conversation import Tool, ToolChoice, ToolMode
from studiolo.language.errors import InvalidRequestError, UnsupportedError

Fields = Mapping[str, Any]


def tools_of(tools: Iterable[Fields]) -> tuple[Tool, ...]:
    """The functions that a model may call."""
    return tuple(
        _tool(declaration, f"tools[{outer}].function_declarations[{inner}]")
        for outer, tool in enumerate(tools)
        for inner, declaration in enumerate(tool.get("functionDeclarations", []))
    )


def tool_choice_of(config: Fields) -> ToolChoice:
    """Whether it must, and which of them."""
    calling = config.get("functionCallingConfig", {})
    mode = calling.get("mode", "AUTO")
    mode = ToolMode.AUTO if mode == "MODE_UNSPECIFIED" else ToolMode(mode.lower())
    allowed = calling.get("allowedFunctionNames") or None
    if allowed and mode not in (ToolMode.ANY, ToolMode.VALIDATED):
        raise InvalidRequestError(
            "allowed_function_names should only be set when function calling mode is ANY or VALIDATED",
            where="tool_config.function_calling_config.allowed_function_names",
            remedy="Set the mode, or leave the names out.",
        )
    return ToolChoice(mode=mode, allowed=tuple(allowed) if allowed else None)


def name_of(named: Fields, where: str) -> str:
    """The name of a function; InvalidRequestError where there is none."""
    if not named.get("name"):
        raise InvalidRequestError("no name", where=f"{where}.name", remedy="Name the function.")
    return str(named["name"])


def schema_of(message: Fields, openapi: str, json_schema: str, where: str) -> dict[str, Any] | None:
    """The schema that a message has in one of two fields, if it has one."""
    if openapi in message and json_schema in message:
        raise InvalidRequestError(
            f"both {openapi} and {json_schema}", where=where, remedy="Give one of them."
        )
    schema = message.get(openapi, message.get(json_schema))
    if schema is not None and not isinstance(schema, dict):
        raise InvalidRequestError("a schema is an object", where=f"{where}.{json_schema}")
    return schema


def _tool(declaration: Fields, where: str) -> Tool:
    if declaration.get("behavior") == "NON_BLOCKING":
        raise UnsupportedError("calls are blocking here", where=f"{where}.behavior", remedy="Leave it out.")
    name = name_of(declaration, where)
    try:
        return Tool(
            name=name,
            description=declaration.get("description", ""),
            parameters=schema_of(declaration, "parameters", "parametersJsonSchema", where),
            returns=schema_of(declaration, "response", "responseJsonSchema", where),
        )
    except ValueError:
        raise InvalidRequestError(
            "Invalid function name. Must start with a letter or an underscore. Must be alphanumeric (a-z, "
            "A-Z, 0-9), underscores (_), dots (.), colons (:) or dashes (-), with a maximum length of 128.",
            where=f"{where}.name",
        ) from None

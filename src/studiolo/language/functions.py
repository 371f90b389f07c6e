"""Python functions as tools: declared from their signature and docstring, called with checked arguments."""

from __future__ import annotations

import asyncio
import inspect
import json
from collections.abc import Callable, Mapping, Sequence
from typing import Any, NotRequired, get_type_hints

from pydantic import BaseModel, ConfigDict, TypeAdapter, ValidationError
from typing_extensions import TypedDict  # pydantic takes typing's own from Python 3.12 on

from studiolo.language.conversation import Call, CallResult, Tool
from studiolo.language.errors import InvalidRequestError

Function = Callable[..., Any]


def declared(function: Function) -> Tool:
    """The tool that `function` is: its name, the first paragraph of its docstring, its parameters' types.

    Raises:
        InvalidRequestError: a parameter without a type, or with one that has no JSON form.
    """
    name = getattr(function, "__name__", "")
    signature = inspect.signature(function)
    for parameter in signature.parameters.values():
        if parameter.kind in (parameter.VAR_POSITIONAL, parameter.VAR_KEYWORD, parameter.POSITIONAL_ONLY):
            raise InvalidRequestError(
                f"the parameter {parameter} cannot be given by name", where=f"function {name}"
            )
        if parameter.annotation is parameter.empty:
            raise InvalidRequestError(
                f"the parameter {parameter.name} has no type",
                where=f"function {name}",
                remedy=f"Write one: {parameter.name}: str",
            )
    try:
        adapter: TypeAdapter[Any] = TypeAdapter(function)  # type: ignore[arg-type]
        schema = adapter.json_schema()
    except Exception as error:  # pydantic raises several kinds for types that it cannot describe
        raise InvalidRequestError(f"no JSON Schema for it: {error}", where=f"function {name}") from error
    description = inspect.getdoc(function) or ""
    return Tool(name=name, description=description.split("\n\n")[0], parameters=_plain(schema))


def _plain(schema: dict[str, Any]) -> dict[str, Any]:
    """Without the titles that pydantic makes of names."""
    properties = schema.get("properties", {})
    named = {key: {k: v for k, v in value.items() if k != "title"} for key, value in properties.items()}
    return {**schema, "type": "object", "properties": named}


async def called(call: Call, functions: Mapping[str, Function]) -> CallResult:
    """What the function of that name returns; async ones are awaited, others run in a thread.

    What goes wrong in the function is told to the model as {"error": ...}: it may do better next time.
    """
    function = functions.get(call.name)
    if function is None:
        result: Any = {"error": f"there is no function {call.name}"}
    else:
        result = await _result(function, call.arguments)
    return CallResult(name=call.name, id=call.id, result=result)


async def _result(function: Function, arguments: Mapping[str, Any]) -> Any:
    try:
        checked = TypeAdapter(_binding(function)).validate_python(dict(arguments))
        if inspect.iscoroutinefunction(function):
            return _json(await function(**checked))
        return _json(await asyncio.to_thread(function, **checked))
    except ValidationError as error:
        return {"error": f"wrong arguments: {error.errors(include_url=False)}"}
    except Exception as error:  # the user's own code may raise anything
        return {"error": f"{type(error).__name__}: {error}"}


def _binding(function: Function) -> Any:
    """A TypedDict of the function's parameters, for pydantic to convert the model's JSON with."""
    hints = get_type_hints(function, include_extras=True)
    fields = {
        name: hints[name] if parameter.default is parameter.empty else NotRequired[hints[name]]
        for name, parameter in inspect.signature(function).parameters.items()
    }
    make: Any = TypedDict  # type checkers want to see its fields
    binding = make(function.__name__, fields)
    binding.__pydantic_config__ = ConfigDict(extra="forbid")
    return binding


def _json(value: Any) -> Any:
    """`value` as JSON has it; what JSON cannot say becomes its text."""
    if isinstance(value, BaseModel):
        return value.model_dump(mode="json")
    return json.loads(json.dumps(value, default=str))


def by_name(functions: Sequence[Function]) -> dict[str, Function]:
    """The functions under their names.

    Raises:
        InvalidRequestError: two of the same name.
    """
    found: dict[str, Function] = {}
    for function in functions:
        if found.setdefault(function.__name__, function) is not function:
            raise InvalidRequestError("two functions have this name", where=function.__name__)
    return found

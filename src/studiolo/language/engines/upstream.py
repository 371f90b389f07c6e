"""What engines over another server share: keys, time limits, kinds of errors, checked calls and answers."""

from __future__ import annotations

import asyncio
import email.utils
import json
import math
import os
import time
from collections.abc import AsyncGenerator, Awaitable, Iterator, Mapping, Sequence
from contextlib import aclosing, contextmanager
from dataclasses import dataclass
from typing import Any, TypeVar

from jsonschema import Draft202012Validator, validators
from jsonschema.exceptions import SchemaError, ValidationError
from pydantic import SecretStr
from referencing import Registry
from referencing.exceptions import Unresolvable

from studiolo.language.conversation import (
    Call,
    FinishReason,
    Format,
    FormatKind,
    Request,
    Tool,
    ToolMode,
)
from studiolo.language.errors import (
    AuthenticationError,
    InvalidRequestError,
    LanguageError,
    OverloadedError,
    RateLimitError,
    TimedOutError,
    UnknownModelError,
    UnsupportedError,
    UpstreamError,
)

T = TypeVar("T")

_LONGEST_MESSAGE = 600  # characters; a proxy's error page is longer and says no more


# --- keys -------------------------------------------------------------------------------------------------


def find_key(given: str | None, variables: Sequence[str], *, upstream: str) -> SecretStr:
    """The key that was given, or that of the first of these environment variables that is set.

    It stays wrapped, so that no repr, log or error shows it.

    Raises:
        AuthenticationError: there is none.
    """
    for key in (given, *(os.environ.get(name) for name in variables)):
        if key and key.strip():
            return SecretStr(key.strip())
    raise AuthenticationError(
        "no key for this upstream",
        where=upstream,
        remedy=f"Set the environment variable {' or '.join(variables)}.",
    )


def without_key(message: str, key: SecretStr | None) -> str:
    """The message, cut to a bearable length, with the key blotted out where the server repeated it."""
    secret = key.get_secret_value() if key else ""
    if secret:
        message = message.replace(secret, "***")
    message = " ".join(message.split())
    return message if len(message) <= _LONGEST_MESSAGE else f"{message[:_LONGEST_MESSAGE]}..."


# --- time limits ------------------------------------------------------------------------------------------


@dataclass(frozen=True)
class TimeLimits:
    """How long to wait, in seconds; None waits without end.

    Attributes:
        connect: for the connection.
        first: from the request to the first piece of the answer (the prompt is being read).
        between: from one piece to the next.
        whole: from the request to the end.
    """

    connect: float | None = 10.0
    first: float | None = 300.0
    between: float | None = 120.0
    whole: float | None = None


async def timed(pieces: AsyncGenerator[T], limits: TimeLimits, *, where: str) -> AsyncGenerator[T]:
    """The pieces as they come, each within its time; `pieces` is closed with this generator.

    Raises:
        TimedOutError: says which limit was passed.
    """
    now = asyncio.get_running_loop().time
    end = math.inf if limits.whole is None else now() + limits.whole
    limit, what = limits.first, "no answer"
    async with aclosing(pieces):
        while True:
            due = math.inf if limit is None else now() + limit
            try:
                async with asyncio.timeout_at(
                    None if (until := min(due, end)) == math.inf else until
                ) as timer:
                    piece = await anext(pieces)
            except StopAsyncIteration:
                return
            except TimeoutError as error:
                if not timer.expired():
                    raise
                if due <= end:
                    raise TimedOutError(f"{what} within {limit:g} s", where=where) from error
                raise TimedOutError(f"no end within {limits.whole:g} s", where=where) from error
            yield piece
            limit, what = limits.between, "nothing more"


async def in_time(answer: Awaitable[T], limits: TimeLimits, *, where: str) -> T:
    """One answer that comes whole, within `limits.first`.

    Raises:
        TimedOutError: it did not come.
    """
    try:
        async with asyncio.timeout(limits.first) as timer:
            return await answer
    except TimeoutError as error:
        if not timer.expired():
            raise
        raise TimedOutError(f"no answer within {limits.first:g} s", where=where) from error


# --- errors -----------------------------------------------------------------------------------------------


def error_of_status(
    status: int, message: str, *, where: str, retry_after: float | None = None
) -> LanguageError:
    """The kind of error that an HTTP status stands for."""
    match status:
        case 401 | 403:
            return AuthenticationError(message, where=where, remedy="Check the key and what it is allowed.")
        case 404:
            return UnknownModelError(message, where=where, remedy="Check the model's name at this upstream.")
        case 408 | 504:
            return TimedOutError(message, where=where)
        case 429:
            return RateLimitError(message, where=where, retry_after=retry_after)
        case 503 | 529:
            return OverloadedError(message, where=where, retry_after=retry_after)
        case _ if 400 <= status < 500 and status != 409:
            return InvalidRequestError(message, where=where)
        case _:
            return UpstreamError(message, where=where)


def retry_after_of(headers: Mapping[str, str]) -> float | None:
    """Seconds that `retry-after-ms` or `Retry-After` (seconds or a date, RFC 9110) ask for."""
    for name, unit in (("retry-after-ms", 0.001), ("retry-after", 1.0)):
        try:
            seconds = float(headers.get(name, "")) * unit
        except ValueError:
            continue
        return max(seconds, 0.0) if math.isfinite(seconds) else None
    date = email.utils.parsedate_tz(headers.get("retry-after", ""))
    return None if date is None else max(email.utils.mktime_tz(date) - time.time(), 0.0)


@contextmanager
def protocol_kept(where: str) -> Iterator[None]:
    """Turns what goes wrong while a server's words are read into an `UpstreamError`."""
    try:
        yield
    except (ValueError, TypeError, KeyError, AttributeError, IndexError) as error:
        raise UpstreamError(
            f"it said something that its protocol does not allow ({type(error).__name__})", where=where
        ) from error


def broken_off(where: str) -> UpstreamError:
    return UpstreamError("the answer broke off before its end", where=where)


# --- calls ------------------------------------------------------------------------------------------------


class MalformedCallError(Exception):
    """The model's call cannot be made; says why."""


def usable_tools(request: Request) -> tuple[Tool, ...]:
    """The tools of this request that the model is told of.

    Raises:
        InvalidRequestError: a name that is not declared or is declared twice, no tool where one must be
            called, or parameters that are no JSON Schema.
        UnsupportedError: a tool that is held to a grammar.
    """
    declared = {tool.name: tool for tool in request.tools}
    if len(declared) < len(request.tools):
        raise InvalidRequestError("two tools have the same name", where="tools")
    allowed = request.tool_choice.allowed
    for name in allowed or ():
        if name not in declared:
            raise InvalidRequestError(
                "no tool of this name is declared", where=f"tool_choice.allowed: {name}"
            )
    usable = tuple(tool for tool in request.tools if allowed is None or tool.name in allowed)
    if request.tool_choice.mode is ToolMode.ANY and not usable:
        raise InvalidRequestError("a tool must be called, and there is none", where="tool_choice")
    for tool in usable:
        if tool.grammar is not None:
            raise UnsupportedError(
                "upstreams hold no function to a grammar", where=f"tools.{tool.name}", remedy="Give a schema."
            )
        check_schema(tool.parameters or {}, where=f"tools.{tool.name}.parameters")
    return usable


def callable_tools(request: Request) -> dict[str, Tool]:
    """The tools that an answer may call, by name."""
    if request.tool_choice.mode is ToolMode.NONE:
        return {}
    return {tool.name: tool for tool in usable_tools(request)}


def check_schema(schema: dict[str, Any], *, where: str) -> None:
    """
    Raises:
        InvalidRequestError: it is no JSON Schema.
    """
    try:
        validators.validator_for(schema, Draft202012Validator).check_schema(schema)
    except SchemaError as error:
        raise InvalidRequestError(f"not a JSON Schema: {error.message}", where=where) from error


def checked_call(
    tools: Mapping[str, Tool], name: str, arguments: str | Mapping[str, Any], *, call_id: str = "",
    signature: bytes | None = None,
) -> Call:  # fmt: skip
    """The call, if its tool may be called and its arguments are valid against the declared parameters.

    Args:
        tools: those that may be called, by name.
        arguments: a JSON object, or its text (empty stands for no arguments).

    Raises:
        MalformedCallError: says what is wrong with it.
    """
    if name not in tools:
        raise MalformedCallError(f"'{name}' was called, which is no tool of this request")
    try:
        value = json.loads(arguments.strip() or "{}") if isinstance(arguments, str) else dict(arguments)
    except ValueError as error:
        raise MalformedCallError(f"the arguments of '{name}' are not JSON ({error})") from error
    if not isinstance(value, dict):
        raise MalformedCallError(f"the arguments of '{name}' are no JSON object")
    if fault := _fault(value, tools[name].parameters):
        raise MalformedCallError(f"the arguments of '{name}' are not as declared: {fault}")
    return Call(name=name, arguments=value, id=call_id, signature=signature)


def _fault(arguments: dict[str, Any], parameters: dict[str, Any] | None) -> str | None:
    if parameters is None:
        return "it takes none" if arguments else None
    return _invalid(arguments, parameters)


def _invalid(value: Any, schema: dict[str, Any]) -> str | None:
    """Why the value is not valid, or None."""
    # An empty registry: a reference to elsewhere must not make this program fetch it.
    validator = validators.validator_for(schema, Draft202012Validator)(schema, registry=Registry())
    try:
        validator.validate(value)
    except ValidationError as error:
        return f"{error.json_path}: {error.message}"
    except Unresolvable as error:
        return f"the reference {error.ref} in the schema leads nowhere"
    return None


# --- answers ----------------------------------------------------------------------------------------------


def broken_promise(request: Request, text: str, *, called: bool) -> tuple[FinishReason, str] | None:
    """How to end an answer that its server calls whole, but that is not what was asked for.

    Some servers take a format or a tool choice, say nothing, and do not keep to it.
    """
    if called:
        return None
    if request.tool_choice.mode is ToolMode.ANY:
        return FinishReason.MALFORMED_CALL, "a function was to be called, and none was"
    fault = _format_fault(request.config.format, text)
    return (
        None if fault is None else (FinishReason.OTHER, f"the answer is not of the form asked for: {fault}")
    )


def _format_fault(wanted: Format, text: str) -> str | None:
    if wanted.kind is FormatKind.CHOICE and isinstance(wanted.rule, tuple):
        return None if text in wanted.rule else "it is none of the choices"
    if wanted.kind is not FormatKind.JSON:
        return None
    try:
        value = json.loads(text)
    except ValueError as error:
        return f"it is not JSON ({error})"
    return _invalid(value, wanted.rule) if isinstance(wanted.rule, dict) else None


# --- vectors ----------------------------------------------------------------------------------------------


def unit(vector: Sequence[float], dimensions: int | None = None) -> list[float]:
    """The vector, cut to `dimensions`, at length one (as those that are cut must be made again)."""
    kept = [float(value) for value in vector[:dimensions]]
    length = math.sqrt(math.fsum(value * value for value in kept))
    return [value / length for value in kept] if length else kept

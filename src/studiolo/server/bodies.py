"""Bodies of requests: bounded before they are read, and looked at before they are parsed."""

from __future__ import annotations

import asyncio
import json
import math
import re
from contextlib import suppress
from typing import Any

from starlette.datastructures import Headers, MutableHeaders
from starlette.requests import Request
from starlette.types import ASGIApp, Message, Receive, Scope, Send

from studiolo.errors import TooLargeError
from studiolo.language.errors import InvalidRequestError
from studiolo.server.logs import entry_of
from studiolo.server.studio import studio_behind

_STRING = re.compile(rb'"[^"\\]*+(?:\\.[^"\\]*+)*+"', re.DOTALL)
_SURROGATE = re.compile(rb"\\u[dD][89a-fA-F]")
_ALIKE = bytes.maketrans(b"{}", b"[]")
_UPLOADS = re.compile(r"/gemini/v1beta/upload/|/openai/v1/(files|uploads)(/|$)")
LINGER, LINGER_BYTES = 5.0, 2**24
"""Seconds and bytes for which a body that nobody wants is read on."""
_SHORT = 2**16  # bytes of a body that are as well read to their end
_FORM = 2**20  # what a form needs around its file
_NOT_BRACKETS = bytes(set(range(256)) - set(b"[]{}"))


async def json_body(request: Request) -> dict[str, Any]:
    """The JSON object that a request brings.

    Raises:
        TooLargeError: it has more bytes than are taken.
        InvalidRequestError: it is no JSON object, or nested too deeply.
    """
    settings = studio_behind(request).settings
    data = await bounded_body(request, settings.largest_body)
    if settings.log_prompts:
        entry_of(request.scope).prompt = data
    return json_object(data, settings.largest_depth, "the body")


def json_object(data: bytes, deepest: int, what: str) -> dict[str, Any]:
    """The JSON object that these bytes are; `what` they are, for errors.

    Raises:
        InvalidRequestError: they are none, or it is nested deeper than that.
    """
    check_depth(data, deepest)
    try:
        value = json.loads(data.decode("utf-8-sig"), parse_constant=_refused, parse_float=_finite)
    except (ValueError, RecursionError) as error:
        where = (
            f"line {error.lineno}, column {error.colno}" if isinstance(error, json.JSONDecodeError) else None
        )
        raise InvalidRequestError(
            f"{what} is no JSON", where=where, remedy="Send a JSON object in UTF-8."
        ) from error
    if not isinstance(value, dict):
        raise InvalidRequestError(f"{what} is no JSON object", remedy="Send an object: {...}.")
    if _SURROGATE.search(data):
        _check_characters(value)
    return value


def _check_characters(value: Any) -> None:
    """Refuses halves of characters: JSON can write them, and no encoding can."""
    try:
        json.dumps(value, ensure_ascii=False).encode()
    except UnicodeEncodeError as error:
        raise InvalidRequestError(
            "half of a surrogate pair stands for no character",
            where=f"\\u{ord(error.object[error.start]):04x}",
            remedy="Send both halves, or the character itself.",
        ) from None


async def bounded_body(request: Request, largest: int) -> bytes:
    """All bytes of a request.

    Raises:
        TooLargeError: there are more than `largest`; the rest is not read.
    """
    parts, size = [], 0
    async for part in request.stream():
        size += len(part)
        if size > largest:
            raise too_large(largest)
        parts.append(part)
    return b"".join(parts)


def too_large(largest: int) -> TooLargeError:
    return TooLargeError(
        f"the body has more than {largest:,} bytes", remedy="Send less, or upload a file and name it."
    )


def check_depth(data: bytes, deepest: int) -> None:
    """Refuses JSON whose objects and lists are nested deeper than that, without parsing it.

    Strings are left out, then everything but brackets; each round takes away the innermost pairs, so
    as many rounds as levels leave nothing.
    """
    brackets = _STRING.sub(b"", data).translate(_ALIKE, _NOT_BRACKETS)
    for _ in range(deepest):
        if not brackets:
            return
        brackets = brackets.replace(b"[]", b"")
    if brackets:
        raise InvalidRequestError(
            f"the JSON is nested deeper than {deepest} levels, or its brackets do not match",
            remedy="Send a flatter one.",
        )


def _refused(constant: str) -> Any:
    raise ValueError(f"{constant} is no JSON")


def _finite(text: str) -> float:
    if not math.isfinite(number := float(text)):
        raise ValueError(f"{text[:20]} is more than a number can be here")
    return number


class Unread:
    """Ends the connection of a request that is answered before its body has come.

    By itself the server would read whatever that client goes on to send, and throw it away. A little more is
    read before the end, as a client that is cut off while it sends may never see its answer.
    """

    def __init__(self, app: ASGIApp) -> None:
        self.app = app

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        left = _announced(scope)
        if left <= _SHORT:
            await self.app(scope, receive, send)
            return
        ending = False

        async def counted() -> Message:
            nonlocal left
            message = await receive()
            left = left - len(message.get("body", b"")) if message.get("more_body") else 0
            return message

        async def read_on() -> None:
            read = 0
            while left > 0 and read < LINGER_BYTES:
                read += len((await counted()).get("body", b""))

        async def ended(message: Message) -> None:
            nonlocal ending
            if message["type"] == "http.response.start" and left > _SHORT:
                ending = True
                MutableHeaders(scope=message)["connection"] = "close"
            elif ending and message["type"] == "http.response.body" and not message.get("more_body"):
                await send({**message, "more_body": True})
                with suppress(TimeoutError):
                    await asyncio.wait_for(read_on(), LINGER)
                message = {"type": "http.response.body"}
            await send(message)

        await self.app(scope, counted, ended)


def _announced(scope: Scope) -> float:
    """Bytes of a request's body, as far as it says."""
    if scope["type"] != "http":
        return 0
    headers = Headers(scope=scope)
    return math.inf if "transfer-encoding" in headers else int(headers.get("content-length", "0"))


class Bounded:
    """Refuses bodies that say themselves that they are too large, and stops reading those that turn out so.

    Uploads may be as large as a file, all else as `largest_body`.
    """

    def __init__(self, app: ASGIApp, *, largest_body: int, largest_file: int) -> None:
        self.app, self._body, self._file = app, largest_body, largest_file

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] != "http":
            await self.app(scope, receive, send)
            return
        largest = self._file + _FORM if _UPLOADS.match(scope["path"]) else self._body
        request = Request(scope)
        if int(request.headers.get("content-length", "0")) > largest:
            raise too_large(largest)
        size = 0

        async def counted() -> Message:
            nonlocal size
            message = await receive()
            size += len(message.get("body", b""))
            if size > largest:
                raise too_large(largest)
            return message

        await self.app(scope, counted, send)

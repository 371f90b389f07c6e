"""Bodies of requests: bounded before they are read, and looked at before they are parsed."""

from __future__ import annotations

import json
import math
import re
from typing import Any

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

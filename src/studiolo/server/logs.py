"""What is told of each request: one line of JSON, with its id, what it cost and whom, and no word of it.

The middleware here stands outside of everything else. It gives the request its id, sees the answer go out,
catches what nobody foresaw, and settles the account in the end.
"""

from __future__ import annotations

import asyncio
import json
import logging
import re
import secrets
import time
import traceback
from collections.abc import Awaitable, Callable
from contextvars import ContextVar
from dataclasses import dataclass, field
from datetime import UTC, datetime
from typing import Any

from starlette.datastructures import Headers, MutableHeaders
from starlette.requests import Request
from starlette.responses import Response
from starlette.types import ASGIApp, Message, Receive, Scope, Send

from studiolo.errors import StudioloError
from studiolo.language.conversation import Usage
from studiolo.server.limits import Caller
from studiolo.server.metrics import Metrics

access = logging.getLogger("studiolo.access")
server = logging.getLogger("studiolo.server")

_REQUEST_ID = re.compile(r"[A-Za-z0-9._-]{8,100}")
_GONE = 499  # as nginx writes it: the client hung up before there was a status
_LOGGED_BODY = 16_384


@dataclass
class LogEntry:
    """What becomes known of a request on its way. `first` and `began` are moments of a steady clock, in
    seconds; `at_end` is called when the answer has gone out, or its client has."""

    id: str
    began: float
    caller: Caller | None = None
    model: str | None = None
    usage: Usage | None = None
    dollars: float = 0.0
    status: int | None = None
    first: float | None = None
    prompt: bytes | None = None
    at_end: list[Callable[[], None]] = field(default_factory=list)


_current: ContextVar[LogEntry | None] = ContextVar("studiolo_request", default=None)


def current() -> LogEntry | None:
    """The entry of the request that this task works for; None outside of one."""
    return _current.get()


def entry_of(scope: Scope) -> LogEntry:
    """The entry of a request."""
    entry = scope["state"]["entry"]
    assert isinstance(entry, LogEntry)
    return entry


class Requests:
    """The outermost middleware.

    Args:
        answer: makes the answer to what nobody foresaw.
        under_way: the tasks of requests that have not ended, for who waits for them.
        log_prompts: write the bodies of requests down, cut at 16 KiB.
    """

    def __init__(
        self,
        app: ASGIApp,
        *,
        metrics: Metrics,
        answer: Callable[[Request, Exception], Awaitable[Response]],
        under_way: set[asyncio.Task[Any]],
        log_prompts: bool = False,
    ) -> None:
        self.app, self._metrics, self._answer, self._log_prompts = app, metrics, answer, log_prompts
        self._under_way = under_way

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] != "http":
            await self.app(scope, receive, send)
            return
        entry = LogEntry(_id(Headers(scope=scope)), time.perf_counter())
        asked = scope["path"]
        state = scope["state"] = {**scope.get("state", {}), "entry": entry, "dialect": None, "version": None}
        token = _current.set(entry)
        self._metrics.running.inc()
        task = asyncio.current_task()
        assert task is not None
        self._under_way.add(task)

        async def watched(message: Message) -> None:
            if message["type"] == "http.response.start":
                entry.status = message["status"]
                MutableHeaders(scope=message)["x-request-id"] = entry.id
            elif entry.first is None and message.get("body"):
                entry.first = time.perf_counter()
            await send(message)

        try:
            await self._answered(scope, receive, watched, entry)
        finally:
            for end in entry.at_end:
                end()
            self._metrics.running.dec()
            self._under_way.discard(task)
            self._settle(scope, state, entry, asked)
            _current.reset(token)

    async def _answered(self, scope: Scope, receive: Receive, send: Send, entry: LogEntry) -> None:
        try:
            await self.app(scope, receive, send)
        except Exception as error:
            if not isinstance(error, StudioloError):
                server.error("nobody foresaw this", exc_info=error)
            if entry.status is None:
                response = await self._answer(Request(scope), error)
                await response(scope, receive, send)
            # Else the server closes the connection: the client sees that its answer has no end.

    def _settle(self, scope: Scope, state: dict[str, Any], entry: LogEntry, asked: str) -> None:
        seconds = time.perf_counter() - entry.began
        status = entry.status or _GONE
        dialect, route = state["dialect"] or "", _route(scope)
        self._metrics.answered(dialect, route, status, entry.model or "", seconds)
        if route in ("/health", "/ready", "/metrics") and status < 400:
            return
        told: dict[str, Any] = {
            "request": entry.id, "method": scope["method"], "path": asked, "status": status,
            "ms": round(seconds * 1000, 1), "dialect": dialect or None, "route": route or None,
            "model": entry.model,
        }  # fmt: skip
        if entry.first is not None:
            told["first_ms"] = round((entry.first - entry.began) * 1000, 1)
        if entry.caller is not None:
            told |= {"key": entry.caller.key_id, "caller": entry.caller.name}
        if entry.usage is not None:
            told |= {"usage": entry.usage.model_dump(exclude_defaults=True), "dollars": entry.dollars}
        if self._log_prompts and entry.prompt is not None:
            told["prompt"] = entry.prompt[:_LOGGED_BODY].decode(errors="replace")
        access.info("request", extra={"told": told})


def _id(headers: Headers) -> str:
    """The client's own where it is a decent one, so that it finds its requests in our log."""
    given = headers.get("x-request-id", "")
    return given if _REQUEST_ID.fullmatch(given) else f"req_{secrets.token_hex(12)}"


def _route(scope: Scope) -> str:
    """The pattern that the path fitted; empty for a path that fitted none."""
    return str(getattr(scope.get("route"), "path_format", ""))


class JsonLines(logging.Formatter):
    """One JSON object a line. Of errors the kind and the places are told; what they say may be somebody's
    prompt, and is told only with `messages`."""

    def __init__(self, *, messages: bool = False) -> None:
        super().__init__()
        self._messages = messages

    def format(self, record: logging.LogRecord) -> str:
        line: dict[str, Any] = {
            "time": datetime.fromtimestamp(record.created, UTC).isoformat(timespec="milliseconds"),
            "level": record.levelname.lower(),
            "event": record.getMessage(),
        }
        entry = current()
        if entry is not None:
            line["request"] = entry.id
        line |= getattr(record, "told", {})
        if record.exc_info and record.exc_info[1] is not None:
            line |= self._error(record.exc_info[1])
        return json.dumps(line, ensure_ascii=False, default=str)

    def _error(self, error: BaseException) -> dict[str, Any]:
        places = [
            f"{place.filename}:{place.lineno} {place.name}"
            for place in traceback.extract_tb(error.__traceback__)
        ]
        told = {"error": type(error).__name__, "at": places[-12:]}
        return told | {"message": str(error)} if self._messages else told


def write_json_lines(*, messages: bool) -> None:
    """Sends the server's and uvicorn's logs to standard error, as lines of JSON."""
    handler = logging.StreamHandler()
    handler.setFormatter(JsonLines(messages=messages))
    for name, level in (("studiolo", logging.INFO), ("uvicorn", logging.WARNING)):
        logger = logging.getLogger(name)
        logger.handlers, logger.propagate = [handler], False
        logger.setLevel(level)

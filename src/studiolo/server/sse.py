"""Server-sent events, and work that ends when the client that asked for it has gone.

The form is the strictest that all clients read: `data: {json}` and an empty line (google-genai takes comments
and `event:` lines for broken answers; OpenAI's Responses need the names of events).
"""

from __future__ import annotations

import asyncio
import json
import logging
from collections.abc import AsyncGenerator, Awaitable, Callable, Iterable, Mapping
from dataclasses import dataclass
from typing import Any, TypeVar

from starlette.requests import ClientDisconnect, Request
from starlette.responses import Response
from starlette.types import Receive, Scope, Send

from studiolo.server.errors import Told, told

T = TypeVar("T")
log = logging.getLogger("studiolo.server")


@dataclass(frozen=True)
class Event:
    """One event. `data` is any JSON value, or a string that is sent as it stands, such as `[DONE]`."""

    data: Any
    name: str | None = None

    def encoded(self) -> bytes:
        text = self.data if isinstance(self.data, str) else dumps(self.data)
        name = f"event: {self.name}\n" if self.name else ""
        return f"{name}data: {text}\n\n".encode()


_encoder = json.JSONEncoder(ensure_ascii=False, separators=(",", ":"), allow_nan=False)


def dumps(value: Any) -> str:
    """JSON in one line, as Unicode; NaN and infinities, for which JSON has no word, are errors here."""
    return _encoder.encode(value)


Broken = Callable[[Told], Iterable[Event]]
"""What a dialect sends when an answer breaks off in its midst."""


class Stream(Response):
    """An answer in events.

    Nothing is sent before the first event is there: what goes wrong until then is raised, and becomes an
    answer with a status of its own. When the client goes away, `events` is closed at once, wherever it is.

    Args:
        events: the events in their order.
        broken: what to send of an error after the first event; the answer ends with it.
    """

    media_type = "text/event-stream"

    def __init__(
        self, events: AsyncGenerator[Event], *, broken: Broken, headers: Mapping[str, str] | None = None
    ) -> None:
        self.status_code, self.background = 200, None
        self.init_headers({"cache-control": "no-cache", "x-accel-buffering": "no", **(headers or {})})
        self._events, self._broken = events, broken

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        try:
            await until_gone(self._send(send), receive)
        except ClientDisconnect:
            log.debug("the client went away")

    async def _send(self, send: Send) -> None:
        started = False
        try:
            async for event in self._events:
                if not started:
                    await send({"type": "http.response.start", "status": 200, "headers": self.raw_headers})
                    started = True
                await send({"type": "http.response.body", "body": event.encoded(), "more_body": True})
        except asyncio.CancelledError as error:  # the server stops, or nobody is there to read this
            if started:
                await self._break_off(send, told(error))
                await send({"type": "http.response.body", "body": b""})
            raise
        except Exception as error:
            if not started:
                raise
            await self._break_off(send, told_and_logged(error))
        finally:
            await self._events.aclose()
        if not started:
            await send({"type": "http.response.start", "status": 200, "headers": self.raw_headers})
        await send({"type": "http.response.body", "body": b""})

    async def _break_off(self, send: Send, said: Told) -> None:
        for event in self._broken(said):
            await send({"type": "http.response.body", "body": event.encoded(), "more_body": True})


async def attended(request: Request, work: Awaitable[T]) -> T:
    """The result of `work`, which is cancelled if the client goes away meanwhile.

    The body of the request must have been read.

    Raises:
        ClientDisconnect: it went; nobody reads what is answered.
    """
    return await until_gone(work, request.receive)


async def until_gone(work: Awaitable[T], receive: Receive) -> T:
    """The same for who has no `Request`."""
    working = asyncio.ensure_future(work)
    leaving = asyncio.ensure_future(_gone(receive))
    try:
        await asyncio.wait((working, leaving), return_when=asyncio.FIRST_COMPLETED)
        if not working.done():
            await _ended(working)
            raise ClientDisconnect
        return working.result()
    finally:
        # Also if this task itself is cancelled, as by a server that stops: nothing goes on by itself.
        await _ended(leaving)
        await _ended(working)


async def _ended(task: asyncio.Future[Any]) -> None:
    """Cancels it, and waits until it has cleaned up."""
    task.cancel()
    await asyncio.wait((task,))
    if not task.cancelled():
        task.exception()  # looked at, so that nobody warns of it


async def _gone(receive: Receive) -> None:
    while (await receive())["type"] != "http.disconnect":
        pass


def told_and_logged(error: BaseException) -> Told:
    """What to tell of an error behind a first event; what nobody foresaw is logged."""
    said = told(error)
    if said.status >= 500 and not isinstance(error, asyncio.CancelledError):
        log.error("an answer broke off", exc_info=error)
    return said

"""A small HTTP/1.1 server on loopback whose answers a test writes, faults included."""

from __future__ import annotations

import asyncio
import json
from collections.abc import Awaitable, Callable
from dataclasses import dataclass, field
from typing import Any


@dataclass
class Asked:
    """A request as it came over the wire. `gone` is set when the client has hung up."""

    method: str
    path: str
    headers: dict[str, str]
    body: Any
    gone: asyncio.Event = field(default_factory=asyncio.Event)


class Reply:
    """Writes one answer."""

    def __init__(self, writer: asyncio.StreamWriter) -> None:
        self._writer = writer

    async def json(self, value: Any, status: int = 200, **headers: str) -> None:
        """A whole answer; header names are given with underscores."""
        await self.text(json.dumps(value), status, content_type="application/json", **headers)

    async def text(self, text: str, status: int = 200, **headers: str) -> None:
        data = text.encode()
        self._head(status, {**headers, "content_length": str(len(data))})
        await self._write(data)

    async def stream(self, *events: Any) -> None:
        """Server-sent events up to here; a string is sent as it is, all else as JSON. `end` ends them."""
        if not self._started:
            self._head(200, {"content_type": "text/event-stream", "transfer_encoding": "chunked"})
        for event in events:
            data = f"data: {event if isinstance(event, str) else json.dumps(event)}\n\n".encode()
            await self._write(b"%x\r\n%s\r\n" % (len(data), data))

    async def end(self) -> None:
        await self._write(b"0\r\n\r\n")

    def cut(self) -> None:
        """Breaks the connection, as a server that dies does."""
        self._writer.transport.abort()

    _started = False

    def _head(self, status: int, headers: dict[str, str]) -> None:
        self._started = True
        lines = [
            f"HTTP/1.1 {status} X",
            *(f"{name.replace('_', '-')}: {value}" for name, value in headers.items()),
        ]
        self._writer.write(("\r\n".join(lines) + "\r\n\r\n").encode())

    async def _write(self, data: bytes) -> None:
        self._writer.write(data)
        await self._writer.drain()


Handler = Callable[[Asked, Reply], Awaitable[None]]


class Loopback:
    """The server; `asked` are the requests in the order in which they came."""

    def __init__(self, handler: Handler) -> None:
        self._handler = handler
        self.asked: list[Asked] = []

    async def __aenter__(self) -> Loopback:
        self._server = await asyncio.get_running_loop().create_server(
            lambda: _Connection(self), "127.0.0.1", 0
        )
        self.url = f"http://127.0.0.1:{self._server.sockets[0].getsockname()[1]}"
        return self

    async def __aexit__(self, *_: object) -> None:
        self._server.close()

    async def serve(
        self, connection: _Connection, reader: asyncio.StreamReader, writer: asyncio.StreamWriter
    ) -> None:
        try:
            while asked := await _read(reader):
                asked.gone = connection.lost
                self.asked.append(asked)
                await self._handler(asked, Reply(writer))
        except (ConnectionError, asyncio.IncompleteReadError):
            pass
        finally:
            writer.close()


class _Connection(asyncio.StreamReaderProtocol):
    """One connection, that tells when its client hangs up (a reader tells that only to who reads)."""

    def __init__(self, server: Loopback) -> None:
        self.lost = asyncio.Event()
        super().__init__(asyncio.StreamReader(), lambda reader, writer: server.serve(self, reader, writer))

    def eof_received(self) -> bool | None:
        self.lost.set()
        return super().eof_received()

    def connection_lost(self, error: Exception | None) -> None:
        self.lost.set()
        super().connection_lost(error)


async def _read(reader: asyncio.StreamReader) -> Asked | None:
    line = await reader.readline()
    if not line:
        return None
    method, path, _ = line.decode().split()
    headers = {}
    while (line := await reader.readline()).strip():
        name, _, value = line.decode().partition(":")
        headers[name.strip().lower()] = value.strip()
    data = await reader.readexactly(int(headers.get("content-length", 0)))
    return Asked(method, path, headers, json.loads(data) if data else None)

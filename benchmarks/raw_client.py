"""A client of the stub server that does as little as can be done, so that it is not what is measured.

HTTP/1.1 over asyncio's streams, kept alive; the events of an answer are taken apart after its end.
"""

from __future__ import annotations

import asyncio
import json
import os
import subprocess
import sys
import time
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

HERE = Path(__file__).parent
SURFACES = ("chat", "responses", "gemini")


@dataclass
class Server:
    """A stub server in a process of its own."""

    process: subprocess.Popen[bytes]
    port: int

    @property
    def pid(self) -> int:
        return self.process.pid

    def resident_mb(self) -> float:
        """Memory that is in RAM, in MiB (Linux)."""
        pages = int(Path(f"/proc/{self.pid}/statm").read_text().split()[1])
        return pages * os.sysconf("SC_PAGE_SIZE") / 2**20

    def cpu(self) -> float:
        """CPU seconds of all its threads until now (Linux: the clock of another process)."""
        return time.clock_gettime((~self.pid << 3) | 2)


@contextmanager
def stub_server(home: Path, *args: str, log: Path | None = None) -> Iterator[Server]:
    """The server for the time of the block; what it logs goes to the file `log`."""
    with (log or Path(os.devnull)).open("ab") as errors:
        command = [sys.executable, str(HERE / "stub_server.py"), str(home), *args]
        process = subprocess.Popen(command, stdout=subprocess.PIPE, stderr=errors, bufsize=0)
        try:
            assert process.stdout is not None
            server = Server(process, int(process.stdout.readline()))
            asyncio.run(_answers(server.port))
            yield server
        finally:
            process.kill()
            process.wait()


async def _answers(port: int) -> None:
    connection = Connection(port)
    await connection.request("GET", "/health")
    connection.close()


@dataclass
class Heard:
    """Seconds from the request to the first bytes of the answer and to its end, and those bytes."""

    first: float
    whole: float
    status: int
    body: bytes
    headers: dict[str, str]


class Connection:
    """One connection, for one request at a time."""

    def __init__(self, port: int) -> None:
        self._port = port
        self._reader: asyncio.StreamReader | None = None
        self._writer: asyncio.StreamWriter | None = None

    async def open(self) -> Connection:
        self._reader, self._writer = await asyncio.open_connection("127.0.0.1", self._port)
        return self

    async def request(
        self, method: str, path: str, body: bytes = b"", headers: dict[str, str] | None = None
    ) -> Heard:
        """Sends it and hears all of the answer.

        Raises:
            EOFError, OSError: the server went away in its midst.
        """
        if self._writer is None:
            await self.open()
        assert self._reader is not None
        assert self._writer is not None
        told = {"host": "127.0.0.1", "content-length": len(body), **(headers or {})}
        head = "".join(f"{name}: {value}\r\n" for name, value in told.items())
        began = time.perf_counter()
        self._writer.write(f"{method} {path} HTTP/1.1\r\n{head}\r\n".encode() + body)
        lines = (await self._reader.readuntil(b"\r\n\r\n")).decode("latin-1").split("\r\n")
        parted = (line.partition(": ") for line in lines[1:] if line)
        found = {name.lower(): value for name, _, value in parted}
        if found.get("transfer-encoding") == "chunked":
            first, answer = await self._chunks(self._reader)
        else:
            answer = await self._reader.readexactly(int(found.get("content-length", "0")))
            first = time.perf_counter()
        status = int(lines[0].split()[1])
        return Heard(first - began, time.perf_counter() - began, status, answer, found)

    def close(self) -> None:
        if self._writer is not None:
            self._writer.close()
            self._writer = None

    async def _chunks(self, reader: asyncio.StreamReader) -> tuple[float, bytes]:
        parts, first = [], 0.0
        while size := int(await reader.readuntil(b"\r\n"), 16):
            parts.append((await reader.readexactly(size + 2))[:-2])
            first = first or time.perf_counter()
        await reader.readexactly(2)
        return first or time.perf_counter(), b"".join(parts)


def asked(surface: str, number: int | str, *, stream: bool = True) -> tuple[str, bytes]:
    """Path and body of a request for the answer of that number."""
    text = f"{number} please"
    if surface == "gemini":
        verb = "streamGenerateContent?alt=sse" if stream else "generateContent"
        body: dict[str, Any] = {"contents": [{"role": "user", "parts": [{"text": text}]}]}
        return f"/v1beta/models/stub:{verb}", json.dumps(body).encode()
    body = {"model": "stub", "stream": stream}
    if surface == "chat":
        body["messages"] = [{"role": "user", "content": text}]
        return "/v1/chat/completions", json.dumps(body).encode()
    return "/v1/responses", json.dumps(body | {"input": text, "store": False}).encode()


def text_of(surface: str, heard: Heard) -> str | None:
    """What a stream said; None if it has no proper end."""
    events = [event.partition(b"data: ")[2] for event in heard.body.split(b"\n\n") if event]
    if surface == "chat":
        return _text_of_chat(events)
    told = [json.loads(event) for event in events]
    if surface == "responses":
        said = [event["delta"] for event in told if event["type"] == "response.output_text.delta"]
        return "".join(said) if told and told[-1]["type"] == "response.completed" else None
    candidates = [event["candidates"][0] for event in told if "candidates" in event]
    if not candidates or candidates[-1].get("finishReason") != "STOP":
        return None
    return "".join(part["text"] for one in candidates for part in one["content"]["parts"])


def _text_of_chat(events: list[bytes]) -> str | None:
    if not events or events[-1] != b"[DONE]":
        return None
    choices = [json.loads(event)["choices"][0] for event in events[:-1] if b'"choices"' in event]
    if not choices or choices[-1]["finish_reason"] != "stop":
        return None
    return "".join(choice["delta"].get("content") or "" for choice in choices)

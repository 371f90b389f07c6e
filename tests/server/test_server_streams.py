"""Events over a real socket: their exact bytes, and that a client that goes away ends the work."""

from __future__ import annotations

import asyncio
import socket
import threading
from contextlib import aclosing
from typing import Any

import httpx
import pytest
from fastapi import APIRouter, Request
from serving import serving, waited

from language.stub import Reply, StubEngine
from studiolo.language.conversation import Request as Asked
from studiolo.language.conversation import user
from studiolo.language.errors import RateLimitError, UpstreamError
from studiolo.server import sse
from studiolo.server.studio import studio_behind

ASKED = Asked(model="stub", contents=(user("hi"),))


def plain() -> APIRouter:
    """The plainest dialect: the stub's words, as events or whole."""
    router = APIRouter()

    @router.get("/stream")
    async def stream(request: Request) -> sse.Stream:
        async def events():
            async with (
                studio_behind(request).engines.lease("stub") as engine,
                aclosing(engine.generate(ASKED)) as deltas,
            ):
                async for delta in deltas:
                    if delta.part:
                        yield sse.Event({"said": delta.part.text})

        return sse.Stream(events(), broken=lambda told: [sse.Event({"error": told.message}, "error")])

    @router.post("/whole")
    async def whole(request: Request) -> dict[str, str]:
        await request.body()

        async def answer() -> str:
            async with (
                studio_behind(request).engines.lease("stub") as engine,
                aclosing(engine.generate(ASKED)) as deltas,
            ):
                return "".join([delta.part.text async for delta in deltas if delta.part])

        return {"said": await sse.attended(request, answer())}

    return router


@pytest.fixture
def ask(studiolo_home):
    """`with ask(engine) as server` serves it plainly."""
    return lambda engine, **settings: serving(studiolo_home, {"stub": engine}, plain(), **settings)


class Halt:
    """A pause that lets `through` pieces pass and then holds the engine. The events are for other threads."""

    def __init__(self, through: int) -> None:
        self._left, self.held, self.ended = through, threading.Event(), threading.Event()

    async def __call__(self) -> None:
        self._left -= 1
        if self._left < 0:
            self.held.set()
            try:
                await asyncio.Event().wait()
            finally:
                self.ended.set()


def send(server: Any, head: str) -> socket.socket:
    connection = server.connect()
    connection.sendall(f"{head} HTTP/1.1\r\nHost: localhost\r\nContent-Length: 0\r\n\r\n".encode())
    return connection


def test_events_are_data_lines_and_nothing_else(ask):
    with ask(StubEngine([Reply(pieces=("Grüß", "\n\nGott\u2028"))])) as server:
        answer = httpx.get(f"{server.url}/stream")
    assert answer.headers["content-type"].startswith("text/event-stream")
    assert answer.content == 'data: {"said":"Grüß"}\n\ndata: {"said":"\\n\\nGott\u2028"}\n\n'.encode()


def test_what_fails_before_the_first_event_has_a_status_of_its_own(ask):
    busy = RateLimitError("too much at once", retry_after=1.25)
    with ask(StubEngine([Reply(fault=busy, fault_after=0)])) as server:
        answer = httpx.get(f"{server.url}/stream")
    assert answer.status_code == 429
    assert (answer.headers["retry-after"], answer.headers["retry-after-ms"]) == ("2", "1250")
    assert "too much at once" in answer.text


def test_what_fails_in_midstream_is_told_in_the_stream(ask):
    with ask(StubEngine([Reply(fault=UpstreamError("it fell over"), fault_after=1)])) as server:
        answer = httpx.get(f"{server.url}/stream")
    assert answer.text == 'data: {"said":"Hello"}\n\nevent: error\ndata: {"error":"it fell over"}\n\n'


def test_a_fault_that_nobody_foresaw_tells_nothing_of_itself(ask):
    with ask(StubEngine([Reply(fault=RuntimeError("secret"), fault_after=0)])) as server:
        answer = httpx.get(f"{server.url}/stream")
    assert answer.status_code == 500
    assert "secret" not in answer.text
    assert "Traceback" not in answer.text


def test_the_first_event_goes_out_while_the_engine_still_works(ask):
    halt = Halt(1)
    with ask(StubEngine(pause=halt)) as server, send(server, "GET /stream") as connection:
        got = b""
        while b'data: {"said":"Hello"}\n\n' not in got:
            got += connection.recv(4096)
        assert halt.held.wait(10)
        assert not halt.ended.is_set()


@pytest.mark.parametrize("through", [0, 1], ids=["in prefill", "in midstream"])
@pytest.mark.parametrize("head", ["GET /stream", "POST /whole"])
def test_a_client_that_goes_away_ends_the_work(ask, through, head):
    halt = Halt(through)
    engine = StubEngine(pause=halt)
    with ask(engine) as server:
        connection = send(server, head)
        assert halt.held.wait(10)
        connection.close()
        assert halt.ended.wait(10), "the engine works on for nobody"
        assert httpx.get(f"{server.url}/nothing").status_code == 404  # and the server goes on
        path = head.partition(" ")[2]
        status = 499 if through == 0 or head.startswith("POST") else 200
        told = f'studiolo_requests_total{{dialect="",model="stub",route="{path}",status="{status}"}} 1.0'
        waited(lambda: told in httpx.get(f"{server.url}/metrics").text)
    assert engine.cancelled == [ASKED]
    assert engine.running == 0


def test_a_client_that_stays_gets_the_whole(ask):
    with ask(StubEngine()) as server:
        assert httpx.post(f"{server.url}/whole").json() == {"said": "Hello there."}

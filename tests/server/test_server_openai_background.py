"""Responses in the background, by the official client: polled, followed, cancelled, and told of when the
server died over them."""

from __future__ import annotations

import asyncio
import itertools
import subprocess
import sys
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import httpx
import openai
import pytest
from gemini_stub import HOLD, Scripted
from openai.types.responses import Response, ResponseStreamEvent
from pydantic import TypeAdapter
from serving import serving, waited
from talking import client_of

from studiolo.language import conversation as c
from studiolo.language.errors import UpstreamError
from studiolo.server import background
from studiolo.server.keys import KeyLimits

ASKED: Any = {"model": "stub", "input": "Hi", "background": True}
EVENTS: TypeAdapter[Any] = TypeAdapter(ResponseStreamEvent)


def ended(client: openai.OpenAI, id_: str) -> Response:
    return waited(
        lambda: client.responses.retrieve(id_), lambda one: one.status not in ("queued", "in_progress")
    )


def test_it_is_made_while_nobody_waits(serve):
    engine = Scripted()
    client = client_of(serve(engine).url)
    made = client.responses.create(**ASKED)
    assert (made.status, made.background, made.output) == ("queued", True, [])
    whole = ended(client, made.id)
    Response.model_validate(whole.model_dump(by_alias=True), strict=True)
    assert (whole.status, whole.output_text, whole.usage.total_tokens) == ("completed", "Hello there.", 7)
    assert client.responses.cancel(made.id).status == "completed"
    after = client.responses.create(model="stub", input="And?", previous_response_id=made.id)
    assert [turn.text for turn in engine.requests[-1].contents] == ["Hi", "Hello there.", "And?"]
    assert after.background is False


def test_it_is_seen_as_it_grows_and_cancelled(serve):
    engine = Scripted([c.Delta(part=c.Thought(text="Hm.")), "Well", HOLD])
    client = client_of(serve(engine).url)
    made = client.responses.create(**ASKED)
    assert engine.held.wait(10)
    now = client.responses.retrieve(made.id)
    assert (now.status, [item.type for item in now.output]) == ("in_progress", ["reasoning"])
    with pytest.raises(openai.BadRequestError, match="still being made"):
        client.responses.create(model="stub", input="So?", previous_response_id=made.id)
    for _ in range(2):
        assert client.responses.cancel(made.id).status == "cancelled"
    assert engine.cancelled.is_set()
    assert client.responses.retrieve(made.id).status == "cancelled"
    with pytest.raises(openai.BadRequestError, match="events are kept of"):
        list(client.responses.retrieve(made.id, stream=True))


def test_a_stream_that_is_lost_is_taken_up_where_it_broke(serve):
    engine = Scripted(["One ", "two ", "three."])
    client = client_of(serve(engine).url)
    begun = list(itertools.islice(client.responses.create(**ASKED, stream=True), 6))
    assert [event.type for event in begun[:3]] == [
        "response.created", "response.queued", "response.in_progress",
    ]  # fmt: skip
    id_, last = begun[0].response.id, begun[-1].sequence_number
    ended(client, id_)
    rest = list(client.responses.retrieve(id_, stream=True, starting_after=last))
    numbers = [event.sequence_number for event in [*begun, *rest]]
    assert numbers == list(range(len(numbers)))
    assert (rest[-1].type, rest[-1].response.output_text) == ("response.completed", "One two three.")
    again = list(client.responses.retrieve(id_, stream=True))
    assert [event.model_dump() for event in again] == [event.model_dump() for event in [*begun, *rest]]


def test_several_follow_one_that_is_being_made(serve):
    engine = Scripted(["One ", HOLD])
    serving = serve(engine)
    client = client_of(serving.url)
    first = client.responses.create(**ASKED, stream=True)
    id_ = next(first).response.id
    assert engine.held.wait(10)
    second = client.responses.retrieve(id_, stream=True, starting_after=1)
    assert next(second).type == "response.in_progress"
    first.close()
    client.responses.delete(id_)
    assert "response.completed" not in [event.type for event in second]
    with pytest.raises(openai.NotFoundError):
        client.responses.retrieve(id_)


def test_what_goes_wrong_is_told_of_it(serve):
    engine = Scripted(["Well", UpstreamError("the other side hung up")])
    client = client_of(serve(engine).url)
    made = client.responses.create(**ASKED)
    told = ended(client, made.id)
    assert (told.status, told.error.code) == ("failed", "server_error")
    assert "hung up" in told.error.message
    with pytest.raises(openai.BadRequestError) as refused:
        client.responses.create(**ASKED, store=False)
    assert refused.value.param == "store"
    with pytest.raises(openai.NotFoundError):  # at once: there is no such model
        client.responses.create(**ASKED | {"model": "none"})


def test_others_neither_see_nor_end_it(serve):
    engine = Scripted([HOLD])
    serving = serve(engine)
    store = serving.studio.keys.store
    mine, theirs = (client_of(serving.url, api_key=store.create(name)[0]) for name in ("ada", "bob"))
    made = mine.responses.create(**ASKED)
    for act in (theirs.responses.retrieve, theirs.responses.cancel, theirs.responses.delete):
        with pytest.raises(openai.NotFoundError):
            act(made.id)
    assert mine.responses.retrieve(made.id).status == "in_progress"
    mine.responses.cancel(made.id)


def test_it_counts_as_one_that_runs(serve):
    engine = Scripted([HOLD])
    serving = serve(engine)
    key = serving.studio.keys.store.create("ada", limits=KeyLimits(concurrent=1))[0]
    client = client_of(serving.url, api_key=key)
    client.responses.create(**ASKED)
    assert engine.held.wait(10)
    with pytest.raises(openai.RateLimitError):
        client.responses.create(**ASKED)


def test_there_are_not_too_many(serve, monkeypatch):
    monkeypatch.setattr(background, "MOST", 1)
    client = client_of(serve(Scripted([HOLD])).url)
    with ThreadPoolExecutor(4) as pool:  # together
        asked = [pool.submit(client.responses.create, **ASKED) for _ in range(4)]
        errors = [one.exception() for one in asked]
    (first,) = [one.result() for one in asked if one.exception() is None]
    assert [error.status_code for error in errors if error is not None] == [503] * 3
    client.responses.cancel(first.id)
    assert client.responses.create(**ASKED).status == "queued"


def test_a_cancel_that_comes_while_its_end_is_kept_changes_nothing():
    async def main() -> None:
        held = background.Background()
        keeping, go, kept = asyncio.Event(), asyncio.Event(), []

        async def made():
            yield {"n": 1}

        async def keep(events):
            keeping.set()
            await go.wait()
            kept.extend(events)

        run = held.begin("r", None, made=made, look=dict, broken=lambda _: [{"n": -1}], keep=keep)
        reader = asyncio.create_task(_all(run.follow()))
        await keeping.wait()
        cancelling = asyncio.create_task(run.cancel())
        await asyncio.sleep(0)
        go.set()
        await cancelling
        async with asyncio.timeout(10):
            assert await reader == kept == [{"n": 1}]
        assert held.get("r", None) is None

    asyncio.run(main())


async def _all(events):
    return [event async for event in events]


def test_a_server_that_stops_says_so(studiolo_home):
    engine = Scripted(["Well", HOLD])
    with serving(studiolo_home, {"stub": engine}) as first:
        made = client_of(first.url).responses.create(**ASKED, stream=True)
        id_ = next(made).response.id
        assert engine.held.wait(10)
    with serving(studiolo_home, {"stub": engine}) as second:
        client = client_of(second.url)
        told = client.responses.retrieve(id_)
        assert (told.status, "stopping" in told.error.message) == ("failed", True)
        assert list(client.responses.retrieve(id_, stream=True))[-1].type == "response.failed"


def test_a_server_that_died_says_so_when_it_is_there_again(studiolo_home):
    program = f"""
import sys, time
sys.path[:0] = {[str(Path(__file__).parent), str(Path(__file__).parents[1])]}
from pathlib import Path
from gemini_stub import HOLD, Scripted
from serving import serving
with serving(Path({str(studiolo_home)!r}), {{"stub": Scripted(["Well", HOLD])}}) as served:
    print(served.url, flush=True)
    time.sleep(600)
"""
    server = subprocess.Popen([sys.executable, "-c", program], stdout=subprocess.PIPE, text=True)
    try:
        assert server.stdout is not None
        made = client_of(server.stdout.readline().strip()).responses.create(**ASKED)
    finally:
        server.kill()
        server.wait()
    with serving(studiolo_home, {"stub": Scripted()}) as second:
        client = client_of(second.url)
        told = client.responses.retrieve(made.id)
        assert (told.status, told.error.message) == (
            "failed", "The server stopped before this response was whole.",
        )  # fmt: skip
        assert client.responses.cancel(made.id).status == "failed"
        again = client.responses.create(**ASKED)
        assert ended(client, again.id).status == "completed"


def test_the_asynchronous_client(serve):
    url = serve(Scripted()).url

    async def talk() -> str:
        async with openai.AsyncOpenAI(base_url=f"{url}/openai/v1", api_key="k") as client:
            made = await client.responses.create(**ASKED)
            while (now := await client.responses.retrieve(made.id)).status != "completed":
                await asyncio.sleep(0.01)
            return now.output_text

    assert asyncio.run(talk()) == "Hello there."


def test_its_events_are_openais(serve):
    url = serve(Scripted()).url
    said = httpx.post(f"{url}/v1/responses", json={**ASKED, "stream": True}).text
    data = [line.removeprefix("data: ") for line in said.splitlines() if line.startswith("data: ")]
    kinds = [EVENTS.validate_json(one).type for one in data]
    assert kinds[0] == "response.created"
    assert kinds[-1] == "response.completed"

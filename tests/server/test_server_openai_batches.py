"""Batches, by the official client."""

from __future__ import annotations

import asyncio
import json
import threading

import openai
import pytest
from openai.types import Batch
from serving import serving, waited
from talking import client_of

from jobs.databases import NoServerError, postgres
from language.stub import StubEngine
from studiolo.language import conversation as c
from studiolo.language.engines.base import Capabilities
from studiolo.language.errors import InvalidRequestError
from studiolo.language.prices import Price
from studiolo.server import shelf
from studiolo.server.keys import KeyLimits, KeyStore
from studiolo.server.openai import batches_wire

OVER = ("completed", "failed", "cancelled", "expired")


class Echo(StubEngine):
    """Says what it was told; `boom` is refused, and `hold` waits until `gate` is open."""

    def __init__(self, **more) -> None:
        super().__init__(**more)
        self.gate = threading.Event()
        self.asked = []

    async def generate(self, request):
        text = request.contents[-1].parts[0].text
        self.asked.append(request)
        if text == "boom":
            raise InvalidRequestError("not this", where="contents")
        while text == "hold" and not self.gate.is_set():
            await asyncio.sleep(0.005)
        yield c.Delta(part=c.Text(text=f"You said {text}."), model="stub")
        yield c.Delta(
            finish=c.FinishReason.STOP, usage=c.Usage(prompt=10, cached=4, answer=2, thoughts=1), model="stub"
        )


@pytest.fixture
def engine():
    return Echo()


@pytest.fixture
def served(engine, studiolo_home):
    with serving(studiolo_home, {"stub": engine}, jobs=True) as served:
        yield served
        engine.gate.set()


@pytest.fixture
def client(served):
    return client_of(served.url)


def line(id_, text, url="/v1/chat/completions", model="stub", **more):
    body = {"model": model, "messages": [{"role": "user", "content": text}], **more}
    if url == "/v1/responses":
        body = {"model": model, "input": text, **more}
    return {"custom_id": id_, "method": "POST", "url": url, "body": body}


def uploaded(client, lines, purpose="batch"):
    text = lines if isinstance(lines, bytes) else b"".join(json.dumps(one).encode() + b"\n" for one in lines)
    return client.files.create(file=("in.jsonl", text), purpose=purpose).id


def begun(client, lines, endpoint="/v1/chat/completions", **more):
    return client.batches.create(
        input_file_id=uploaded(client, lines), endpoint=endpoint, completion_window="24h", **more
    )


def over(client, batch):
    return waited(lambda: client.batches.retrieve(batch.id), lambda found: found.status in OVER)


def lines_of(client, file):
    return [json.loads(text) for text in client.files.content(file).text.splitlines()]


def test_a_batch_from_its_file_to_its_files(client):
    batch = begun(client, [line("a", "one"), line("b", "two"), line("c", "three")], metadata={"for": "tea"})
    Batch.model_validate(batch.model_dump(), strict=True)
    assert (batch.object, batch.endpoint, batch.metadata) == (
        "batch",
        "/v1/chat/completions",
        {"for": "tea"},
    )
    assert batch.status in ("validating", "in_progress", "finalizing", "completed")
    assert batch.expires_at - batch.created_at == 24 * 3600
    done = over(client, batch)
    Batch.model_validate(done.model_dump(), strict=True)
    assert (done.status, done.error_file_id, done.errors, done.model) == ("completed", None, None, "stub")
    counts = done.request_counts
    assert (counts.total, counts.completed, counts.failed) == (3, 3, 0)
    assert done.created_at <= done.in_progress_at <= done.completed_at
    usage = done.usage
    assert (usage.input_tokens, usage.output_tokens, usage.total_tokens) == (30, 9, 39)
    assert usage.input_tokens_details.cached_tokens == 12
    assert usage.output_tokens_details.reasoning_tokens == 3
    lines = lines_of(client, done.output_file_id)
    assert [one["custom_id"] for one in lines] == ["a", "b", "c"]
    assert len({one["id"] for one in lines}) == len({one["response"]["request_id"] for one in lines}) == 3
    for one, said in zip(lines, ("one", "two", "three"), strict=True):
        assert (one["error"], one["response"]["status_code"]) == (None, 200)
        body = openai.types.chat.ChatCompletion.model_validate(one["response"]["body"])
        assert body.choices[0].message.content == f"You said {said}."
    output = client.files.retrieve(done.output_file_id)
    assert (output.purpose, output.filename) == ("batch_output", f"{batch.id}_output.jsonl")
    assert output.expires_at - output.created_at == 30 * 24 * 3600


def test_requests_that_fail_are_in_a_file_of_their_own(client):
    batch = begun(
        client,
        [line("good", "one"), line("bad", "boom"), line("streams", "two", stream=True),
         line("odd", "three", colour="red")],
    )  # fmt: skip
    done = over(client, batch)
    assert (done.status, done.request_counts.completed, done.request_counts.failed) == ("completed", 1, 3)
    assert [one["custom_id"] for one in lines_of(client, done.output_file_id)] == ["good"]
    failed = {one["custom_id"]: one["response"] for one in lines_of(client, done.error_file_id)}
    assert {key: told["status_code"] for key, told in failed.items()} == {
        "bad": 400, "streams": 400, "odd": 400,
    }  # fmt: skip
    assert failed["bad"]["body"]["error"] == {
        "message": "messages: not this", "type": "invalid_request_error", "param": "messages", "code": None,
    }  # fmt: skip
    assert failed["odd"]["body"]["error"]["param"] == "colour"


def test_responses(client):
    batch = begun(client, [line("a", "one", "/v1/responses")], "/v1/responses")
    (one,) = lines_of(client, over(client, batch).output_file_id)
    body = openai.types.responses.Response.model_validate(one["response"]["body"])
    assert body.output_text == "You said one."


class Vectors(StubEngine):
    async def embed(self, texts, *, dimensions=None):
        return [[float(len(text)), 0.5] for text in texts]


def test_embeddings(studiolo_home):
    engine = Vectors(capabilities=Capabilities(context=512, embeddings=True))
    with serving(studiolo_home, {"stub": engine}, jobs=True) as served:
        client = client_of(served.url)
        body = {"model": "stub", "encoding_format": "float"}
        lines = [
            {"custom_id": text, "method": "POST", "url": "/v1/embeddings", "body": body | {"input": text}}
            for text in ("ab", "abcd")
        ]
        done = over(client, begun(client, lines, "/v1/embeddings"))
        found = {one["custom_id"]: one["response"]["body"] for one in lines_of(client, done.output_file_id)}
        assert found["abcd"]["data"][0]["embedding"] == [4.0, 0.5]
        assert openai.types.CreateEmbeddingResponse.model_validate(found["ab"]).model == "stub"
        assert done.usage.input_tokens > 0


def test_charged_half(engine, studiolo_home, monkeypatch):
    price = Price(prompt=1e-3, answer=2e-3, cached=1e-3)
    monkeypatch.setattr(shelf, "price_of", lambda name: price)
    with serving(studiolo_home, {"stub": engine}, host="0.0.0.0", jobs=True) as served:
        store = KeyStore(served.studio.database)
        key, known = store.create("ada")
        client = client_of(served.url, api_key=key)
        client.chat.completions.create(model="stub", messages=[{"role": "user", "content": "x"}])
        alone = waited(lambda: store.spent(known.id).today, bool)
        assert alone == pytest.approx(10e-3 + 3 * 2e-3)
        over(client, begun(client, [line("a", "x"), line("b", "x")]))
        both = waited(lambda: store.spent(known.id).today, lambda spent: spent > 1.9 * alone)
        assert both == pytest.approx(2 * alone)  # two more, each for half


def test_a_batch_spends_no_more_than_its_key_may(engine, studiolo_home, monkeypatch):
    monkeypatch.setattr(shelf, "price_of", lambda name: Price(prompt=1e-3, answer=2e-3, cached=1e-3))
    with serving(studiolo_home, {"stub": engine}, host="0.0.0.0", jobs=True) as served:
        store = KeyStore(served.studio.database)
        key, known = store.create("ada", limits=KeyLimits(dollars_per_day=0.02))  # an item costs 0.008
        client = client_of(served.url, api_key=key)
        batch = begun(client, [line(str(n), "x") for n in range(40)])
        record = waited(lambda: served.studio.batches._table.load(batch.id.removeprefix("batch_")),
                        lambda found: found.ended)  # fmt: skip
        # Eight are asked at once, so that a few may be under way when it is over.
        assert 3 <= record.counts.done <= 11
        assert record.counts.failed == 40 - record.counts.done
        assert store.spent(known.id).today == pytest.approx(record.counts.done * 0.008)
        store.limit("ada", dollars_per_day=None)
        done = waited(lambda: client.batches.retrieve(batch.id), lambda found: found.status == "completed")
        told = {one["response"]["status_code"] for one in lines_of(client, done.error_file_id)}
        assert told == {429}


def test_the_asynchronous_client(served):
    async def go():
        async with openai.AsyncOpenAI(base_url=f"{served.url}/v1", api_key="k") as client:
            text = json.dumps(line("a", "one")).encode()
            file = await client.files.create(file=("in.jsonl", text), purpose="batch")
            batch = await client.batches.create(
                input_file_id=file.id, endpoint="/v1/chat/completions", completion_window="24h"
            )
            while batch.status not in OVER:
                await asyncio.sleep(0.02)
                batch = await client.batches.retrieve(batch.id)
            listed = [found.id async for found in client.batches.list(limit=1)]
            return batch, listed

    batch, listed = asyncio.run(go())
    assert (batch.status, listed) == ("completed", [batch.id])


BAD_LINES = [
    (b"{\n", "invalid_json_line", None),
    (b'"text"\n', "invalid_json_line", None),
    (b"\xff\xfe\n", "invalid_json_line", None),
    (b'{"custom_id": NaN}\n', "invalid_json_line", None),
    (b'{"custom_id": "\\ud800"}\n', "invalid_json_line", None),
    (b"[" * 3000 + b"]" * 3000 + b"\n", "invalid_json_line", None),
    (line("a", "x", "/v1/embeddings"), "invalid_url", "url"),
    (line("a", "x") | {"method": "GET"}, "invalid_request", "method"),
    (line("", "x"), "invalid_request", "custom_id"),
    (line("a\n", "x"), "invalid_custom_id", "custom_id"),
    (line("a", "x") | {"extra": 1}, "invalid_request", "extra"),
    (line("a", "x") | {"body": []}, "invalid_request", "body"),
    (line("a", "x", model="nobody"), "model_not_found", "body.model"),
    (line("a", "x", model=None), "missing_required_parameter", "body.model"),
    (line("first", "x"), "duplicate_custom_id", "custom_id"),
]


def test_a_bad_line_is_told_with_its_number(client):
    good = json.dumps(line("first", "hello")).encode() + b"\n"
    for bad, code, param in BAD_LINES:
        data = bad if isinstance(bad, bytes) else json.dumps(bad).encode() + b"\n"
        batch = begun(client, good + b"\n" + data)
        Batch.model_validate(batch.model_dump(), strict=True)
        assert (batch.status, batch.output_file_id, batch.request_counts.total) == ("failed", None, 0)
        (error,) = batch.errors.data
        assert (error.line, error.code, error.param) == (3, code, param), error
    assert client.batches.retrieve(batch.id) == batch
    with pytest.raises(openai.ConflictError):
        client.batches.cancel(batch.id)


def test_all_bad_lines_are_told(client):
    batch = begun(client, [line("a", "x"), line("a", "y"), line("b", "z", "/v2"), line("c", "w")])
    assert [(error.line, error.code) for error in batch.errors.data] == [
        (2, "duplicate_custom_id"),
        (3, "invalid_url"),
    ]


def test_a_byte_order_mark_and_windows_line_ends(client):
    data = b"\xef\xbb\xbf" + b"\r\n".join(json.dumps(line(one, one)).encode() for one in ("a", "b"))
    done = over(client, begun(client, data))
    assert (done.status, done.request_counts.completed) == ("completed", 2)


def test_files_without_requests_and_with_too_many(client, monkeypatch):
    (error,) = begun(client, b"\n\n").errors.data
    assert (error.line, error.code) == (None, "empty_file")
    monkeypatch.setattr(batches_wire, "MOST_LINES", 2)
    (error,) = begun(client, [line(str(n), "x") for n in range(5)]).errors.data
    assert (error.line, error.code) == (3, "too_many_tasks")


def test_requests_that_are_none(client):
    wanted = {
        "input_file_id": uploaded(client, [line("a", "x")]),
        "endpoint": "/v1/chat/completions",
        "completion_window": "24h",
    }
    for wrong, param in (
        ({"completion_window": "1h"}, "completion_window"),
        ({"endpoint": "/v1/videos"}, "endpoint"),
        ({"input_file_id": "file-nothing"}, "input_file_id"),
        ({"metadata": {"k": 1}}, "metadata.k"),
        ({"extra_body": {"colour": "red"}}, "colour"),
    ):
        with pytest.raises((openai.BadRequestError, openai.NotFoundError)) as told:
            client.batches.create(**wanted | wrong)
        assert told.value.param == param
    file = uploaded(client, [line("a", "x")], purpose="user_data")
    with pytest.raises(openai.BadRequestError, match="purpose"):
        client.batches.create(**wanted | {"input_file_id": file})
    assert not client.batches.list().data


def test_a_server_that_ends_goes_on_where_it_was(engine, studiolo_home):
    lines = [line("a", "one"), *(line(f"h{n}", "hold") for n in range(12))]
    with serving(studiolo_home, {"stub": engine}, jobs=True) as served:
        client = client_of(served.url)
        batch = begun(client, lines)
        waited(lambda: client.batches.retrieve(batch.id), lambda found: found.request_counts.completed == 1)
    again = Echo()
    again.gate.set()
    with serving(studiolo_home, {"stub": again}, jobs=True) as served:
        client = client_of(served.url)
        done = over(client, batch)
        assert (done.status, done.request_counts.completed) == ("completed", 13)
        made = lines_of(client, done.output_file_id)
        assert [one["custom_id"] for one in made] == [one["custom_id"] for one in lines]
        assert "one" not in [request.contents[-1].parts[0].text for request in again.asked]


def test_cancelled(client, engine):
    batch = begun(client, [line("a", "one")] + [line(f"h{n}", "hold") for n in range(20)])
    waited(lambda: client.batches.retrieve(batch.id), lambda found: found.request_counts.completed == 1)
    told = client.batches.cancel(batch.id)
    assert told.status in ("cancelling", "cancelled")
    assert told.cancelling_at is not None
    done = over(client, batch)
    assert (done.status, done.request_counts.completed, done.request_counts.total) == ("cancelled", 1, 21)
    assert done.cancelled_at >= done.cancelling_at
    assert [one["custom_id"] for one in lines_of(client, done.output_file_id)] == ["a"]
    left = lines_of(client, done.error_file_id)
    assert {one["error"]["code"] for one in left} == {"batch_cancelled"}
    assert [one["custom_id"] for one in left] == [f"h{n}" for n in range(20)]
    with pytest.raises(openai.ConflictError):
        client.batches.cancel(batch.id)


def test_pages(client):
    made = [begun(client, [line("a", str(n))]).id for n in range(3)]
    assert [batch.id for batch in client.batches.list(limit=1)] == made[::-1]
    page = client.batches.list(limit=2)
    assert (page.has_more, page.last_id) == (True, made[1])
    with pytest.raises(openai.NotFoundError):
        client.batches.list(after="batch_nothing")


def test_a_file_that_was_deleted_does_not_come_again(client):
    done = over(client, begun(client, [line("a", "one")]))
    client.files.delete(done.output_file_id)
    assert client.batches.retrieve(done.id).output_file_id == done.output_file_id
    with pytest.raises(openai.NotFoundError):
        client.files.content(done.output_file_id)


def test_files_are_kept_for_as_long_as_is_wished(client):
    hour = {"anchor": "created_at", "seconds": 3600}
    done = over(client, begun(client, [line("a", "one")], output_expires_after=hour))
    file = client.files.retrieve(done.output_file_id)
    assert file.expires_at - file.created_at == 3600


def test_on_postgresql(engine, studiolo_home):
    try:
        with postgres() as url, serving(studiolo_home, {"stub": engine}, database=url, jobs=True) as served:
            client = client_of(served.url)
            batch = begun(client, [line("a", "one"), line("b", "boom")], metadata={"for": "tea"})
            done = over(client, batch)
            assert (done.status, done.metadata) == ("completed", {"for": "tea"})
            assert [one["custom_id"] for one in lines_of(client, done.output_file_id)] == ["a"]
            assert [one["custom_id"] for one in lines_of(client, done.error_file_id)] == ["b"]
            refused = begun(client, b"{")
            assert client.batches.retrieve(refused.id).errors.data[0].line == 1
            assert [found.id for found in client.batches.list(limit=1)] == [refused.id, batch.id]
    except NoServerError as why:
        pytest.skip(str(why))


def test_only_one_s_own(engine, studiolo_home):
    with serving(studiolo_home, {"stub": engine}, host="0.0.0.0", jobs=True) as served:
        store = KeyStore(served.studio.database)
        ada, bob = (client_of(served.url, api_key=store.create(name)[0]) for name in ("ada", "bob"))
        batch = begun(ada, [line("a", "one")])
        done = over(ada, batch)
        for call in (
            lambda: bob.batches.retrieve(batch.id),
            lambda: bob.batches.cancel(batch.id),
            lambda: bob.files.content(done.output_file_id),
        ):
            with pytest.raises(openai.NotFoundError):
                call()
        with pytest.raises(openai.NotFoundError):
            bob.batches.create(
                input_file_id=batch.input_file_id, endpoint=batch.endpoint, completion_window="24h"
            )
        assert not bob.batches.list().data

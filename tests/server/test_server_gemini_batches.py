"""Batches of the Gemini dialect, by Google's own client."""

from __future__ import annotations

import io
import itertools
import json

import httpx
import pytest
from gemini_stub import HOLD, Scripted, client_of
from google.genai import errors, types
from serving import serving, waited

from studiolo.language.conversation import Request
from studiolo.language.errors import RateLimitError

numbers = itertools.count()
OVER = ("JOB_STATE_SUCCEEDED", "JOB_STATE_FAILED", "JOB_STATE_CANCELLED", "JOB_STATE_EXPIRED")


def answer(request: Request) -> list[object]:
    said = request.contents[-1].text
    if said == "hold":
        return [HOLD]
    return [RateLimitError("never", retry_after=0.0)] if said == "refuse" else [f"{said}!"]


@pytest.fixture(scope="module")
def shop(tmp_path_factory):
    with serving(tmp_path_factory.mktemp("shop"), {"stub": Scripted(answer)}, jobs=True) as here:
        yield here


@pytest.fixture
def key(shop) -> str:
    """A test's own, and so are the batches and files that it sees."""
    return shop.studio.keys.store.create(f"key {next(numbers)}")[0]


@pytest.fixture
def client(shop, key):
    return client_of(shop.url, api_key=key)


def ended(client, name: str) -> types.BatchJob:
    return waited(lambda: (job := client.batches.get(name=name)).state.name in OVER and job)


def lines_of(client, *lines: object) -> str:
    """The name of an uploaded file with these lines."""
    data = "".join(f"{line if isinstance(line, str) else json.dumps(line)}\n" for line in lines)
    config = {"mime_type": "application/jsonl", "display_name": "requests"}
    return client.files.upload(file=io.BytesIO(data.encode()), config=config).name


def text(said: str) -> dict[str, object]:
    return {"contents": [{"parts": [{"text": said}]}]}


def test_requests_within_one_body_are_answered_in_their_order(shop, client):
    asked = [
        types.InlinedRequest(contents="one", metadata={"key": "a"}),
        types.InlinedRequest(contents="two", config={"temperature": 0.5, "system_instruction": "Be kind."}),
        types.InlinedRequest(contents="refuse", metadata={"key": "a", "shelf": "upper"}),
    ]
    made = client.batches.create(model="stub", src=asked, config={"display_name": "numbers"})
    assert made.name.startswith("batches/")
    assert (made.display_name, made.model) == ("numbers", "models/stub")
    job = ended(client, made.name)
    assert job.state is types.JobState.JOB_STATE_SUCCEEDED
    assert job.end_time >= job.create_time
    one, two, three = job.dest.inlined_responses
    assert (one.response.text, one.metadata) == ("one!", {"key": "a"})
    assert (two.response.text, two.metadata) == ("two!", None)
    assert one.response.usage_metadata.total_token_count == 7
    assert (three.response, three.metadata) == (None, {"key": "a", "shelf": "upper"})
    assert (three.error.code, three.error.message) == (8, "never")
    request = next(request for request in shop.engines["stub"].requests if request.system)
    assert (request.contents[0].text, request.config.temperature) == ("two", 0.5)


def test_a_file_of_requests_becomes_a_file_of_answers(client):
    name = lines_of(
        client,
        {"key": "b", "request": text("two")},
        {"key": "a", "request": {**text("one"), "generation_config": {"max_output_tokens": 5}}},
        "",
        {"key": "c", "request": {"contents": "?"}},
        {"request": text("three")},
    )
    job = ended(client, client.batches.create(model="models/stub", src=name).name)
    assert job.state is types.JobState.JOB_STATE_SUCCEEDED
    told = client.files.get(name=job.dest.file_name)
    assert (told.mime_type, told.source) == ("application/jsonl", types.FileSource.GENERATED)
    found = [json.loads(line) for line in client.files.download(file=told).decode().splitlines()]
    assert client.files.download(file=job.dest.file_name) == client.files.download(file=told)
    assert [line.get("key") for line in found] == ["b", "a", "c", None]
    said = [
        line["response"]["candidates"][0]["content"]["parts"][0]["text"]
        for line in found
        if "error" not in line
    ]
    assert said == ["two!", "one!", "three!"]
    assert found[2]["error"]["code"] == 3
    assert "contents" in found[2]["error"]["message"]
    with pytest.raises(errors.ClientError, match=r"400.*Delete the batch"):
        client.files.delete(name=job.dest.file_name)
    client.batches.delete(name=job.name)
    for act in (client.files.get, client.batches.get):
        with pytest.raises(errors.ClientError, match="404"):
            act(name=job.dest.file_name if act == client.files.get else job.name)


def test_vectors(client):
    source = types.EmbeddingsBatchJobSource(
        inlined_requests=types.EmbedContentBatch(
            contents=["one", "three"], config={"output_dimensionality": 2}
        )
    )
    job = ended(client, client.batches.create_embeddings(model="stub", src=source).name)
    found = [one.response for one in job.dest.inlined_embed_content_responses]
    assert [one.embedding.values for one in found] == [[3.0, 0.0], [5.0, 0.0]]
    assert [one.token_count for one in found] == [1, 1]


def test_the_counts_and_the_whole_operation(shop, key, client):
    made = client.batches.create(
        model="stub", src=[types.InlinedRequest(contents=t) for t in ("a", "refuse")]
    )
    ended(client, made.name)
    told = httpx.get(f"{shop.url}/v1beta/{made.name}?key={key}").json()
    assert told["done"] is True
    assert told["metadata"]["batchStats"] == {
        "requestCount": "2", "successfulRequestCount": "1", "failedRequestCount": "1"
    }  # fmt: skip
    assert told["metadata"]["state"] == "BATCH_STATE_SUCCEEDED"
    assert told["response"]["inlinedResponses"] == told["metadata"]["output"]["inlinedResponses"]


def test_the_list_comes_in_pages_the_newest_first(client):
    made = [
        client.batches.create(model="stub", src=[types.InlinedRequest(contents="a")]).name for _ in range(3)
    ]
    assert [job.name for job in client.batches.list(config={"page_size": 2})] == made[::-1]


def test_a_batch_is_cancelled_with_what_it_has_and_then_deleted(shop, client):
    asked = [types.InlinedRequest(contents=said) for said in ("one", "hold")]
    name = client.batches.create(model="stub", src=asked).name
    waited(lambda: shop.engines["stub"].held.wait(1))
    for act in (client.files.get, client.files.download):
        with pytest.raises(errors.ClientError, match=r"404.*no answers yet"):
            act(**{"name" if act == client.files.get else "file": name.replace("batches/", "files/batch-")})
    with pytest.raises(errors.ClientError, match=r"409.*Cancel it first"):
        client.batches.delete(name=name)
    client.batches.cancel(name=name)
    job = ended(client, name)
    assert job.state is types.JobState.JOB_STATE_CANCELLED
    one, hold = job.dest.inlined_responses
    assert (one.response.text, hold.error.code) == ("one!", 1)
    client.batches.cancel(name=name)  # for a second time: it stays as it is
    client.batches.delete(name=name)
    assert list(client.batches.list()) == []


def test_batches_and_their_files_are_their_owners_alone(shop):
    keys = [shop.studio.keys.store.create(name)[0] for name in ("me", "you")]
    mine, other = (client_of(shop.url, api_key=one) for one in keys)
    name = lines_of(mine, {"key": "a", "request": text("one")})
    with pytest.raises(errors.ClientError, match="404"):
        other.batches.create(model="stub", src=name)
    job = ended(mine, mine.batches.create(model="stub", src=name).name)
    for act in (other.batches.get, other.batches.cancel, other.batches.delete):
        with pytest.raises(errors.ClientError, match="404"):
            act(name=job.name)
    with pytest.raises(errors.ClientError, match="404"):
        other.files.download(file=job.dest.file_name)
    assert list(other.batches.list()) == []


@pytest.mark.parametrize(
    ("batch", "message"),
    [
        ({}, "either requests or a file"),
        ({"inputConfig": {"fileName": "gs://bucket/file"}}, "Say files/ID"),
        ({"inputConfig": {"fileName": "files/nothing"}}, "no file of this name"),
        ({"inputConfig": {"requests": {"requests": [{"metadata": {}}]}}}, "no request"),
        (
            {"inputConfig": {"requests": {"requests": [{"request": {"contents": [{"parts": [{}]}]}}]}}},
            "batch.input_config.requests.requests[0].request.contents[0].parts[0]",
        ),
        (
            {"inputConfig": {"requests": {"requests": [{"request": {"model": "models/other"}}]}}},
            "names the model",
        ),
        ({"webhookConfig": {"uris": ["http://a"]}}, "is not supported"),
    ],
)  # fmt: skip
def test_batches_that_are_none(shop, key, batch, message):
    refused = httpx.post(f"{shop.url}/v1beta/models/stub:batchGenerateContent?key=k", json={"batch": batch})
    assert refused.status_code in (400, 404), refused.text
    assert message in refused.json()["error"]["message"]
    assert httpx.get(f"{shop.url}/v1beta/batches?key={key}").json() == {"operations": []}


@pytest.mark.parametrize(
    "line", ["no json", "[]", {"key": 1, "request": {}}, {"key": "a"}, {"request": {}, "method": "POST"}]
)
def test_lines_that_are_none_refuse_the_whole_file(client, line):
    name = lines_of(client, {"key": "ok", "request": text("one")}, line)
    with pytest.raises(errors.ClientError, match=r"400.*line 2"):
        client.batches.create(model="stub", src=name)
    assert list(client.batches.list()) == []


def test_batches_between_buckets_are_told_to_be_absent(shop, key):
    client = client_of(shop.url, api_key=key, vertexai=True)
    with pytest.raises(errors.ServerError, match=r"501 UNIMPLEMENTED.*client\.batches"):
        client.batches.create(model="stub", src="gs://bucket/file", config={"dest": "gs://bucket/out"})


def test_what_a_batch_took_is_accounted_for_at_half_price(shop, client, monkeypatch):
    from studiolo.language.prices import Price
    from studiolo.server import shelf

    monkeypatch.setattr(shelf, "price_of", lambda model: Price(prompt=1.0, answer=10.0))
    ended(client, client.batches.create(model="stub", src=[types.InlinedRequest(contents="a")]).name)
    client.models.generate_content(model="stub", contents="a")
    spent = httpx.get(f"{shop.url}/metrics").text
    assert 'studiolo_dollars_total{model="stub"} 37.5' in spent  # 25 and the half of 25

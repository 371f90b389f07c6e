"""Embeddings, models, uploaded files in a chat, and the table of fields, by the official client."""

from __future__ import annotations

import asyncio
import io
import struct
from collections.abc import AsyncGenerator
from contextlib import aclosing
from typing import Any

import httpx
import openai
import pytest
from openai.types import CreateEmbeddingResponse, Model
from talking import client_of, user

from language.stub import StubCompleter, StubEngine
from studiolo.language import conversation as c
from studiolo.language.engines.base import Capabilities
from studiolo.language.engines.local import LocalEngine
from studiolo.language.errors import UpstreamError
from studiolo.server.keys import KeyLimits, KeyStore
from studiolo.server.openai.chat_wire import ChatRequest
from studiolo.server.openai.embeddings import EmbeddingRequest
from studiolo.server.openai.pauses import with_pauses
from studiolo.server.openai.responses_wire import ResponseRequest
from studiolo.server.openai.wire import Standing, standings


@pytest.fixture
def client(serve) -> openai.OpenAI:
    return client_of(serve(LocalEngine(StubCompleter())).url)


def test_embeddings(client):
    """The client asks for base64 and gives numbers: the same vectors, to the precision of 32 bits."""
    texts = ["hear the sea", "a test"]
    packed = client.embeddings.create(model="stub", input=texts)
    plain = client.embeddings.create(model="stub", input=texts, encoding_format="float")
    CreateEmbeddingResponse.model_validate(plain.model_dump(), strict=True)
    for one, other in zip(packed.data, plain.data, strict=True):
        size = len(other.embedding)
        assert one.embedding == list(struct.unpack(f"<{size}f", struct.pack(f"<{size}f", *other.embedding)))
    assert [vector.index for vector in plain.data] == [0, 1]
    assert plain.usage.prompt_tokens == plain.usage.total_tokens > 0
    assert plain.data[1] == client.embeddings.create(
        model="stub", input="a test", encoding_format="float"
    ).data[0].model_copy(update={"index": 1})


def test_fewer_dimensions(client):
    (vector,) = client.embeddings.create(model="stub", input="hear the sea", dimensions=3).data
    assert len(vector.embedding) == 3
    assert sum(value**2 for value in vector.embedding) == pytest.approx(1, abs=1e-6)
    with pytest.raises(openai.BadRequestError, match="10 dimensions") as told:
        client.embeddings.create(model="stub", input="x", dimensions=11)
    assert told.value.param == "dimensions"


@pytest.mark.parametrize(
    ("given", "param"),
    [([], "input"), ("", "input[0]"), (["a", ""], "input[1]"), ([1, 2], "input"), ([[1], [2]], "input"),
     (["a"] * 2049, "input"), (["a", 1], "input[1]")],
)  # fmt: skip
def test_what_cannot_be_embedded(client, given, param):
    with pytest.raises(openai.BadRequestError) as told:
        client.embeddings.create(model="stub", input=given)
    assert told.value.param == param


def test_models(serve):
    speaks = StubEngine(model="speaks", capabilities=Capabilities(context=512))
    serving = serve(speaks, StubEngine(model="folder/other"))
    client = client_of(serving.url)
    listed = client.models.list().data
    assert [model.id for model in listed] == ["speaks", "folder/other"]
    for model in listed:
        Model.model_validate(model.model_dump(), strict=True)
        assert client.models.retrieve(model.id) == model
    assert listed[0].context_length == 512
    with pytest.raises(openai.NotFoundError) as told:
        client.models.retrieve("speeks")
    assert told.value.code == "model_not_found"
    assert "speaks" in told.value.message
    gemini = httpx.get(f"{serving.url}/v1/models", headers={"x-goog-api-key": "k"}).json()
    assert "data" not in gemini


def test_keys(serve):
    """What one key keeps, another does not see; and without one there is nothing, where one is needed."""
    serving = serve(StubEngine(), host="0.0.0.0")
    store = KeyStore(serving.studio.database)
    (ada, _), (bob, _) = store.create("ada"), store.create("bob", limits=KeyLimits(requests_per_minute=1))
    client = client_of(serving.url, api_key=ada)
    made = client.responses.create(model="stub", input="Hi")
    assert client.responses.retrieve(made.id).id == made.id
    assert made._request_id
    for wrong in ("sk-wrong", ada[:-1]):
        with pytest.raises(openai.AuthenticationError) as told:
            client_of(serving.url, api_key=wrong).models.list()
        assert (told.value.code, told.value.request_id is None) == ("invalid_api_key", False)
    with pytest.raises(openai.NotFoundError):
        client_of(serving.url, api_key=bob).responses.retrieve(made.id)
    with pytest.raises(openai.RateLimitError) as told:
        client_of(serving.url, api_key=bob).responses.retrieve(made.id)
    assert told.value.code == "rate_limit_exceeded"
    assert int(told.value.response.headers["retry-after-ms"]) > 0


def test_a_file_that_was_uploaded(serve):
    engine = StubEngine()
    serving = serve(engine)
    record = serving.studio.files.add(b"hi", owner=None, name="a.txt", mime="text/plain", purpose="user_data")
    parts = [{"type": "file", "file": {"file_id": record.id}}]
    client = client_of(serving.url)
    client.chat.completions.create(model="stub", messages=[{"role": "user", "content": parts}])
    client.responses.create(
        model="stub",
        input=[{"role": "user", "content": [{"type": "input_file", "file_id": record.id}]}],
    )
    told = c.Data(media_type="text/plain", data=b"hi", name="a.txt")
    assert [request.contents for request in engine.requests] == [(c.user(told),)] * 2


def test_files_are_bounded_together_before_they_are_read(serve):
    serving = serve(engine := StubEngine(), largest_body=4096)
    record = serving.studio.files.add(
        b"x" * 3000, owner=None, name="a.txt", mime="text/plain", purpose="user_data"
    )
    part = {"type": "file", "file": {"file_id": record.id}}
    client = client_of(serving.url)
    client.chat.completions.create(model="stub", messages=[{"role": "user", "content": [part]}])
    with pytest.raises(openai.APIStatusError, match="4,096 bytes together") as told:
        client.chat.completions.create(model="stub", messages=[{"role": "user", "content": [part, part]}])
    assert (told.value.status_code, told.value.param) == (413, "file_id")
    assert len(engine.requests) == 1


@pytest.mark.parametrize("url", ["fox.png", "file:///etc/passwd", "http://", "http://[::1", "http://[x]/"])
def test_urls_that_are_none(serve, url):
    part = {"type": "image_url", "image_url": {"url": url}}
    with pytest.raises(openai.BadRequestError, match="not a URL") as told:
        client_of(serve(StubEngine()).url).chat.completions.create(
            model="stub", messages=[{"role": "user", "content": [part]}]
        )
    assert told.value.param == "messages[0].content[0].image_url.url"


def test_the_document(serve):
    """Every route of the dialect is in it with its fields, and it is sound."""
    url = serve(StubEngine()).url
    document = httpx.get(f"{url}/openapi.json").json()
    paths = {path: list(item) for path, item in document["paths"].items() if path.startswith("/openai/")}
    assert paths["/openai/v1/chat/completions"] == ["post", "get"]
    body = document["paths"]["/openai/v1/chat/completions"]["post"]["requestBody"]
    properties = body["content"]["application/json"]["schema"]["properties"]
    assert set(properties) == set(ChatRequest.model_fields)
    assert "$defs" not in io.StringIO(str(body)).read()


@pytest.mark.parametrize("kind", [ChatRequest, ResponseRequest, EmbeddingRequest])
def test_every_field_of_the_official_package_has_its_row(kind):
    """What OpenAI's API has today and this server has never heard of would be refused as unknown."""
    from openai.types import embedding_create_params
    from openai.types.chat import completion_create_params
    from openai.types.responses import response_create_params

    official: Any = {
        ChatRequest: completion_create_params.CompletionCreateParamsStreaming,
        ResponseRequest: response_create_params.ResponseCreateParamsStreaming,
        EmbeddingRequest: embedding_create_params.EmbeddingCreateParams,
    }[kind]
    rows = dict(standings(kind))
    assert set(official.__annotations__) <= set(rows)
    own = {name for name, known in rows.items() if known.standing is Standing.EXTENSION}
    top = {name for name in rows if name in kind.model_fields}
    assert top - own == set(official.__annotations__)
    assert all(known.note for known in rows.values() if known.standing is not Standing.SUPPORTED)


def test_what_has_no_effect_has_none(serve):
    """Fields of chat/completions that are ignored on purpose are taken, and the engine is asked the same."""
    objects: dict[str, Any] = {"prediction": {}, "prompt_cache_options": {}}
    values = {"metadata": {"a": "b"}, "store": True, **objects}
    ignored = [
        name
        for name, known in standings(ChatRequest)
        if known.standing is Standing.IGNORED and name in ChatRequest.model_fields
    ]
    engine = StubEngine()
    url = f"{serve(engine).url}/v1/chat/completions"
    for name in ignored:
        said = httpx.post(url, json={"model": "stub", "messages": [user("?")], name: values.get(name, "x")})
        assert said.status_code == 200, said.text
    assert len(ignored) > 5
    assert all(request == engine.requests[0] for request in engine.requests)


def test_a_stream_with_pauses():
    """Items as they come, None in silence, errors where they were, and an end also where nobody said so."""

    async def stream(*items: Any) -> AsyncGenerator[int]:
        for item in items:
            if isinstance(item, BaseException):
                raise item
            if item is None:
                await asyncio.sleep(0.05)
            else:
                yield item

    async def read(*items: Any) -> list[int | None]:
        return [item async for item in with_pauses(stream(*items), 0.01)]

    told = asyncio.run(read(*range(100)))
    assert [item for item in told if item is not None] == list(range(100))
    told = asyncio.run(read(1, None, 2))
    assert [item for item in told if item is not None] == [1, 2]
    assert None in told
    with pytest.raises(KeyError):
        asyncio.run(read(1, KeyError()))
    for number in (1, 20):
        with pytest.raises(UpstreamError, match="gave the answer up"):
            asyncio.run(read(*range(number), asyncio.CancelledError()))


def test_closing_a_stream_with_pauses_closes_what_it_reads():
    async def closed() -> list[str]:
        seen: list[str] = []

        async def stream() -> AsyncGenerator[int]:
            try:
                while True:
                    yield 1
                    await asyncio.sleep(60)
            finally:
                seen.append("closed")

        async with aclosing(with_pauses(stream(), 60)) as items:
            await anext(items)
        return seen

    assert asyncio.run(closed()) == ["closed"]

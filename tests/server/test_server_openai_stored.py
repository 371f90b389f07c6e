"""Chat completions that are kept, by the official client."""

from __future__ import annotations

import asyncio
from typing import Any

import openai
import pytest
from openai.types.chat import ChatCompletion
from talking import Exactly, client_of, done, user

from language.stub import StubEngine
from studiolo.language import conversation as c

ASKED: Any = {"model": "stub", "messages": [user("Hi")], "store": True}
PICTURE = "data:image/png;base64,aGk="
LOOK: Any = [
    {"type": "text", "text": "Look: "},
    {"type": "image_url", "image_url": {"url": PICTURE}},
]


def test_what_is_kept_is_fetched_changed_and_deleted(serve):
    client = client_of(serve(StubEngine()).url)
    made = client.chat.completions.create(**ASKED, metadata={"a": "b"}, temperature=0.5, seed=3)
    kept = client.chat.completions.retrieve(made.id)
    ChatCompletion.model_validate(kept.model_dump(by_alias=True), strict=True)
    assert (kept.choices, kept.usage, kept.created) == (made.choices, made.usage, made.created)
    assert kept.metadata == {"a": "b"}
    assert (kept.to_dict()["temperature"], kept.to_dict()["seed"]) == (0.5, 3)
    changed = client.chat.completions.update(made.id, metadata={"c": "d"})
    assert (changed.metadata, changed.choices) == ({"c": "d"}, made.choices)
    assert client.chat.completions.retrieve(made.id).metadata == {"c": "d"}
    deleted = client.chat.completions.delete(made.id)
    assert (deleted.id, deleted.deleted, deleted.object) == (made.id, True, "chat.completion.deleted")
    for gone in (
        client.chat.completions.retrieve,
        client.chat.completions.delete,
        lambda id_: client.chat.completions.update(id_, metadata={}),
        client.chat.completions.messages.list,
    ):
        with pytest.raises(openai.NotFoundError):
            gone(made.id)


def test_nothing_is_kept_unless_it_is_wished(serve):
    client = client_of(serve(StubEngine()).url)
    for body in ({}, {"store": False}, {"store": None, "metadata": {"a": "b"}}):
        made = client.chat.completions.create(**{"model": "stub", "messages": [user("Hi")]} | body)
        with pytest.raises(openai.NotFoundError):
            client.chat.completions.retrieve(made.id)
    assert client.chat.completions.list().data == []


def test_a_stream_is_kept_whole(serve):
    call = c.Call(name="weather", arguments={"town": "A"}, id="c1")
    said = [c.Delta(part=c.Text(text=text)) for text in ("Let ", "me.")]
    client = client_of(serve(Exactly([*said, c.Delta(part=call), done()])).url)
    chunks = list(client.chat.completions.create(**ASKED, stream=True))
    kept = client.chat.completions.retrieve(chunks[0].id)
    (choice,) = kept.choices
    assert (choice.message.content, choice.finish_reason, kept.usage.total_tokens) == (
        "Let me.", "tool_calls", 7,
    )  # fmt: skip
    assert [call.function.name for call in choice.message.tool_calls] == ["weather"]


def test_pages(serve):
    client = client_of(serve(StubEngine(model="one"), StubEngine(model="two")).url)
    made = [
        client.chat.completions.create(
            **ASKED | {"model": model, "metadata": {"turn": str(number % 2), "all": "yes"}}
        ).id
        for number, model in enumerate(["one", "two", "one", "two", "one"])
    ]
    assert [one.id for one in client.chat.completions.list(limit=2)] == made  # the client turns the pages
    assert [one.id for one in client.chat.completions.list(limit=2, order="desc")] == made[::-1]
    page = client.chat.completions.list(limit=2, after=made[1])
    assert ([one.id for one in page.data], page.has_more) == (made[2:4], True)
    assert [one.id for one in client.chat.completions.list(model="two", limit=1)] == made[1::2]
    turned = client.chat.completions.list(metadata={"turn": "0", "all": "yes"}, limit=1)
    assert [one.id for one in turned] == made[::2]
    with pytest.raises(openai.NotFoundError):
        client.chat.completions.list(after="chatcmpl-none")


def test_its_messages(serve):
    client = client_of(serve(StubEngine()).url)
    messages: Any = [{"role": "system", "content": "Be kind."}, {"role": "user", "content": LOOK}]
    made = client.chat.completions.create(**ASKED | {"messages": messages})
    told = list(client.chat.completions.messages.list(made.id, limit=1))
    assert [(one.id, one.role, one.content) for one in told] == [
        (f"{made.id}-0", "system", "Be kind."), (f"{made.id}-1", "user", "Look: "),
    ]  # fmt: skip
    assert [part.type for part in told[1].content_parts] == ["text", "image_url"]
    first = client.chat.completions.messages.list(made.id, order="desc", limit=1)
    assert ([one.id for one in first.data], first.has_more) == ([f"{made.id}-1"], True)
    with pytest.raises(openai.BadRequestError):
        client.chat.completions.messages.list(made.id, after="none")


def test_each_key_has_its_own(serve):
    serving = serve(StubEngine())
    store = serving.studio.keys.store
    mine, theirs = (client_of(serving.url, api_key=store.create(name)[0]) for name in ("ada", "bob"))
    made = mine.chat.completions.create(**ASKED)
    assert [one.id for one in mine.chat.completions.list()] == [made.id]
    assert theirs.chat.completions.list().data == []
    with pytest.raises(openai.NotFoundError):
        theirs.chat.completions.retrieve(made.id)


def test_the_asynchronous_client(serve):
    url = serve(StubEngine()).url

    async def talk() -> tuple[str, list[str]]:
        async with openai.AsyncOpenAI(base_url=f"{url}/openai/v1", api_key="k") as client:
            made = await client.chat.completions.create(**ASKED)
            listed = [one.id async for one in client.chat.completions.list(limit=1)]
            return made.id, listed

    made, listed = asyncio.run(talk())
    assert listed == [made]

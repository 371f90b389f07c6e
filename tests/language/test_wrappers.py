"""The engines that stand before engines: each is one, and they stand together."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncGenerator
from datetime import timedelta

import numpy as np
import pytest

from studiolo.language.caching.cached import Cached
from studiolo.language.caching.contexts import Contexts, Prefix
from studiolo.language.caching.reusing import Reusing
from studiolo.language.caching.semantic import SemanticIndex
from studiolo.language.collect import collected
from studiolo.language.conversation import (
    Delta,
    FinishReason,
    GenerationConfig,
    Harm,
    Request,
    SafetySetting,
    Text,
    Threshold,
    Usage,
    user,
)
from studiolo.language.engines.base import Capabilities, Token
from studiolo.language.safety.guarded import Guarded
from studiolo.language.safety.judging import Judgement


class Inner:
    """Says three sentences, and remembers what was done to it."""

    model = "m"
    capabilities = Capabilities(context=100, seed=True)

    def __init__(self) -> None:
        self.asked: list[Request] = []
        self.left = self.closed = False

    async def generate(self, request: Request) -> AsyncGenerator[Delta]:
        self.asked.append(request)
        try:
            for sentence in ("One. ", "Two. ", "Red."):
                yield Delta(part=Text(text=sentence))
            yield Delta(finish=FinishReason.STOP, usage=Usage(answer=3))
        finally:
            self.left = True

    async def count_tokens(self, request: Request) -> int:
        return len(request.contents)

    async def tokenize(self, texts):
        return [[Token(1, text.encode())] for text in texts]

    async def embed(self, texts, *, dimensions=None):
        return [[float(dimensions)] for _ in texts]

    async def close(self) -> None:
        self.closed = True


class First:
    """An embedder that sees a text's first letter."""

    name = "first"

    async def reads(self, text: str) -> bool:
        return True

    async def embed(self, texts):
        return np.stack([np.eye(128, dtype=np.float32)[ord(text[0]) % 128] for text in texts])


class Reds:
    """Takes red for hate."""

    harms = frozenset({Harm.HATE})

    async def judge(self, text: str) -> Judgement:
        return Judgement({Harm.HATE: 0.9} if "red" in text.lower() else {})


def around(kind: str, inner: Inner, folder):
    if kind == "cached":
        return Cached(inner, Contexts(folder))
    if kind == "reusing":
        return Reusing(inner, SemanticIndex(First(), folder / "answers.sqlite"), threshold=0.9)
    return Guarded(inner, Reds())


def asking(text: str, hate: Threshold = Threshold.NONE, **told) -> Request:
    return Request(
        model="m", contents=(user(text),), config=GenerationConfig(temperature=0),
        safety=(SafetySetting(harm=Harm.HATE, threshold=hate),), **told,
    )  # fmt: skip


KINDS = ["cached", "reusing", "guarded"]


@pytest.mark.parametrize("kind", KINDS)
def test_each_is_an_engine(kind, tmp_path):
    async def run():
        inner = Inner()
        engine = around(kind, inner, tmp_path)
        assert (engine.model, engine.capabilities) == (inner.model, inner.capabilities)
        assert await engine.count_tokens(asking("Hi")) == 1
        assert await engine.tokenize(["a", "b"]) == [[(1, b"a")], [(1, b"b")]]
        assert await engine.embed(["a", "b"], dimensions=5) == [[5.0], [5.0]]
        assert (await collected(engine.generate(asking("Hi")))).text == "One. Two. Red."
        await engine.close()
        assert inner.closed

    asyncio.run(run())


@pytest.mark.parametrize("kind", KINDS)
def test_leaving_the_stream_leaves_the_engines(kind, tmp_path):
    async def run():
        inner = Inner()
        stream = around(kind, inner, tmp_path).generate(asking("Hi"))
        assert (await anext(stream)).part == Text(text="One. ")
        assert not inner.left
        await stream.aclose()
        assert inner.left

    asyncio.run(run())


def test_together_contexts_are_written_out_judged_and_reused_in_that_order(tmp_path):
    async def run():
        inner = Inner()
        reusing = around("reusing", inner, tmp_path)
        engine = Cached(Guarded(reusing, Reds()), Contexts(tmp_path))
        context = await engine.create(Prefix(contents=(user("A book."),)), ttl=timedelta(hours=1))
        wicked = await engine.create(Prefix(contents=(user("A red book."),)), ttl=timedelta(hours=1))

        first = await collected(engine.generate(asking("Who?", cache=context.name)))
        again = await collected(engine.generate(asking("Who then?", cache=context.name)))
        assert (first.text, again.text) == ("One. Two. Red.", "One. Two. Red.")
        assert (len(inner.asked), len(inner.asked[0].contents)) == (1, 2)
        assert again.notes == ("reused, similarity 1.000",)

        strict = await collected(engine.generate(asking("Who then?", Threshold.HIGH, cache=context.name)))
        assert (strict.text, strict.candidates[0].finish) == ("One. Two. ", FinishReason.SAFETY)
        assert len(inner.asked) == 1

        blocked = await collected(engine.generate(asking("Who?", Threshold.HIGH, cache=wicked.name)))
        assert blocked.blocked is FinishReason.SAFETY

    asyncio.run(run())

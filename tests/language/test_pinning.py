"""A context is computed once: seen in what llama.cpp says of its own prefix cache."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncGenerator
from datetime import timedelta

import pytest

from studiolo.language.caching.cached import Cached
from studiolo.language.caching.contexts import Contexts, Prefix
from studiolo.language.caching.pins import Warming
from studiolo.language.conversation import Delta, FinishReason, Request, Text, Usage, model, user
from studiolo.language.engines.completer import Completion, Sampling, Tokens
from studiolo.language.engines.llamacpp import LlamaCpp

pytest.importorskip("xllamacpp")

BOOK = Prefix(
    system="Answer in one word.",
    contents=(user("Call me Ishmael. Some years ago I went to sea."), model("Yes?")),
)


class ChatML:
    """The plainest engine on a completer: SmolLM2's turns, greedy, a few tokens."""

    def __init__(self, completer: LlamaCpp) -> None:
        self.completer = completer
        self.model, self.capabilities = completer.model, completer.capabilities

    def prompt(self, request: Request) -> Tokens:
        turns = [("system", request.system)] if request.system else []
        turns += [("assistant" if c.role == "model" else "user", c.text) for c in request.contents]
        text = "".join(f"<|im_start|>{role}\n{words}<|im_end|>\n" for role, words in turns)
        return self.completer.tokenize(f"{text}<|im_start|>assistant\n")

    async def generate(self, request: Request) -> AsyncGenerator[Delta]:
        prompt = self.prompt(request)
        wish = Completion(prompt=prompt, max_tokens=4, sampling=Sampling(temperature=0))
        cached = 0
        async for piece in self.completer.complete(wish):
            cached = piece.cached or cached
            yield Delta(part=Text(text=piece.text))
        yield Delta(finish=FinishReason.STOP, usage=Usage(prompt=len(prompt), cached=cached))

    async def count_tokens(self, request: Request) -> int:
        return len(self.prompt(request))


def opened(smollm2) -> LlamaCpp:
    return LlamaCpp(smollm2, model="smollm2", context=512, slots=1, threads=1)


async def usage(cached: Cached, question: str, name: str) -> Usage:
    request = Request(model="smollm2", contents=(user(question),), cache=name)
    return [delta.usage async for delta in cached.generate(request)][-1]


def test_a_pinned_context_is_not_computed_again(smollm2, tmp_path):
    """Nor after a restart, once it has been restored."""

    async def run():
        contexts = Contexts(tmp_path)
        completer = opened(smollm2)
        engine = ChatML(completer)
        cached = Cached(engine, contexts, Warming(completer, engine.prompt))
        context = await cached.create(BOOK, ttl=timedelta(hours=1))
        shared = completer.detokenize(engine.prompt(BOOK.before(Request(model="m", contents=(user("?"),)))))
        assert context.tokens == len(completer.tokenize(shared.partition("?<|im_end|>\n<|im_start|>a")[0]))
        first = await usage(cached, "Who speaks?", context.name)
        assert context.tokens <= first.cached < first.prompt
        await completer.close()

        completer = opened(smollm2)
        engine = ChatML(completer)
        cached = Cached(engine, Contexts(tmp_path), Warming(completer, engine.prompt))
        assert await cached.restore() == 1
        assert (await usage(cached, "Who speaks?", context.name)).cached >= context.tokens
        await completer.close()

    asyncio.run(run())

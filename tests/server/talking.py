"""Engines that a test of the OpenAI dialect scripts, and the official client to ask them."""

from __future__ import annotations

import base64
from collections.abc import AsyncGenerator, Iterable, Sequence
from typing import Any

import openai

from language.stub import Script, StubCompleter, at_once
from studiolo.language.conversation import Delta, FinishReason, Request, Usage
from studiolo.language.engines.base import Capabilities
from studiolo.language.engines.local import LocalEngine


def speaking(scripts: Iterable[Script] = (), **options: Any) -> LocalEngine:
    """A whole engine (tools, thoughts, schemas, logprobs) whose tokens are scripted; `.says` is the
    completer."""
    completer = StubCompleter(scripts, **options)
    engine = LocalEngine(completer)
    engine.says = completer  # type: ignore[attr-defined]
    return engine


class Exactly:
    """An engine that says these deltas, one list for each request."""

    model = "stub"

    def __init__(self, *answers: Sequence[Delta | Exception], pause: Any = at_once) -> None:
        self._answers, self._pause = iter(answers), pause
        self.capabilities = Capabilities(context=4096, tools=True, grammar=True, thinking=True)
        self.requests: list[Request] = []

    async def generate(self, request: Request) -> AsyncGenerator[Delta]:
        self.requests.append(request)
        for delta in next(self._answers):
            await self._pause()
            if isinstance(delta, Exception):
                raise delta
            yield delta

    async def count_tokens(self, request: Request) -> int:
        return 7

    async def embed(self, texts: Sequence[str], *, dimensions: int | None = None) -> list[list[float]]:
        raise NotImplementedError

    async def close(self) -> None: ...


def done(**more: Any) -> Delta:
    """The last delta."""
    return Delta(**{"finish": FinishReason.STOP, "usage": Usage(prompt=5, answer=2)} | more)


def client_of(url: str, **options: Any) -> openai.OpenAI:
    return openai.OpenAI(**{"base_url": f"{url}/v1", "api_key": "sk-test", "max_retries": 0} | options)


QUICK: dict[str, Any] = {"steps": 2, "seed": 7}
"""For pictures of which little is wanted."""


def png(image: Any) -> bytes:
    """The file of a picture, or of an event that brings one."""
    return base64.b64decode(image.b64_json)


def user(text: str) -> dict[str, Any]:
    return {"role": "user", "content": text}

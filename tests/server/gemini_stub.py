"""An engine that a test of the Gemini dialect scripts, and Google's client to ask it."""

from __future__ import annotations

import asyncio
import re
import threading
from collections.abc import AsyncGenerator, Callable, Sequence
from typing import Any

from google import genai

from studiolo.language.conversation import Delta, FinishReason, Request, Text, Usage
from studiolo.language.engines.base import Capabilities, Token
from studiolo.language.errors import UnsupportedError

Said = Sequence[Delta | Exception | str]

ABLE = Capabilities(
    context=4096, max_output=1024, tools=True, grammar=True, thinking=True, logprobs=True, seed=True,
    embeddings=True, candidates=8,
)  # fmt: skip


class Scripted:
    """Says what `find` says to a request: deltas, pieces of text, an error, or HOLD, at which it stands still
    until it is cancelled. A last delta is added where there is none.

    Attributes:
        requests: those that came; `held` and `cancelled` are events for the test's own thread.
    """

    def __init__(self, find: Callable[[Request], Said] | Said = ("Hello", " there."), model: str = "stub"):
        self._find = find if callable(find) else lambda _: find
        self.model, self.capabilities = model, ABLE
        self.requests: list[Request] = []
        self.held, self.cancelled = threading.Event(), threading.Event()

    async def generate(self, request: Request) -> AsyncGenerator[Delta]:
        self.requests.append(request)
        said = list(self._find(request))
        if not any(isinstance(one, Delta) and (one.finish or one.blocked) for one in said):
            said.append(done())
        try:
            for one in said:
                await asyncio.sleep(0)
                if isinstance(one, Exception):
                    raise one
                if one == HOLD:
                    self.held.set()
                    await asyncio.Event().wait()
                yield Delta(part=Text(text=one), model=self.model) if isinstance(one, str) else one
        except (GeneratorExit, asyncio.CancelledError):
            self.cancelled.set()
            raise

    async def count_tokens(self, request: Request) -> int:
        """Words, for the stub."""
        texts = [request.system or "", *(content.text for content in request.contents)]
        return sum(len(text.split()) for text in texts)

    async def tokenize(self, texts: Sequence[str]) -> list[list[Token]]:
        """Words, by how long they are; `untold` nobody tells."""
        if "untold" in texts:
            raise UnsupportedError("this engine keeps them to itself")
        words = [re.findall(r"\s*\S+", text) for text in texts]
        return [[Token(len(word), word.encode()) for word in line] for line in words]

    async def embed(self, texts: Sequence[str], *, dimensions: int | None = None) -> list[list[float]]:
        """The length of a text, and zeros."""
        return [[float(len(text)), *[0.0] * ((dimensions or 3) - 1)] for text in texts]

    async def close(self) -> None: ...


HOLD = "\0hold"


def done(**more: Any) -> Delta:
    """The last delta."""
    usage = Usage(prompt=5, answer=2, prompt_by_modality={"text": 5})
    return Delta(**{"finish": FinishReason.STOP, "usage": usage, "model": "stub"} | more)


def client_of(url: str, **options: Any) -> genai.Client:
    return genai.Client(**{"api_key": "test-key", "http_options": {"base_url": url}} | options)

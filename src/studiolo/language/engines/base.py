"""What every engine does, whether the model runs here or elsewhere."""

from __future__ import annotations

from collections.abc import AsyncGenerator, Sequence
from typing import Literal, NamedTuple, Protocol

from pydantic import Field

from studiolo.language.conversation import Delta, Request, Value

Modality = Literal["text", "image", "audio", "video", "document"]


class Capabilities(Value):
    """What a model on its engine can do; `context` and `max_output` in tokens."""

    modalities: frozenset[Modality] = frozenset({"text"})
    context: int = Field(gt=0)
    max_output: int | None = None
    thinking: bool = False
    tools: bool = False
    grammar: bool = False
    """Constraints are enforced while decoding, not merely asked for."""
    logprobs: bool = False
    embeddings: bool = False
    seed: bool = False
    bias: bool = False
    """Logits of single tokens can be raised and lowered."""
    candidates: int = 1
    """The most answers to one request."""


class Token(NamedTuple):
    """One of a vocabulary. `data` are the bytes that it stands for, which may be a part of a character."""

    id: int
    data: bytes


class Engine(Protocol):
    """One model, answering. Safe to use from many tasks of one event loop.

    An answer is cancelled by closing its stream (`aclose()`, or cancelling the task that reads it); the
    engine's work for it ends with that, also while the prompt is still being read.
    """

    @property
    def model(self) -> str:
        """The model's name, as answers give it."""

    @property
    def capabilities(self) -> Capabilities: ...

    def generate(self, request: Request) -> AsyncGenerator[Delta]:
        """The answer in pieces; see `Delta` for what comes when.

        Raises:
            LanguageError: of the kind that fits (see `errors`), before or between pieces.
        """

    async def count_tokens(self, request: Request) -> int:
        """Tokens of the whole prompt, template and tools included."""

    async def tokenize(self, texts: Sequence[str]) -> list[list[Token]]:
        """The tokens of each text by itself, without template, begin or end; the name of a control token is
        read as letters, as wherever somebody says it.

        Raises:
            UnsupportedError: nobody tells them of this model.
        """

    async def embed(self, texts: Sequence[str], *, dimensions: int | None = None) -> list[list[float]]:
        """One unit vector a text; cut to `dimensions` and made unit again where the model allows it.

        Raises:
            UnsupportedError: the model has no embeddings.
        """

    async def close(self) -> None:
        """Ends what is under way and frees all memory. The engine is of no use afterwards."""

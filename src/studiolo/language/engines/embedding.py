"""Weights that make vectors of texts and nothing else."""

from __future__ import annotations

from collections.abc import AsyncGenerator, Sequence

from studiolo.language.conversation import Delta, Request
from studiolo.language.embedders import MiniLM, cut
from studiolo.language.engines.base import Capabilities, Token
from studiolo.language.errors import TooLongError, UnsupportedError


class EmbeddingEngine:
    """An embedder as an `Engine`."""

    def __init__(self, embedder: MiniLM, model: str) -> None:
        self._embedder, self._model = embedder, model

    @property
    def model(self) -> str:
        return self._model

    @property
    def capabilities(self) -> Capabilities:
        return Capabilities(context=self._embedder.longest, embeddings=True, candidates=0)

    def generate(self, request: Request) -> AsyncGenerator[Delta]:
        raise UnsupportedError(
            "this model makes vectors of texts and cannot speak", where=self.model, remedy="Choose another."
        )

    async def count_tokens(self, request: Request) -> int:
        """Tokens of all words of the request, each text between its two marks."""
        texts = [request.system or "", *(content.text for content in request.contents)]
        return sum([await self._embedder.count(text) for text in texts if text])

    async def tokenize(self, texts: Sequence[str]) -> list[list[Token]]:
        raise UnsupportedError(
            "this model reads words without case and accents: its tokens are not the text's own bytes",
            where=self.model,
            remedy="Ask how many there are.",
        )

    async def embed(self, texts: Sequence[str], *, dimensions: int | None = None) -> list[list[float]]:
        """One unit vector a text.

        Raises:
            TooLongError: a text of which not all would be seen.
            UnsupportedError: more dimensions than there are.
        """
        for number, text in enumerate(texts):
            if (tokens := await self._embedder.count(text)) > self._embedder.longest:
                raise TooLongError(
                    f"text {number} has {tokens} tokens, and this model reads {self._embedder.longest}",
                    where=self.model,
                    remedy="Split it.",
                )
        return [cut(vector, dimensions) for vector in (await self._embedder.embed(texts)).tolist()]

    async def close(self) -> None:
        """The weights go with the last reference to them."""

"""What every engine that stands around another one passes on."""

from __future__ import annotations

from collections.abc import Sequence

from studiolo.language.conversation import Request
from studiolo.language.engines.base import Capabilities, Engine, Token


class Around:
    """Base of wrappers, engines themselves: they change `generate`, the rest is the inner engine's."""

    def __init__(self, engine: Engine) -> None:
        self.engine = engine

    @property
    def model(self) -> str:
        return self.engine.model

    @property
    def capabilities(self) -> Capabilities:
        return self.engine.capabilities

    async def count_tokens(self, request: Request) -> int:
        return await self.engine.count_tokens(request)

    async def tokenize(self, texts: Sequence[str]) -> list[list[Token]]:
        return await self.engine.tokenize(texts)

    async def embed(self, texts: Sequence[str], *, dimensions: int | None = None) -> list[list[float]]:
        return await self.engine.embed(texts, dimensions=dimensions)

    async def close(self) -> None:
        """Closes the inner engine; whatever else the wrapper uses may serve others."""
        await self.engine.close()

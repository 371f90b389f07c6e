"""The models that answer: which there are, and which are loaded now."""

from __future__ import annotations

import asyncio
import difflib
from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import asynccontextmanager
from dataclasses import dataclass, field
from datetime import datetime
from typing import Literal

from studiolo.language.caching.cached import Cached
from studiolo.language.caching.contexts import Contexts
from studiolo.language.conversation import Value
from studiolo.language.engines.base import Capabilities
from studiolo.language.errors import UnknownModelError

ModelKind = Literal["chat", "completion", "embedding", "drawing", "subject", "hosted"]


class ModelInfo(Value):
    """What is told of a model. `base` is what a subject was taught to; `capabilities` is None of one that
    draws, and of one whose weights are not loaded what their files say."""

    name: str
    kind: ModelKind
    title: str
    created: datetime
    capabilities: Capabilities | None = None
    base: str | None = None


Open = Callable[[str], Awaitable[Cached]]
"""Opens the model of a name, which may take minutes."""


@dataclass
class _Loaded:
    """A model that is loaded or on its way; `leases` are the requests that it answers now."""

    opening: asyncio.Task[Cached]
    leases: int = 0
    last: float = field(default=0.0)


class EnginePool:
    """Engines by name, on one event loop.

    Args:
        models: tells what there is; asked anew each time, as models come and go.
        open_engine: opens one.
        contexts: whose explicit contexts are written out, by their owner.
    """

    def __init__(
        self,
        models: Callable[[], list[ModelInfo]],
        open_engine: Open,
        contexts: Callable[[str | None], Contexts],
    ) -> None:
        self._models, self._open, self._contexts = models, open_engine, contexts
        self._loaded: dict[str, _Loaded] = {}

    def models(self) -> list[ModelInfo]:
        """All models: of language, hosted ones with a key here, drawing ones and subjects."""
        return self._models()

    def info(self, name: str) -> ModelInfo:
        """The model of that name.

        Raises:
            UnknownModelError: there is none.
        """
        found = {model.name: model for model in self.models()}
        if name not in found:
            near = difflib.get_close_matches(name, found, n=3, cutoff=0.5)
            hint = f"Did you mean {' or '.join(near)}?" if near else "GET the list of models."
            raise UnknownModelError("no model of this name", where=repr(name[:100]), remedy=hint)
        return found[name]

    @asynccontextmanager
    async def lease(self, name: str, owner: str | None = None) -> AsyncIterator[Cached]:
        """The engine of that name for the time of the block, loaded if need be.

        Args:
            owner: whose explicit contexts the request may name (`Caller.key_id`).

        Raises:
            UnknownModelError: there is none of that name.
            UnsupportedError: it draws, and does not speak.
        """
        self.info(name)
        loaded = self._loaded.get(name)
        if loaded is None:
            loaded = self._loaded[name] = _Loaded(asyncio.ensure_future(self._open(name)))
        loaded.leases += 1
        try:
            opened = await asyncio.shield(loaded.opening)
            yield Cached(opened.engine, self._contexts(owner), opened.pins)
        finally:
            loaded.leases -= 1

    async def close(self) -> None:
        """Ends all engines."""
        loaded, self._loaded = self._loaded, {}
        for entry in loaded.values():
            if not entry.opening.cancel() and not entry.opening.cancelled() and not entry.opening.exception():
                await entry.opening.result().close()

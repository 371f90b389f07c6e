"""The models that answer: which there are, and which are loaded now."""

from __future__ import annotations

import asyncio
import difflib
import time
from collections.abc import AsyncGenerator, AsyncIterator, Awaitable, Callable
from contextlib import aclosing, asynccontextmanager
from dataclasses import dataclass
from datetime import datetime
from typing import Literal

from studiolo.errors import StudioloError
from studiolo.language.caching.cached import Cached
from studiolo.language.caching.contexts import Contexts
from studiolo.language.conversation import Delta, Request, Value
from studiolo.language.engines.around import Around
from studiolo.language.engines.base import Capabilities, Engine
from studiolo.language.errors import OverloadedError, UnknownModelError, UnsupportedError
from studiolo.server.logs import current
from studiolo.server.metrics import Metrics, resident

ModelKind = Literal["chat", "completion", "embedding", "drawing", "subject", "hosted"]

PATIENCE = 60.0
"""Seconds that a request waits for room in memory, while other models answer."""
_LOOK_AGAIN = 1.0  # seconds for which the list of models is believed


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
Draws = Callable[[Cached, str], Engine]
"""A chat model that may draw with the model of that name."""


@dataclass
class _Loaded:
    """A model that is loaded or on its way. `leases` are the requests that it answers now, `size` the bytes
    that it takes, `last` when it was last wanted."""

    opening: asyncio.Task[Cached]
    size: int
    leases: int = 0
    last: float = 0.0

    @property
    def ready(self) -> bool:
        return self.opening.done() and not self.failed

    @property
    def failed(self) -> bool:
        done = self.opening.done()
        return done and (self.opening.cancelled() or self.opening.exception() is not None)


class EnginePool:
    """Engines by name, on one event loop: loaded when they are wanted, and unloaded, least recently used
    first, when another one needs their memory.

    What a model takes is what loading it added to this process, at least `size` of it.

    Args:
        models: tells what there is; asked anew from time to time, as models come and go.
        open_engine: opens one.
        contexts: whose explicit contexts are written out, by their owner.
        size: bytes that a model will take, about; 0 for one that runs elsewhere.
        memory: bytes that all of them may take; None: without limit.
        draws: makes an engine of "CHAT+DRAWING".
    """

    def __init__(
        self,
        models: Callable[[], list[ModelInfo]],
        open_engine: Open,
        contexts: Callable[[str | None], Contexts],
        *,
        metrics: Metrics,
        size: Callable[[str], int] = lambda _: 0,
        memory: int | None = None,
        draws: Draws | None = None,
        patience: float = PATIENCE,
    ) -> None:
        self._find, self._open, self._contexts = models, open_engine, contexts
        self._metrics, self._size, self._memory, self._draws = metrics, size, memory, draws
        self._patience = patience
        self._loaded: dict[str, _Loaded] = {}
        self._measured: dict[str, int] = {}
        self._listed: tuple[float, dict[str, ModelInfo]] | None = None
        self._one_at_a_time = asyncio.Lock()  # so that what loading adds to memory is one model's
        self._changed = asyncio.Condition()
        metrics.watch(self.loaded)

    def models(self) -> list[ModelInfo]:
        """All models: of language, hosted ones with a key here, drawing ones and subjects."""
        return list(self._names(anew=True).values())

    def look_again(self) -> None:
        """A model has come or gone: from now on nobody is told what was there before."""
        self._listed = None

    def info(self, name: str) -> ModelInfo:
        """The model of that name; of "CHAT+DRAWING" it is the chat model.

        Raises:
            UnknownModelError: there is none.
        """
        chat, drawing = self._split(name)
        if drawing is not None:
            self._one(drawing)
        return self._one(chat)

    def loaded(self) -> dict[str, int]:
        """The models that are loaded, and the bytes that each takes."""
        return {name: entry.size for name, entry in self._loaded.items() if entry.ready}

    @asynccontextmanager
    async def lease(self, name: str, owner: str | None = None) -> AsyncIterator[Cached]:
        """The engine of that name for the time of the block, loaded if need be.

        Args:
            name: of a model that speaks or embeds, or "CHAT+DRAWING" for one that draws within its answers.
            owner: whose explicit contexts the request may name (`Caller.key_id`).

        Raises:
            UnknownModelError: there is none of that name.
            UnsupportedError: it draws, and does not speak; or it does not fit into the memory at all.
            OverloadedError: no room for it became free in time.
        """
        chat, drawing = self._split(name)
        info = self.info(name)
        if info.capabilities is None:
            raise UnsupportedError(
                "this model draws, and does not speak", where=chat, remedy="Ask it for images."
            )
        if (entry := current()) is not None:
            entry.model = chat
        async with self._held(chat) as opened:
            watched = _Watched(opened.engine, chat, self._metrics)
            engine = Cached(watched, self._contexts(owner), opened.pins)
            if drawing is None:
                yield engine
            else:
                yield self._drawing(engine, drawing)

    async def close(self) -> None:
        """Ends all engines, also those that are in use."""
        for name in list(self._loaded):
            await self._unload(name)

    async def unload(self, name: str) -> bool:
        """Frees a model's memory; False if it answers just now, or is not loaded."""
        entry = self._loaded.get(name)
        if entry is None or entry.leases or not entry.ready:
            return False
        await self._unload(name)
        return True

    def _drawing(self, engine: Cached, drawing: str) -> Cached:
        if self._draws is None:
            raise UnsupportedError("no model draws here", where=drawing)
        return Cached(self._draws(engine, drawing), engine.contexts)

    def _split(self, name: str) -> tuple[str, str | None]:
        chat, plus, drawing = name.partition("+")
        return (chat, drawing) if plus and name not in self._names() else (name, None)

    def _one(self, name: str) -> ModelInfo:
        found = self._names()
        if name not in found:
            found = self._names(anew=True)
        if name in found:
            return found[name]
        near = difflib.get_close_matches(name[:100], found, n=3, cutoff=0.5)
        hint = f"Did you mean {' or '.join(near)}?" if near else "The list of models tells which there are."
        raise UnknownModelError("no model of this name", where=repr(name[:100]), remedy=hint)

    def _names(self, *, anew: bool = False) -> dict[str, ModelInfo]:
        now = time.monotonic()
        if anew or self._listed is None or now - self._listed[0] > _LOOK_AGAIN:
            self._listed = now, {model.name: self._as_loaded(model) for model in self._find()}
        return self._listed[1]

    def _as_loaded(self, model: ModelInfo) -> ModelInfo:
        """With what its engine can do in truth, once it is loaded."""
        entry = self._loaded.get(model.name)
        if entry is None or not entry.ready:
            return model
        return model.model_copy(update={"capabilities": entry.opening.result().capabilities})

    @asynccontextmanager
    async def _held(self, name: str) -> AsyncIterator[Cached]:
        entry = self._loaded.get(name)
        if entry is None or entry.failed:
            entry = await self._loading(name)
        entry.leases += 1
        entry.last = time.monotonic()
        try:
            yield await asyncio.shield(entry.opening)
        finally:
            entry.leases -= 1
            entry.last = time.monotonic()
            async with self._changed:
                self._changed.notify_all()

    async def _loading(self, name: str) -> _Loaded:
        """Begins to load a model. Whoever wants it meanwhile waits for the same."""
        entry = self._loaded[name] = _Loaded(
            asyncio.create_task(self._load(name)), self._need(name), last=time.monotonic()
        )
        return entry

    async def _load(self, name: str) -> Cached:
        async with self._one_at_a_time:
            entry, need = self._loaded[name], self._need(name)
            await self._make_room(name, need)
            before = resident()
            opened = await self._open(name)
            if need:
                entry.size = self._measured[name] = max(need, resident() - before)
        if self._memory is not None and entry.size > self._memory:
            await opened.close()
            raise _too_large(name, entry.size, self._memory)
        await self._trim(name)
        self._listed = None
        return opened

    def _need(self, name: str) -> int:
        return self._measured.get(name) or self._size(name)

    async def _make_room(self, name: str, need: int) -> None:
        if self._memory is None:
            return
        if need > self._memory:
            raise _too_large(name, need, self._memory)
        try:
            async with asyncio.timeout(self._patience):
                while self._taken(name) + need > self._memory:
                    await self._free_one(name)
        except TimeoutError:
            raise OverloadedError(
                "no room in memory: the models that are loaded are all at work", where=name, retry_after=10
            ) from None

    def _taken(self, name: str) -> int:
        return sum(entry.size for other, entry in self._loaded.items() if other != name and entry.ready)

    async def _trim(self, name: str) -> None:
        """Unloads what is idle, should the new model have turned out larger than it was thought to be."""
        size = self._loaded[name].size
        while self._memory is not None and self._taken(name) + size > self._memory:
            if (oldest := self._oldest_idle(name)) is None:
                return
            await self._unload(oldest)

    async def _free_one(self, name: str) -> None:
        """Unloads what was wanted longest ago, or waits until something is no longer in use."""
        if (oldest := self._oldest_idle(name)) is not None:
            await self._unload(oldest)
            return
        async with self._changed:
            await self._changed.wait()

    def _oldest_idle(self, name: str) -> str | None:
        """Of the other models that take memory and answer nothing, the one that was wanted longest ago."""
        idle = [
            other
            for other, entry in self._loaded.items()
            if other != name and entry.ready and not entry.leases and entry.size
        ]
        return min(idle, key=lambda other: self._loaded[other].last, default=None)

    async def _unload(self, name: str) -> None:
        entry = self._loaded.pop(name)
        self._listed = None
        if entry.ready:
            await entry.opening.result().close()
        else:
            entry.opening.cancel()
            await asyncio.wait((entry.opening,))
            if not entry.opening.cancelled():
                entry.opening.exception()


class _Watched(Around):
    """An engine of which is known who waits for it, and for how long."""

    def __init__(self, engine: Engine, name: str, metrics: Metrics) -> None:
        super().__init__(engine)
        self._waiting = metrics.waiting.labels(name)
        self._first = metrics.first_token.labels(name)

    async def generate(self, request: Request) -> AsyncGenerator[Delta]:
        began, waiting = time.perf_counter(), True
        self._waiting.inc()
        try:
            async with aclosing(self.engine.generate(request)) as stream:
                async for delta in stream:
                    if waiting:
                        waiting = False
                        self._waiting.dec()
                        self._first.observe(time.perf_counter() - began)
                    yield delta
        finally:
            if waiting:
                self._waiting.dec()


def _too_large(name: str, need: int, memory: int) -> StudioloError:
    return UnsupportedError(
        f"this model takes about {need / 2**30:.1f} GiB, and models have {memory / 2**30:.1f} GiB of memory",
        where=name,
        remedy="Start the server with a larger --memory, or ask a smaller model.",
    )

"""All that the routes answer from."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncGenerator, AsyncIterator, Awaitable, Callable
from contextlib import aclosing, asynccontextmanager
from dataclasses import dataclass, field

from starlette.requests import Request

from studiolo.jobs.artist import Artist
from studiolo.jobs.batches import Batches
from studiolo.jobs.room import Room
from studiolo.jobs.tunings import Tunings
from studiolo.language.caching.contexts import Contexts
from studiolo.language.conversation import Delta, Usage
from studiolo.language.metering import Meter, metered
from studiolo.server import shelf
from studiolo.server.background import Background
from studiolo.server.limits import Caller, Keys
from studiolo.server.logs import current
from studiolo.server.metrics import Metrics
from studiolo.server.pool import EnginePool
from studiolo.server.settings import Settings
from studiolo.store.database import Database
from studiolo.store.uploads import Uploads

Work = Callable[[], Awaitable[object]]


@dataclass
class Studio:
    """The rooms behind the server; lives in `app.state.studio`."""

    settings: Settings
    database: Database
    engines: EnginePool
    contexts: Contexts
    keys: Keys
    files: Uploads
    metrics: Metrics
    room: Room
    batches: Batches
    tunings: Tunings
    artist: Artist
    background: Background = field(default_factory=Background)
    opening: list[Work] = field(default_factory=list)
    """What to await when the server starts, first to last; for the rooms that work in the background."""
    closing: list[Work] = field(default_factory=list)
    """The same for its end."""

    def contexts_of(self, owner: str | None) -> Contexts:
        """The explicit contexts of one key; those of whoever needs none for None."""
        if owner is None:
            return self.contexts
        root = self.contexts.folder
        return Contexts(root / "keys" / owner, among=(self.settings.all_contexts, root))

    def expire(self) -> None:
        """Removes files, and contexts of all keys, whose time is over. It waits for the disk."""
        self.files.expire()
        self.contexts.expire()
        for folder in (self.contexts.folder / "keys").glob("*"):
            Contexts(folder).expire()

    async def account(self, caller: Caller, model: str, usage: Usage, *, batch: bool = False) -> float:
        """Writes down what an answer took: for the key's limits, the access log and the metrics.

        Called once an answer (see `charged`), also when the client has gone by then. What an item
        of a `batch` took is on its key's account together with its answer (`Keys.charge_item`).

        Returns:
            its price in US dollars; 0 for models without one.
        """
        name = model.partition("+")[0]
        dollars = shelf.dollars_of(name, usage, batch=batch)
        self.metrics.used(name, usage, dollars)
        if (entry := current()) is not None:
            entry.usage, entry.dollars = usage, entry.dollars + dollars
        if batch:
            self.keys.took(caller, usage)
        else:
            await self.keys.spent(caller, name, usage, dollars)
        return dollars

    async def charged(
        self, caller: Caller, model: str, deltas: AsyncGenerator[Delta], *, batch: bool = False
    ) -> AsyncGenerator[Delta]:
        """The same deltas, accounted for: with the usage that they tell, as soon as they do; or, where their
        reader goes before that, with what was done until then. Answers that fail cost nothing."""
        meter, due = Meter(), True
        try:
            async with aclosing(metered(deltas, meter)) as stream:
                async for delta in stream:
                    if delta.usage is not None and due:
                        due = False
                        await self.account(caller, model, delta.usage, batch=batch)
                    yield delta
        except (GeneratorExit, asyncio.CancelledError):
            if due and meter.usage.total:
                await self.account(caller, model, meter.usage, batch=batch)
            raise

    @asynccontextmanager
    async def paid(
        self, caller: Caller, model: str, usage: Usage, *, batch: bool = False
    ) -> AsyncIterator[None]:
        """Accounts for the work of the block, whose usage is known before: when it is done, and also if its
        client goes meanwhile. What fails costs nothing."""
        try:
            yield
        except asyncio.CancelledError:
            await self.account(caller, model, usage, batch=batch)
            raise
        await self.account(caller, model, usage, batch=batch)

    async def open(self) -> None:
        """Begins what works in the background, on this event loop."""
        for begin in self.opening:
            await begin()

    async def close(self) -> None:
        """Parks what works in the background, ends the engines, and settles the accounts."""
        await self.background.close()
        for close in self.closing:
            await close()
        await self.engines.close()
        await self.keys.flush()
        self.database.close()


def studio_behind(request: Request) -> Studio:
    """The studio behind the server that was asked."""
    studio = request.app.state.studio
    assert isinstance(studio, Studio)
    return studio


async def studio_of(request: Request) -> Studio:
    """The same as a dependency; `async`, as FastAPI sends others through a thread, request by request."""
    return studio_behind(request)

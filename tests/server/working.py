"""A server with all its rooms: jobs at work, and models that draw beside the engines that a test scripts."""

from __future__ import annotations

import asyncio
import time
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Any, TypeVar

from serving import Serving, running, stub_info, stub_studio

from studiolo.jobs.artist import Artist
from studiolo.jobs.batches import Batches
from studiolo.jobs.queue import Queue
from studiolo.jobs.tunings import Tunings
from studiolo.language.caching.cached import Cached
from studiolo.language.prices import Price
from studiolo.server import shelf
from studiolo.server.drawing import Drawing, Subject
from studiolo.server.pool import EnginePool, ModelInfo
from studiolo.server.studio import Studio

T = TypeVar("T")


def whole_studio(
    home: Path,
    engines: Mapping[str, Any],
    *,
    price: Callable[[str], Price | None] = lambda name: None,
    **settings: Any,
) -> Studio:
    """`stub_studio` with batches, tunings and an artist, as `starting.open_studio` makes them."""
    studio = stub_studio(home, engines, **settings)

    async def open_engine(name: str) -> Cached:
        await asyncio.sleep(0)
        return Cached(engines[name], studio.contexts)

    def models() -> list[ModelInfo]:
        drawing = [model for model in shelf.models() if model.kind in ("drawing", "subject")]
        return [*(stub_info(name, engine) for name, engine in engines.items()), *drawing]

    artist, queue = Artist(), Queue(studio.database, worker="test", poll=0.02)

    async def draw(name: str, prompt: str) -> bytes:
        return (await artist.draw(name, prompt))[0].png

    studio.engines = EnginePool(
        models,
        open_engine,
        studio.contexts_of,
        metrics=studio.metrics,
        draws=lambda engine, name: Drawing(engine, Subject(name, None, lambda text: draw(name, text))),
    )
    studio.artist = artist
    studio.batches = Batches(studio.database, queue, studio.room, price=price)
    studio.tunings = Tunings(studio.database, queue, studio.files, every=0.05)
    studio.opening = [queue.start, studio.batches.start, studio.tunings.start]
    studio.closing = [queue.close]
    return studio


@contextmanager
def working(home: Path, engines: Mapping[str, Any], **settings: Any) -> Iterator[Serving]:
    """The server for the time of the block. One a process: jobs are carried by one queue."""
    studio = whole_studio(home, engines, **settings)
    with running(studio) as (server, port):
        yield Serving(f"http://127.0.0.1:{port}", port, studio, dict(engines), server)


def waited(look: Callable[[], T], good: Callable[[T], bool], patience: float = 120.0) -> T:
    """What `look` gives as soon as it is `good`; an error if that takes too long."""
    end = time.monotonic() + patience
    while not good(found := look()):
        assert time.monotonic() < end, f"in vain: {found}"
        time.sleep(0.02)
    return found

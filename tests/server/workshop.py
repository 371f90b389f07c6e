"""A real server whose background rooms are open: batches, an artist, tunings."""

from __future__ import annotations

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
from studiolo.models import registry
from studiolo.server import shelf
from studiolo.server.drawing import Drawing
from studiolo.server.pool import EnginePool
from studiolo.server.starting import _subject
from tiny import tiny_folder

T = TypeVar("T")
TINY = "tiny-painter"


@contextmanager
def workshop(home: Path, engines: Mapping[str, Any], **settings: Any) -> Iterator[Serving]:
    """The server for the time of the block. Beside the engines it has the models of the registry."""
    studio = stub_studio(home, engines, **settings)

    def models() -> list[Any]:
        return [stub_info(name, engine) for name, engine in engines.items()] + shelf.models()

    studio.engines = EnginePool(
        models,
        studio.engines._open,
        lambda owner: studio.contexts_of(owner),
        metrics=studio.metrics,
        draws=lambda engine, name: Drawing(engine, _subject(studio.artist, studio.metrics, name)),
    )
    queue = Queue(studio.database, worker="test", poll=0.05)
    studio.batches = Batches(studio.database, queue, studio.room, price=shelf.price_of)
    studio.tunings = Tunings(studio.database, queue, studio.files, folder=home / "tunings", every=0.05)
    studio.artist = Artist(device="cpu")
    studio.opening += [queue.start, studio.batches.start, studio.tunings.start]
    studio.closing += [queue.close]
    with running(studio) as (server, port):
        yield Serving(f"http://127.0.0.1:{port}", port, studio, dict(engines), server)


def painter(folder: Path) -> str:
    """A tiny model that draws, in the registry of this home; its name."""
    registry.register(tiny_folder(folder), TINY)
    return TINY


def until(found: Callable[[], T | None], seconds: float = 120) -> T:
    """What `found` gives when it gives something."""
    end = time.monotonic() + seconds
    while time.monotonic() < end:
        if value := found():
            return value
        time.sleep(0.05)
    raise AssertionError("it did not come")

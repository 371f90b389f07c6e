"""A real server on a free port of loopback, over engines that a test scripts."""

from __future__ import annotations

import asyncio
import socket
import threading
import time
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from datetime import UTC, datetime
from pathlib import Path
from typing import Any, TypeVar

import uvicorn
from fastapi import APIRouter

from studiolo.language.caching.cached import Cached
from studiolo.language.caching.contexts import Contexts
from studiolo.models import registry
from studiolo.server import shelf
from studiolo.server.app import create_app
from studiolo.server.pool import ModelInfo
from studiolo.server.settings import Settings
from studiolo.server.starting import bind, open_studio
from studiolo.server.studio import Studio

T = TypeVar("T")

TINY = "tiny-painter"
BORN = datetime(2026, 1, 1, tzinfo=UTC)


@dataclass
class Serving:
    """`url` has no slash at its end; `engines` are those that were given."""

    url: str
    port: int
    studio: Studio
    engines: dict[str, Any]
    server: uvicorn.Server

    def connect(self) -> socket.socket:
        """A socket to it, for who speaks HTTP by hand."""
        return socket.create_connection(("127.0.0.1", self.port), timeout=30)


def stub_info(name: str, engine: Any) -> ModelInfo:
    kind = "embedding" if engine.capabilities.embeddings else "chat"
    return ModelInfo(name=name, kind=kind, title=name, created=BORN, capabilities=engine.capabilities)


def stub_studio(home: Path, engines: Mapping[str, Any], *, jobs: bool = False, **settings: Any) -> Studio:
    """A studio whose models are these engines; with `jobs` also what draws in the registry.

    Args:
        jobs: what was queued is done. There can be one such studio a process; without, taking in a batch or a
            tuning is refused.
    """
    made = Settings(**({"data": home, "model": next(iter(engines), "stub"), "port": 0} | settings))

    async def open_engine(name: str) -> Cached:
        await asyncio.sleep(0)
        return Cached(engines[name], Contexts(home / "contexts"))

    def models() -> list[ModelInfo]:
        drawing = [model for model in shelf.models() if jobs and model.kind in ("drawing", "subject")]
        return [*(stub_info(name, engine) for name, engine in engines.items()), *drawing]

    studio = open_studio(made, models=models, open_engine=open_engine, poll=0.02)
    if not jobs:
        studio.opening.clear()
        studio.closing.clear()
    return studio


@contextmanager
def serving(
    home: Path, engines: Mapping[str, Any], *routers: APIRouter, jobs: bool = False, **settings: Any
) -> Iterator[Serving]:
    """The server for the time of the block; `settings` are fields of Settings, `jobs` as in `stub_studio`."""
    studio = stub_studio(home, engines, jobs=jobs, **settings)
    with running(studio, *routers) as (server, port):
        yield Serving(f"http://127.0.0.1:{port}", port, studio, dict(engines), server)


@contextmanager
def running(studio: Studio, *routers: APIRouter) -> Iterator[tuple[uvicorn.Server, int]]:
    """Uvicorn in a thread over this studio, and its port; `routers` are a test's own routes."""
    listener = bind(Settings(port=0))
    app = create_app(studio)
    for router in routers:
        app.include_router(router)
    server = uvicorn.Server(uvicorn.Config(app, log_config=None, timeout_graceful_shutdown=5))
    started = threading.Event()

    async def serve() -> None:
        serving_task = asyncio.create_task(server.serve(sockets=[listener]))
        while not server.started and not serving_task.done():
            await asyncio.sleep(0.005)
        started.set()
        await serving_task

    thread = threading.Thread(target=asyncio.run, args=(serve(),), daemon=True)
    thread.start()
    started.wait()
    assert server.started, "the server did not start"
    try:
        yield server, listener.getsockname()[1]
    finally:
        server.should_exit = True
        thread.join(timeout=30)
        listener.close()


def painter(folder: Path, name: str = TINY) -> str:
    """A tiny model that draws, in the registry of this home; its name."""
    from tiny import tiny_folder  # takes seconds to import

    registry.register(tiny_folder(folder), name)
    return name


def waited(look: Callable[[], T], good: Callable[[T], bool] = bool, patience: float = 120.0) -> T:
    """What `look` gives as soon as it is `good`; an error if that takes too long."""
    end = time.monotonic() + patience
    while not good(found := look()):
        assert time.monotonic() < end, f"in vain: {found}"
        time.sleep(0.02)
    return found

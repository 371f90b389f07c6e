"""A real server on a free port of loopback, over engines that a test scripts."""

from __future__ import annotations

import asyncio
import socket
import threading
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import uvicorn
from fastapi import APIRouter

from studiolo.language.caching.cached import Cached
from studiolo.language.caching.contexts import Contexts
from studiolo.server.app import create_app
from studiolo.server.keys import KeyStore
from studiolo.server.limits import Keys
from studiolo.server.metrics import Metrics
from studiolo.server.pool import EnginePool, ModelInfo
from studiolo.server.settings import Settings
from studiolo.server.starting import bind
from studiolo.server.studio import Studio
from studiolo.store.database import Database
from studiolo.store.uploads import Uploads

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


def stub_studio(home: Path, engines: Mapping[str, Any], **settings: Any) -> Studio:
    """A studio whose models are these engines."""
    made = Settings(**({"data": home, "model": next(iter(engines), "stub"), "port": 0} | settings))
    contexts = Contexts(home / "contexts")

    async def open_engine(name: str) -> Cached:
        await asyncio.sleep(0)
        return Cached(engines[name], contexts)

    studio: Studio

    def models() -> list[ModelInfo]:
        return [stub_info(name, engine) for name, engine in engines.items()]

    database, metrics = Database(made.database_url), Metrics()
    pool = EnginePool(models, open_engine, lambda owner: studio.contexts_of(owner), metrics=metrics)
    studio = Studio(
        settings=made, database=database, engines=pool, contexts=contexts, metrics=metrics,
        keys=Keys(KeyStore(database), needed=not made.is_loopback),
        files=Uploads(database, home / "files", largest=made.largest_file, total=made.all_files),
    )  # fmt: skip
    return studio


@contextmanager
def serving(
    home: Path, engines: Mapping[str, Any], *routers: APIRouter, **settings: Any
) -> Iterator[Serving]:
    """The server for the time of the block; `settings` are fields of Settings."""
    studio = stub_studio(home, engines, **settings)
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

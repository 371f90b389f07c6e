"""The application: the dialects' routes, the operator's, and what stands around all of them."""

from __future__ import annotations

import asyncio
import logging
from collections.abc import AsyncIterator, Iterator
from contextlib import asynccontextmanager, suppress
from functools import cache, partial
from importlib import import_module
from importlib.util import find_spec
from typing import Any

from fastapi import APIRouter, FastAPI
from fastapi.exceptions import RequestValidationError
from starlette.exceptions import HTTPException
from starlette.middleware.cors import CORSMiddleware
from starlette.requests import ClientDisconnect, Request
from starlette.responses import JSONResponse, Response
from starlette.routing import BaseRoute

from studiolo import __version__
from studiolo.errors import StudioloError
from studiolo.server import operations
from studiolo.server.bodies import Bounded, Unread
from studiolo.server.described import described
from studiolo.server.dialects import GEMINI, OPENAI, Dialects
from studiolo.server.errors import Told, told
from studiolo.server.logs import Requests
from studiolo.server.studio import Studio

log = logging.getLogger("studiolo.server")
FAREWELL = 5.0
"""Seconds that answers which are cut off have to tell their clients."""
EXPIRY = 600.0
"""Seconds between two looks for what has had its time: files, contexts, answers of batches."""


def create_app(studio: Studio) -> FastAPI:
    """The server over these rooms; it closes them when it ends."""

    under_way: set[asyncio.Task[Any]] = set()

    @asynccontextmanager
    async def lifespan(_: FastAPI) -> AsyncIterator[None]:
        await asyncio.to_thread(studio.files.sweep)  # before anything is uploaded
        await studio.open()
        works = [asyncio.create_task(_expire(studio))]
        if studio.settings.preload:
            works.append(asyncio.create_task(_preload(studio)))
        yield
        for work in works:
            work.cancel()
        await asyncio.gather(*works, return_exceptions=True)
        if under_way:  # those that took too long are cut off by now, and about to say so
            await asyncio.wait(under_way, timeout=FAREWELL)
        await studio.close()

    app = FastAPI(
        title="Studiolo",
        version=__version__,
        lifespan=lifespan,
        redirect_slashes=False,
        docs_url=None,
        redoc_url=None,  # their pages would load scripts from elsewhere
        routes=list(_routes()),
    )
    app.openapi = partial(described, app)  # type: ignore[method-assign]
    app.state.studio = studio
    for kind in (StudioloError, RequestValidationError, HTTPException, ClientDisconnect):
        app.add_exception_handler(kind, answer_error)
    app.include_router(operations.router())
    for dialect, _ in _dialects():
        dialect.prepare(studio)
    # The last one stands outermost.
    app.add_middleware(
        Bounded, largest_body=studio.settings.largest_body, largest_file=studio.settings.largest_file
    )
    app.add_middleware(Dialects)
    if studio.settings.cors:
        _allow_origins(app, studio.settings.cors)
    app.add_middleware(
        Requests,
        metrics=studio.metrics,
        answer=answer_error,
        under_way=under_way,
        log_prompts=studio.settings.log_prompts,
    )
    app.add_middleware(Unread)
    return app


async def answer_error(request: Request, error: Exception) -> Response:
    """What went wrong, in the envelope of the dialect that was spoken."""
    return envelope(getattr(request.state, "dialect", None), told(error))


def envelope(dialect: str | None, said: Told) -> Response:
    """The answer that tells it."""
    module = f"studiolo.server.{dialect}.errors"
    if dialect is not None and find_spec(module) is not None:
        response: Response = import_module(module).envelope(said)
    else:
        response = JSONResponse({"error": {"message": said.text, "kind": said.kind}}, said.status)
    for name, value in said.headers.items():
        response.headers.setdefault(name, value)
    return response


def _dialects() -> Iterator[tuple[Any, str]]:
    """The modules of the dialects, with `router()` and `prepare(studio)`, and how their paths begin."""
    for name, prefix in (("gemini", GEMINI), ("openai", OPENAI)):
        yield import_module(f"studiolo.server.{name}.routes"), prefix


@cache
def _routes() -> tuple[BaseRoute, ...]:
    """They know nothing of a studio, and take a while to make and to work out: the servers of a process have
    the same."""
    router = APIRouter()
    for dialect, prefix in _dialects():
        router.include_router(dialect.router(), prefix=prefix)
    return tuple(router.routes)


def _allow_origins(app: FastAPI, origins: tuple[str, ...]) -> None:
    app.add_middleware(
        CORSMiddleware,
        allow_origins=list(origins),
        allow_methods=["*"],
        allow_headers=["*"],
        expose_headers=["x-request-id", "retry-after", "x-goog-upload-url", "x-goog-upload-status"],
    )


async def _preload(studio: Studio) -> None:
    name = studio.settings.model
    try:
        async with studio.engines.lease(name):
            log.info("the model is loaded", extra={"told": {"model": name}})
    except StudioloError as error:
        log.error("the model cannot be loaded", extra={"told": {"model": name, "why": str(error)}})


async def _expire(studio: Studio) -> None:
    while True:
        with suppress(Exception):  # the next look may go better; `ready` tells of a database that is away
            await asyncio.to_thread(studio.expire)
            await studio.batches.expire()
        await asyncio.sleep(EXPIRY)

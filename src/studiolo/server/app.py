"""The application: the dialects' routes, the operator's, and what stands around all of them."""

from __future__ import annotations

from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from importlib import import_module
from importlib.util import find_spec

from fastapi import FastAPI
from fastapi.exceptions import RequestValidationError
from starlette.exceptions import HTTPException
from starlette.requests import Request
from starlette.responses import JSONResponse, Response

from studiolo import __version__
from studiolo.errors import StudioloError
from studiolo.server.dialects import GEMINI, OPENAI, Dialects
from studiolo.server.errors import Told, told
from studiolo.server.studio import Studio


def create_app(studio: Studio) -> FastAPI:
    """The server over these rooms; it closes them when it ends."""

    @asynccontextmanager
    async def lifespan(_: FastAPI) -> AsyncIterator[None]:
        yield
        await studio.close()

    app = FastAPI(title="Studiolo", version=__version__, lifespan=lifespan, redirect_slashes=False)
    app.state.studio = studio
    for kind in (StudioloError, RequestValidationError, HTTPException):
        app.add_exception_handler(kind, answer_error)
    for name, prefix in (("gemini", GEMINI), ("openai", OPENAI)):
        _mount(app, f"studiolo.server.{name}.routes", prefix)
    app.add_middleware(Dialects)
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


def _mount(app: FastAPI, module: str, prefix: str) -> None:
    if find_spec(module) is not None:
        app.include_router(import_module(module).router(), prefix=prefix)

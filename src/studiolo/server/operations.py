"""What the operator asks: whether the server lives, whether it can work, and its numbers."""

from __future__ import annotations

import asyncio

from fastapi import APIRouter, Request
from prometheus_client import CONTENT_TYPE_LATEST
from sqlalchemy.exc import SQLAlchemyError
from starlette.responses import JSONResponse, Response

from studiolo.server.pages import check_page
from studiolo.server.studio import Studio, studio_behind


def router() -> APIRouter:
    """No key is needed for these, and none of them tells of anybody's work."""
    routes = APIRouter(tags=["operations"])
    routes.get("/health", summary="The server lives")(health)
    routes.get("/ready", summary="The server can answer", responses={503: {"description": "Not yet"}})(ready)
    routes.get("/metrics", summary="Numbers for Prometheus", response_class=Response)(metrics)
    return routes


async def health() -> dict[str, str]:
    return {"status": "ok"}


async def ready(request: Request) -> JSONResponse:
    """503 until the default model is loaded, while the database does not answer, and while it stops."""
    studio = studio_behind(request)
    found = {
        "model": not studio.settings.preload or studio.settings.model in studio.engines.loaded(),
        "database": await asyncio.to_thread(_answers, studio),
    }
    return JSONResponse({"ready": all(found.values()), **found}, 200 if all(found.values()) else 503)


async def metrics(request: Request) -> Response:
    """Names of models are among them, so that pages from elsewhere do not get to read them."""
    if not studio_behind(request).keys.needed:
        check_page(request)
    return Response(studio_behind(request).metrics.text(), media_type=CONTENT_TYPE_LATEST)


def _answers(studio: Studio) -> bool:
    try:
        studio.database.check()
    except SQLAlchemyError:
        return False
    return True

"""The routes of the Gemini dialect, below `/gemini/v1beta` (see `server.dialects`)."""

from __future__ import annotations

from functools import partial

from fastapi import APIRouter

from studiolo.server.gemini import (
    absent,
    batch_answers,
    batches,
    caches,
    content,
    embeddings,
    files,
    interactions,
    models,
    predict,
    tunings,
    uploading,
)
from studiolo.server.studio import Studio
from studiolo.server.undertaken import tell_of_left

# Enterprise clients put these before all names; whose project it is, the key says.
_PROJECT = "/projects/{project}/locations/{location}"
_ENTERPRISE = ("/publishers/google", _PROJECT, f"{_PROJECT}/publishers/google")


def router() -> APIRouter:
    """All of them. The OpenAPI document tells of the plain paths."""
    router = APIRouter(tags=["gemini"])
    router.include_router(_below(""))
    uploading.add_routes(router, "/upload/files")
    for before in _ENTERPRISE:
        router.include_router(_below(before), include_in_schema=False)
    router.include_router(absent.router(), include_in_schema=False)
    for before in _ENTERPRISE:
        router.include_router(absent.router(), prefix=before, include_in_schema=False)
    return router


def prepare(studio: Studio) -> None:
    """Joins the dialect to what works in the background."""
    studio.opening.append(partial(tell_of_left, studio, "interaction", interactions.failure))
    batch_answers.register(studio)


def _below(before: str) -> APIRouter:
    router = APIRouter()
    for part in (content, embeddings, predict, models):
        part.add_routes(router, f"{before}/models")
    caches.add_routes(router, f"{before}/cachedContents")
    tunings.add_routes(router, before)
    for part in (content, predict):
        part.add_routes(router, f"{before}/tunedModels")
    files.add_routes(router, f"{before}/files")
    interactions.add_routes(router, f"{before}/interactions")
    batches.add_routes(router, f"{before}/models", f"{before}/batches")
    return router

"""The OpenAI dialect's routes, below one prefix."""

from __future__ import annotations

from fastapi import APIRouter

from studiolo.server.openai import (
    batch_answers,
    batches,
    chat,
    embeddings,
    files,
    images,
    models,
    responses,
    uploads,
)
from studiolo.server.studio import Studio


def router() -> APIRouter:
    """All routes of the dialect."""
    made = APIRouter(tags=["OpenAI"])
    for part in (chat, responses, embeddings, models, files, uploads, batches, images):
        part.add_routes(made)
    return made


def prepare(studio: Studio) -> None:
    """Joins the dialect to the rooms behind it."""
    if studio.batches is not None:
        batch_answers.register(studio)

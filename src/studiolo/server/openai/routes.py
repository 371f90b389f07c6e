"""The OpenAI dialect's routes, below one prefix."""

from __future__ import annotations

from functools import partial

from fastapi import APIRouter

from studiolo.server.openai import (
    audio,
    batch_answers,
    batches,
    chat,
    chat_kept,
    embeddings,
    files,
    fine_tuning,
    image_edits,
    images,
    models,
    moderations,
    responses,
    uploads,
)
from studiolo.server.studio import Studio
from studiolo.server.undertaken import tell_of_left


def router() -> APIRouter:
    """All routes of the dialect."""
    made = APIRouter(tags=["OpenAI"])
    for part in (
        chat, chat_kept, responses, embeddings, models, files, uploads, batches, images, image_edits,
        fine_tuning, audio, moderations,
    ):  # fmt: skip
        part.add_routes(made)
    return made


def prepare(studio: Studio) -> None:
    """Joins the dialect to the rooms behind it."""
    studio.opening.append(partial(tell_of_left, studio, "response", responses.failure))
    batch_answers.register(studio)

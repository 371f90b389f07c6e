"""What answers the requests of batches of this dialect, as its own routes answer them."""

from __future__ import annotations

import secrets
from contextlib import aclosing
from typing import Any

from studiolo.jobs.batches import Answer
from studiolo.language.collect import collected
from studiolo.server.errors import told
from studiolo.server.gemini import errors, names
from studiolo.server.gemini.attachments import attached
from studiolo.server.gemini.content import deltas_of
from studiolo.server.gemini.embeddings import embedded, wanted
from studiolo.server.gemini.reading import read
from studiolo.server.gemini.wire_request import request_of
from studiolo.server.gemini.wire_response import response_of
from studiolo.server.limits import Caller
from studiolo.server.studio import Studio

Wire = dict[str, Any]

CONTENT, EMBEDDING = "gemini", "gemini:embed"
KINDS = (CONTENT, EMBEDDING)
"""Kinds of batches."""

# https://github.com/googleapis/googleapis/blob/master/google/rpc/code.proto
_CODES = {
    "CANCELLED": 1, "INVALID_ARGUMENT": 3, "DEADLINE_EXCEEDED": 4, "NOT_FOUND": 5, "PERMISSION_DENIED": 7,
    "RESOURCE_EXHAUSTED": 8, "ABORTED": 10, "UNIMPLEMENTED": 12, "INTERNAL": 13, "UNAVAILABLE": 14,
    "UNAUTHENTICATED": 16,
}  # fmt: skip


def check_content(body: Wire, model: str) -> None:
    """Raises InvalidRequestError: it is no request for content."""
    request_of(body, model)


def check_embedding(body: Wire, model: str) -> None:
    """Raises InvalidRequestError: it is no request for an embedding."""
    wanted(read("EmbedContentRequest", body), model, "")


def register(studio: Studio) -> None:
    """From now on this studio's batches answer these kinds."""
    others = studio.batches.told
    studio.batches.told = lambda kind, error: error_of(error) if kind in KINDS else others(kind, error)
    studio.batches.answerers[CONTENT] = _content(studio)
    studio.batches.answerers[EMBEDDING] = _embedding(studio)


def error_of(error: BaseException) -> Wire:
    """The answer to a request that could not be answered: a status, as Google's clients read it."""
    said = errors.error_of(told(error))["error"]
    return {"error": {"code": _CODES.get(said["status"], 2), "message": said["message"]}}


def _content(studio: Studio) -> Answer:
    async def answer(_: str, body: Wire, owner: str | None) -> Wire:
        request = await attached(studio, owner, request_of(body, names.model(body["model"])))
        async with aclosing(deltas_of(studio, _caller(owner), request, batch=True)) as deltas:
            response = await collected(deltas)
        wire = response_of(response, secrets.token_urlsafe(16))
        return {"response": wire, "usage": response.usage.model_dump(), "model": request.model}

    return answer


def _embedding(studio: Studio) -> Answer:
    async def answer(_: str, body: Wire, owner: str | None) -> Wire:
        model = names.model(body["model"])
        text, dimensions = wanted(read("EmbedContentRequest", body), model, "")
        vectors, counts = await embedded(studio, _caller(owner), model, [text], dimensions, batch=True)
        response = {"embedding": {"values": vectors[0]}, "tokenCount": str(counts[0])}
        return {"response": response, "usage": {"prompt": counts[0]}, "model": model}

    return answer


def _caller(owner: str | None) -> Caller:
    return Caller(owner, "batch")

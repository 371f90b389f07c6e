"""What answers the requests of a batch, where nobody waits at a socket."""

from __future__ import annotations

import secrets
from collections.abc import Awaitable, Callable
from typing import Any

from studiolo.language.conversation import Usage
from studiolo.language.errors import InvalidRequestError
from studiolo.server.auth import Caller
from studiolo.server.errors import told
from studiolo.server.openai import chat, embeddings, image_edits, images, responses
from studiolo.server.openai.answering import Asking
from studiolo.server.openai.errors import error_of
from studiolo.server.studio import Studio

JSON = dict[str, Any]
PREFIX = "openai:"
"""What the kinds of jobs of this dialect begin with; the endpoint follows."""

_ANSWERS: dict[str, Callable[[Asking, JSON], Awaitable[JSON]]] = {
    "/v1/chat/completions": chat.answer_item,
    "/v1/responses": responses.answer_item,
    "/v1/embeddings": embeddings.answer_item,
    "/v1/images/generations": images.answer_item,
    "/v1/images/edits": image_edits.answer_item,
}


def register(studio: Studio) -> None:
    """Lets the studio's batches answer requests in this dialect. To be called before they start."""
    batches = studio.batches
    others = batches.told

    async def answer(kind: str, body: JSON, owner: str | None) -> JSON:
        return await _answer(studio, kind.removeprefix(PREFIX), body, owner)

    def in_envelope(kind: str, error: BaseException) -> JSON:
        return _refused(error) if kind.startswith(PREFIX) else others(kind, error)

    for endpoint in _ANSWERS:
        batches.answerers[PREFIX + endpoint] = answer
    batches.told = in_envelope


async def _answer(studio: Studio, endpoint: str, body: JSON, owner: str | None) -> JSON:
    if body.get("stream"):
        raise InvalidRequestError("nobody listens to a batch", where="stream", remedy="Leave it out.")
    asking = Asking(studio, Caller(owner, "batch"), batch=True)
    answer = await _ANSWERS[endpoint](asking, body)
    response = {"status_code": 200, "request_id": _request_id(), "body": answer}
    return {"response": response, "model": body["model"], "usage": _usage(answer).model_dump()}


def _refused(error: BaseException) -> JSON:
    said = told(error)
    body = {"error": error_of(said)}
    return {"error": {"status_code": said.status, "request_id": _request_id(), "body": body}}


def _usage(answer: JSON) -> Usage:
    """The tokens of an answer, whichever of the APIs' words tell of them."""
    told_ = answer.get("usage") or {}
    prompt = told_.get("prompt_tokens", told_.get("input_tokens", 0))
    output = told_.get("completion_tokens", told_.get("output_tokens", 0))
    of_prompt = told_.get("prompt_tokens_details") or told_.get("input_tokens_details") or {}
    of_output = told_.get("completion_tokens_details") or told_.get("output_tokens_details") or {}
    thoughts = of_output.get("reasoning_tokens") or 0
    cached = of_prompt.get("cached_tokens") or 0
    return Usage(prompt=prompt, cached=cached, answer=output - thoughts, thoughts=thoughts)


def _request_id() -> str:
    return f"req_{secrets.token_hex(12)}"

"""/embeddings (https://platform.openai.com/docs/api-reference/embeddings/create)."""

from __future__ import annotations

import base64
import struct
from collections.abc import Sequence
from typing import Annotated, Any, Literal

from fastapi import APIRouter, Depends
from pydantic import Discriminator, Field, Tag
from starlette.requests import Request
from starlette.responses import JSONResponse, Response

from studiolo.language import conversation as c
from studiolo.language.errors import InvalidRequestError, UnsupportedError
from studiolo.server.auth import Caller, caller
from studiolo.server.bodies import json_body
from studiolo.server.openai import document
from studiolo.server.openai.answering import Asking
from studiolo.server.openai.wire import Wire, ignored, read
from studiolo.server.sse import attended
from studiolo.server.studio import Studio, studio_of

MOST_TEXTS = 2048


def _one_or_more(value: Any) -> str:
    if isinstance(value, str):
        return "one"
    first = value[0] if isinstance(value, list) and value else None
    if isinstance(first, int):
        return "tokens"
    return "lists" if isinstance(first, list) else "more"


Input = Annotated[
    Annotated[str, Tag("one")]
    | Annotated[list[str], Tag("more")]
    | Annotated[list[int], Tag("tokens")]
    | Annotated[list[list[int]], Tag("lists")],
    Discriminator(_one_or_more),
]


class EmbeddingRequest(Wire):
    input: Input
    model: str = Field(min_length=1)
    dimensions: int | None = Field(default=None, ge=1, le=65_536)
    encoding_format: Literal["float", "base64"] | None = None
    user: Annotated[str | None, ignored("nothing is done with it")] = None


def add_routes(router: APIRouter) -> None:
    router.add_api_route(
        "/embeddings",
        create_embeddings,
        methods=["POST"],
        response_model=None,
        openapi_extra=document.body(EmbeddingRequest),
    )


async def create_embeddings(
    request: Request, studio: Studio = Depends(studio_of), caller: Caller = Depends(caller)
) -> Response:
    """One vector a text."""
    body = await json_body(request)
    return JSONResponse(await attended(request, answer_item(Asking(studio, caller), body)))


async def answer_item(asking: Asking, body: dict[str, Any]) -> dict[str, Any]:
    """The embeddings that a body asks for, accounted for.

    Raises:
        StudioloError: what a client of its own would be told as an error.
    """
    asked = read(EmbeddingRequest, body)
    texts = texts_of(asked)
    said = tuple(c.user(text) for text in texts)
    async with asking.studio.engines.lease(asked.model, owner=asking.caller.key_id) as engine:
        tokens = await engine.count_tokens(c.Request(model=asked.model, contents=said))
        usage = c.Usage(prompt=tokens)
        async with asking.studio.paid(asking.caller, asked.model, usage, batch=asking.batch):
            vectors = await engine.embed(texts, dimensions=asked.dimensions)
    return answer_of(asked, vectors, tokens)


def texts_of(request: EmbeddingRequest) -> list[str]:
    """The texts.

    Raises:
        UnsupportedError: tokens, which are those of another model.
        InvalidRequestError: none, too many, or an empty one.
    """
    given = [request.input] if isinstance(request.input, str) else request.input
    texts = [text for text in given if isinstance(text, str)]
    if len(texts) < len(given):
        raise UnsupportedError(
            "tokens are those of one model's vocabulary, and not of this one's",
            where="input",
            remedy="Send texts (with LangChain: check_embedding_ctx_length=False).",
        )
    if not 1 <= len(texts) <= MOST_TEXTS:
        raise InvalidRequestError(f"1 to {MOST_TEXTS} texts at a time, not {len(texts)}", where="input")
    for number, text in enumerate(texts):
        if not text:
            raise InvalidRequestError("an empty text", where=f"input[{number}]")
    return texts


def answer_of(request: EmbeddingRequest, vectors: Sequence[Sequence[float]], tokens: int) -> dict[str, Any]:
    """The list of vectors: as numbers, or as base64 of 32-bit floats, the lowest byte first."""
    encoded = request.encoding_format == "base64"
    data = [
        {"object": "embedding", "index": index, "embedding": _packed(vector) if encoded else list(vector)}
        for index, vector in enumerate(vectors)
    ]
    usage = {"prompt_tokens": tokens, "total_tokens": tokens}
    return {"object": "list", "data": data, "model": request.model, "usage": usage}


def _packed(vector: Sequence[float]) -> str:
    return base64.b64encode(struct.pack(f"<{len(vector)}f", *vector)).decode()

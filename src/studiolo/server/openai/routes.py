"""The OpenAI dialect's routes, below one prefix."""

from __future__ import annotations

from fastapi import APIRouter, Depends
from starlette.requests import Request
from starlette.responses import JSONResponse, Response

from studiolo.language import conversation as c
from studiolo.server.auth import Caller, caller
from studiolo.server.bodies import json_body
from studiolo.server.openai import chat, document, embeddings, files, models, responses, uploads
from studiolo.server.openai.wire import read
from studiolo.server.sse import attended
from studiolo.server.studio import Studio, studio_of


def router() -> APIRouter:
    """All routes of the dialect."""
    made = APIRouter(tags=["OpenAI"])
    chat.add_routes(made)
    responses.add_routes(made)
    files.add_routes(made)
    uploads.add_routes(made)
    made.add_api_route(
        "/embeddings",
        create_embeddings,
        methods=["POST"],
        response_model=None,
        openapi_extra=document.body(embeddings.EmbeddingRequest),
    )
    made.add_api_route("/models", list_models, methods=["GET"], response_model=None)
    made.add_api_route("/models/{model:path}", retrieve_model, methods=["GET"], response_model=None)
    return made


async def create_embeddings(
    request: Request, studio: Studio = Depends(studio_of), caller: Caller = Depends(caller)
) -> Response:
    """One vector a text."""
    asked = read(embeddings.EmbeddingRequest, await json_body(request))
    return JSONResponse(await attended(request, embedded(studio, caller, asked)))


async def embedded(studio: Studio, caller: Caller, asked: embeddings.EmbeddingRequest) -> dict[str, object]:
    """The answer to a request for embeddings, accounted for."""
    texts = embeddings.texts_of(asked)
    said = tuple(c.user(text) for text in texts)
    async with studio.engines.lease(asked.model, owner=caller.key_id) as engine:
        vectors = await engine.embed(texts, dimensions=asked.dimensions)
        tokens = await engine.count_tokens(c.Request(model=asked.model, contents=said))
    await studio.account(caller, asked.model, c.Usage(prompt=tokens))
    return embeddings.answer_of(asked, vectors, tokens)


async def list_models(studio: Studio = Depends(studio_of), _: Caller = Depends(caller)) -> Response:
    """Every model, of whatever kind."""
    return JSONResponse(models.list_of(studio.engines.models()))


async def retrieve_model(
    model: str, studio: Studio = Depends(studio_of), _: Caller = Depends(caller)
) -> Response:
    return JSONResponse(models.model_of(studio.engines.info(model)))

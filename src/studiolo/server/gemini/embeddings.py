"""embedContent, batchEmbedContents, and what predict answers for models that embed."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Annotated, Any

from fastapi import APIRouter, Depends
from starlette.requests import Request as HttpRequest

from studiolo.language.conversation import Request, Usage, user
from studiolo.language.errors import InvalidRequestError
from studiolo.server.auth import Caller, caller
from studiolo.server.bodies import json_body
from studiolo.server.gemini import document, models
from studiolo.server.gemini.reading import read
from studiolo.server.gemini.wire_content import text_of
from studiolo.server.gemini.wire_request import check_model
from studiolo.server.sse import attended
from studiolo.server.studio import Studio, studio_of

Who = Annotated[Caller, Depends(caller)]
House = Annotated[Studio, Depends(studio_of)]
Vectors = list[list[float]]

MOST = 100
"""Requests of one batch, as at Google."""


def add_routes(router: APIRouter, models_path: str) -> None:
    """Adds them below a path such as `/models`."""
    model = models_path + "/{model:path}"
    for verb, answer, message in (
        ("embedContent", one, "EmbedContentRequest"),
        ("batchEmbedContents", many, "BatchEmbedContentsRequest"),
    ):
        router.add_api_route(
            f"{model}:{verb}", answer, methods=["POST"], openapi_extra=document.body(message)
        )


async def one(model: str, http: HttpRequest, studio: House, who: Who) -> dict[str, Any]:
    """The vector of a content."""
    body = read("EmbedContentRequest", await json_body(http))
    name = models.named(studio, model, "embedContent", http)
    text, dimensions = wanted(body, name, "")
    vectors, counts = await attended(http, embedded(studio, who, name, [text], dimensions))
    return {"embedding": {"values": vectors[0]}, "usageMetadata": {"promptTokenCount": counts[0]}}


async def many(model: str, http: HttpRequest, studio: House, who: Who) -> dict[str, Any]:
    """The vectors of several contents, in their order."""
    body = read("BatchEmbedContentsRequest", await json_body(http))
    name = models.named(studio, model, "batchEmbedContents", http)
    asked = [wanted(one, name, f"requests[{n}]") for n, one in enumerate(body.get("requests", []))]
    _check_number(len(asked), "requests")
    dimensions = {size for _, size in asked}
    if len(dimensions) > 1:
        raise InvalidRequestError(
            "all requests of a batch have one output_dimensionality",
            where="requests",
            remedy="Send two batches.",
        )
    texts = [text for text, _ in asked]
    vectors, counts = await attended(http, embedded(studio, who, name, texts, dimensions.pop()))
    return {
        "embeddings": [{"values": vector} for vector in vectors],
        "usageMetadata": {"promptTokenCount": sum(counts)},
    }


async def predicted(
    name: str, asked: Mapping[str, Any], http: HttpRequest, studio: Studio, who: Caller
) -> dict[str, Any]:
    """The same as enterprise clients ask for it, by predict."""
    body = read("PredictRequest", asked)
    texts = [instance.get("content", "") for instance in body.get("instances", [])]
    _check_number(len(texts), "instances")
    dimensions = body.get("parameters", {}).get("outputDimensionality")
    vectors, counts = await attended(http, embedded(studio, who, name, texts, dimensions))
    return {
        "predictions": [
            {"embeddings": {"values": vector, "statistics": {"truncated": False, "token_count": tokens}}}
            for vector, tokens in zip(vectors, counts, strict=True)
        ]
    }


async def embedded(
    studio: Studio,
    who: Caller,
    model: str,
    texts: Sequence[str],
    dimensions: int | None,
    *,
    batch: bool = False,
) -> tuple[Vectors, list[int]]:
    """The vectors of texts and the tokens of each, accounted for."""
    async with studio.engines.lease(model, who.key_id) as engine:
        asked = [Request(model=model, contents=(user(text),)) for text in texts]
        counts = [await engine.count_tokens(request) for request in asked]
        async with studio.paid(who, model, Usage(prompt=sum(counts)), batch=batch):
            vectors = await engine.embed(texts, dimensions=dimensions)
    return vectors, counts


def wanted(body: Mapping[str, Any], model: str, where: str) -> tuple[str, int | None]:
    """The text that a request wants embedded, and the length of its vector."""
    check_model(body.get("model"), model)
    place = f"{where}.content" if where else "content"
    if "content" not in body:
        raise InvalidRequestError("no content", where=place, remedy="Give it a text.")
    own = body.get("embedContentConfig", {}).get("outputDimensionality")
    return text_of(body["content"], place), body.get("outputDimensionality", own)


def _check_number(number: int, where: str) -> None:
    if not 1 <= number <= MOST:
        raise InvalidRequestError(
            f"at least one and at most {MOST} requests can be in one batch, and there are {number}",
            where=where,
        )

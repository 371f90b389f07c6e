"""generateContent, streamGenerateContent, countTokens and computeTokens."""

from __future__ import annotations

import secrets
from collections.abc import AsyncGenerator, Iterator
from contextlib import aclosing
from typing import Annotated, Any

from fastapi import APIRouter, Depends
from starlette.requests import Request as HttpRequest
from starlette.responses import JSONResponse, Response

from studiolo.language import conversation as c
from studiolo.language.collect import collected
from studiolo.language.errors import UnsupportedError
from studiolo.server.auth import Caller, caller
from studiolo.server.bodies import json_body
from studiolo.server.errors import Told
from studiolo.server.gemini import errors, models
from studiolo.server.gemini.attachments import attached
from studiolo.server.gemini.document import body
from studiolo.server.gemini.pictures import DRAWS, drawn_deltas
from studiolo.server.gemini.reading import read
from studiolo.server.gemini.tokens import compute
from studiolo.server.gemini.wire_request import PictureRequest, check_model, request_from, request_of
from studiolo.server.gemini.wire_response import Chunks, response_of
from studiolo.server.sse import Event, Stream, attended, dumps
from studiolo.server.studio import Studio, studio_of

Who = Annotated[Caller, Depends(caller)]
House = Annotated[Studio, Depends(studio_of)]


def add_routes(router: APIRouter, models_path: str) -> None:
    """Adds them below a path such as `/models`."""
    model = models_path + "/{model:path}"
    for verb, answer, message in (
        ("generateContent", generate, "GenerateContentRequest"),
        ("streamGenerateContent", stream, "GenerateContentRequest"),
        ("countTokens", count, "CountTokensRequest"),
        ("computeTokens", compute, "ComputeTokensRequest"),
    ):
        router.add_api_route(
            f"{model}:{verb}", answer, methods=["POST"], response_model=None, openapi_extra=body(message)
        )


async def generate(model: str, http: HttpRequest, studio: House, who: Who) -> Response:
    """The whole answer at once."""
    request = await _asked(model, "generateContent", http, studio, who)
    return JSONResponse(await attended(http, answered(studio, who, request)))


async def answered(studio: Studio, who: Caller, request: c.Request, *, batch: bool = False) -> dict[str, Any]:
    """The answer to a request, accounted for, as the wire has it."""
    async with aclosing(deltas_of(studio, who, request, batch=batch)) as deltas:
        return response_of(await collected(deltas), _new_id())


def deltas_of(
    studio: Studio, who: Caller, request: c.Request, *, batch: bool = False
) -> AsyncGenerator[c.Delta]:
    """The answer in pieces, accounted for."""
    return studio.charged(who, request.model, _deltas(studio, who, request, batch), batch=batch)


async def _deltas(studio: Studio, who: Caller, request: c.Request, batch: bool) -> AsyncGenerator[c.Delta]:
    """From a model that draws, or from an engine."""
    if studio.engines.info(request.model).kind in DRAWS:
        async with aclosing(drawn_deltas(studio, request, batch=batch)) as deltas:
            async for delta in deltas:
                yield delta
        return
    if isinstance(request, PictureRequest):
        raise UnsupportedError(
            "models that speak leave it open how their pictures are to be",
            where="generation_config.image_config",
            remedy="Leave it out, or ask the model that draws.",
        )
    async with (
        studio.engines.lease(request.model, who.key_id) as engine,
        aclosing(engine.generate(request)) as deltas,
    ):
        async for delta in deltas:
            yield delta


async def stream(model: str, http: HttpRequest, studio: House, who: Who, alt: str = "json") -> Response:
    """The answer in chunks: as server-sent events with `?alt=sse`, else as the items of a JSON array."""
    request = await _asked(model, "streamGenerateContent", http, studio, who)
    chunks = _chunks(studio, who, request)
    if alt == "sse":
        return Stream(_events(chunks), broken=errors.broken)
    return _ArrayStream(_items(chunks), broken=_broken_array)


async def count(model: str, http: HttpRequest, studio: House, who: Who) -> Response:
    """How many tokens a prompt is."""
    asked = read("CountTokensRequest", await json_body(http))
    name = models.named(studio, model, "countTokens", http)
    check_model(asked.get("model"), name)
    whole = request_from(asked.get("generateContentRequest", asked), name)
    request = await attached(studio, who.key_id, whole)
    if request.contents[-1].role is c.Role.MODEL:
        # A history is counted as what goes before the user's next turn, here a short one.
        request = request.model_copy(update={"contents": (*request.contents, c.user("."))})
    async with studio.engines.lease(name, who.key_id) as engine:
        total = await attended(http, engine.count_tokens(request))
    counted: dict[str, Any] = {"totalTokens": total}
    if request.cache:
        counted["cachedContentTokenCount"] = studio.contexts_of(who.key_id).get(request.cache).tokens
    if all(isinstance(part, c.Text) for content in request.contents for part in content.parts):
        counted["promptTokensDetails"] = [{"modality": "TEXT", "tokenCount": total}]
    return JSONResponse(counted)


async def _asked(model: str, method: str, http: HttpRequest, studio: Studio, who: Caller) -> c.Request:
    asked = await json_body(http)
    request = request_of(asked, models.named(studio, model, method, http))
    return await attached(studio, who.key_id, request)


async def _chunks(studio: Studio, who: Caller, request: c.Request) -> AsyncGenerator[dict[str, Any]]:
    chunks = Chunks(request.model, _new_id())
    async with aclosing(deltas_of(studio, who, request)) as deltas:
        async for delta in deltas:
            for chunk in chunks.add(delta):
                yield chunk
    for chunk in chunks.end():
        yield chunk


def _new_id() -> str:
    return secrets.token_urlsafe(16)


async def _events(chunks: AsyncGenerator[dict[str, Any]]) -> AsyncGenerator[Event]:
    async with aclosing(chunks):
        async for chunk in chunks:
            yield Event(chunk)


# --- a JSON array, item by item ----------------------------------------------------------------------------


class _ArrayStream(Stream):
    media_type = "application/json"


class _Raw(Event):
    """A piece of the array as it stands."""

    def encoded(self) -> bytes:
        return str(self.data).encode()


async def _items(chunks: AsyncGenerator[dict[str, Any]]) -> AsyncGenerator[Event]:
    opening = "["
    async with aclosing(chunks):
        async for chunk in chunks:
            yield _Raw(opening + dumps(chunk))
            opening = ",\r\n"
    yield _Raw("]" if opening != "[" else "[]")


def _broken_array(told: Told) -> Iterator[Event]:
    yield _Raw(f",\r\n{dumps(errors.error_of(told))}]")

"""generateContent, streamGenerateContent and countTokens."""

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
from studiolo.server.auth import Caller, caller
from studiolo.server.bodies import json_body
from studiolo.server.errors import Told
from studiolo.server.gemini import errors, models
from studiolo.server.gemini.reading import read
from studiolo.server.gemini.wire_request import check_model, request_from, request_of
from studiolo.server.gemini.wire_response import Chunks, response_of
from studiolo.server.sse import Event, Stream, attended, dumps
from studiolo.server.studio import Studio, studio_of

Who = Annotated[Caller, Depends(caller)]
House = Annotated[Studio, Depends(studio_of)]


def add_routes(router: APIRouter, models_path: str) -> None:
    """Adds them below a path such as `/models`."""
    model = models_path + "/{model:path}"
    router.add_api_route(f"{model}:generateContent", generate, methods=["POST"], response_model=None)
    router.add_api_route(f"{model}:streamGenerateContent", stream, methods=["POST"], response_model=None)
    router.add_api_route(f"{model}:countTokens", count, methods=["POST"], response_model=None)


async def generate(model: str, http: HttpRequest, studio: House, who: Who) -> Response:
    """The whole answer at once."""
    request = await _asked(model, "generateContent", http, studio)
    return JSONResponse(await attended(http, answered(studio, who, request)))


async def answered(studio: Studio, who: Caller, request: c.Request, *, batch: bool = False) -> dict[str, Any]:
    """The answer to a request, accounted for, as the wire has it."""
    async with (
        studio.engines.lease(request.model, who.key_id) as engine,
        aclosing(engine.generate(request)) as deltas,
    ):
        response = await collected(deltas)
    await studio.account(who, request.model, response.usage, batch=batch)
    return response_of(response, _new_id())


async def stream(model: str, http: HttpRequest, studio: House, who: Who, alt: str = "json") -> Response:
    """The answer in chunks: as server-sent events with `?alt=sse`, else as the items of a JSON array."""
    request = await _asked(model, "streamGenerateContent", http, studio)
    chunks = _chunks(studio, who, request)
    if alt == "sse":
        return Stream(_events(chunks), broken=errors.broken)
    return _ArrayStream(_items(chunks), broken=_broken_array)


async def count(model: str, http: HttpRequest, studio: House, who: Who) -> Response:
    """How many tokens a prompt is."""
    body = read("CountTokensRequest", await json_body(http))
    name = models.named(studio, model, "countTokens", http)
    asked = body.get("generateContentRequest") or {k: v for k, v in body.items() if k != "model"}
    check_model(body.get("model"), name)
    request = request_from(asked, name)
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


async def _asked(model: str, method: str, http: HttpRequest, studio: Studio) -> c.Request:
    body = await json_body(http)
    return request_of(body, models.named(studio, model, method, http))


async def _chunks(studio: Studio, who: Caller, request: c.Request) -> AsyncGenerator[dict[str, Any]]:
    chunks = Chunks(request.model, _new_id())
    try:
        async with (
            studio.engines.lease(request.model, who.key_id) as engine,
            aclosing(engine.generate(request)) as deltas,
        ):
            async for delta in deltas:
                for chunk in chunks.add(delta):
                    yield chunk
        for chunk in chunks.end():
            yield chunk
    finally:
        if chunks.usage:
            await studio.account(who, request.model, chunks.usage)


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

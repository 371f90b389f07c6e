"""/images/generations: drawn by the base model and by subjects, with their provenance inside."""

from __future__ import annotations

import asyncio
import time
from collections.abc import AsyncGenerator, Iterator
from contextlib import aclosing, contextmanager
from datetime import timedelta
from typing import Any

from fastapi import APIRouter, Depends
from starlette.requests import Request
from starlette.responses import JSONResponse, Response

from studiolo.errors import StudioloError
from studiolo.jobs.artist import Picture
from studiolo.language.errors import UnsupportedError
from studiolo.server.auth import Caller, caller
from studiolo.server.bodies import json_body
from studiolo.server.errors import Told
from studiolo.server.logs import current
from studiolo.server.openai import answering, document
from studiolo.server.openai.answering import WAITING, Asking, in_terms
from studiolo.server.openai.errors import error_of
from studiolo.server.openai.images_wire import (
    ImageRequest,
    PictureFields,
    answer_of,
    completed,
    image_of,
    partial,
    wishes,
)
from studiolo.server.openai.pauses import with_pauses
from studiolo.server.openai.wire import read
from studiolo.server.sse import Event, Stream, attended
from studiolo.server.studio import Studio, studio_of

JSON = dict[str, Any]
FIELDS = {"width": "size", "height": "size", "init": "image"}
"""What the artist calls a field, and what the client called it."""
URLS = timedelta(hours=1)
"""How long a picture can be fetched by its URL, as with OpenAI."""


def add_routes(router: APIRouter) -> None:
    router.add_api_route(
        "/images/generations",
        generate_images,
        methods=["POST"],
        response_model=None,
        openapi_extra=document.body(ImageRequest),
    )


async def generate_images(
    request: Request, studio: Studio = Depends(studio_of), caller: Caller = Depends(caller)
) -> Response:
    """Pictures of a prompt, whole or in events; `[V]` in the prompt stands for the subject."""
    wanted = read(ImageRequest, await json_body(request))
    check_draws(studio, wanted.named)
    return await answer_request(request, studio, caller, wanted, wishes(wanted))


async def answer_request(
    request: Request, studio: Studio, caller: Caller, wanted: PictureFields, wished: JSON
) -> Response:
    """The pictures that a request asks for; `wished` are the arguments of `Artist.draw` beside the prompt."""
    if wanted.stream:
        return Stream(_events(studio, wanted, wished), broken=_broken)
    pictures = await attended(request, _drawn(studio, wanted, wished))
    urls: list[str | None] = [None] * len(pictures)
    if wanted.response_format == "url":
        urls = [await _kept(request, studio, caller, picture) for picture in pictures]
    return JSONResponse(_answer(wanted, pictures, urls))


async def answer_item(asking: Asking, body: JSON) -> JSON:
    """The pictures that a body asks for, where nobody waits at a socket, as in a batch.

    Raises:
        StudioloError: what a client of its own would be told as an error.
    """
    wanted = read(ImageRequest, body)
    check_item(asking, wanted)
    return await drawn_item(asking, wanted, wishes(wanted))


def check_item(asking: Asking, wanted: PictureFields) -> None:
    """Refuses what no request of a batch can ask for."""
    if wanted.response_format == "url":
        raise UnsupportedError("files of batches carry pictures themselves", where="response_format")
    check_draws(asking.studio, wanted.named)


async def drawn_item(asking: Asking, wanted: PictureFields, wished: JSON) -> JSON:
    pictures = await _drawn(asking.studio, wanted, wished, interactive=not asking.batch)
    return _answer(wanted, pictures, [None] * len(pictures))


def check_draws(studio: Studio, model: str) -> None:
    """Refuses models that do not draw, and those that are not there."""
    if studio.engines.info(model).kind not in ("drawing", "subject"):
        raise UnsupportedError(
            "this model speaks, and cannot draw", where="model", remedy="Name studiolo-base or a subject."
        )


async def _drawn(
    studio: Studio, wanted: PictureFields, wished: JSON, *, interactive: bool = True, **more: Any
) -> list[Picture]:
    if (entry := current()) is not None:
        entry.model = wanted.named
    began = time.perf_counter()
    with _in_terms_of(wanted):
        pictures = await studio.artist.draw(
            wanted.named, wanted.prompt, interactive=interactive, **wished, **more
        )
    studio.metrics.drawn(wanted.named, time.perf_counter() - began, len(pictures))
    return pictures


@contextmanager
def _in_terms_of(wanted: PictureFields) -> Iterator[None]:
    """Errors name the field at fault as the client knows it; those of prompts name the prompt itself."""
    try:
        with in_terms(FIELDS):
            yield
    except StudioloError as error:
        for name in ("prompt", "negative_prompt"):
            if error.where is not None and error.where == getattr(wanted, name):
                error.where = name
        raise


async def _kept(request: Request, studio: Studio, caller: Caller, picture: Picture) -> str:
    """The URL under which this caller, with the same key, can fetch a picture."""
    record = await asyncio.to_thread(
        studio.files.add,
        picture.png,
        owner=caller.key_id,
        name=f"seed{picture.seed}.png",
        mime="image/png",
        purpose="vision",
        lifetime=URLS,
    )
    return f"{request.base_url}openai/v1/files/{record.id}/content"


def _answer(wanted: PictureFields, pictures: list[Picture], urls: list[str | None]) -> JSON:
    images = [image_of(picture, url) for picture, url in zip(pictures, urls, strict=True)]
    size = f"{pictures[0].width}x{pictures[0].height}"
    return answer_of(wanted, int(time.time()), images, size)


async def _events(studio: Studio, wanted: PictureFields, wished: JSON) -> AsyncGenerator[Event]:
    created = int(time.time())
    async with aclosing(with_pauses(_pieces(studio, wanted, wished), answering.KEEP_ALIVE)) as pieces:
        async for piece in pieces:
            if piece is None:
                yield WAITING
            elif isinstance(piece, Picture):
                yield _named(completed(wanted, created, piece))
            else:
                yield _named(partial(wanted, created, *piece))
    yield Event("[DONE]")


async def _pieces(
    studio: Studio, wanted: PictureFields, wished: JSON
) -> AsyncGenerator[Picture | tuple[int, bytes]]:
    """Sketches, (which of its picture, PNG), as they come, then the pictures."""
    sketches: asyncio.Queue[tuple[int, bytes] | None] = asyncio.Queue()

    def sketched(_: int, number: int, png: bytes) -> None:
        sketches.put_nowait((number, png))

    more: JSON = {"sketches": wanted.partial_images or 0, "on_sketch": sketched}
    drawing = asyncio.create_task(_drawn(studio, wanted, wished, **more))
    drawing.add_done_callback(lambda _: sketches.put_nowait(None))
    try:
        while (sketch := await sketches.get()) is not None:
            yield sketch
        for picture in drawing.result():
            yield picture
    finally:
        drawing.cancel()
        await asyncio.wait((drawing,))


def _named(event: JSON) -> Event:
    return Event(event, event["type"])


def _broken(told: Told) -> list[Event]:
    return [Event({"type": "error", "error": error_of(told)}, "error")]

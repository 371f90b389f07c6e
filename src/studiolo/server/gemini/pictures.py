"""Answers of models that draw: what their requests may ask, and the pictures as parts of an answer."""

from __future__ import annotations

import asyncio
import io
import json
import math
import time
from collections.abc import AsyncGenerator
from pathlib import Path
from typing import Any

from studiolo.errors import StudioloError
from studiolo.jobs.artist import Picture
from studiolo.language.conversation import (
    Content,
    Data,
    Delta,
    FinishReason,
    GenerationConfig,
    Request,
    Role,
    Text,
    ToolChoice,
    Usage,
)
from studiolo.language.errors import InvalidRequestError, UnsupportedError
from studiolo.models import registry
from studiolo.server.gemini.wire_request import PictureRequest
from studiolo.server.studio import Studio

DRAWS = ("drawing", "subject")
"""Kinds of models."""
PNG, JPEG = "image/png", "image/jpeg"
RATIOS = ("1:1", "2:3", "3:2", "3:4", "4:3", "4:5", "5:4", "9:16", "16:9", "21:9")

_QUALITY = 75
"""Of JPEG files, as at Google."""


async def drawn_deltas(studio: Studio, request: Request, *, batch: bool = False) -> AsyncGenerator[Delta]:
    """The pictures that a request asks of a model that draws, each a candidate, and what the user should know
    of them as text.

    Raises:
        UnsupportedError: it asks for what no picture can be asked for.
    """
    prompt, image = _prompt_of(request)
    wishes = request if isinstance(request, PictureRequest) else None
    media_type, quality = (wishes.media_type or PNG, wishes.quality) if wishes else (PNG, None)
    check_type(media_type)
    size = {}
    if wishes and wishes.aspect_ratio:
        size = await asyncio.to_thread(sides, request.model, wishes.aspect_ratio)
    pictures = await draw(
        studio,
        request.model,
        prompt,
        n=request.config.candidates,
        seed=request.config.seed,
        batch=batch,
        init=image,
        alpha=image is not None,
        **size,
    )
    last = len(pictures) - 1
    for candidate, picture in enumerate(pictures):
        if picture.notes and "text" in request.config.modalities:
            yield Delta(candidate=candidate, part=Text(text="\n".join(picture.notes)), model=request.model)
        data = file_of(picture, media_type, quality)
        yield Delta(candidate=candidate, part=Data(media_type=media_type, data=data), model=request.model)
        usage = Usage() if candidate == last else None
        yield Delta(candidate=candidate, finish=FinishReason.STOP, usage=usage, model=request.model)


async def draw(studio: Studio, model: str, prompt: str, *, batch: bool, **order: Any) -> list[Picture]:
    """As `Artist.draw`, measured."""
    began = time.perf_counter()
    try:
        pictures = await studio.artist.draw(model, prompt, interactive=not batch, **order)
    except StudioloError as error:
        if error.where == "init":
            error.where = "image"
        raise
    studio.metrics.drawn(model, time.perf_counter() - began, len(pictures))
    return pictures


def sides(model: str, ratio: str) -> dict[str, int]:
    """Width and height of pictures of that ratio, with about as many pixels as the model was taught with.

    It waits for the disk, and for torch where the files alone do not tell.

    Raises:
        InvalidRequestError: it is none of `RATIOS`.
    """
    if ratio not in RATIOS:
        raise InvalidRequestError(
            f"no such ratio: {ratio[:20]!r}", where="aspect_ratio", remedy=f"Say one of {', '.join(RATIOS)}."
        )
    side, unit = _native(registry.resolve(model).path)
    width, height = (int(number) for number in ratio.split(":"))
    scale = math.sqrt(width / height)
    return {
        "width": max(unit, round(side * scale / unit) * unit),
        "height": max(unit, round(side / scale / unit) * unit),
    }


def check_type(media_type: str) -> None:
    """Raises UnsupportedError: pictures are not to be had as files of that type."""
    if media_type not in (PNG, JPEG):
        raise UnsupportedError(
            f"pictures are not to be had as {media_type[:100]!r}",
            where="output_mime_type",
            remedy=f"Say {PNG} or {JPEG}.",
        )


def file_of(picture: Picture, media_type: str, quality: int | None = None) -> bytes:
    """The picture as a file of that type, with how it was made in it; in a JPEG file as its comment."""
    check_type(media_type)
    if media_type == PNG:
        return picture.png
    from PIL import Image

    from studiolo.drawing.provenance import CHUNK

    file = io.BytesIO()
    with Image.open(io.BytesIO(picture.png)) as image:
        record = str(image.info.get(CHUNK, "")).encode()
        image.convert("RGB").save(
            file, "jpeg", quality=_QUALITY if quality is None else quality, comment=record
        )
    return file.getvalue()


def _prompt_of(request: Request) -> tuple[str, bytes | None]:
    """The words of the last turn, and the picture to begin from: its own, or that of the turn before it."""
    asked = GenerationConfig(
        seed=request.config.seed, candidates=request.config.candidates, modalities=request.config.modalities
    )
    for given, where in (
        (request.system, "system_instruction"),
        (request.tools, "tools"),
        (request.tool_choice != ToolChoice(), "tool_config"),
        (request.safety, "safety_settings"),
        (request.cache, "cached_content"),
        (request.config != asked, "generation_config"),
    ):
        if given:
            raise UnsupportedError(
                "this model draws, and has no use for this", where=where,
                remedy="Leave it out; seed, candidateCount, responseModalities and imageConfig are taken.",
            )  # fmt: skip
    *before, last = request.contents
    drawn = _images_of(before[-1]) if before and before[-1].role is Role.MODEL else []
    if last.role is not Role.USER or (before and not drawn):
        raise UnsupportedError(
            "this model draws from one prompt, and remembers no conversation but its last picture",
            where="contents",
            remedy="Send one content, or talk to a chat model with this one behind a plus: CHAT+MODEL.",
        )
    parts, images = last.parts, _images_of(last)
    words = [part.text for part in parts if isinstance(part, Text)]
    if len(images) > 1 or len(images) + len(words) < len(parts):
        raise UnsupportedError(
            "this model draws from words, and from one picture that is sent along or uploaded",
            where=f"contents[{len(before)}].parts",
        )
    begin = images or drawn
    return "\n".join(words), begin[-1] if begin else None


def _images_of(content: Content) -> list[bytes]:
    return [
        part.data for part in content.parts if isinstance(part, Data) and part.media_type.startswith("image/")
    ]


def _native(folder: Path) -> tuple[int, int]:
    """The side of the pictures that a model was taught with, and what every side is a multiple of, in pixels
    (`diffusion.components.Components`, without loading it)."""
    if not (folder / "unet").is_dir():  # a single file, an adapter, another family: it takes torch to tell
        from studiolo.formats.opening import native_size

        return native_size(folder)
    unet = json.loads((folder / "unet" / "config.json").read_text("utf-8"))
    vae = json.loads((folder / "vae" / "config.json").read_text("utf-8"))
    unit = 2 ** (len(vae["block_out_channels"]) - 1)
    return unet["sample_size"] * unit, unit

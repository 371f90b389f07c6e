"""What the requests for pictures have in common, images/generations field by field, and the answers.

https://platform.openai.com/docs/api-reference/images/create; extensions are sent in `extra_body`.
"""

from __future__ import annotations

import base64
import re
from collections.abc import Sequence
from typing import Annotated, Any, ClassVar, Literal

from pydantic import Field

from studiolo.jobs.artist import Picture
from studiolo.language.errors import InvalidRequestError
from studiolo.models.registry import BASE_NAME
from studiolo.server.openai.wire import Wire, emulated, extension, ignored, refused

JSON = dict[str, Any]
NOT_KEPT = "nothing is done with it"

STEPS = {"low": 15, "medium": 30, "standard": 30, "high": 50, "hd": 50, "xhigh": 80, "max": 100}
"""Denoising steps that stand for OpenAI's words; "auto" leaves it to the studio."""
_QUALITIES = {"auto": "medium", "standard": "medium", "hd": "high"}
_MORE = ("eta", "spacing", "sigmas", "guidance_rescale", "guidance_from", "guidance_until", "clip_skip")
"""Fields that `SamplerSettings` judges, under the same names."""
_SIZE = re.compile(r"([1-9]\d{0,4})x([1-9]\d{0,4})")


class PictureFields(Wire):
    """Fields of images/generations and of images/edits."""

    prompt: Annotated[str, Field(min_length=1)]
    model: Annotated[str, Field(min_length=1)] | None = None
    n: Annotated[int, Field(ge=1, le=10)] | None = None
    size: str | None = None
    quality: Annotated[
        Literal["auto", "low", "medium", "high", "xhigh", "max", "standard", "hd"] | None,
        emulated("by the number of denoising steps"),
    ] = None
    response_format: Literal["b64_json", "url"] | None = None
    output_format: Annotated[
        str | None, refused("pictures are PNG files, which carry how they were made", "png")
    ] = None
    output_compression: Annotated[int | None, refused("PNG files lose nothing", 100)] = None
    background: Annotated[
        Literal["transparent", "opaque", "auto"] | None,
        refused("pictures have a background", "opaque", "auto"),
    ] = None
    moderation: Annotated[Literal["low", "auto"] | None, ignored("prompts of pictures are not judged")] = None
    stream: bool | None = None
    partial_images: Annotated[int, Field(ge=0, le=3)] | None = None
    user: Annotated[str | None, ignored(NOT_KEPT)] = None
    safety_identifier: Annotated[str | None, ignored(NOT_KEPT)] = None
    complexity: Annotated[str | None, refused("nothing is planned here")] = None
    frame_count: Annotated[int | None, refused("pictures do not move")] = None
    frame_duration_ms: Annotated[int | None, refused("pictures do not move")] = None
    svg: Annotated[JSON | None, refused("pictures are made of pixels")] = None

    seed: Annotated[
        int | None, Field(ge=0, lt=2**32), extension("of the first picture; the next have seed + 1, ...")
    ] = None
    negative_prompt: Annotated[str | None, extension("what to keep away from")] = None
    steps: Annotated[
        int | None, Field(ge=1, le=500), extension("denoising steps; stands above `quality`")
    ] = None
    guidance_scale: Annotated[
        float | None, Field(ge=0, le=50), extension("how strongly to follow the prompt; 1: not guided")
    ] = None
    sampler: Annotated[str | None, extension("as `studiolo generate --sampler`")] = None
    eta: Annotated[float | None, extension("as `--eta`: noise that DDIM adds back")] = None
    spacing: Annotated[str | None, extension("as `--spacing`")] = None
    sigmas: Annotated[str | None, extension("as `--sigmas`")] = None
    guidance_rescale: Annotated[float | None, extension("as `--guidance-rescale`")] = None
    guidance_from: Annotated[
        float | None, extension("the part of the steps, 0 to 1, before the guided ones")
    ] = None
    guidance_until: Annotated[
        float | None, extension("the part of the steps, 0 to 1, after which none is")
    ] = None
    clip_skip: Annotated[int | None, extension("as `--clip-skip`")] = None

    events: ClassVar[str] = "image_generation"
    """What the names of events begin with."""

    @property
    def named(self) -> str:
        """The model that draws."""
        return self.model or BASE_NAME


class ImageRequest(PictureFields):
    style: Annotated[Literal["vivid", "natural"] | None, ignored("a style is described in the prompt")] = None


def wishes(request: PictureFields) -> JSON:
    """What the artist is asked for beside the prompt.

    Raises:
        InvalidRequestError: no size, or fields that contradict each other.
    """
    if request.partial_images and not request.stream:
        raise InvalidRequestError("it needs stream to be true", where="partial_images")
    if request.stream and request.response_format == "url":
        raise InvalidRequestError("events carry pictures themselves", where="response_format")
    width, height = _sides(request.size)
    return {
        "n": request.n or 1,
        "seed": request.seed,
        "width": width,
        "height": height,
        "steps": request.steps or STEPS.get(request.quality or "auto"),
        "guidance": request.guidance_scale,
        "negative": request.negative_prompt,
        "sampler": request.sampler,
        "more": {name: value for name in _MORE if (value := getattr(request, name)) is not None},
    }


def _sides(size: str | None) -> tuple[int | None, int | None]:
    if size is None or size == "auto":
        return None, None
    found = _SIZE.fullmatch(size)
    if found is None:
        raise InvalidRequestError("not a size", where="size", remedy="Give one such as 64x64, or auto.")
    return int(found[1]), int(found[2])


def image_of(picture: Picture, url: str | None = None) -> JSON:
    """One picture: its URL, or its bytes. Beyond OpenAI's fields its seed, and notes where there are some."""
    told: JSON = {"revised_prompt": picture.prompt, "seed": picture.seed}
    told |= {"b64_json": _packed(picture.png)} if url is None else {"url": url}
    return told | ({"notes": list(picture.notes)} if picture.notes else {})


def answer_of(request: PictureFields, created: int, images: Sequence[JSON], size: str) -> JSON:
    return {"created": created, "data": list(images), **_common(request, size)}


def completed(request: PictureFields, created: int, picture: Picture) -> JSON:
    """The event of a picture that is done. No tokens are counted in drawing."""
    size = f"{picture.width}x{picture.height}"
    nothing = {"image_tokens": 0, "text_tokens": 0}
    usage = {"input_tokens": 0, "input_tokens_details": nothing, "output_tokens": 0, "total_tokens": 0}
    return {
        "type": f"{request.events}.completed", "created_at": created, "seed": picture.seed,
        "b64_json": _packed(picture.png), "usage": usage, **_common(request, size),
    }  # fmt: skip


def partial(request: PictureFields, created: int, number: int, png: bytes) -> JSON:
    """The event of a sketch; it does not carry how it was made."""
    return {
        "type": f"{request.events}.partial_image", "created_at": created, "partial_image_index": number,
        "b64_json": _packed(png), **_common(request, request.size or "auto"),
    }  # fmt: skip


def _common(request: PictureFields, size: str) -> JSON:
    quality = _QUALITIES.get(request.quality or "auto", request.quality)
    return {"background": "opaque", "output_format": "png", "quality": quality, "size": size}


def _packed(png: bytes) -> str:
    return base64.b64encode(png).decode()

"""/images/edits and /images/variations: pictures that begin from another one, whole or within a mask."""

from __future__ import annotations

import asyncio
from typing import Any

from fastapi import APIRouter, Depends
from starlette.requests import Request
from starlette.responses import Response

from studiolo.errors import TooLargeError
from studiolo.language.conversation import Data
from studiolo.language.errors import InvalidRequestError, UnsupportedError
from studiolo.models import registry
from studiolo.server.auth import Caller, caller
from studiolo.server.bodies import json_body
from studiolo.server.openai import document
from studiolo.server.openai.answering import Asking
from studiolo.server.openai.forms import Form, form_of
from studiolo.server.openai.image_edits_wire import (
    EditRequest,
    Reference,
    VariationRequest,
    edit_wishes,
    the_one,
)
from studiolo.server.openai.images import answer_request, check_draws, check_item, drawn_item
from studiolo.server.openai.media import linked
from studiolo.server.openai.wire import read
from studiolo.server.studio import Studio, studio_of

JSON = dict[str, Any]


def add_routes(router: APIRouter) -> None:
    for path, route, extra in (
        ("/images/edits", edit_images, document.form_or_body(EditRequest, file="image", also="mask")),
        ("/images/variations", vary_images, document.form(VariationRequest, file="image")),
    ):
        router.add_api_route(path, route, methods=["POST"], response_model=None, openapi_extra=extra)


async def edit_images(
    request: Request, studio: Studio = Depends(studio_of), caller: Caller = Depends(caller)
) -> Response:
    """Pictures of a prompt that begin from another one; of a mask only what is transparent is painted."""
    if request.headers.get("content-type", "").lower().startswith("application/json"):
        wanted = read(EditRequest, await json_body(request))
        check_draws(studio, wanted.named)
        image, mask = await _referred(studio, caller.key_id, wanted)
    else:
        async with form_of(request, files=("image", "mask", "markup")) as form:
            wanted = read(EditRequest, _told(form), texts=True)
            check_draws(studio, wanted.named)
            if "markup" in form.files:
                raise UnsupportedError("nothing is read from what is drawn over a picture", where="markup")
            the_one(len(form.files.get("image", ())), where="image")
            image = await form.file("image").read()
            mask = await form.file("mask").read() if "mask" in form.files else None
    return await answer_request(request, studio, caller, wanted, edit_wishes(wanted, image, mask))


async def vary_images(
    request: Request, studio: Studio = Depends(studio_of), caller: Caller = Depends(caller)
) -> Response:
    """Pictures like another one: of the subject where the model was taught one, else of no prompt."""
    async with form_of(request, files=("image",)) as form:
        asked = read(VariationRequest, _told(form), texts=True)
        check_draws(studio, asked.named)
        image = await form.file("image").read()
    wanted = asked.with_prompt(await asyncio.to_thread(_prompt_for, asked.named))
    wished = edit_wishes(wanted, image, None, alpha=False)
    return await answer_request(request, studio, caller, wanted, wished)


async def answer_item(asking: Asking, body: JSON) -> JSON:
    """As `images.answer_item`, of edits."""
    wanted = read(EditRequest, body)
    check_item(asking, wanted)
    image, mask = await _referred(asking.studio, asking.caller.key_id, wanted)
    return await drawn_item(asking, wanted, edit_wishes(wanted, image, mask))


def _told(form: Form) -> JSON:
    """The fields of a form; clients write nothing for null."""
    return {name: value for name, value in form.fields.items() if value != "" or name == "prompt"}


def _prompt_for(model: str) -> str:
    """What pictures of that model show by themselves."""
    noun = registry.resolve(model).card.get("class_noun")
    return f"a photo of [V] {noun}" if noun else ""


async def _referred(studio: Studio, owner: str | None, wanted: EditRequest) -> tuple[bytes, bytes | None]:
    """The picture and the mask that a JSON body names."""
    images = wanted.images or []
    the_one(len(images), where="images")
    image = await asyncio.to_thread(_bytes_of, studio, owner, images[0], "images[0]")
    if wanted.mask is None:
        return image, None
    return image, await asyncio.to_thread(_bytes_of, studio, owner, wanted.mask, "mask")


def _bytes_of(studio: Studio, owner: str | None, named: Reference, where: str) -> bytes:
    """
    Raises:
        InvalidRequestError: named in no way or in two, or by a URL that is not of data.
        NotFoundError: there is no such file, or it is another's.
        TooLargeError: it is larger than a request may be.
    """
    if (named.image_url is None) == (named.file_id is None):
        raise InvalidRequestError("a picture is named by its URL or by its file, one of the two", where=where)
    if named.image_url is not None:
        data = linked(named.image_url, media_type="image/*", where=f"{where}.image_url")
        if not isinstance(data, Data):
            raise UnsupportedError(
                "pictures are not fetched from the web here",
                where=f"{where}.image_url",
                remedy="Send a URL of data (data:image/png;base64,...), or upload the file and name it.",
            )
        return data.data
    record = studio.files.get(named.file_id or "", owner=owner)
    if record.size > studio.settings.largest_body:
        raise TooLargeError(f"more than {studio.settings.largest_body:,} bytes", where=f"{where}.file_id")
    return studio.files.path(record.id).read_bytes()

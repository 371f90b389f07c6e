"""predict: pictures of models that draw, as Imagen's clients ask for them; vectors of models that embed."""

from __future__ import annotations

import asyncio
import base64
from collections.abc import Mapping
from typing import Annotated, Any

from fastapi import APIRouter, Depends
from starlette.requests import Request as HttpRequest

from studiolo.language.conversation import Usage
from studiolo.language.errors import InvalidRequestError, UnsupportedError
from studiolo.server.auth import Caller, caller
from studiolo.server.bodies import json_body
from studiolo.server.gemini import document, embeddings, models
from studiolo.server.gemini.picture_edits import edit_of
from studiolo.server.gemini.pictures import DRAWS, PNG, check_type, draw, file_of, sides
from studiolo.server.gemini.reading import read
from studiolo.server.sse import attended
from studiolo.server.studio import Studio, studio_of

Who = Annotated[Caller, Depends(caller)]
House = Annotated[Studio, Depends(studio_of)]
Wire = dict[str, Any]

MOST = 8
"""Pictures of one answer."""

_PLAIN = {"negativePrompt": "negative", "guidanceScale": "guidance", "seed": "seed", "steps": "steps",
          "sampler": "sampler", "width": "width", "height": "height"}  # fmt: skip
_MORE = {"eta": "eta", "spacing": "spacing", "sigmas": "sigmas", "guidanceRescale": "guidance_rescale",
         "guidanceFrom": "guidance_from", "guidanceUntil": "guidance_until",
         "clipSkip": "clip_skip"}  # fmt: skip


def add_routes(router: APIRouter, models_path: str) -> None:
    """Adds it below a path such as `/models`."""
    told = document.body("DrawRequest", "PredictRequest")
    router.add_api_route(models_path + "/{model:path}:predict", predict, methods=["POST"], openapi_extra=told)


async def predict(model: str, http: HttpRequest, studio: House, who: Who) -> Wire:
    """Pictures, or vectors: whichever the model makes."""
    name = models.named(studio, model, "predict", http)
    body = await json_body(http)
    if studio.engines.info(name).kind not in DRAWS:
        return await embeddings.predicted(name, body, http, studio, who)
    asked = read("DrawRequest", body)
    parameters = asked.get("parameters", {})
    prompt, order = _prompt_of(asked), await asyncio.to_thread(_order_of, name, parameters)
    order |= edit_of(asked["instances"][0], parameters)
    output = parameters.get("outputOptions", {})
    media_type = output.get("mimeType") or PNG
    check_type(media_type)
    pictures = await attended(http, draw(studio, name, prompt, batch=False, **order))
    await studio.account(who, name, Usage())
    predictions = []
    for picture in pictures:
        data = file_of(picture, media_type, output.get("compressionQuality"))
        made: Wire = {"mimeType": media_type, "bytesBase64Encoded": base64.b64encode(data).decode()}
        predictions.append(made | ({"prompt": picture.prompt} if picture.prompt != prompt else {}))
    return {"predictions": predictions}


def _prompt_of(asked: Mapping[str, Any]) -> str:
    instances = asked.get("instances", [])
    if len(instances) != 1 or not instances[0].get("prompt"):
        raise InvalidRequestError(
            "one instance with a prompt is wanted", where="instances", remedy='Send [{"prompt": TEXT}].'
        )
    return str(instances[0]["prompt"])


def _order_of(model: str, parameters: Mapping[str, Any]) -> Wire:
    """The arguments of `Artist.draw`. It waits for the disk."""
    if parameters.get("safetySetting", "block_none").lower() not in ("block_none", "off"):
        raise UnsupportedError(
            "pictures are not judged here", where="parameters.safety_setting", remedy="Say block_none."
        )
    if parameters.get("personGeneration", "allow_all").lower() != "allow_all":
        raise UnsupportedError(
            "nobody looks for persons here", where="parameters.person_generation", remedy="Say allow_all."
        )
    order: Wire = {ours: parameters[wire] for wire, ours in _PLAIN.items() if wire in parameters}
    order["more"] = {ours: parameters[wire] for wire, ours in _MORE.items() if wire in parameters}
    if ratio := parameters.get("aspectRatio"):
        if "width" in order or "height" in order:
            raise InvalidRequestError(
                "both a ratio and a size", where="parameters.aspect_ratio", remedy="Give one of them."
            )
        order |= sides(model, ratio)
    return order | {"n": parameters.get("sampleCount", 1)}

"""The list of models, and which one a path means."""

from __future__ import annotations

from typing import Annotated, Any

from fastapi import APIRouter, Depends, Query
from starlette.requests import Request as HttpRequest

from studiolo.language.errors import InvalidRequestError, UnknownModelError
from studiolo.server.auth import Caller, caller
from studiolo.server.gemini import names
from studiolo.server.pool import ModelInfo
from studiolo.server.studio import Studio, studio_of

Who = Annotated[Caller, Depends(caller)]
House = Annotated[Studio, Depends(studio_of)]

MOST = 1000
_TUNED = "labels.tune-type:*"
_EMBEDS = ["embedContent", "batchEmbedContents"]
_SPEAKS = ["generateContent", "streamGenerateContent", "countTokens", "createCachedContent"]
_METHODS = {
    "chat": _SPEAKS,
    "completion": _SPEAKS,
    "hosted": _SPEAKS,
    "embedding": ["countTokens"],
    "drawing": ["predict", "generateContent"],
    "subject": ["predict", "generateContent"],
}


def add_routes(router: APIRouter, models_path: str) -> None:
    """Adds them below a path such as `/models`."""
    router.add_api_route(models_path, page, methods=["GET"])
    router.add_api_route(models_path + "/{model:path}", one, methods=["GET"])


async def page(
    studio: House,
    who: Who,
    size: Annotated[int, Query(alias="pageSize")] = 50,
    token: Annotated[str | None, Query(alias="pageToken")] = None,
    tuned: Annotated[str | None, Query(alias="filter")] = None,
) -> dict[str, Any]:
    """Some models, by name. A token is the name that the last page ended with, so models may come and go.
    With the filter of enterprise clients, only those that were taught a subject."""
    if tuned not in (None, "", _TUNED):
        raise InvalidRequestError("this filter is not known", where="filter", remedy=f"Say {_TUNED}.")
    known = sorted(studio.engines.models(), key=lambda model: model.name)
    known = [model for model in known if not tuned or model.kind == "subject"]
    rest = [model for model in known if token is None or model.name > token]
    shown = rest[: page_size(size, MOST)]
    answer: dict[str, Any] = {"models": [told(model) for model in shown]}
    return answer | {"nextPageToken": shown[-1].name} if len(rest) > len(shown) else answer


async def one(model: str, http: HttpRequest, studio: House, who: Who) -> dict[str, Any]:
    """What is told of a model."""
    return told(studio.engines.info(named(studio, model, "this", http)))


def told(model: ModelInfo) -> dict[str, Any]:
    """A model, as the wire has it."""
    wire: dict[str, Any] = {
        "name": f"models/{model.name}",
        "version": "001",
        "displayName": model.title,
        "description": model.title,
        "supportedGenerationMethods": _methods(model),
    }
    if model.base:
        wire["baseModelId"] = model.base
    if able := model.capabilities:
        wire["inputTokenLimit"] = able.context
        wire["outputTokenLimit"] = able.max_output or able.context
        wire["thinking"] = able.thinking
        wire["maxTemperature"] = 2.0
    return wire


def _methods(model: ModelInfo) -> list[str]:
    embeds = model.kind == "embedding" or (model.capabilities is not None and model.capabilities.embeddings)
    return [*_METHODS[model.kind], *(_EMBEDS if embeds else ())]


def named(studio: Studio, resource: str, method: str, http: HttpRequest) -> str:
    """The model that a path means.

    Raises:
        UnknownModelError: there is none, in Google's words.
    """
    name = names.model(resource)
    try:
        studio.engines.info(name)
        return name
    except UnknownModelError as error:
        version = getattr(http.state, "version", None) or "v1beta"
        raise UnknownModelError(
            f"models/{name[:100]} is not found for API version {version}, or is not supported for {method}. "
            "Call ListModels to see the list of available models and their supported methods.",
            remedy=error.remedy if error.remedy and error.remedy.startswith("Did") else None,
        ) from None


def page_size(size: int, most: int) -> int:
    """Google reads 0 as the default of 50, and cuts what is too much."""
    if size < 0:
        raise InvalidRequestError("a page has at least one entry", where="page_size")
    return min(size or 50, most)

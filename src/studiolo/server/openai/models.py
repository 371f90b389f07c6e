"""/models (https://platform.openai.com/docs/api-reference/models)."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from fastapi import APIRouter, Depends
from starlette.responses import JSONResponse, Response

from studiolo.server.auth import Caller, caller
from studiolo.server.errors import NotPermittedError
from studiolo.server.pool import ModelInfo
from studiolo.server.studio import Studio, studio_of


def add_routes(router: APIRouter) -> None:
    for path, route, method in (
        ("/models", list_models, "GET"),
        ("/models/{model:path}", retrieve_model, "GET"),
        ("/models/{model:path}", delete_model, "DELETE"),
    ):
        router.add_api_route(path, route, methods=[method], response_model=None)


async def list_models(studio: Studio = Depends(studio_of), _: Caller = Depends(caller)) -> Response:
    """Every model, of whatever kind."""
    return JSONResponse(list_of(studio.engines.models()))


async def retrieve_model(
    model: str, studio: Studio = Depends(studio_of), _: Caller = Depends(caller)
) -> Response:
    return JSONResponse(model_of(studio.engines.info(model)))


async def delete_model(
    model: str, studio: Studio = Depends(studio_of), caller: Caller = Depends(caller)
) -> Response:
    """Forgets a subject that this caller has taught, with the job that made it."""
    info = studio.engines.info(model)
    tuning = await studio.tunings.named(info.name)
    if info.kind != "subject" or tuning is None or tuning.owner != caller.key_id:
        raise NotPermittedError(
            "only subjects are deleted here, by whoever has taught them here",
            where="model",
            remedy=f"On the server's machine: studiolo models remove {info.name}",
        )
    await studio.tunings.delete(tuning.id, caller.key_id)
    studio.engines.look_again()
    await studio.artist.forget(info.name)
    return JSONResponse({"id": info.name, "object": "model", "deleted": True})


def model_of(info: ModelInfo) -> dict[str, Any]:
    """A model. Beyond OpenAI's fields: its kind, its title, and how many tokens it reads."""
    told: dict[str, Any] = {
        "id": info.name,
        "object": "model",
        "created": int(info.created.timestamp()),
        "owned_by": "studiolo" if info.kind != "hosted" else "hosted",
        "kind": info.kind,
        "title": info.title,
    }
    if info.base is not None:
        told["parent"] = info.base
    if info.capabilities is not None:
        told["context_length"] = info.capabilities.context
        told["modalities"] = sorted(info.capabilities.modalities)
    return told


def list_of(infos: Sequence[ModelInfo]) -> dict[str, Any]:
    return {"object": "list", "data": [model_of(info) for info in infos]}

"""Calls that Google's clients know and that there are none of here: told as such, with what to do instead."""

from __future__ import annotations

from typing import Annotated

from fastapi import APIRouter, Depends

from studiolo.server.auth import Caller, caller
from studiolo.server.errors import NotBuiltError

Who = Annotated[Caller, Depends(caller)]


def router() -> APIRouter:
    """All of them."""
    router = APIRouter()
    for path in ("/batchPredictionJobs", "/batchPredictionJobs/{name:path}"):
        router.add_api_route(path, batch_predictions, methods=["POST", "GET", "DELETE"])
    router.add_api_route("/files:register", register, methods=["POST"])
    router.add_api_route("/models/{name:path}:predictLongRunning", videos, methods=["POST"])
    router.add_api_route("/auth_tokens", tokens, methods=["POST"])
    for path in (
        "/fileSearchStores",
        "/fileSearchStores/{name:path}",
        "/upload/fileSearchStores/{name:path}",
    ):
        router.add_api_route(path, search_stores, methods=["POST", "GET", "DELETE", "PATCH"])
    return router


async def batch_predictions(who: Who) -> None:
    """Batches of enterprise clients."""
    raise NotBuiltError(
        "batches between buckets are not to be had here",
        remedy="Use the developer's client: client.batches, with requests or an uploaded file.",
    )


async def videos(name: str, who: Who) -> None:
    """Videos from prompts."""
    raise NotBuiltError(
        "no model here makes videos", remedy="Ask for pictures: client.models.generate_images."
    )


async def tokens(who: Who) -> None:
    """Keys for a short time, of live sessions."""
    raise NotBuiltError(
        "there are no live sessions here, and no keys for them", remedy="Use a key of this server's."
    )


async def search_stores(who: Who) -> None:
    """Files that Google searches for its models."""
    raise NotBuiltError(
        "files are not searched here",
        remedy="Send what is needed with the prompt, or keep it: client.caches.create.",
    )


async def register(who: Who) -> None:
    """Files that lie in Google's cloud."""
    raise NotBuiltError("files at other places are not read here", remedy="Upload them: client.files.upload.")

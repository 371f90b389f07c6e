"""/audio: known to clients, and not offered yet."""

from __future__ import annotations

from fastapi import APIRouter, Depends
from starlette.responses import Response

from studiolo.server.auth import Caller, caller
from studiolo.server.errors import NotBuiltError


def add_routes(router: APIRouter) -> None:
    for path, route in (
        ("/audio/transcriptions", transcribe),
        ("/audio/translations", transcribe),
        ("/audio/speech", speak),
    ):
        router.add_api_route(path, route, methods=["POST"], response_model=None)


async def transcribe(_: Caller = Depends(caller)) -> Response:
    """Not offered yet."""
    raise NotBuiltError(
        "speech is not understood here yet",
        remedy="Send the audio in a chat to a model that hears, such as a hosted one.",
    )


async def speak(_: Caller = Depends(caller)) -> Response:
    """Not offered yet."""
    raise NotBuiltError("texts are not spoken here")

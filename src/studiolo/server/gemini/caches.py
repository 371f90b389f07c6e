"""cachedContents: explicit contexts, each key's its own."""

from __future__ import annotations

import asyncio
from collections.abc import Mapping
from datetime import UTC, datetime, timedelta
from typing import Annotated, Any

from fastapi import APIRouter, Depends, Query
from starlette.requests import Request as HttpRequest

from studiolo.language.caching.contexts import Context
from studiolo.language.errors import InvalidRequestError
from studiolo.server.auth import Caller, caller
from studiolo.server.bodies import json_body
from studiolo.server.gemini import document, models
from studiolo.server.gemini.attachments import attached
from studiolo.server.gemini.reading import read
from studiolo.server.gemini.wire_request import prefix_from
from studiolo.server.gemini.wire_response import time_of
from studiolo.server.sse import attended
from studiolo.server.studio import Studio, studio_of

Who = Annotated[Caller, Depends(caller)]
House = Annotated[Studio, Depends(studio_of)]

DEFAULT_LIFETIME = timedelta(hours=1)
MOST = 1000
_CHANGEABLE = {"ttl", "expireTime", "name"}


def add_routes(router: APIRouter, path: str) -> None:
    """Adds them at a path such as `/cachedContents`."""
    told_of = document.body("CachedContent")
    router.add_api_route(path, create, methods=["POST"], openapi_extra=told_of)
    router.add_api_route(path, page, methods=["GET"])
    router.add_api_route(path + "/{name}", get, methods=["GET"])
    router.add_api_route(path + "/{name}", change, methods=["PATCH"], openapi_extra=told_of)
    router.add_api_route(path + "/{name}", delete, methods=["DELETE"])


async def create(http: HttpRequest, studio: House, who: Who) -> dict[str, Any]:
    """Keeps what many requests have in common; the model reads it ahead."""
    body = read("CachedContent", await json_body(http))
    if not body.get("model"):
        raise InvalidRequestError("no model", where="model", remedy="Name the model that is to read it.")
    if body.get("name"):
        raise InvalidRequestError("names are made by the server", where="name", remedy="Leave it out.")
    name = models.named(studio, body["model"], "createCachedContent", http)
    lifetime = _lifetime(body) or DEFAULT_LIFETIME
    prefix = await attached(studio, who.key_id, prefix_from(body))
    async with studio.engines.lease(name, who.key_id) as engine:
        made = engine.create(prefix, ttl=lifetime, model=name, title=body.get("displayName", ""))
        return told(await attended(http, made))


async def page(
    studio: House,
    who: Who,
    size: Annotated[int, Query(alias="pageSize")] = 50,
    token: Annotated[str | None, Query(alias="pageToken")] = None,
) -> dict[str, Any]:
    """Some contexts, the oldest first."""
    contexts = studio.contexts_of(who.key_id)
    found = await asyncio.to_thread(contexts.page, models.page_size(size, MOST), token)
    answer: dict[str, Any] = {"cachedContents": [told(context) for context in found.contexts]}
    return answer | {"nextPageToken": found.next} if found.next else answer


async def get(name: str, studio: House, who: Who) -> dict[str, Any]:
    """What is told of a context; its contents are not."""
    return told(await asyncio.to_thread(studio.contexts_of(who.key_id).get, name))


async def change(name: str, http: HttpRequest, studio: House, who: Who) -> dict[str, Any]:
    """Gives a context another expiry, which is all that can be changed."""
    body = read("CachedContent", await json_body(http))
    if fixed := sorted(body.keys() - _CHANGEABLE):
        raise InvalidRequestError(
            f"only the expiry of a context changes, and not its {', '.join(fixed)}",
            where=fixed[0],
            remedy="Make another context.",
        )
    lifetime = _lifetime(body)
    if lifetime is None:
        raise InvalidRequestError("no expiry", where="ttl", remedy="Give ttl or expireTime.")
    return told(await asyncio.to_thread(studio.contexts_of(who.key_id).extend, name, lifetime))


async def delete(name: str, studio: House, who: Who) -> dict[str, Any]:
    """Forgets a context."""
    await asyncio.to_thread(studio.contexts_of(who.key_id).delete, name)
    return {}


def told(context: Context) -> dict[str, Any]:
    """A context, as the wire has it."""
    wire: dict[str, Any] = {
        "name": f"cachedContents/{context.name}",
        "model": f"models/{context.model}",
        "createTime": time_of(context.created),
        "updateTime": time_of(context.updated),
        "expireTime": time_of(context.expires),
        "usageMetadata": {"totalTokenCount": context.tokens},
    }
    return wire | {"displayName": context.title} if context.title else wire


def _lifetime(body: Mapping[str, Any]) -> timedelta | None:
    if "ttl" in body and "expireTime" in body:
        raise InvalidRequestError(
            "oneof field 'expiration' is already set. Cannot set 'ttl'",
            where="ttl",
            remedy="Give one of them.",
        )
    if "expireTime" in body:
        until: datetime = body["expireTime"]
        return until - datetime.now(UTC)
    return body.get("ttl")

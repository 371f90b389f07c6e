"""Chat completions that were kept (`store: true`): listed, fetched, given other metadata, deleted."""

from __future__ import annotations

import asyncio
import re
from typing import Any, Literal

from fastapi import APIRouter, Depends, Query
from starlette.requests import Request
from starlette.responses import JSONResponse, Response

from studiolo.language.errors import InvalidRequestError
from studiolo.server.auth import Caller, caller
from studiolo.server.bodies import json_body
from studiolo.server.kept import Kept, kept_in
from studiolo.server.openai import document
from studiolo.server.openai.answering import Asking
from studiolo.server.openai.chat_wire import ChatRequest, Metadata
from studiolo.server.openai.wire import Wire, read
from studiolo.server.studio import Studio, studio_of

JSON = dict[str, Any]
_PATH = "/chat/completions"
_LABEL = re.compile(r"metadata\[([^\]]{1,64})\]")
_ASKED = (
    "frequency_penalty", "max_completion_tokens", "presence_penalty", "response_format", "seed",
    "temperature", "tool_choice", "tools", "top_p",
)  # fmt: skip
"""What of the request is told with a completion that was kept."""


class ChangeRequest(Wire):
    """What of one can be changed."""

    metadata: Metadata | None


def add_routes(router: APIRouter) -> None:
    one = _PATH + "/{completion_id}"
    for path, route, methods, extra in (
        (_PATH, list_completions, ["GET"], None),
        (one, retrieve_completion, ["GET"], None),
        (one, change_completion, ["POST"], document.body(ChangeRequest)),
        (one, delete_completion, ["DELETE"], None),
        (one + "/messages", list_messages, ["GET"], None),
    ):
        router.add_api_route(path, route, methods=methods, response_model=None, openapi_extra=extra)


async def keep(asking: Asking, chat: ChatRequest, completion: JSON) -> None:
    """Keeps a completion, if that is wished."""
    if not chat.store:
        return
    asked = chat.model_dump(include=set(_ASKED), by_alias=True, exclude_none=True)
    body = {**completion, **{name: asked.get(name) for name in _ASKED}, "metadata": chat.metadata or {}}
    kept = Kept(
        kind="completion",
        id=completion["id"],
        owner=asking.caller.key_id,
        model=chat.model,
        body=body,
        sent=[message.model_dump(by_alias=True, exclude_none=True) for message in chat.messages],
    )
    await asyncio.to_thread(kept_in(asking.studio.database).keep, kept)


async def list_completions(
    request: Request,
    after: str | None = None,
    limit: int = Query(20, ge=1, le=100),
    order: Literal["asc", "desc"] = "asc",
    model: str | None = None,
    studio: Studio = Depends(studio_of),
    caller: Caller = Depends(caller),
) -> Response:
    """Those that were kept, the oldest first; of one `model` alone, or with `metadata[key]=value`."""
    labels = {
        found[1]: value for name, value in request.query_params.items() if (found := _LABEL.fullmatch(name))
    }
    listed, more = await asyncio.to_thread(
        kept_in(studio.database).page,
        "completion",
        caller.key_id,
        size=limit,
        after=after,
        newest_first=order == "desc",
        model=model,
        labels=labels,
    )
    return JSONResponse(_page([kept.body for kept in listed], more))


async def retrieve_completion(
    completion_id: str, studio: Studio = Depends(studio_of), caller: Caller = Depends(caller)
) -> Response:
    """One that was kept, with what was asked of it."""
    return JSONResponse((await _get(studio, caller, completion_id)).body)


async def change_completion(
    request: Request,
    completion_id: str,
    studio: Studio = Depends(studio_of),
    caller: Caller = Depends(caller),
) -> Response:
    """Gives one other metadata."""
    wanted = read(ChangeRequest, await json_body(request))
    change = kept_in(studio.database).change
    changed = {"metadata": wanted.metadata or {}}
    kept = await asyncio.to_thread(change, "completion", completion_id, caller.key_id, changed)
    return JSONResponse(kept.body)


async def delete_completion(
    completion_id: str, studio: Studio = Depends(studio_of), caller: Caller = Depends(caller)
) -> Response:
    """Forgets one."""
    await asyncio.to_thread(kept_in(studio.database).delete, "completion", completion_id, caller.key_id)
    return JSONResponse({"object": "chat.completion.deleted", "id": completion_id, "deleted": True})


async def list_messages(
    completion_id: str,
    after: str | None = None,
    limit: int = Query(20, ge=1, le=100),
    order: Literal["asc", "desc"] = "asc",
    studio: Studio = Depends(studio_of),
    caller: Caller = Depends(caller),
) -> Response:
    """The messages that were sent for one, by default the first one first."""
    kept = await _get(studio, caller, completion_id)
    messages = [_message(kept.id, number, said) for number, said in enumerate(kept.sent)]
    messages = messages if order == "asc" else messages[::-1]
    if after is not None:
        ids = [message["id"] for message in messages]
        if after not in ids:
            raise InvalidRequestError("no message of this id", where="after")
        messages = messages[ids.index(after) + 1 :]
    return JSONResponse(_page(messages[:limit], len(messages) > limit))


async def _get(studio: Studio, caller: Caller, id_: str) -> Kept:
    return await asyncio.to_thread(kept_in(studio.database).get, "completion", id_, caller.key_id)


def _message(completion: str, number: int, said: JSON) -> JSON:
    """A message with an id; of parts, the words are its content."""
    content = said.get("content")
    told = {"id": f"{completion}-{number}", "name": None, "content_parts": None, **said, "content": content}
    if isinstance(content, list):
        told["content"] = "".join(part["text"] for part in content if part["type"] == "text")
        told["content_parts"] = [part for part in content if part["type"] in ("text", "image_url")]
    return told


def _page(items: list[JSON], more: bool) -> JSON:
    return {
        "object": "list",
        "data": items,
        "first_id": items[0]["id"] if items else None,
        "last_id": items[-1]["id"] if items else None,
        "has_more": more,
    }

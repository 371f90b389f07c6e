"""/responses: created whole, in events or in the background; kept, fetched, cancelled, deleted."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncGenerator, Iterable
from contextlib import aclosing
from typing import Any, Literal

from fastapi import APIRouter, Depends, Query
from starlette.requests import Request
from starlette.responses import JSONResponse, Response

from studiolo.language import conversation as c
from studiolo.language.errors import InvalidRequestError
from studiolo.server import undertaken
from studiolo.server.auth import Caller, caller
from studiolo.server.bodies import json_body
from studiolo.server.errors import Told
from studiolo.server.kept import Kept, kept_in
from studiolo.server.openai import answering, document
from studiolo.server.openai.answering import WAITING, Asking, in_terms
from studiolo.server.openai.pauses import with_pauses
from studiolo.server.openai.responses_answer import Output, new_id
from studiolo.server.openai.responses_request import Located, custom_tools, draws, items_of, request_of
from studiolo.server.openai.responses_wire import Item, ResponseRequest
from studiolo.server.openai.wire import Wire, read
from studiolo.server.sse import Event, Stream, attended
from studiolo.server.studio import Studio, studio_of

JSON = dict[str, Any]

FIELDS = {
    "cache": "cached_content",
    "config.format": "text.format",
    "config.logprobs": "top_logprobs",
    "config.max_tokens": "max_output_tokens",
    "config.modalities": "tools",
    "config.seed": "seed",
    "config.stop": "stop",
    "config.temperature": "temperature",
    "config.thinking": "reasoning.effort",
    "config.thinking.budget": "thinking_budget",
    "config.thinking.show": "reasoning.summary",
    "config.top_k": "top_k",
    "config.top_p": "top_p",
    "contents": "input",
    "tool_choice": "tool_choice",
}
"""What engines call a field, and what the client called it."""


class _Items(Wire):
    """Items by themselves, as they are read back."""

    items: list[Item]


def add_routes(router: APIRouter) -> None:
    body = document.body(ResponseRequest)
    for path, route, methods, extra in (
        ("/responses", create_response, ["POST"], body),
        ("/responses/input_tokens", count_input_tokens, ["POST"], body),
        ("/responses/{response_id}", retrieve_response, ["GET"], None),
        ("/responses/{response_id}", delete_response, ["DELETE"], None),
        ("/responses/{response_id}/input_items", list_input_items, ["GET"], None),
        ("/responses/{response_id}/cancel", cancel_response, ["POST"], None),
    ):
        router.add_api_route(path, route, methods=methods, response_model=None, openapi_extra=extra)


async def create_response(
    request: Request, studio: Studio = Depends(studio_of), caller: Caller = Depends(caller)
) -> Response:
    """An answer to what was sent and all that went before it, whole or in events."""
    wanted = read(ResponseRequest, await json_body(request))
    asking = Asking(studio, caller)
    conversation, output = await _prepared(asking, wanted)
    if wanted.background:
        run = await undertaken.begin(studio, caller, _work(asking, wanted, conversation, output))
        return _followed(run.follow()) if wanted.stream else JSONResponse(run.body)
    if wanted.stream:
        events = _events(asking, wanted, conversation, output)
        return Stream(events, broken=lambda told: _named(output.failed(told)))
    return JSONResponse(await attended(request, _whole(asking, wanted, conversation, output)))


async def answer_item(asking: Asking, body: JSON) -> JSON:
    """The response that a body asks for, where nobody waits at a socket, as in a batch.

    Raises:
        StudioloError: what a client of its own would be told as an error.
    """
    wanted = read(ResponseRequest, body)
    return await _whole(asking, wanted, *await _prepared(asking, wanted))


async def count_input_tokens(
    request: Request, studio: Studio = Depends(studio_of), caller: Caller = Depends(caller)
) -> Response:
    """How many tokens the prompt would have."""
    wanted = read(ResponseRequest, await json_body(request))
    conversation, _ = await _prepared(Asking(studio, caller), wanted)
    with in_terms(FIELDS):
        async with studio.engines.lease(conversation.model, owner=caller.key_id) as engine:
            tokens = await engine.count_tokens(conversation)
    return JSONResponse({"object": "response.input_tokens", "input_tokens": tokens})


async def retrieve_response(
    response_id: str,
    stream: bool = False,
    starting_after: int = Query(-1, ge=-1),
    studio: Studio = Depends(studio_of),
    caller: Caller = Depends(caller),
) -> Response:
    """A response that was kept, as it is by now; of one that was begun in the background with `stream`, also
    its events, from any of them on."""
    if stream:
        had = starting_after + 1
        return _followed(await undertaken.taken_up(studio, caller, "response", response_id, lambda _: had))
    return JSONResponse((await undertaken.fetched(studio, caller, "response", response_id)).body)


async def delete_response(
    response_id: str, studio: Studio = Depends(studio_of), caller: Caller = Depends(caller)
) -> Response:
    """Forgets a response; one that is being made is cancelled first."""
    await undertaken.deleted(studio, caller, "response", response_id)
    return JSONResponse({"id": response_id, "object": "response", "deleted": True})


async def cancel_response(
    response_id: str, studio: Studio = Depends(studio_of), caller: Caller = Depends(caller)
) -> Response:
    """Ends what is being made in the background; one that has ended stays as it is."""
    kept = await undertaken.cancelled(studio, caller, "response", response_id)
    if not kept.body["background"]:
        raise InvalidRequestError("this response did not run in the background", where="response_id")
    return JSONResponse(kept.body)


async def list_input_items(
    response_id: str,
    after: str | None = None,
    limit: int = Query(20, ge=1, le=100),
    order: Literal["asc", "desc"] = "desc",
    studio: Studio = Depends(studio_of),
    caller: Caller = Depends(caller),
) -> Response:
    """The items that were sent for a response, by default the last one first."""
    kept = await asyncio.to_thread(kept_in(studio.database).get, "response", response_id, caller.key_id)
    items = kept.sent if order == "asc" else kept.sent[::-1]
    if after is not None:
        ids = [item["id"] for item in items]
        if after not in ids:
            raise InvalidRequestError("no item of this id", where="after")
        items = items[ids.index(after) + 1 :]
    shown = items[:limit]
    page = {
        "object": "list",
        "data": shown,
        "first_id": shown[0]["id"] if shown else None,
        "last_id": shown[-1]["id"] if shown else None,
        "has_more": len(items) > limit,
    }
    return JSONResponse(page)


async def _prepared(asking: Asking, wanted: ResponseRequest) -> tuple[c.Request, Output]:
    """What the engine is asked, and what its answer goes into."""
    studio, previous = asking.studio, wanted.previous_response_id
    earlier: list[Located] = []
    if previous is not None:
        kept = kept_in(studio.database)
        conversation = await asyncio.to_thread(
            kept.conversation, "response", previous, asking.caller.key_id, where="previous_response_id",
            largest=studio.settings.largest_body,
        )  # fmt: skip
        ended = undertaken.check_ended(conversation, "previous_response_id")
        earlier = [located for one in ended for located in _located(one)]
    with in_terms(FIELDS):
        request = request_of(wanted, earlier, show=asking.shown(wanted.model))
        request = await asking.resolved(request)
    if (drawing := draws(wanted)) is not None:
        request = request.model_copy(update={"model": f"{request.model}+{drawing}"})
    thinking = request.config.thinking
    summary = thinking is not None and thinking.show is c.Show.SUMMARY
    return request, Output(wanted, custom=custom_tools(wanted), summary=summary)


def _located(kept: Kept) -> Iterable[Located]:
    items = _Items.model_validate({"items": [*kept.sent, *kept.body["output"]]}).items
    return [Located(item, kept.id) for item in items]


async def _whole(asking: Asking, wanted: ResponseRequest, request: c.Request, output: Output) -> JSON:
    with in_terms(FIELDS):
        async with aclosing(asking.answer(request)) as deltas:
            async for delta in deltas:
                _pass_over(output.add(delta))
    _pass_over(output.finish())
    await _keep(asking, wanted, output)
    return output.response


def _pass_over(events: Iterable[JSON]) -> None:
    for _ in events:
        pass


async def _events(
    asking: Asking, wanted: ResponseRequest, request: c.Request, output: Output
) -> AsyncGenerator[Event]:
    begun = False
    with in_terms(FIELDS):
        async with aclosing(with_pauses(asking.answer(request), answering.KEEP_ALIVE)) as deltas:
            async for delta in deltas:
                if not begun:  # not earlier: an error before the first word has a status of its own
                    begun = True
                    for event in _named(output.begin()):
                        yield event
                if delta is None:
                    yield WAITING
                    continue
                for event in _named(output.add(delta)):
                    yield event
    for event in _named(output.finish()):
        yield event
    await _keep(asking, wanted, output)
    for event in _named([output.last()]):
        yield event


async def _steps(asking: Asking, request: c.Request, output: Output) -> AsyncGenerator[JSON]:
    """The same events where nobody waits for them."""
    for event in output.begin():
        yield event
    with in_terms(FIELDS):
        async with aclosing(asking.answer(request)) as deltas:
            async for delta in deltas:
                for event in output.add(delta):
                    yield event
    for event in output.finish():
        yield event
    yield output.last()


def _work(asking: Asking, wanted: ResponseRequest, request: c.Request, output: Output) -> undertaken.Work:
    if wanted.store is False:
        raise InvalidRequestError(
            "what is made in the background is kept", where="store", remedy="Leave it out, or background."
        )

    def broken(told: Told | None) -> Iterable[JSON]:
        return output.cancelled() if told is None else output.failed(told)

    return undertaken.Work(
        kept=_as_kept(asking, wanted, output),
        steps=lambda: _steps(asking, request, output),
        now=lambda: output.now,
        broken=broken,
        streams=bool(wanted.stream),
    )


def _followed(events: AsyncGenerator[JSON]) -> Stream:
    """The events of one in the background. Who stops reading them does not end it."""

    async def said() -> AsyncGenerator[Event]:
        async with aclosing(with_pauses(events, answering.KEEP_ALIVE)) as told:
            async for event in told:
                yield WAITING if event is None else Event(event, event["type"])

    return Stream(said(), broken=lambda _: ())


def failure() -> JSON:
    """What becomes of a response over which the server died."""
    message = "The server stopped before this response was whole."
    return {"status": "failed", "error": {"code": "server_error", "message": message}}


def _named(events: Iterable[JSON]) -> Iterable[Event]:
    return (Event(event, event["type"]) for event in events)


async def _keep(asking: Asking, wanted: ResponseRequest, output: Output) -> None:
    """Keeps the response before its end is told, so that the next request may go on from it."""
    if wanted.store is not False:
        kept = _as_kept(asking, wanted, output)
        await asyncio.to_thread(kept_in(asking.studio.database).keep, kept)


def _as_kept(asking: Asking, wanted: ResponseRequest, output: Output) -> Kept:
    return Kept(
        kind="response",
        id=output.response["id"],
        owner=asking.caller.key_id,
        model=wanted.model,
        body=output.response,
        sent=[_sent(located.item) for located in items_of(wanted)],
        previous=wanted.previous_response_id,
    )


def _sent(item: Item) -> JSON:
    """An item as it is listed: with an id, and its contents as parts."""
    told = {"type": "message", **item.model_dump(by_alias=True, exclude_none=True)}
    told["id"] = told.get("id") or new_id("msg" if told["type"] == "message" else "item")
    if isinstance(told.get("content"), str):
        kind = "output_text" if told["role"] == "assistant" else "input_text"
        told["content"] = [{"type": kind, "text": told["content"]}]
    return {**told, "status": "completed"}

"""interactions: turns that are kept here, so that a client sends the new ones alone."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncGenerator, Iterable
from contextlib import aclosing
from typing import Annotated, Any

from fastapi import APIRouter, Depends
from starlette.requests import Request as HttpRequest
from starlette.responses import JSONResponse, Response

from studiolo.language import conversation as c
from studiolo.language.errors import InvalidRequestError
from studiolo.server import undertaken
from studiolo.server.auth import Caller, caller
from studiolo.server.bodies import json_body
from studiolo.server.errors import Told
from studiolo.server.gemini import models
from studiolo.server.gemini.attachments import attached
from studiolo.server.gemini.content import deltas_of
from studiolo.server.gemini.document import body
from studiolo.server.gemini.interaction_answer import Interaction
from studiolo.server.gemini.interaction_request import read_steps, request_from, steps_in
from studiolo.server.gemini.reading import read, snake
from studiolo.server.kept import Kept, kept_in
from studiolo.server.sse import Event, Stream, attended
from studiolo.server.studio import Studio, studio_of

Who = Annotated[Caller, Depends(caller)]
House = Annotated[Studio, Depends(studio_of)]
JSON = dict[str, Any]


def add_routes(router: APIRouter, path: str) -> None:
    """Adds them at a path such as `/interactions`."""
    told_of = body("CreateInteractionRequest")
    router.add_api_route(path, create, methods=["POST"], response_model=None, openapi_extra=told_of)
    router.add_api_route(path + "/{name}", get, methods=["GET"], response_model=None)
    router.add_api_route(path + "/{name}", delete, methods=["DELETE"], response_model=None)
    router.add_api_route(path + "/{name}/cancel", cancel, methods=["POST"], response_model=None)


async def create(http: HttpRequest, studio: House, who: Who) -> Response:
    """The model's next turn: at once, in events, or in the background."""
    given = await json_body(http)
    asked = read("CreateInteractionRequest", given)
    if not asked.get("model"):
        raise InvalidRequestError("no model", where="model", remedy="Name the model that is to answer.")
    model = models.named(studio, asked["model"], "createInteraction", http)
    sent, store = steps_in(asked.get("input", [])), asked.get("store", True)
    request = await _request(studio, who, asked, model, sent)
    wire = {snake(name): value for name, value in given.items()}
    made = Interaction(wire, model, numbered=asked.get("background", False))
    kept = Kept(
        kind="interaction", id=made.body["id"], owner=who.key_id, model=model, body=made.body, sent=sent,
        previous=asked.get("previousInteractionId"),
    )  # fmt: skip
    if asked.get("background"):
        if not store:
            raise InvalidRequestError(
                "what is made in the background is kept", where="store", remedy="Leave it out, or background."
            )
        work = _work(studio, who, request, made, kept, streams=asked.get("stream", False))
        run = await undertaken.begin(studio, who, work)
        return _followed(run.follow()) if asked.get("stream") else JSONResponse(run.body)
    if asked.get("stream"):
        events = _events(studio, who, request, made, kept if store else None)
        return Stream(_named(events), broken=lambda told: map(_event, made.failed(told)))
    return JSONResponse(await attended(http, _whole(studio, who, request, made, kept if store else None)))


async def get(
    name: str,
    studio: House,
    who: Who,
    stream: bool = False,
    last_event_id: str = "",
    include_input: bool = False,
) -> Response:
    """An interaction as it is by now; or, of one that was begun in the background with `stream`, its events,
    from any of them on."""
    if stream:

        def had(events: list[JSON]) -> int:
            return _had(events, last_event_id)

        return _followed(await undertaken.taken_up(studio, who, "interaction", name, had))
    kept = await undertaken.fetched(studio, who, "interaction", name)
    return JSONResponse(kept.body | {"input": kept.sent} if include_input else kept.body)


async def cancel(name: str, studio: House, who: Who) -> Response:
    """Ends what is being made in the background; one that has ended stays as it is."""
    return JSONResponse((await undertaken.cancelled(studio, who, "interaction", name)).body)


async def delete(name: str, studio: House, who: Who) -> Response:
    """Forgets an interaction; one that is being made is ended first."""
    await undertaken.deleted(studio, who, "interaction", name)
    return JSONResponse({})


def failure() -> JSON:
    """What becomes of an interaction over which the server died."""
    message = "The server stopped before this interaction was whole."
    return {"status": "failed", "errors": [{"code": "unavailable", "message": message}]}


async def _request(studio: Studio, who: Caller, asked: JSON, model: str, sent: list[JSON]) -> c.Request:
    """What the engine is asked: the new steps behind those that are kept."""
    earlier: list[JSON] = []
    if previous := asked.get("previousInteractionId"):
        where = "previous_interaction_id"
        kept = await asyncio.to_thread(
            kept_in(studio.database).conversation, "interaction", previous, who.key_id, where=where,
            largest=studio.settings.largest_body,
        )  # fmt: skip
        for one in undertaken.check_ended(kept, where):
            earlier += [*one.sent, *one.body["steps"]]
    steps = [*read_steps(earlier, "previous_interaction_id.steps"), *read_steps(sent, "input")]
    return await attached(studio, who.key_id, request_from(asked, model, steps))


async def _events(
    studio: Studio, who: Caller, request: c.Request, made: Interaction, kept: Kept | None
) -> AsyncGenerator[JSON]:
    """The interaction is kept before its end is told, so that the next one may go on from it."""
    begun = False
    async with aclosing(deltas_of(studio, who, request)) as deltas:
        async for delta in deltas:
            if not begun:  # not earlier: an error before the first word has a status of its own
                begun = True
                for event in made.begin():
                    yield event
            for event in made.add(delta):
                yield event
    for event in made.finish():
        yield event
    if kept is not None:
        await asyncio.to_thread(kept_in(studio.database).keep, kept)
    yield made.last()


async def _whole(
    studio: Studio, who: Caller, request: c.Request, made: Interaction, kept: Kept | None
) -> JSON:
    async for _ in _events(studio, who, request, made, kept):
        pass
    return made.body


def _work(
    studio: Studio, who: Caller, request: c.Request, made: Interaction, kept: Kept, *, streams: bool
) -> undertaken.Work:
    def broken(told: Told | None) -> Iterable[JSON]:
        return made.cancelled() if told is None else made.failed(told)

    return undertaken.Work(
        kept=kept,
        steps=lambda: _events(studio, who, request, made, None),
        now=lambda: made.now,
        broken=broken,
        streams=streams,
    )


def _had(events: list[JSON], last: str) -> int:
    """How many events a reader has had whose last one is named.

    Raises:
        InvalidRequestError: there is none of that name.
    """
    if not last:
        return 0
    for number, event in enumerate(events, 1):
        if event["event_id"] == last:
            return number
    raise InvalidRequestError("no such event", where="last_event_id", remedy="Read from the first one on.")


def _followed(events: AsyncGenerator[JSON]) -> Stream:
    """The events of one in the background. Who stops reading them does not end it."""
    return Stream(_named(events), broken=lambda _: ())


async def _named(events: AsyncGenerator[JSON]) -> AsyncGenerator[Event]:
    async with aclosing(events):
        async for event in events:
            yield _event(event)
    yield Event("[DONE]", "done")


def _event(event: JSON) -> Event:
    return Event(event, event["event_type"])

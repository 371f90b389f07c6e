"""Responses that are made in the background: begun, followed, and told of when the server died over them."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncGenerator, Callable, Iterable
from contextlib import aclosing
from dataclasses import dataclass, replace
from typing import Any

from studiolo.language.errors import InvalidRequestError
from studiolo.server.background import Run
from studiolo.server.errors import Told
from studiolo.server.kept import Kept, kept_in
from studiolo.server.openai import answering
from studiolo.server.openai.answering import WAITING, Asking
from studiolo.server.openai.pauses import with_pauses
from studiolo.server.openai.responses_answer import Output
from studiolo.server.sse import Event, Stream
from studiolo.server.studio import Studio

JSON = dict[str, Any]
_DIED = "The server stopped before this response was whole."


@dataclass(frozen=True)
class Work:
    """A response that is to be made.

    Attributes:
        steps: makes it; gives its events.
    """

    asking: Asking
    output: Output
    kept: Kept
    steps: Callable[[], AsyncGenerator[JSON]]


async def begin(work: Work) -> Run:
    """Begins to make it; from now on it can be fetched.

    Raises:
        InvalidRequestError: it is not to be kept, so that nobody could fetch it.
        OverloadedError: too many are being made.
    """
    studio, output = work.asking.studio, work.output
    if not output.response["store"]:
        raise InvalidRequestError(
            "a response in the background is kept",
            where="store",
            remedy="Leave it out, or wait for the answer.",
        )
    studio.background.check()
    kept = kept_in(studio.database)
    await asyncio.to_thread(kept.keep, replace(work.kept, running=True))

    async def steps() -> AsyncGenerator[JSON]:
        with studio.room.interactive(), studio.keys.working(work.asking.caller):
            async with aclosing(work.steps()) as events:
                async for event in events:
                    yield event

    def broken(told: Told | None) -> Iterable[JSON]:
        return output.cancelled() if told is None else output.failed(told)

    async def keep(events: list[JSON]) -> None:
        ended = replace(work.kept, body=output.response, events=events if output.streams else None)
        await asyncio.to_thread(kept.end, ended)

    return studio.background.begin(
        work.kept.id,
        work.kept.owner,
        made=steps,
        look=lambda: output.now,
        broken=broken,
        keep=keep,
    )


def followed(run: Run, after: int = 0) -> Stream:
    """The events of one that is being made. Who stops reading them does not end it."""

    async def events() -> AsyncGenerator[Event]:
        async with aclosing(with_pauses(run.follow(after), answering.KEEP_ALIVE)) as said:
            async for event in said:
                yield WAITING if event is None else Event(event, event["type"])

    return Stream(events(), broken=lambda told: ())


async def followed_again(studio: Studio, owner: str | None, id_: str, after: int) -> Stream:
    """The events of one that was begun in the background with `stream`, all but the first so many.

    Raises:
        NotFoundError: there is none of this owner's.
        InvalidRequestError: it was begun otherwise.
    """
    run = studio.background.get(id_, owner)
    kept = await asyncio.to_thread(kept_in(studio.database).get, "response", id_, owner)
    if run is not None:
        return followed(run, after)
    if kept.events is None:
        raise InvalidRequestError(
            "events are kept of responses that were begun in the background with stream alone",
            where="stream",
            remedy="Fetch it whole.",
        )
    told = kept.events[after:]

    async def events() -> AsyncGenerator[Event]:
        for event in named(told):
            yield event

    return Stream(events(), broken=lambda told: ())


def named(events: Iterable[JSON]) -> Iterable[Event]:
    """Events as they are sent."""
    return (Event(event, event["type"]) for event in events)


async def tell_of_left(studio: Studio) -> None:
    """Responses that were being made when the server died have failed; whoever asks is told so."""
    kept = kept_in(studio.database)
    for one in await asyncio.to_thread(kept.left, "response"):
        error = {"code": "server_error", "message": _DIED}
        body = {**one.body, "status": "failed", "error": error}
        await asyncio.to_thread(kept.end, replace(one, body=body))

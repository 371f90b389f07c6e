"""Answers in the background, for both dialects: begun, taken up by readers, and told of when the
server died over them."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncGenerator, Callable, Iterable, Iterator, Mapping
from contextlib import aclosing
from dataclasses import dataclass, replace
from typing import Any

from studiolo.language.errors import InvalidRequestError
from studiolo.server.auth import Caller
from studiolo.server.background import Run
from studiolo.server.errors import Told
from studiolo.server.kept import Kept, Kind, kept_in
from studiolo.server.studio import Studio

JSON = dict[str, Any]


@dataclass(frozen=True)
class Work:
    """An answer that is to be made.

    Attributes:
        kept: what is kept of it; its body is replaced by what `now` gives.
        steps: makes it; gives its events.
        now: the answer as it is.
        broken: puts what ended it early into the answer (None: nobody wants it any more); gives the events
            that tell of it.
        streams: whether its events are kept, so that a reader can take them up after its end.
    """

    kept: Kept
    steps: Callable[[], AsyncGenerator[JSON]]
    now: Callable[[], JSON]
    broken: Callable[[Told | None], Iterable[JSON]]
    streams: bool


async def begin(studio: Studio, caller: Caller, work: Work) -> Run:
    """Begins to make it; from now on it can be fetched.

    Raises:
        OverloadedError: too many are being made.
    """
    kept = kept_in(studio.database)

    async def steps() -> AsyncGenerator[JSON]:
        with studio.room.interactive(), studio.keys.working(caller):
            async with aclosing(work.steps()) as events:
                async for event in events:
                    yield event

    async def keep(events: list[JSON]) -> None:
        ended = replace(work.kept, body=work.now(), events=events if work.streams else None)
        await asyncio.to_thread(kept.end, ended)

    with studio.background.place():
        await asyncio.to_thread(kept.keep, replace(work.kept, running=True))
        return studio.background.begin(
            work.kept.id, caller.key_id, made=steps, look=work.now, broken=work.broken, keep=keep
        )


async def fetched(studio: Studio, caller: Caller, kind: Kind, id_: str) -> Kept:
    """One that is kept, as it is by now.

    Raises:
        NotFoundError: there is none of this caller's.
    """
    kept = await asyncio.to_thread(kept_in(studio.database).get, kind, id_, caller.key_id)
    run = studio.background.get(id_, caller.key_id)
    return kept if run is None else replace(kept, body=run.body)


async def taken_up(
    studio: Studio, caller: Caller, kind: Kind, id_: str, after: Callable[[list[JSON]], int]
) -> AsyncGenerator[JSON]:
    """The events of one that was begun in the background to be streamed.

    Args:
        after: how many of the events that are there the reader has had.

    Raises:
        NotFoundError: there is none of this caller's.
        InvalidRequestError: it was begun otherwise.
    """
    kept = await asyncio.to_thread(kept_in(studio.database).get, kind, id_, caller.key_id)
    if (run := studio.background.get(id_, caller.key_id)) is not None:
        return run.follow(after(run.events))
    if kept.events is None:
        raise InvalidRequestError(
            "events are kept of what was begun in the background with stream, and ended",
            where="stream",
            remedy="Fetch it whole.",
        )
    return _again(kept.events[after(kept.events) :])


async def cancelled(studio: Studio, caller: Caller, kind: Kind, id_: str) -> Kept:
    """Ends one that is being made; one that has ended stays as it is.

    Raises:
        NotFoundError: there is none of this caller's.
    """
    if (run := studio.background.get(id_, caller.key_id)) is not None:
        await run.cancel()
    return await asyncio.to_thread(kept_in(studio.database).get, kind, id_, caller.key_id)


async def deleted(studio: Studio, caller: Caller, kind: Kind, id_: str) -> None:
    """Forgets one; one that is being made is ended first. Raises as `cancelled` does."""
    if (run := studio.background.get(id_, caller.key_id)) is not None:
        await run.cancel()
    await asyncio.to_thread(kept_in(studio.database).delete, kind, id_, caller.key_id)


async def tell_of_left(studio: Studio, kind: Kind, failure: Callable[[], Mapping[str, Any]]) -> None:
    """What was being made when the server died has failed; whoever asks is told so by `failure`."""
    kept = kept_in(studio.database)
    for one in await asyncio.to_thread(kept.left, kind):
        await asyncio.to_thread(kept.end, replace(one, body={**one.body, **failure()}))


def check_ended(conversation: list[Kept], where: str) -> Iterator[Kept]:
    """The answers of a conversation that is gone on from.

    Raises:
        InvalidRequestError: the last one is still being made.
    """
    if conversation and conversation[-1].running:
        raise InvalidRequestError("this answer is still being made", where=where, remedy="Wait for its end.")
    return iter(conversation)


async def _again(events: list[JSON]) -> AsyncGenerator[JSON]:
    for event in events:
        yield event

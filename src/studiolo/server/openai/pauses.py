"""A stream that tells when it has nothing to tell."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncGenerator
from contextlib import aclosing, suppress
from typing import TypeVar

from studiolo.language.errors import UpstreamError

T = TypeVar("T")
_AHEAD = 8


async def with_pauses(stream: AsyncGenerator[T], seconds: float) -> AsyncGenerator[T | None]:
    """The items of a stream, and None each time that none came for so long.

    The stream is read and closed by one task of its own; closing this ends it.
    """
    queue: asyncio.Queue[tuple[T] | Exception | None] = asyncio.Queue(_AHEAD)
    reading = asyncio.create_task(_read(stream, queue))
    try:
        while True:
            try:
                async with asyncio.timeout(seconds):
                    item = await queue.get()
            except TimeoutError:
                if reading.done() and queue.empty():  # cancelled by somebody else, with no room to say so
                    raise UpstreamError("the engine gave the answer up") from None
                yield None
                continue
            if item is None:
                return
            if isinstance(item, Exception):
                raise item
            yield item[0]
    finally:
        reading.cancel()
        await asyncio.wait((reading,))


async def _read(stream: AsyncGenerator[T], queue: asyncio.Queue[tuple[T] | Exception | None]) -> None:
    try:
        async with aclosing(stream):
            async for item in stream:
                await queue.put((item,))
        await queue.put(None)
    except Exception as error:  # told to the reader, whatever it is
        await queue.put(error)
    except asyncio.CancelledError:
        with suppress(asyncio.QueueFull):  # of use where it was not the reader who ended it
            queue.put_nowait(UpstreamError("the engine gave the answer up"))
        raise

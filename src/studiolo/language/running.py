"""Asynchronous engines for synchronous callers: one event loop in a thread of its own, for the whole process.

Engines keep sockets, slots and memory across calls, so the loop that they belong to must stay.
"""

from __future__ import annotations

import asyncio
import threading
from collections.abc import AsyncGenerator, Coroutine, Iterator
from typing import Any, TypeVar

T = TypeVar("T")

_lock = threading.Lock()
_loop: asyncio.AbstractEventLoop | None = None


def run(work: Coroutine[Any, Any, T]) -> T:
    """The result of `work`, done on the process's own loop; Ctrl-C cancels it there."""
    future = asyncio.run_coroutine_threadsafe(work, _running_loop())
    try:
        return future.result()
    except BaseException:
        future.cancel()
        raise


def iterate(stream: AsyncGenerator[T]) -> Iterator[T]:
    """The items of `stream`, one at a time; leaving the iteration early closes it."""
    try:
        while True:
            try:
                yield run(_next(stream))
            except StopAsyncIteration:
                return
    finally:
        run(stream.aclose())


async def _next(stream: AsyncGenerator[T]) -> T:
    """`anext` as a coroutine, which is what a loop wants."""
    return await anext(stream)


def _running_loop() -> asyncio.AbstractEventLoop:
    global _loop
    with _lock:
        if _loop is None:
            _loop = asyncio.new_event_loop()
            threading.Thread(target=_loop.run_forever, name="studiolo-language", daemon=True).start()
        return _loop

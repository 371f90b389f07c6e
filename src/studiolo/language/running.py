"""Asynchronous engines for synchronous callers: one event loop in a thread of its own, for the whole process.

Engines keep sockets, slots and memory across calls, so the loop that they belong to must stay.
"""

from __future__ import annotations

import asyncio
import threading
from collections.abc import AsyncGenerator, Coroutine, Iterator
from concurrent import futures
from typing import Any, Generic, TypeVar, cast

from studiolo.errors import StudioloError

T = TypeVar("T")

_lock = threading.Lock()
_loop: asyncio.AbstractEventLoop | None = None
_thread: threading.Thread | None = None


def run(work: Coroutine[Any, Any, T]) -> T:
    """The result of `work`, done on the process's own loop.

    Ctrl-C cancels it there, and is raised when the work has come to its end; a second one does not wait.

    Raises:
        StudioloError: called by work on that loop, which would wait for itself.
    """
    loop = _running_loop()
    if threading.current_thread() is _thread:
        work.close()
        raise StudioloError(
            "a call that waits, within asynchronous work, would wait for itself",
            remedy="Await the asynchronous form there, such as Chat.asend.",
        )
    return _Work(work, loop).result()


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


class _Work(Generic[T]):
    """Work on a loop of another thread.

    `asyncio.run_coroutine_threadsafe` does the same, but its future, once cancelled, does not tell when the
    work has ended: it may still be cleaning up, and its stream cannot be closed until then.
    """

    def __init__(self, work: Coroutine[Any, Any, T], loop: asyncio.AbstractEventLoop) -> None:
        self._work, self._loop = work, loop
        self._task: asyncio.Task[T] | None = None
        self._outcome: tuple[T | None, BaseException | None] | None = None
        # Bare: Ctrl-C within the Python code of a Future or an Event may leave their own locks taken.
        self._ended = threading.Lock()
        self._ended.acquire()

    def result(self) -> T:
        """Begins it and waits for it."""
        try:
            self._loop.call_soon_threadsafe(self._begin)
            self._ended.acquire()
        except BaseException:
            if self._outcome is None:
                self._loop.call_soon_threadsafe(self._cancel)
                self._ended.acquire()
            raise
        value, error = self._outcome or (None, None)
        if error is not None:
            raise error
        return cast(T, value)

    def _begin(self) -> None:
        self._task = self._loop.create_task(self._work)
        self._task.add_done_callback(self._end)

    def _cancel(self) -> None:
        # The loop keeps the order of its calls: what has not begun by now never will.
        if self._task is not None:
            self._task.cancel()
        else:
            self._work.close()
            self._tell(None, futures.CancelledError())

    def _end(self, task: asyncio.Task[T]) -> None:
        if task.cancelled():
            self._tell(None, futures.CancelledError())
        elif error := task.exception():
            self._tell(None, error)
        else:
            self._tell(task.result(), None)

    def _tell(self, value: T | None, error: BaseException | None) -> None:
        self._outcome = value, error
        self._ended.release()


def _running_loop() -> asyncio.AbstractEventLoop:
    global _loop, _thread
    with _lock:
        if _loop is None:
            _loop = asyncio.new_event_loop()
            _thread = threading.Thread(target=_loop.run_forever, name="studiolo-language", daemon=True)
            _thread.start()
        return _loop

"""Completions under way in llama.cpp's server, each in a thread of its own."""

from __future__ import annotations

import asyncio
import threading
from collections.abc import Callable
from typing import Any

from studiolo.language.engines.completer import Piece
from studiolo.language.engines.llamacpp_stream import Reading
from studiolo.language.engines.vocabulary_guard import guard
from studiolo.language.errors import LanguageError, UpstreamError


class Run:
    """One completion under way: a thread that sits in the server's call, and the pieces on their way from it
    to the event loop."""

    def __init__(self, reading: Reading, *, guarded: object | None) -> None:
        self._reading, self._guarded = reading, guarded
        self._loop = asyncio.get_running_loop()
        self._pieces: asyncio.Queue[Piece | BaseException | None] = asyncio.Queue()
        self._cancelled = threading.Event()
        self._thread: threading.Thread | None = None

    def start(self, handle: Callable[..., Any], body: dict[str, Any], *, done: Callable[[], None]) -> None:
        """Calls `handle(body, callback)` in the thread. No reference to it is kept: it holds the weights."""
        # A daemon: the server's call cannot be interrupted when the interpreter ends.
        self._thread = threading.Thread(
            target=self._work, args=(handle, body, done), name="studiolo-llamacpp", daemon=True
        )
        self._thread.start()

    async def next(self) -> Piece | None:
        """The next piece; None after the last one."""
        piece = await self._pieces.get()
        if isinstance(piece, BaseException):
            raise piece
        return piece

    def cancel(self) -> None:
        self._cancelled.set()

    def join(self) -> None:
        if self._thread is not None:
            self._thread.join()

    def _work(self, handle: Callable[..., Any], body: dict[str, Any], done: Callable[[], None]) -> None:
        if self._guarded is not None:
            guard.begin(self._guarded)
        try:
            handle(body, self._hear)
        except Exception as error:  # whatever it is, who reads the pieces must not wait for ever
            self._send(UpstreamError(f"the engine failed: {error}"))
        finally:
            self._begun()
            done()
            self._send(None)

    def _begun(self) -> None:
        """The server has said something: the constraint is set up."""
        if self._guarded is not None:
            self._guarded = None
            guard.begun()

    def _hear(self, chunk: dict[str, Any]) -> bool:
        """The server's callback: True makes it drop the completion and free its slot."""
        self._begun()
        if self._cancelled.is_set():
            return True
        try:
            for piece in self._reading.read(chunk):
                self._send(piece)
                if piece.end is not None:
                    self._cancelled.set()
        except Exception as error:  # nothing may be raised into the server's frames
            self._send(error if isinstance(error, LanguageError) else UpstreamError(f"unreadable: {error!r}"))
            self._cancelled.set()
        return self._cancelled.is_set()

    def _send(self, piece: Piece | BaseException | None) -> None:
        try:
            self._loop.call_soon_threadsafe(self._pieces.put_nowait, piece)
        except RuntimeError:  # the event loop has ended: nobody reads on
            self._cancelled.set()


def end_all(running: set[Run]) -> None:
    """Cancels all of them and waits until the server has let go of them."""
    runs = list(running)
    for run in runs:
        run.cancel()
    for run in runs:
        run.join()

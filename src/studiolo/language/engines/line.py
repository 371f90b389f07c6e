"""The line before weights in memory: so many at once, so many waiting, first come, first served."""

from __future__ import annotations

import asyncio
import threading
import time
from collections import deque
from collections.abc import Callable
from dataclasses import dataclass

from studiolo.language.errors import LanguageError, OverloadedError


@dataclass(eq=False)
class _Waiting:
    tokens: int
    loop: asyncio.AbstractEventLoop
    admitted: asyncio.Future[None]


class Line:
    """Admits a request when a place is free and its tokens fit beside those of the others.

    Args:
        places: requests at once.
        tokens: tokens of all of them together.
        waiting: requests that may wait; one more is refused.
        clock: seconds, from any start.
    """

    def __init__(
        self, *, places: int, tokens: int, waiting: int, clock: Callable[[], float] = time.monotonic
    ) -> None:
        self._places, self._tokens, self._room = places, tokens, waiting
        self._pace = _Pace(clock)
        self._waiting: deque[_Waiting] = deque()
        self._closed = False
        # Places are given back by the threads that did the work.
        self._lock = threading.Lock()

    async def enter(self, tokens: int) -> None:
        """Waits for a place; who has got it gives it back with `leave(tokens)`.

        Raises:
            OverloadedError: too many wait already; `retry_after` is about how long it takes to serve them.
            LanguageError: the line was closed.
        """
        with self._lock:
            self._check_open()
            if not self._waiting and self._fits(tokens):
                self._take(tokens)
                return
            if len(self._waiting) >= self._room:
                raise OverloadedError(
                    f"the queue is full: {self._room} requests wait already",
                    remedy="Try again later, or open the model with a longer queue or more slots.",
                    retry_after=self._pace.time_for(len(self._waiting)),
                )
            loop = asyncio.get_running_loop()
            me = _Waiting(tokens, loop, loop.create_future())
            self._waiting.append(me)
        try:
            await me.admitted
        except BaseException:
            self._give_up(me)
            raise
        with self._lock:
            if self._closed:
                self._return(tokens)
                self._check_open()

    def leave(self, tokens: int) -> None:
        """Gives a place back, from any thread."""
        with self._lock:
            self._pace.step(somebody_waits=bool(self._waiting))
            self._return(tokens)
            self._admit()

    def close(self) -> None:
        """Sends all away who wait."""
        with self._lock:
            self._closed = True
            while self._waiting:
                me = self._waiting.popleft()
                self._take(me.tokens)
                self._tell(me)

    def _give_up(self, me: _Waiting) -> None:
        with self._lock:
            if me in self._waiting:
                self._waiting.remove(me)
            else:  # admitted and cancelled in the same moment
                self._return(me.tokens)
            self._admit()

    def _admit(self) -> None:
        while self._waiting and self._fits(self._waiting[0].tokens):
            me = self._waiting.popleft()
            self._take(me.tokens)
            self._tell(me)

    def _tell(self, me: _Waiting) -> None:
        try:
            me.loop.call_soon_threadsafe(_settle, me.admitted)
        except RuntimeError:  # its event loop has ended, and with it who waited
            self._return(me.tokens)

    def _fits(self, tokens: int) -> bool:
        return self._places > 0 and self._tokens >= tokens

    def _take(self, tokens: int) -> None:
        self._places -= 1
        self._tokens -= tokens

    def _return(self, tokens: int) -> None:
        self._places += 1
        self._tokens += tokens

    def _check_open(self) -> None:
        if self._closed:
            raise LanguageError("the model was closed", remedy="Open it again.")


class _Pace:
    """How fast a queue moves: the mean time between two steps, the late ones counting most."""

    def __init__(self, clock: Callable[[], float]) -> None:
        self._clock = clock
        self._last: float | None = None
        self._mean: float | None = None

    def step(self, *, somebody_waits: bool) -> None:
        """Somebody has been served. It says nothing of the pace if that was not waited for."""
        now, last = self._clock(), self._last
        self._last = now if somebody_waits else None
        if last is not None:
            self._mean = now - last if self._mean is None else 0.8 * self._mean + 0.2 * (now - last)

    def time_for(self, steps: int) -> float | None:
        """Seconds until so many have been served; None as long as nobody knows."""
        return None if self._mean is None else steps * self._mean


def _settle(future: asyncio.Future[None]) -> None:
    if not future.done():
        future.set_result(None)

"""What protects an upstream, and those who wait for it: rates, a fair queue, a circuit breaker."""

from __future__ import annotations

import asyncio
import time
from collections import deque
from collections.abc import AsyncIterator, Callable, Iterator
from contextlib import asynccontextmanager, contextmanager
from dataclasses import dataclass
from typing import Literal, Protocol

from pydantic import Field

from studiolo.language.conversation import Value
from studiolo.language.errors import LanguageError, OverloadedError, RateLimitError, UpstreamError


class NotAskedError(OverloadedError):
    """Refused here, before the upstream was asked: it is no use to try this one again at once."""


class Clock(Protocol):
    """Where time comes from, in seconds from any start."""

    def now(self) -> float: ...

    async def sleep(self, seconds: float) -> None: ...


class RealClock:
    """The machine's."""

    def now(self) -> float:
        return time.monotonic()

    async def sleep(self, seconds: float) -> None:
        await asyncio.sleep(seconds)


class Limits(Value):
    """What an upstream may be asked; None is without limit. `longest_wait` is in seconds.

    A minute's worth may come at once; after that, as much as has been refilled.
    """

    concurrency: int | None = Field(default=None, ge=1)
    queue: int = Field(default=100, ge=0)
    requests_per_minute: float | None = Field(default=None, gt=0)
    tokens_per_minute: float | None = Field(default=None, gt=0)
    longest_wait: float = Field(default=60.0, ge=0)


class Bucket:
    """A token bucket. It may be overdrawn: then whoever comes next waits for longer, so the order is kept."""

    def __init__(self, per_minute: float, clock: Clock) -> None:
        self._capacity, self._rate, self._clock = max(per_minute, 1.0), per_minute / 60, clock
        self._level, self._seen = self._capacity, clock.now()

    def delay(self, amount: float) -> float:
        """Seconds until `amount` may be taken; more than fits in waits for a full bucket."""
        now = self._clock.now()
        self._level = min(self._capacity, self._level + (now - self._seen) * self._rate)
        self._seen = now
        return max(0.0, (min(amount, self._capacity) - self._level) / self._rate)

    def take(self, amount: float) -> None:
        """Takes, or gives back what is negative."""
        self._level -= amount


class Gate:
    """Lets requests through to an upstream in the order in which they came, no faster than its limits."""

    def __init__(self, limits: Limits, clock: Clock, *, upstream: str) -> None:
        self._limits, self._clock, self._upstream = limits, clock, upstream
        self._slots = asyncio.Semaphore(limits.concurrency) if limits.concurrency else None
        self._requests = Bucket(limits.requests_per_minute, clock) if limits.requests_per_minute else None
        self._tokens = Bucket(limits.tokens_per_minute, clock) if limits.tokens_per_minute else None
        self._waiting = 0

    @property
    def waiting(self) -> int:
        """How many stand in the queue."""
        return self._waiting

    @asynccontextmanager
    async def admitted(self, tokens: int) -> AsyncIterator[Callable[[int], None]]:
        """Waits for its turn and holds a place until the end of the block.

        Args:
            tokens: a guess of what the request will take; the function that is yielded corrects it.

        Raises:
            NotAskedError: the queue is full, or the wait would be too long.
        """
        delay = self._delay(tokens)
        self._refuse_if_hopeless(delay)
        self._take(1, tokens)
        try:
            await self._wait(delay)
        except BaseException:
            self._take(-1, -tokens)
            raise
        try:
            yield lambda used: self._take(0, used - tokens)
        finally:
            if self._slots:
                self._slots.release()

    async def _wait(self, delay: float) -> None:
        self._waiting += 1
        try:
            if delay:
                await self._clock.sleep(delay)
            if self._slots:
                await self._slots.acquire()
        finally:
            self._waiting -= 1

    def _refuse_if_hopeless(self, delay: float) -> None:
        busy = delay > 0 or (self._slots is not None and self._slots.locked())
        if busy and self._waiting >= self._limits.queue:
            raise NotAskedError(
                f"the queue is full ({self._waiting} wait)", where=self._upstream, retry_after=delay or None
            )
        if delay > self._limits.longest_wait:
            raise NotAskedError(
                f"the rate limit leaves no room for {delay:.0f} s", where=self._upstream, retry_after=delay
            )

    def _delay(self, tokens: int) -> float:
        requests = self._requests.delay(1) if self._requests else 0.0
        return max(requests, self._tokens.delay(tokens) if self._tokens else 0.0)

    def _take(self, requests: int, tokens: int) -> None:
        if self._requests:
            self._requests.take(requests)
        if self._tokens:
            self._tokens.take(tokens)


@dataclass(frozen=True)
class BreakerPolicy:
    """Opens after `failures` within `window` seconds, and lets a first try through after `rest` seconds."""

    failures: int = 5
    window: float = 60.0
    rest: float = 30.0


class Breaker:
    """Spares an upstream that fails, and its users the wait (Nygard, Release It!, "Circuit Breaker").

    Closed: all may try. Open: nobody. Half-open: one may, and how that goes decides.
    """

    def __init__(self, policy: BreakerPolicy, clock: Clock, *, upstream: str) -> None:
        self._policy, self._clock, self._upstream = policy, clock, upstream
        self._failed: deque[float] = deque()
        self._opened: float | None = None
        self._probe: object | None = None

    @property
    def state(self) -> Literal["closed", "open", "half-open"]:
        if self._opened is None:
            return "closed"
        return "open" if self._clock.now() < self._opened + self._policy.rest else "half-open"

    def check(self) -> None:
        """
        Raises:
            NotAskedError: it is of no use to try now.
        """
        if self._opened is None or (self.state == "half-open" and self._probe is None):
            return
        left = self._opened + self._policy.rest - self._clock.now()
        raise NotAskedError(
            "it has failed too often of late, and is left alone for now",
            where=self._upstream,
            retry_after=max(left, 0.0) or None,
        )

    @contextmanager
    def trying(self) -> Iterator[Callable[[], None]]:
        """One try; call what is yielded as soon as it goes well. How it ends is counted.

        Raises:
            NotAskedError: as `check`.
        """
        self.check()
        mine = object()
        if self._opened is not None:
            self._probe = mine
        try:
            yield lambda: self._succeed(mine)
        except (UpstreamError, OverloadedError):
            self._fail(mine)
            raise
        except RateLimitError:
            raise  # it is well, and says no
        except LanguageError:
            self._succeed(mine)  # it is well enough to tell what is wrong with the request
            raise
        else:
            self._succeed(mine)
        finally:
            if self._probe is mine:  # given up before it went well or badly
                self._probe = None

    def _succeed(self, which: object) -> None:
        if self._probe is which:  # an answer from before the failures says nothing of now
            self._opened = self._probe = None

    def _fail(self, which: object) -> None:
        now = self._clock.now()
        self._failed.append(now)
        while self._failed[0] <= now - self._policy.window:
            self._failed.popleft()
        if self._probe is which or len(self._failed) >= self._policy.failures:
            self._opened = now
            self._failed.clear()

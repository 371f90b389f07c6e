"""Lets requests in: by their key, and no more of them than the key may have."""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from dataclasses import dataclass, field
from datetime import UTC, datetime, timedelta

import sqlalchemy as sa
from sqlalchemy.exc import SQLAlchemyError

from studiolo.language.conversation import Usage
from studiolo.language.errors import RateLimitError
from studiolo.language.limits import Bucket, Clock, RealClock
from studiolo.server.errors import KeyRefusedError, SpentError
from studiolo.server.keys import Entry, Key, KeyLimits, KeyStore, Spent, looks_like_one

FRESH = 1.0
"""Seconds for which what the database says of a key is believed: as long lives a key that is revoked."""
GATHERED = 0.1
"""Seconds after which what was spent is on the disk at the latest; all that a crash can lose of it."""
_REMEMBERED = 10_000
_MAKE_ONE = "Make one with `studiolo keys create NAME`, and send it as your client sends its API key."


@dataclass(frozen=True)
class Caller:
    """Who calls. `key_id` is None for whoever calls over loopback without a key: the owner of what is there
    without one."""

    key_id: str | None
    name: str


NOBODY = Caller(None, "loopback")


@dataclass
class _Meter:
    """What a key has running and has left; of the dollars that it `took` from this process, the database knew
    `known` when `spent` was read."""

    limits: KeyLimits
    clock: Clock
    spent: Spent = field(default_factory=Spent)
    took: float = 0.0
    known: float = 0.0
    running: int = 0
    requests: Bucket | None = None
    tokens: Bucket | None = None

    @property
    def dollars(self) -> float:
        """Those that are not in `spent` yet."""
        return self.took - self.known

    def set(self, limits: KeyLimits) -> None:
        if limits.requests_per_minute != self.limits.requests_per_minute or self.requests is None:
            self.requests = _bucket(limits.requests_per_minute, self.clock)
        if limits.tokens_per_minute != self.limits.tokens_per_minute or self.tokens is None:
            self.tokens = _bucket(limits.tokens_per_minute, self.clock)
        self.limits = limits


@dataclass
class _Known:
    key: Key
    read: float


class Keys:
    """Who may call now.

    Args:
        store: where keys and accounts are kept.
        needed: whether nobody gets in without one. Where none is needed, clients may send any text as their
            key; one that has the form of ours must be good all the same.
        clock: what rates are measured by.
    """

    def __init__(self, store: KeyStore, *, needed: bool, clock: Clock | None = None) -> None:
        self.store, self.needed = store, needed
        self._clock = clock or RealClock()
        self._known: dict[str, _Known] = {}
        self._meters: dict[str, _Meter] = {}
        self._entries: list[Entry] = []
        self._writing: asyncio.Task[None] | None = None
        self._hurry = asyncio.Event()

    async def admit(self, key: str | None) -> tuple[Caller, Callable[[], None]]:
        """Who calls, and what to call when the request has ended.

        Raises:
            KeyRefusedError: a key is needed and there is none, or it is unknown, expired or revoked.
            RateLimitError: this key has had, or has running, all that it may.
        """
        if key is None or not (self.needed or looks_like_one(key)):
            if self.needed:
                raise KeyRefusedError("this server needs an API key", remedy=_MAKE_ONE)
            return NOBODY, _nothing
        known = await self._checked(key)
        meter = self._meters[known.id]
        self._refuse_if_spent(known, meter)
        _refuse_if_too_fast(meter)
        meter.running += 1
        if meter.requests:
            meter.requests.take(1)
        return Caller(known.id, known.name), _Leaving(meter)

    @contextmanager
    def working(self, caller: Caller) -> Iterator[None]:
        """For the time of work in a caller's name that no request of theirs waits for: it counts as one that
        is running."""
        meter = self._meters.get(caller.key_id or "")
        if meter is None:
            yield
            return
        meter.running += 1
        try:
            yield
        finally:
            meter.running -= 1

    async def spent(self, caller: Caller, model: str, usage: Usage, dollars: float) -> None:
        """Writes down what an answer took. It counts at once, and is on the disk soon after (see `flush`)."""
        if meter := self._meters.get(caller.key_id or ""):
            meter.took += dollars
        self.took(caller, usage)
        self._entries.append(Entry(caller.key_id or "", self.store.clock(), model, usage, dollars))
        self._begin_to_write()

    def took(self, caller: Caller, usage: Usage) -> None:
        """Counts tokens against those that the key may have a minute, and nothing else."""
        meter = self._meters.get(caller.key_id or "")
        if meter is not None and meter.tokens:
            meter.tokens.take(usage.total)

    async def check_unattended(self, owner: str | None) -> None:
        """Whether work that a key has asked for may go on while no request of its waits for that, such as
        another item of a batch.

        Raises:
            KeyRefusedError: it has been revoked.
            SpentError: it has spent what it may.
        """
        if owner is None:
            return
        key = await asyncio.to_thread(self.store.of, owner)
        if key is None or key.revoked is not None:
            raise KeyRefusedError("the API key that asked for this has been revoked")
        self._refuse_if_spent(key, await self._metered(key))

    def charge_item(
        self, connection: sa.Connection, owner: str | None, model: str, usage: Usage, dollars: float
    ) -> None:
        """Writes down what an item of a batch took, in the transaction that keeps its answer: one that is
        computed again is charged once. From a thread; what a key may spend hears of it within `FRESH`."""
        entry = Entry(owner or "", self.store.clock(), model.partition("+")[0], usage, dollars, batch=True)
        self.store.add(connection, entry)

    async def flush(self) -> None:
        """Brings all that was spent to the disk now."""
        self._begin_to_write()  # also what an earlier try has left
        self._hurry.set()
        try:
            while self._writing is not None and not self._writing.done():
                await asyncio.shield(self._writing)  # which others wait for, too
        finally:
            self._hurry.clear()

    def _begin_to_write(self) -> None:
        if self._entries and (self._writing is None or self._writing.done()):
            self._writing = asyncio.create_task(self._write())

    async def _write(self) -> None:
        """What comes together within a moment goes in one transaction: a busy server would otherwise do
        little else than write accounts."""
        while self._entries:
            with suppress(TimeoutError):
                await asyncio.wait_for(self._hurry.wait(), GATHERED)
            entries, self._entries = self._entries, []
            try:
                await asyncio.to_thread(self.store.record, entries)
            except SQLAlchemyError:
                self._entries = entries + self._entries  # for the next try
                raise

    async def _checked(self, key: str) -> Key:
        known = self._known.get(key)
        if known is None or self._clock.now() - known.read > FRESH:
            known = await self._read(key)
        now = self.store.clock()
        if known.key.revoked is not None:
            raise KeyRefusedError("this API key has been revoked", remedy=_MAKE_ONE)
        if known.key.expires is not None and known.key.expires <= now:
            raise KeyRefusedError("this API key has expired", remedy=_MAKE_ONE)
        return known.key

    async def _read(self, key: str) -> _Known:
        found = await asyncio.to_thread(self.store.check, key)
        if found is None:
            self._known.pop(key, None)
            raise KeyRefusedError("this API key is not known here", remedy=_MAKE_ONE)
        await self._metered(found)
        if len(self._known) >= _REMEMBERED:
            self._known.clear()
        known = self._known[key] = _Known(found, self._clock.now())
        return known

    async def _metered(self, key: Key) -> _Meter:
        """The meter of a key, by its limits and its account as they are now."""
        meter = self._meters.setdefault(key.id, _Meter(KeyLimits(), self._clock))
        await self.flush()  # so that what the database says of its spending is all of it
        took = meter.took
        spent = await asyncio.to_thread(self.store.spent, key.id)
        meter.spent, meter.known = spent, took  # together: several requests may read them at once
        meter.set(key.limits)
        return meter

    def _refuse_if_spent(self, key: Key, meter: _Meter) -> None:
        day, month = key.limits.dollars_per_day, key.limits.dollars_per_month
        now = self.store.clock().astimezone(UTC)
        if month is not None and meter.spent.month + meter.dollars >= month:
            raise _spent("month", month, _next_month(now) - now)
        if day is not None and meter.spent.today + meter.dollars >= day:
            raise _spent("day", day, _midnight(now) + timedelta(days=1) - now)


class _Leaving:
    """Gives a place back, once."""

    def __init__(self, meter: _Meter) -> None:
        self._meter: _Meter | None = meter

    def __call__(self) -> None:
        if self._meter is not None:
            self._meter.running -= 1
            self._meter = None


def _nothing() -> None:
    pass


def _bucket(per_minute: float | None, clock: Clock) -> Bucket | None:
    return None if per_minute is None else Bucket(per_minute, clock)


def _refuse_if_too_fast(meter: _Meter) -> None:
    limits = meter.limits
    if limits.concurrent is not None and meter.running >= limits.concurrent:
        raise RateLimitError(
            f"this API key may have {limits.concurrent} requests running at once", retry_after=1.0
        )
    for bucket, what in ((meter.requests, "requests"), (meter.tokens, "tokens")):
        if bucket is not None and (wait := bucket.delay(1)) > 0:
            per_minute = getattr(limits, f"{what}_per_minute")
            raise RateLimitError(f"this API key may have {per_minute:g} {what} a minute", retry_after=wait)


def _spent(period: str, dollars: float, wait: timedelta) -> SpentError:
    return SpentError(
        f"this API key has spent what it may in a {period}, ${dollars:g}", retry_after=wait.total_seconds()
    )


def _midnight(now: datetime) -> datetime:
    return now.replace(hour=0, minute=0, second=0, microsecond=0)


def _next_month(now: datetime) -> datetime:
    return (_midnight(now).replace(day=1) + timedelta(days=32)).replace(day=1)

"""Batches: many requests in one job, answered when there is room, kept, and fetched later.

Exactly one answer an item is recorded, whatever happens to the process. An item whose answer was computed
but not recorded when the process died is computed again.
"""

from __future__ import annotations

import asyncio
import json
import logging
import secrets
from collections import defaultdict
from collections.abc import AsyncIterator, Awaitable, Callable, Iterable, Iterator
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any

import sqlalchemy as sa

from studiolo.errors import ConflictError, StudioloError, TooLargeError
from studiolo.jobs.items import OVER, BatchRecord, BatchTable, Item, ItemResult
from studiolo.jobs.queue import BULK, Queue
from studiolo.jobs.room import Room
from studiolo.language.conversation import Usage
from studiolo.language.errors import InvalidRequestError
from studiolo.language.prices import Price, cost
from studiolo.store.database import Database

__all__ = ["Answer", "BatchRecord", "Batches", "ItemResult", "read_lines"]

Answer = Callable[[str, dict[str, Any], str | None], Awaitable[dict[str, Any]]]
"""(kind, body, owner) -> {"response": ...} or {"error": ...} in the wire form of that kind.

Beside it, "usage" may hold the fields of `Usage` and "model" who answered, for the accounting; they are not
kept with the answer. It raises what may be tried again (an error with `retry`)."""

Allow = Callable[[str | None], Awaitable[None]]
"""(owner); raises a `StudioloError` if no more may be done for them."""

Charge = Callable[[sa.Connection, str | None, str, Usage, float], None]
"""(connection, owner, model, usage, dollars)"""

INLINE, FILES = timedelta(hours=48), timedelta(days=30)
"""How long results are kept, of batches that were given their items, and a file of them."""

KIND = "batches"
_AT_ONCE = 4  # batches
_LINE = 64 * 2**20
_PAGE = 128

_log = logging.getLogger(__name__)


def _told(_: str, error: BaseException) -> dict[str, Any]:
    return {"error": {"message": str(error)}}


class Batches:
    """The batches of one database.

    Args:
        queue: carries them; not yet started.
        room: where items wait until no interactive work is under way.
        concurrency: items of one model's batches that are answered at once.
        tries: how often an item is asked again after an error that may pass.
        lives: how often an item may be begun in all; one that ends the process each time is given up then.
        price: of a model, where it has one.
        allow: looked at before each item; its error is the answer to one that may not be begun.
        charge: writes what an item took on its owner's account, in the transaction that keeps its answer:
            an item that is computed again after a crash is charged once.
        clock, sleep: time, for tests.

    Attributes:
        answerers: what answers the items of each kind.
        told: an error in the wire form of a kind, for items that could not be answered.
    """

    def __init__(
        self,
        database: Database,
        queue: Queue,
        room: Room,
        *,
        concurrency: int = 8,
        tries: int = 5,
        lives: int = 20,
        price: Callable[[str], Price | None] = lambda model: None,
        charge: Charge = lambda *_: None,
        allow: Allow | None = None,
        clock: Callable[[], datetime] = lambda: datetime.now(UTC),
        sleep: Callable[[float], Awaitable[None]] = asyncio.sleep,
    ) -> None:
        self.answerers: dict[str, Answer] = {}
        self.told: Callable[[str, BaseException], dict[str, Any]] = _told
        self._table, self._queue, self._room = BatchTable(database), queue, room
        self._concurrency = concurrency
        # By model: pictures, which come one by one, hold up no batch of words.
        self._slots = defaultdict[str, asyncio.Semaphore](lambda: asyncio.Semaphore(concurrency))
        self._tries, self._lives, self._price, self._charge = tries, lives, price, charge
        self._allow, self._clock, self._sleep = allow, clock, sleep
        self._cancels: dict[str, asyncio.Event] = {}
        queue.carry(KIND, self._run, _AT_ONCE)

    async def start(self) -> None:
        """After the queue's: queues what a process that died had taken in, but not queued yet."""
        for identity in await asyncio.to_thread(self._table.unfinished):
            await self._queue.put(KIND, identity)

    async def create(
        self,
        *,
        owner: str | None,
        kind: str,
        model: str,
        items: Iterable[tuple[str | None, dict[str, Any]]] | Path,
        title: str = "",
        metadata: dict[str, Any] | None = None,
        lifetime: timedelta | None = None,
        priority: int = BULK,
        beside: Callable[[sa.Connection, str, datetime], None] = lambda *_: None,
    ) -> BatchRecord:
        """Takes a batch in and queues it.

        Args:
            items: (key, body) of each, read once, in a thread; or a file of JSON lines {"key", "body"}. For
                other lines, give what makes items of `read_lines`.
            lifetime: of the results, from the end on; by default `INLINE`, or `FILES` for a file.
            priority: batches with lower ones go first.
            beside: writes what its caller keeps of it, given its id and when it was made, in the same
                transaction: a process that dies leaves both or neither.

        Raises:
            InvalidRequestError: nothing answers this kind, no items, a key twice, or a line that is none.
        """
        if kind not in self.answerers:
            raise InvalidRequestError("batches of this kind are not taken", where=kind)
        identity = secrets.token_hex(12)
        record = {
            "id": identity,
            "owner": owner,
            "kind": kind,
            "model": model,
            "title": title,
            "metadata": metadata or {},
            "lifetime": lifetime or (FILES if isinstance(items, Path) else INLINE),
            "created": (created := self._clock()),
        }
        found = _plain_items(items) if isinstance(items, Path) else items
        await asyncio.to_thread(
            self._table.create, record, found, lambda connection: beside(connection, identity, created)
        )
        await self._queue.put(KIND, identity, priority)
        return await self.get(identity, owner)

    async def get(self, id: str, owner: str | None) -> BatchRecord:  # noqa: A002
        """Raises NotFoundError: there is none, or it is another's."""
        return await asyncio.to_thread(self._table.get, id, owner)

    async def page(
        self, owner: str | None, size: int = 50, after: str | None = None
    ) -> tuple[BatchRecord, ...]:
        """The owner's batches, the newest first, from the one behind the batch `after` on."""
        return tuple(await asyncio.to_thread(self._table.page, owner, size, after))

    async def cancel(self, id: str, owner: str | None) -> BatchRecord:  # noqa: A002
        """Begins no more of its items and drops those under way; answers that are there stay.

        Raises:
            ConflictError: it is over.
        """
        record = await self.get(id, owner)
        waited = record.state == "queued" and await asyncio.to_thread(self._end, record, "cancelled")
        if not waited and not await asyncio.to_thread(
            self._table.move, id, ("running", "cancelling"), "cancelling"
        ):
            raise ConflictError("this batch is over", where=id)
        if id in self._cancels:
            self._cancels[id].set()
        return await self.get(id, owner)

    async def delete(self, id: str, owner: str | None) -> None:  # noqa: A002
        """Forgets a batch that is over, with its results.

        Raises:
            ConflictError: it is not over.
        """
        record = await self.get(id, owner)
        if record.state not in OVER:
            raise ConflictError(f"this batch is {record.state}", where=id, remedy="Cancel it first.")
        await asyncio.to_thread(self._table.delete, id)
        await self._queue.forget(KIND, id)

    def results(self, id: str) -> Iterator[ItemResult]:  # noqa: A002
        """Every item in order, in constant memory, as far as they are answered. It waits for the disk."""
        return self._table.results(id)

    async def expire(self) -> int:
        """Removes results whose time is over; of how many batches."""
        now = self._clock()
        return await asyncio.to_thread(self._table.expire, now, now - timedelta(days=1))

    async def _run(self, identity: str) -> None:
        """The job: answers what is not answered yet."""
        table = self._table
        await asyncio.to_thread(table.move, identity, ("queued",), "running", started=self._clock())
        cancelled = self._cancels[identity] = asyncio.Event()
        try:
            record = await asyncio.to_thread(table.load, identity)
            if record is None or record.state in OVER:
                return
            if record.kind not in self.answerers:
                problem = f"nothing answers batches of the kind {record.kind} any more"
                await asyncio.to_thread(self._end, record, "failed", problem)
                return
            if record.state == "cancelling":
                cancelled.set()
            await self._answer_all(record, cancelled)
        finally:
            del self._cancels[identity]
        # An order to cancel that comes after the last answer finds a batch that has succeeded.
        left = await asyncio.to_thread(table.waiting, identity, -1, 1)
        await asyncio.to_thread(self._end, record, "cancelled" if left else "succeeded")

    def _end(self, record: BatchRecord, state: str, problem: str | None = None) -> bool:
        now = self._clock()
        old = ("queued",) if record.state == "queued" else ("running", "cancelling")
        over = {"problem": problem, "ended": now, "expires": now + record.lifetime}
        return self._table.move(record.id, old, state, **over)

    async def _answer_all(self, record: BatchRecord, cancelled: asyncio.Event) -> None:
        """Answers all items that wait; returns early, with nothing under way, when cancelled."""
        numbers, one = self._waiting(record.id, cancelled), asyncio.Lock()

        async def worker() -> None:
            while True:
                async with one:  # a generator is asked by one at a time
                    number = await anext(numbers, None)
                if number is None:
                    return
                await self._room.wait()
                async with self._slots[record.model]:
                    await self._answer_one(record, number)

        work = [asyncio.create_task(worker()) for _ in range(self._concurrency)]
        everything: asyncio.Future[Any] = asyncio.gather(*work)
        stop: asyncio.Future[Any] = asyncio.create_task(cancelled.wait())
        try:
            await asyncio.wait([everything, stop], return_when=asyncio.FIRST_COMPLETED)
            if everything.done():
                everything.result()
        finally:
            for task in (stop, *work):
                task.cancel()
            await asyncio.gather(stop, *work, everything, return_exceptions=True)

    async def _waiting(self, identity: str, cancelled: asyncio.Event) -> AsyncIterator[int]:
        after = -1
        while numbers := await asyncio.to_thread(self._table.waiting, identity, after, _PAGE):
            for number in numbers:
                yield number
            after = numbers[-1]
            if await asyncio.to_thread(self._table.state, identity) != "running":
                cancelled.set()  # by another process

    async def _answer_one(self, record: BatchRecord, number: int) -> None:
        item = await asyncio.to_thread(self._table.begin, record.id, number)
        try:
            answer = await self._asked(record, item)
        except asyncio.CancelledError:
            await asyncio.to_thread(self._table.give_back, record.id, number)
            raise
        answer = dict(answer)
        usage = Usage.model_validate(answer.pop("usage", None) or {})
        model = answer.pop("model", None) or record.model
        dollars, failed = self._dollars(model, usage), "error" in answer

        def charge(connection: sa.Connection) -> None:
            if not failed:
                self._charge(connection, record.owner, model, usage, dollars)

        await asyncio.to_thread(
            self._table.record,
            record.id, number, answer, failed=failed, usage=usage, dollars=dollars, beside=charge,
        )  # fmt: skip

    async def _asked(self, record: BatchRecord, item: Item) -> dict[str, Any]:
        """The answer, asked for again after errors that may pass; at last the error."""
        if item.tries > self._lives:
            given_up = f"the server ended {self._lives} times while it answered this item"
            return self.told(record.kind, StudioloError(given_up))
        attempt = 1
        while True:
            try:
                if self._allow is not None:
                    await self._allow(record.owner)
                return await self.answerers[record.kind](record.kind, item.body, record.owner)
            except Exception as error:
                if not isinstance(error, StudioloError):
                    _log.exception("item %d of the batch %s", item.number, record.id)
                if not getattr(error, "retry", False) or attempt >= self._tries:
                    return self.told(record.kind, error)
                after = getattr(error, "retry_after", None)
            await self._sleep(2.0 ** (attempt - 1) if after is None else after)
            attempt += 1

    def _dollars(self, model: str, usage: Usage) -> float:
        """At the price of batches, or at half price where none is known."""
        price = self._price(model)
        if price is None:
            return 0.0
        return cost(usage, price, batch=True) if price.batch else cost(usage, price) / 2


def read_lines(path: Path) -> Iterator[tuple[int, dict[str, Any]]]:
    """The JSON objects in the lines of a file with their numbers (from 1), one in memory at a time.

    Empty lines are left out.

    Raises:
        InvalidRequestError: a line that is no JSON object.
        TooLargeError: one of more than 64 MiB.
    """
    with path.open("rb") as file:
        number = 0
        while line := file.readline(_LINE + 1):
            number += 1
            if len(line) > _LINE:
                raise TooLargeError(f"more than {_LINE:,} bytes", where=f"line {number}")
            if not line.strip():
                continue
            try:
                value = json.loads(line.decode(), parse_constant=_no_number)
            except (ValueError, RecursionError):
                value = None
            if not isinstance(value, dict):
                raise InvalidRequestError(
                    "not a JSON object", where=f"line {number}", remedy="Give one object a line, in UTF-8."
                )
            yield number, value


def _no_number(name: str) -> None:
    raise ValueError(f"{name} is no number of JSON")


def _plain_items(path: Path) -> Iterator[tuple[str | None, dict[str, Any]]]:
    for number, line in read_lines(path):
        key, body = line.get("key"), line.get("body")
        if not isinstance(body, dict) or not (key is None or isinstance(key, str)):
            raise InvalidRequestError(
                "not an item", where=f"line {number}", remedy='Give {"key": TEXT, "body": {...}}.'
            )
        yield key, body

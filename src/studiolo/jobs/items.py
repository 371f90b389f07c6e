"""The tables of batches: one row a batch, one row an item; an answer is recorded where there is none yet.

All calls wait for the disk.
"""

from __future__ import annotations

import json
from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass
from datetime import datetime, timedelta
from typing import Any, Literal

import sqlalchemy as sa
from sqlalchemy.exc import IntegrityError

from studiolo.errors import NotFoundError
from studiolo.language.conversation import Usage, Value
from studiolo.language.errors import InvalidRequestError
from studiolo.store.database import Database, Moment, metadata

State = Literal["queued", "running", "succeeded", "failed", "cancelling", "cancelled", "expired"]
OVER = ("succeeded", "failed", "cancelled", "expired")
_FILLING = "filling"  # its items are being written; nobody is told of it
_CHUNK, _CHUNK_SIZE = 500, 2**22  # items, and characters of their bodies
_LONGEST_KEY = 512

BATCHES = sa.Table(
    "batches",
    metadata,
    sa.Column("id", sa.String(64), primary_key=True),
    sa.Column("owner", sa.String(64), index=True),
    sa.Column("kind", sa.String(64), nullable=False),
    sa.Column("model", sa.Text, nullable=False),
    sa.Column("title", sa.Text, nullable=False),
    sa.Column("metadata", sa.JSON, nullable=False),
    sa.Column("state", sa.String(16), nullable=False),
    sa.Column("problem", sa.Text),
    sa.Column("lifetime", sa.Interval, nullable=False),
    sa.Column("total", sa.Integer, nullable=False, default=0),
    sa.Column("done", sa.Integer, nullable=False, default=0),
    sa.Column("failed", sa.Integer, nullable=False, default=0),
    sa.Column("prompt", sa.BigInteger, nullable=False, default=0),
    sa.Column("cached", sa.BigInteger, nullable=False, default=0),
    sa.Column("answer", sa.BigInteger, nullable=False, default=0),
    sa.Column("thoughts", sa.BigInteger, nullable=False, default=0),
    sa.Column("summaries", sa.BigInteger, nullable=False, default=0),
    sa.Column("dollars", sa.Float, nullable=False, default=0.0),
    sa.Column("created", Moment, nullable=False),
    sa.Column("started", Moment),
    sa.Column("ended", Moment),
    sa.Column("expires", Moment),
)
ITEMS = sa.Table(
    "batch_items",
    metadata,
    sa.Column("batch", sa.String(64), sa.ForeignKey("batches.id", ondelete="CASCADE"), primary_key=True),
    sa.Column("number", sa.Integer, primary_key=True, autoincrement=False),
    sa.Column("key", sa.String(_LONGEST_KEY)),
    sa.Column("body", sa.Text, nullable=False),
    sa.Column("tries", sa.Integer, nullable=False, default=0),
    sa.Column("failed", sa.Boolean),  # null: not answered
    sa.Column("answer", sa.Text),
    sa.UniqueConstraint("batch", "key"),
)
_TOKENS = ("prompt", "cached", "answer", "thoughts", "summaries")


class Counts(Value):
    """Of the items: `done` were answered, `failed` gave an error; the rest of `total` has not been done."""

    total: int = 0
    done: int = 0
    failed: int = 0


class BatchRecord(Value):
    """What is told of a batch. `usage` is that of all its items, `dollars` their price as a batch.

    `problem` says why it failed as a whole; `expires` is when its results go, `lifetime` after its end.
    """

    id: str
    owner: str | None
    kind: str
    model: str
    title: str
    metadata: dict[str, Any]
    state: State
    problem: str | None
    counts: Counts
    usage: Usage
    dollars: float
    lifetime: timedelta
    created: datetime
    started: datetime | None
    ended: datetime | None
    expires: datetime | None


@dataclass(frozen=True)
class Item:
    """One request of a batch. `tries` counts how often it was begun, this time included."""

    number: int
    key: str | None
    body: dict[str, Any]
    tries: int


@dataclass(frozen=True)
class ItemResult:
    """What became of an item; `answer` is None where the batch was cancelled before it."""

    number: int
    key: str | None
    answer: dict[str, Any] | None
    failed: bool


class BatchTable:
    """Batches and their items in a database."""

    def __init__(self, database: Database) -> None:
        self.database = database
        database.make(BATCHES, ITEMS)

    def create(
        self,
        record: dict[str, Any],
        items: Iterable[tuple[str | None, dict[str, Any]]],
        beside: Callable[[sa.Connection], None] = lambda _: None,
    ) -> None:
        """Writes a batch and its items, some hundred at a time; until all are there, nobody sees it.

        `beside` writes what others keep of it, in the transaction with which it is there.

        Raises:
            InvalidRequestError: no items, or two with the same key.
        """
        identity = record["id"]
        with self.database.begin() as connection:
            connection.execute(BATCHES.insert().values(**record, state=_FILLING))
        try:
            total = self._fill(identity, iter(items))
            with self.database.begin() as connection:
                whole = BATCHES.update().where(BATCHES.c.id == identity)
                connection.execute(whole.values(state="queued", total=total))
                beside(connection)
        except BaseException:
            self.delete(identity)
            raise

    def _fill(self, identity: str, items: Iterator[tuple[str | None, dict[str, Any]]]) -> int:
        total = 0
        for chunk in _chunks(items):
            rows = [
                {"batch": identity, "number": total + i, "key": _checked(key, total + i), "body": body}
                for i, (key, body) in enumerate(chunk)
            ]
            try:
                with self.database.begin() as connection:
                    connection.execute(ITEMS.insert(), rows)
            except IntegrityError:
                raise InvalidRequestError(
                    "two items have the same key", where=f"items {total + 1} to {total + len(chunk)}",
                    remedy="Give each its own; results are told apart by it.",
                ) from None  # fmt: skip
            total += len(chunk)
        if not total:
            raise InvalidRequestError("a batch without items", where="items")
        return total

    def get(self, identity: str, owner: str | None) -> BatchRecord:
        """Raises NotFoundError where there is none of this owner's."""
        with self.database.read() as connection:
            wanted = sa.select(BATCHES).where(_visible(owner), BATCHES.c.id == identity)
            row = connection.execute(wanted).mappings().one_or_none()
        if row is None:
            raise NotFoundError("no batch of this id", where=identity)
        return _record(row)

    def load(self, identity: str) -> BatchRecord | None:
        """Whoever's it is."""
        with self.database.read() as connection:
            row = connection.execute(sa.select(BATCHES).where(BATCHES.c.id == identity)).mappings()
            found = row.one_or_none()
        return None if found is None else _record(found)

    def page(self, owner: str | None, size: int, after: str | None) -> list[BatchRecord]:
        """The newest first, those made before the batch `after`."""
        order = (BATCHES.c.created.desc(), BATCHES.c.id.desc())
        wanted = sa.select(BATCHES).where(_visible(owner)).order_by(*order).limit(size)
        with self.database.read() as connection:
            if after is not None:
                last = sa.select(BATCHES.c.created, BATCHES.c.id).where(BATCHES.c.id == after)
                row = connection.execute(last).one_or_none()
                if row is None:
                    raise NotFoundError("no batch of this id", where=after)
                place = sa.tuple_(BATCHES.c.created, BATCHES.c.id)
                wanted = wanted.where(place < sa.tuple_(sa.literal(row[0], Moment), sa.literal(row[1])))
            return [_record(row) for row in connection.execute(wanted).mappings()]

    def unfinished(self) -> list[str]:
        """Those that are to be gone on with, the oldest first."""
        states = ("queued", "running", "cancelling")
        wanted = sa.select(BATCHES.c.id).where(BATCHES.c.state.in_(states)).order_by(BATCHES.c.created)
        with self.database.read() as connection:
            return list(connection.scalars(wanted))

    def state(self, identity: str) -> str | None:
        """The state as it is now, which another process may have changed; None: it is gone."""
        with self.database.read() as connection:
            return connection.scalar(sa.select(BATCHES.c.state).where(BATCHES.c.id == identity))

    def move(self, identity: str, old: tuple[str, ...], new: str, **values: Any) -> bool:
        """From one of the states `old` to `new`; whether it was in one of them."""
        change = BATCHES.update().where(BATCHES.c.id == identity, BATCHES.c.state.in_(old))
        with self.database.begin() as connection:
            return bool(connection.execute(change.values(state=new, **values)).rowcount)

    def waiting(self, identity: str, after: int, limit: int) -> list[int]:
        """Numbers above `after` of items without an answer, in order."""
        mine = (ITEMS.c.batch == identity, ITEMS.c.failed.is_(None), ITEMS.c.number > after)
        with self.database.read() as connection:
            wanted = sa.select(ITEMS.c.number).where(*mine).order_by(ITEMS.c.number).limit(limit)
            return list(connection.scalars(wanted))

    def begin(self, identity: str, number: int) -> Item:
        """The item, one more try counted: what ends the process each time is not tried for ever."""
        mine = (ITEMS.c.batch == identity, ITEMS.c.number == number)
        with self.database.begin() as connection:
            connection.execute(ITEMS.update().where(*mine).values(tries=ITEMS.c.tries + 1))
            wanted = sa.select(ITEMS.c.key, ITEMS.c.body, ITEMS.c.tries).where(*mine)
            key, body, tries = connection.execute(wanted).one()
        return Item(number, key, json.loads(body), tries)

    def give_back(self, identity: str, number: int) -> None:
        """Takes the try back that `begin` counted: the item was left in good order."""
        mine = (ITEMS.c.batch == identity, ITEMS.c.number == number, ITEMS.c.failed.is_(None))
        with self.database.begin() as connection:
            connection.execute(ITEMS.update().where(*mine).values(tries=ITEMS.c.tries - 1))

    def record(
        self,
        identity: str,
        number: int,
        answer: dict[str, Any],
        *,
        failed: bool,
        usage: Usage,
        dollars: float,
        beside: Callable[[sa.Connection], None] = lambda _: None,
    ) -> bool:
        """Keeps an answer and counts it, in one transaction, unless there is one; whether it was kept.

        `beside` writes what others keep of it, in the same transaction.
        """
        mine = (ITEMS.c.batch == identity, ITEMS.c.number == number, ITEMS.c.failed.is_(None))
        counted = {name: BATCHES.c[name] + getattr(usage, name) for name in _TOKENS if getattr(usage, name)}
        counted |= {"failed": BATCHES.c.failed + 1} if failed else {"done": BATCHES.c.done + 1}
        if dollars:
            counted["dollars"] = BATCHES.c.dollars + dollars
        with self.database.begin() as connection:
            kept = ITEMS.update().where(*mine).values(failed=failed, answer=json.dumps(answer))
            if not connection.execute(kept).rowcount:
                return False
            connection.execute(BATCHES.update().where(BATCHES.c.id == identity).values(counted))
            beside(connection)
        return True

    def results(self, identity: str, page: int = 200) -> Iterator[ItemResult]:
        """Every item in order, `page` rows in memory at a time."""
        after = -1
        columns = (ITEMS.c.number, ITEMS.c.key, ITEMS.c.answer, ITEMS.c.failed)
        while True:
            mine = (ITEMS.c.batch == identity, ITEMS.c.number > after)
            with self.database.read() as connection:
                wanted = sa.select(*columns).where(*mine).order_by(ITEMS.c.number).limit(page)
                rows = connection.execute(wanted).all()
            if not rows:
                return
            for number, key, answer, failed in rows:
                yield ItemResult(number, key, None if answer is None else json.loads(answer), bool(failed))
            after = rows[-1][0]

    def expire(self, now: datetime, stale: datetime) -> int:
        """Removes results whose time is over, and what was being filled before `stale`; how many batches."""
        over = (BATCHES.c.expires <= now, BATCHES.c.state != "expired")
        with self.database.begin() as connection:
            connection.execute(BATCHES.delete().where(BATCHES.c.state == _FILLING, BATCHES.c.created < stale))
            gone = list(connection.scalars(sa.select(BATCHES.c.id).where(*over)))
            for identity in gone:
                connection.execute(ITEMS.delete().where(ITEMS.c.batch == identity))
                connection.execute(BATCHES.update().where(BATCHES.c.id == identity).values(state="expired"))
        return len(gone)

    def delete(self, identity: str) -> None:
        with self.database.begin() as connection:
            connection.execute(ITEMS.delete().where(ITEMS.c.batch == identity))
            connection.execute(BATCHES.delete().where(BATCHES.c.id == identity))


def _chunks(items: Iterable[tuple[str | None, dict[str, Any]]]) -> Iterator[list[tuple[str | None, str]]]:
    """Keys and bodies, these as JSON, of as many items as go into the database at once."""
    chunk, size = list[tuple[str | None, str]](), 0
    for key, body in items:
        chunk.append((key, json.dumps(body)))
        size += len(chunk[-1][1])
        if len(chunk) == _CHUNK or size >= _CHUNK_SIZE:
            yield chunk
            chunk, size = [], 0
    if chunk:
        yield chunk


def _checked(key: str | None, number: int) -> str | None:
    if key is not None and (len(key) > _LONGEST_KEY or not key.isprintable()):
        raise InvalidRequestError(
            "not a key",
            where=f"item {number + 1}",
            remedy=f"Give at most {_LONGEST_KEY} printable characters.",
        )
    return key


def _visible(owner: str | None) -> sa.ColumnElement[bool]:
    return sa.and_(BATCHES.c.owner.is_(None) if owner is None else BATCHES.c.owner == owner,
                   BATCHES.c.state != _FILLING)  # fmt: skip


def _record(row: sa.RowMapping) -> BatchRecord:
    plain = ("id", "owner", "kind", "model", "title", "metadata", "state", "problem", "dollars", "lifetime")
    times = ("created", "started", "ended", "expires")
    return BatchRecord(
        **{name: row[name] for name in (*plain, *times)},
        counts=Counts(**{name: row[name] for name in ("total", "done", "failed")}),
        usage=Usage(**{name: row[name] for name in _TOKENS}),
    )

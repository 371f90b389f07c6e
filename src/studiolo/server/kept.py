"""Answers that are kept: responses, interactions and chat completions, in one table for both dialects.

Each is kept with what was sent for it, and the name of the one that it goes on from: a conversation is read
by going back from answer to answer. One that is still being made names the worker that makes it: if that is
gone when the server starts again, the answer is told to have failed (`left`).
"""

from __future__ import annotations

import json
import platform
import re
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from datetime import UTC, datetime, timedelta
from typing import Any, Literal
from weakref import WeakKeyDictionary

import sqlalchemy as sa

from studiolo.errors import NotFoundError, TooLargeError
from studiolo.store.database import Database, Moment, metadata

JSON = dict[str, Any]
Columns = tuple[sa.ColumnElement[Any], ...]
Kind = Literal["response", "interaction", "completion"]

LIFETIME = timedelta(days=30)
"""As with OpenAI."""
LONGEST = 1000
"""Answers that one conversation is read back through."""
LARGEST = 64 * 2**20
"""Bytes of them, unless it is said otherwise: as of a request that brings all of it."""

_PAGE = 64 * 2**20  # bytes of the answers of a page, but for its last one
_AT_ONCE = 4  # rows in memory while a page is looked for
_ID = re.compile(r"[A-Za-z0-9_-]{1,80}")
_WORDS: dict[Kind, str] = {
    "response": "response", "interaction": "interaction", "completion": "chat completion",
}  # fmt: skip
_table = sa.Table(
    "answers",
    metadata,
    sa.Column("id", sa.String(80), primary_key=True),
    sa.Column("kind", sa.String(16), nullable=False),
    sa.Column("owner", sa.String(80)),
    sa.Column("model", sa.Text, nullable=False),
    sa.Column("previous", sa.String(80)),
    sa.Column("created", Moment, nullable=False),
    sa.Column("expires", Moment, nullable=False, index=True),
    sa.Column("worker", sa.String(255), index=True),
    sa.Column("body", sa.Text, nullable=False),
    sa.Column("sent", sa.Text, nullable=False),
    sa.Column("events", sa.Text),
    sa.Index("answers_of_owner", "kind", "owner", "created"),
)
_WITHOUT_EVENTS: Columns = tuple(
    sa.null().label("events") if column is _table.c.events else column for column in _table.c
)
_ANSWERS: Columns = tuple(
    sa.literal("[]").label("sent") if column is _table.c.sent else column for column in _WITHOUT_EVENTS
)


@dataclass(frozen=True)
class Kept:
    """One of them.

    Attributes:
        body: the answer as it was given.
        sent: the items (or messages, or steps) that were sent for it.
        previous: the answer that it goes on from.
        events: those that told how it came about, where they are kept.
        running: whether it is still being made.
    """

    kind: Kind
    id: str
    owner: str | None
    model: str
    body: JSON
    sent: list[JSON]
    previous: str | None = None
    events: list[JSON] | None = None
    running: bool = False


class KeptAnswers:
    """All of them, in the database. Every call waits for the disk. Nobody sees those of another key.

    Args:
        worker: who makes answers in this process; no two that share a database have the same (as in
            `jobs.queue`).
    """

    def __init__(
        self,
        database: Database,
        *,
        worker: str | None = None,
        clock: Callable[[], datetime] = lambda: datetime.now(UTC),
    ) -> None:
        self._database, self._clock = database, clock
        self._worker = worker or platform.node() or "local"
        database.make(_table)

    def keep(self, kept: Kept) -> None:
        """Keeps an answer for its lifetime, from its first time on; those whose lifetime is over go."""
        now = self._clock()
        changing = {
            "worker": self._worker if kept.running else None,
            "body": json.dumps(kept.body),
            "events": None if kept.events is None else json.dumps(kept.events),
        }
        with self._database.begin() as connection:
            connection.execute(sa.delete(_table).where(_table.c.expires <= now))
            known = connection.execute(sa.update(_table).where(_table.c.id == kept.id).values(changing))
            if not known.rowcount:
                row = {
                    "id": kept.id, "kind": kept.kind, "owner": kept.owner, "model": kept.model,
                    "previous": kept.previous, "created": now, "expires": now + LIFETIME,
                    "sent": json.dumps(kept.sent), **changing,
                }  # fmt: skip
                connection.execute(sa.insert(_table).values(row))

    def end(self, kept: Kept) -> None:
        """Keeps how an answer ended that was being made, unless it was deleted meanwhile."""
        changed = {
            "worker": None,
            "body": json.dumps(kept.body),
            "events": None if kept.events is None else json.dumps(kept.events),
        }
        with self._database.begin() as connection:
            connection.execute(sa.update(_table).where(_table.c.id == kept.id).values(changed))

    def get(self, kind: Kind, id_: str, owner: str | None, *, where: str | None = None) -> Kept:
        """
        Raises:
            NotFoundError: there is none of this owner's, or no longer; `where` is the field that names it.
        """
        with self._database.read() as connection:
            return self._get(connection, kind, id_, owner, where)

    def conversation(
        self, kind: Kind, id_: str, owner: str | None, *, where: str, largest: int = LARGEST
    ) -> list[Kept]:
        """The answers up to this one, the first one first, without their events.

        Args:
            largest: bytes of all of them together, with what was sent for them.

        Raises:
            NotFoundError: one of them is not there.
            TooLargeError: there are more than `LONGEST`, or they have more bytes; no more of them is read.
        """
        found: list[Kept] = []
        at: str | None = id_
        size = 0
        with self._database.read() as connection:
            while at is not None:
                if len(found) == LONGEST:
                    raise _too_long(f"{LONGEST:,} answers", where)
                row = self._row(connection, kind, at, owner, where, _WITHOUT_EVENTS)
                size += len(row.body) + len(row.sent)  # JSON of ASCII alone: as many letters as bytes
                if size > largest:
                    raise _too_long(f"{largest:,} bytes", where)
                found.append(_kept(row))
                at = row.previous
        return found[::-1]

    def change(self, kind: Kind, id_: str, owner: str | None, body: Mapping[str, Any]) -> Kept:
        """Gives some of an answer's fields other values; raises as `get` does."""
        with self._database.begin() as connection:
            kept = self._get(connection, kind, id_, owner, None)
            changed = {**kept.body, **body}
            statement = sa.update(_table).where(_table.c.id == id_).values(body=json.dumps(changed))
            connection.execute(statement)
            return self._get(connection, kind, id_, owner, None)

    def delete(self, kind: Kind, id_: str, owner: str | None) -> None:
        """Forgets it, and with it the way back from those that followed it; raises as `get` does."""
        with self._database.begin() as connection:
            self._get(connection, kind, id_, owner, None)
            connection.execute(sa.delete(_table).where(_table.c.id == id_))

    def page(
        self,
        kind: Kind,
        owner: str | None,
        *,
        size: int,
        after: str | None = None,
        newest_first: bool = False,
        model: str | None = None,
        labels: Mapping[str, str] | None = None,
    ) -> tuple[list[Kept], bool]:
        """Some of them by the time at which they were made, without what was sent for them and
        without events; and whether more follow. A page ends before its size where its answers are large.

        Args:
            after: the last one of the page before.
            labels: only those whose `metadata` has all of these.

        Raises:
            NotFoundError: `after` is not there.
        """
        made, turn = _table.c.created, sa.desc if newest_first else sa.asc
        wanted = [_table.c.kind == kind, _of(owner), _table.c.expires > self._clock()]
        if model is not None:
            wanted.append(_table.c.model == model)
        found: list[Kept] = []
        bytes_found = 0
        with self._database.read() as connection:
            if after is not None:
                self._get(connection, kind, after, owner, "after")
                at = connection.execute(sa.select(made).where(_table.c.id == after)).scalar_one()
                key, last = sa.tuple_(made, _table.c.id), sa.tuple_(sa.literal(at, Moment), sa.literal(after))
                wanted.append(key < last if newest_first else key > last)
            rows = connection.execute(
                sa.select(*_ANSWERS).where(*wanted).order_by(turn(made), turn(_table.c.id)),
                execution_options={"yield_per": _AT_ONCE},
            )
            for row in rows:
                kept = _kept(row)
                if labels and not labels.items() <= (kept.body.get("metadata") or {}).items():
                    continue
                if len(found) == size or (found and bytes_found + len(row.body) > _PAGE):
                    return found, True
                found.append(kept)
                bytes_found += len(row.body)
        return found, False

    def left(self, kind: Kind) -> Sequence[Kept]:
        """Those that this worker was making when it died. To be called before it makes others."""
        with self._database.read() as connection:
            rows = connection.execute(
                sa.select(_table).where(_table.c.worker == self._worker, _table.c.kind == kind)
            )
            return [_kept(row) for row in rows]

    def _get(
        self, connection: sa.Connection, kind: Kind, id_: str, owner: str | None, where: str | None
    ) -> Kept:
        return _kept(self._row(connection, kind, id_, owner, where, tuple(_table.c)))

    def _row(
        self,
        connection: sa.Connection,
        kind: Kind,
        id_: str,
        owner: str | None,
        where: str | None,
        columns: Columns,
    ) -> Any:
        unknown = NotFoundError(
            f"no {_WORDS[kind]} {id_[:80]!r} is kept",
            where=where,
            remedy=None if where is None else "Send the whole conversation.",
        )
        if not _ID.fullmatch(id_):
            raise unknown
        row = connection.execute(
            sa.select(*columns).where(
                _table.c.id == id_, _table.c.kind == kind, _of(owner), _table.c.expires > self._clock()
            )
        ).one_or_none()
        if row is None:
            raise unknown
        return row


def _of(owner: str | None) -> sa.ColumnElement[bool]:
    return _table.c.owner.is_(None) if owner is None else _table.c.owner == owner


def _too_long(most: str, where: str) -> TooLargeError:
    return TooLargeError(
        f"the conversation that is kept under this name has more than {most}",
        where=where,
        remedy="Begin a new one, with what of it still counts.",
    )


def _kept(row: Any) -> Kept:
    return Kept(
        kind=row.kind,
        id=row.id,
        owner=row.owner,
        model=row.model,
        body=json.loads(row.body),
        sent=json.loads(row.sent),
        previous=row.previous,
        events=None if row.events is None else json.loads(row.events),
        running=row.worker is not None,
    )


_of_database: WeakKeyDictionary[Database, KeptAnswers] = WeakKeyDictionary()


def kept_in(database: Database) -> KeptAnswers:
    """Those of a database, whose table is made on first use."""
    if database not in _of_database:
        _of_database[database] = KeptAnswers(database)
    return _of_database[database]

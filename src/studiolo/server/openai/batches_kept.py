"""What OpenAI's batches have beyond the jobs that carry them: their files, and the errors of their input."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from datetime import UTC, datetime, timedelta
from typing import Any
from weakref import WeakKeyDictionary

import sqlalchemy as sa

from studiolo.errors import NotFoundError
from studiolo.store.database import Database, Moment, metadata

_table = sa.Table(
    "openai_batches",
    metadata,
    sa.Column("id", sa.String(64), primary_key=True),
    sa.Column("owner", sa.String(64), index=True),
    sa.Column("endpoint", sa.Text, nullable=False),
    sa.Column("input", sa.Text, nullable=False),
    sa.Column("metadata", sa.JSON),
    sa.Column("lifetime", sa.Interval, nullable=False),
    sa.Column("created", Moment, nullable=False),
    sa.Column("cancelling", Moment),
    sa.Column("errors", sa.JSON(none_as_null=True)),
    sa.Column("final", sa.String(16)),
    sa.Column("output", sa.String(40)),
    sa.Column("failures", sa.String(40)),
)


@dataclass(frozen=True)
class KeptBatch:
    """A batch: `input`, `output` and `failures` are ids of files, `lifetime` that of the files it makes.

    `final` is completed, cancelled, expired or failed, once its files are there; `errors` are those of its
    input, told of before any job was begun.
    """

    id: str
    owner: str | None
    endpoint: str
    input: str
    metadata: dict[str, str] | None
    lifetime: timedelta
    created: datetime
    cancelling: datetime | None = None
    errors: list[dict[str, Any]] | None = None
    final: str | None = None
    output: str | None = None
    failures: str | None = None

    @property
    def job(self) -> str:
        """The id of the job that carries it."""
        return self.id.removeprefix("batch_")


class KeptBatches:
    """All of them, in the database. Every call waits for the disk."""

    def __init__(
        self, database: Database, *, clock: Callable[[], datetime] = lambda: datetime.now(UTC)
    ) -> None:
        self._database, self.clock = database, clock
        database.make(_table)

    def add(self, batch: KeptBatch, connection: sa.Connection | None = None) -> None:
        """Writes it down, within the transaction of `connection` if one is given."""
        if connection is None:
            with self._database.begin() as own:
                return self.add(batch, own)
        connection.execute(sa.insert(_table).values(batch.__dict__))
        return None

    def get(self, batch: str, owner: str | None) -> KeptBatch:
        """
        Raises:
            NotFoundError: there is none of this owner's.
        """
        with self._database.read() as connection:
            return _get(connection, batch, owner)

    def page(self, owner: str | None, size: int, after: str | None) -> list[KeptBatch]:
        """The owner's batches, the newest first, from the one behind `after` on; raises as `get` does."""
        order = (_table.c.created.desc(), _table.c.id.desc())
        wanted = sa.select(_table).where(_table.c.owner.is_not_distinct_from(owner)).order_by(*order)
        with self._database.read() as connection:
            if after is not None:
                last = _get(connection, after, owner)
                place = sa.tuple_(sa.literal(last.created, Moment), sa.literal(last.id))
                wanted = wanted.where(sa.tuple_(_table.c.created, _table.c.id) < place)
            return [KeptBatch(**row._mapping) for row in connection.execute(wanted.limit(size))]

    def change(self, batch: KeptBatch, **values: Any) -> KeptBatch:
        """Writes some of its fields."""
        with self._database.begin() as connection:
            connection.execute(sa.update(_table).where(_table.c.id == batch.id).values(**values))
            return _get(connection, batch.id, batch.owner)


def _get(connection: sa.Connection, batch: str, owner: str | None) -> KeptBatch:
    mine = (_table.c.id == batch, _table.c.owner.is_not_distinct_from(owner))
    row = connection.execute(sa.select(_table).where(*mine)).one_or_none()
    if row is None:
        raise NotFoundError("no batch of this id", where=batch[:100])
    return KeptBatch(**row._mapping)


_of: WeakKeyDictionary[Database, KeptBatches] = WeakKeyDictionary()


def kept_in(database: Database) -> KeptBatches:
    """Those of a database, whose table is made on first use."""
    if database not in _of:
        _of[database] = KeptBatches(database)
    return _of[database]

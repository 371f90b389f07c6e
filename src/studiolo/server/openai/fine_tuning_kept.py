"""What OpenAI's fine-tuning jobs have beyond the tunings that carry them."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass
from weakref import WeakKeyDictionary

import sqlalchemy as sa

from studiolo.jobs.tuning_table import TUNINGS
from studiolo.store.database import Database, metadata

_table = sa.Table(
    "fine_tunings",
    metadata,
    # Whichever API a tuning is deleted by, this goes with it.
    sa.Column("tuning", sa.ForeignKey(TUNINGS.c.id, ondelete="CASCADE"), primary_key=True),
    sa.Column("training_file", sa.Text, nullable=False),
    sa.Column("metadata", sa.JSON(none_as_null=True)),
    sa.Column("multiplier", sa.Float),
)


@dataclass(frozen=True)
class KeptJob:
    """`training_file` and `metadata` as they were given, `multiplier` of the learning rate."""

    tuning: str
    training_file: str
    metadata: dict[str, str] | None = None
    multiplier: float | None = None


class KeptJobs:
    """All of them, in the database. Every call waits for the disk."""

    def __init__(self, database: Database) -> None:
        self._database = database
        database.make(_table)

    def add(self, job: KeptJob, connection: sa.Connection) -> None:
        """Within the transaction that writes the tuning."""
        connection.execute(sa.insert(_table).values(job.__dict__))

    def of(self, tunings: Iterable[str]) -> dict[str, KeptJob]:
        """What is kept of these tunings; nothing of those that another dialect made."""
        wanted = sa.select(_table).where(_table.c.tuning.in_(list(tunings)))
        with self._database.read() as connection:
            return {row.tuning: KeptJob(**row._mapping) for row in connection.execute(wanted)}


_of: WeakKeyDictionary[Database, KeptJobs] = WeakKeyDictionary()


def kept_in(database: Database) -> KeptJobs:
    """Those of a database, whose table is made on first use."""
    if database not in _of:
        _of[database] = KeptJobs(database)
    return _of[database]

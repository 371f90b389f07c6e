"""The one database: SQLite in the data folder, or PostgreSQL by URL.

Whoever keeps things in it declares its tables on `metadata` and calls `Database.make` with them. All calls
wait for the disk: from asynchronous code, use `asyncio.to_thread`.
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import sqlalchemy as sa
from sqlalchemy.engine import ExceptionContext
from sqlalchemy.exc import ArgumentError, DataError, SQLAlchemyError
from sqlalchemy.pool import ConnectionPoolEntry

from studiolo.errors import StudioloError
from studiolo.store.paths import home

metadata = sa.MetaData()

_LOCK = 0x57D1010  # of PostgreSQL's advisory locks, the one under which tables are made
_PATIENCE = 30_000  # milliseconds that a writer waits for another one of SQLite


class Moment(sa.TypeDecorator[datetime]):
    """A time with a zone, kept as UTC in both databases (SQLite has no type of its own for it)."""

    impl = sa.DateTime(timezone=True)
    cache_ok = True

    def process_bind_param(self, value: datetime | None, dialect: sa.Dialect) -> datetime | None:
        return None if value is None else value.astimezone(UTC)

    def process_result_value(self, value: datetime | None, dialect: sa.Dialect) -> datetime | None:
        if value is None:
            return None
        return value.replace(tzinfo=UTC) if value.tzinfo is None else value.astimezone(UTC)


class Database:
    """Open connections to one database; safe to use from many threads, and from several processes.

    Args:
        url: as SQLAlchemy takes it; None is `studiolo.sqlite` in the data folder. `postgresql://` and
            `postgres://` are taken as psycopg's.

    Raises:
        StudioloError: no such kind of database, or it cannot be reached.
    """

    def __init__(self, url: str | None = None) -> None:
        self.url = _url(url)
        try:
            self._engine = _engine(self.url)
            sa.event.listen(self._engine, "handle_error", _tell_of_values)
            self.check()
        except SQLAlchemyError as error:
            raise _unreachable(self.url, error) from error

    @property
    def is_sqlite(self) -> bool:
        return self._engine.dialect.name == "sqlite"

    def make(self, *tables: sa.Table) -> None:
        """Makes those tables that are not there yet, also when several processes start at once."""
        with self.begin() as connection:
            if not self.is_sqlite:
                connection.execute(sa.select(sa.func.pg_advisory_xact_lock(_LOCK)))
            metadata.create_all(connection, tables=tables)

    @contextmanager
    def begin(self) -> Iterator[sa.Connection]:
        """A transaction that writes: all of it, or, if the block raises, nothing.

        With SQLite it has the database for itself from its first statement on, so that what it read still
        holds when it writes.
        """
        with self._engine.connect() as connection, connection.begin():
            yield connection

    @contextmanager
    def read(self) -> Iterator[sa.Connection]:
        """A transaction that only reads, from one state of the database; it holds up nobody."""
        with self._engine.connect().execution_options(studiolo_reads=True) as connection, connection.begin():
            yield connection

    def check(self) -> None:
        """Raises SQLAlchemy's error if it does not answer."""
        with self.read() as connection:
            connection.execute(sa.text("SELECT 1"))

    def close(self) -> None:
        self._engine.dispose()


def _url(given: str | None) -> sa.URL:
    if given is None:
        return sa.URL.create("sqlite", database=str(home() / "studiolo.sqlite"))
    try:
        url = sa.make_url(given)
    except ArgumentError as error:
        raise StudioloError(
            "not the URL of a database", remedy="Give sqlite:///FILE or postgresql://USER@HOST/NAME."
        ) from error
    if url.drivername in ("postgresql", "postgres"):
        return url.set(drivername="postgresql+psycopg")
    if url.get_backend_name() not in ("sqlite", "postgresql"):
        raise StudioloError(
            "a database of this kind is not used", where=url.drivername, remedy="Give SQLite or PostgreSQL."
        )
    return url


def _engine(url: sa.URL) -> sa.Engine:
    if url.get_backend_name() != "sqlite":
        try:
            return sa.create_engine(url, pool_pre_ping=True, pool_size=10, max_overflow=20)
        except ModuleNotFoundError as error:
            raise StudioloError(
                f"the driver '{error.name}' is not installed", remedy="pip install 'studiolo[postgres]'"
            ) from error
    if not url.database or url.database == ":memory:":
        raise StudioloError("a database that is kept needs a file", remedy="Give sqlite:///FILE.")
    Path(url.database).parent.mkdir(parents=True, exist_ok=True)
    engine = sa.create_engine(url, pool_size=10, max_overflow=20)
    sa.event.listen(engine, "connect", _prepare_sqlite)
    sa.event.listen(engine, "begin", _begin_sqlite)
    return engine


def _prepare_sqlite(connection: Any, _: ConnectionPoolEntry) -> None:
    connection.isolation_level = None  # `_begin_sqlite` begins them, not the first write
    cursor = connection.cursor()
    cursor.execute(f"PRAGMA busy_timeout = {_PATIENCE}")
    cursor.execute("PRAGMA journal_mode = WAL")
    # What is committed survives the death of this process; of the machine, all but the last moments do.
    cursor.execute("PRAGMA synchronous = NORMAL")
    cursor.execute("PRAGMA foreign_keys = ON")
    cursor.close()


def _begin_sqlite(connection: sa.Connection) -> None:
    reads = connection.get_execution_options().get("studiolo_reads", False)
    connection.exec_driver_sql("BEGIN" if reads else "BEGIN IMMEDIATE")


def _tell_of_values(context: ExceptionContext) -> None:
    """A text with a NUL, which PostgreSQL cannot keep, or a number too large: a fault of who sent it."""
    if isinstance(context.sqlalchemy_exception, DataError):
        raise StudioloError(
            "a text or a number that cannot be kept", remedy="Leave out NUL characters and huge numbers."
        )


def _unreachable(url: sa.URL, error: SQLAlchemyError) -> StudioloError:
    cause = str(getattr(error, "orig", None) or error).strip().splitlines()[0]
    return StudioloError(
        f"the database cannot be used ({cause})",
        where=url.render_as_string(hide_password=True),
        remedy="Check that it runs, its name, and who may use it.",
    )

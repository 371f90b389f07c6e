"""What the database knows of uploaded files, and of uploads that are under way."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass
from datetime import datetime, timedelta
from pathlib import Path
from typing import Any

import sqlalchemy as sa

from studiolo.errors import ConflictError, NotFoundError
from studiolo.store.database import Database, Moment, metadata
from studiolo.store.files import sha256_bytes, sha256_file

Session = sa.Row[Any]
"""An upload that was begun."""

files = sa.Table(
    "files",
    metadata,
    sa.Column("id", sa.String(40), primary_key=True),
    sa.Column("owner", sa.String(40), index=True),
    sa.Column("name", sa.Text, nullable=False),
    sa.Column("mime", sa.Text, nullable=False),
    sa.Column("size", sa.BigInteger, nullable=False),
    sa.Column("sha256", sa.String(64), nullable=False),
    sa.Column("purpose", sa.Text, nullable=False),
    sa.Column("created", Moment, nullable=False),
    sa.Column("expires", Moment, index=True),
)
sessions = sa.Table(
    "uploads",
    metadata,
    sa.Column("token", sa.String(64), primary_key=True),  # a hash: who reads the database cannot upload
    sa.Column("file", sa.String(40), nullable=False, unique=True),
    sa.Column("owner", sa.String(40)),
    sa.Column("name", sa.Text, nullable=False),
    sa.Column("mime", sa.Text, nullable=False),
    sa.Column("size", sa.BigInteger),
    sa.Column("purpose", sa.Text, nullable=False),
    sa.Column("lifetime", sa.Float),
    sa.Column("ends", Moment, nullable=False, index=True),
)


@dataclass(frozen=True)
class FileRecord:
    """A file that is here, whole. `size` in bytes; `owner` is a key's id, None for the studio's own owner;
    `expires` is None for a file that stays until it is deleted."""

    id: str
    name: str
    mime: str
    size: int
    sha256: str
    purpose: str
    owner: str | None
    created: datetime
    expires: datetime | None


@dataclass(frozen=True)
class Page:
    """Some files, and what to give as `after` for those that follow (None: there are no more)."""

    files: tuple[FileRecord, ...]
    next: str | None


class Records:
    """The two tables. Every call waits for the disk.

    Args:
        clock: the time now, with a zone.
    """

    def __init__(self, database: Database, clock: Callable[[], datetime]) -> None:
        self._database, self._clock = database, clock
        database.make(files, sessions)

    # --- files

    def find(self, file: str) -> FileRecord | None:
        """The file of that id, whosever it is; None if there is none, or no longer."""
        alive = sa.or_(files.c.expires.is_(None), files.c.expires > self._clock())
        with self._database.read() as connection:
            row = connection.execute(sa.select(files).where(files.c.id == file, alive)).one_or_none()
        return None if row is None else FileRecord(**row._mapping)

    def get(self, id: str, *, owner: str | None) -> FileRecord:  # noqa: A002
        """The file of that id.

        Raises:
            NotFoundError: there is none, it has expired, or it is another owner's.
        """
        record = self.find(id)
        if record is None or record.owner != owner:
            raise NotFoundError("no file of this name", where=id[:100], remedy="Upload it (again).")
        return record

    def page(
        self,
        *,
        owner: str | None,
        size: int = 100,
        after: str | None = None,
        purpose: str | None = None,
        oldest_first: bool = False,
    ) -> Page:
        """Files of one owner, newest first; `after` is the id of the last one seen.

        Raises:
            NotFoundError: there is no file `after`.
        """
        table, now = files.c, self._clock()
        wanted = [
            table.owner.is_not_distinct_from(owner),
            sa.or_(table.expires.is_(None), table.expires > now),
        ]
        if purpose is not None:
            wanted.append(table.purpose == purpose)
        place = sa.tuple_(table.created, table.id)
        if after is not None:
            last = self.get(after, owner=owner)
            mark = sa.tuple_(sa.literal(last.created, Moment), sa.literal(last.id))
            wanted.append(place > mark if oldest_first else place < mark)
        order = (table.created, table.id) if oldest_first else (table.created.desc(), table.id.desc())
        query = sa.select(files).where(*wanted).order_by(*order).limit(size + 1)
        with self._database.read() as connection:
            found = [FileRecord(**row._mapping) for row in connection.execute(query)]
        shown = tuple(found[:size])
        return Page(shown, shown[-1].id if len(found) > size else None)

    def keep(self, session: Session, final: Path) -> FileRecord:
        """Writes down the file that an upload has become, whose bytes are at `final`."""
        now = self._clock()
        record = FileRecord(
            id=session.file, name=session.name, mime=session.mime, size=final.stat().st_size,
            sha256=sha256_file(final), purpose=session.purpose, owner=session.owner, created=now,
            expires=None if session.lifetime is None else now + timedelta(seconds=session.lifetime),
        )  # fmt: skip
        with self._database.begin() as connection:
            connection.execute(files.insert().values(**record.__dict__))
        return record

    def forget(self, ids: Iterable[str]) -> None:
        """Forgets files, and the uploads by which they came."""
        ids = list(ids)
        with self._database.begin() as connection:
            connection.execute(files.delete().where(files.c.id.in_(ids)))
            connection.execute(sessions.delete().where(sessions.c.file.in_(ids)))

    # --- uploads under way

    def session(self, upload: str) -> Session:
        """The upload of that token.

        Raises:
            NotFoundError: no such upload, or no longer.
        """
        query = sa.select(sessions).where(sessions.c.token == hashed(upload), sessions.c.ends > self._clock())
        with self._database.read() as connection:
            found = connection.execute(query).one_or_none()
        if found is None:
            raise NotFoundError("no such upload, or no longer", remedy="Begin it again.")
        return found

    def is_begun(self, file: str, owner: str | None) -> bool:
        """Whether there is an upload of that id, and this owner's."""
        mine = (sessions.c.file == file, sessions.c.owner.is_not_distinct_from(owner))
        with self._database.read() as connection:
            return connection.execute(sa.select(sessions.c.file).where(*mine)).first() is not None

    def end(self, file: str) -> None:
        """Forgets the upload of a file."""
        with self._database.begin() as connection:
            connection.execute(sessions.delete().where(sessions.c.file == file))

    # --- both

    def expired(self) -> tuple[Sequence[str], Sequence[str]]:
        """The ids of files whose time is over, and those of uploads."""
        now = self._clock()
        with self._database.read() as connection:
            gone = connection.execute(sa.select(files.c.id).where(files.c.expires <= now)).scalars().all()
            ended = sa.select(sessions.c.file).where(sessions.c.ends <= now)
            return gone, connection.execute(ended).scalars().all()

    def known(self) -> set[str]:
        """The ids of all files and uploads."""
        with self._database.read() as connection:
            known = set(connection.execute(sa.select(sessions.c.file)).scalars())
            return known | set(connection.execute(sa.select(files.c.id)).scalars())


def check_free(connection: sa.Connection, file: str) -> None:
    """
    Raises:
        ConflictError: there is a file or an upload of that id.
    """
    taken = sa.union_all(
        sa.select(files.c.id).where(files.c.id == file),
        sa.select(sessions.c.file).where(sessions.c.file == file),
    )
    if connection.execute(taken).first() is not None:
        raise ConflictError("a file of this name exists", where=file, remedy="Choose another name.")


def hashed(token: str) -> str:
    """What is kept of a token."""
    return sha256_bytes(token.encode())

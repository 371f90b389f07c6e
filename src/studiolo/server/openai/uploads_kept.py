"""Uploads in parts: what was announced, and what came of it.

A part is a file whose owner is the upload, so nobody else sees it; it goes when the upload is over.
"""

from __future__ import annotations

import hashlib
import secrets
import threading
from collections.abc import Callable, Iterable, Iterator
from contextlib import suppress
from dataclasses import dataclass
from datetime import UTC, datetime, timedelta
from typing import Literal
from weakref import WeakKeyDictionary

import sqlalchemy as sa

from studiolo.errors import ConflictError, NotFoundError
from studiolo.language.errors import InvalidRequestError
from studiolo.store.database import Database, Moment, metadata
from studiolo.store.uploads import FileRecord, Uploads, check_names

Status = Literal["pending", "completed", "cancelled", "expired"]

LIFETIME = timedelta(hours=1)
"""From its beginning to its completion, as with OpenAI."""
REMEMBERED = timedelta(days=1)
"""How long is told what became of it."""

_CHUNK = 2**20
_PART = ("part_", "file-")  # what ids of parts begin with, for clients and in the store
_table = sa.Table(
    "parted_uploads",
    metadata,
    sa.Column("id", sa.String(40), primary_key=True),
    sa.Column("owner", sa.String(40)),
    sa.Column("name", sa.Text, nullable=False),
    sa.Column("mime", sa.Text, nullable=False),
    sa.Column("size", sa.BigInteger, nullable=False),
    sa.Column("purpose", sa.Text, nullable=False),
    sa.Column("lifetime", sa.Interval),
    sa.Column("created", Moment, nullable=False),
    sa.Column("expires", Moment, nullable=False, index=True),
    sa.Column("status", sa.String(16), nullable=False),
    sa.Column("file", sa.String(40)),
)


@dataclass(frozen=True)
class Parted:
    """An upload in parts. `size` in bytes, as announced; `file` the id of what was made of it."""

    id: str
    owner: str | None
    name: str
    mime: str
    size: int
    purpose: str
    lifetime: timedelta | None
    created: datetime
    expires: datetime
    status: Status
    file: str | None = None


class PartedUploads:
    """All of them, in the database. Every call waits for the disk."""

    def __init__(
        self, database: Database, *, clock: Callable[[], datetime] = lambda: datetime.now(UTC)
    ) -> None:
        self._database, self._clock = database, clock
        self._completing = threading.Lock()
        database.make(_table)

    def begin(
        self, *, owner: str | None, name: str, mime: str, size: int, purpose: str, lifetime: timedelta | None
    ) -> Parted:
        """Announces a file; those announced long ago are forgotten.

        Raises:
            StudioloError: a name or a media type that no file can have.
        """
        check_names(name, mime)
        now = self._clock()
        upload = Parted(
            f"upload_{secrets.token_hex(12)}", owner, name, mime, size, purpose, lifetime, now,
            now + LIFETIME, "pending",
        )  # fmt: skip
        with self._database.begin() as connection:
            connection.execute(sa.delete(_table).where(_table.c.expires <= now - REMEMBERED))
            connection.execute(sa.insert(_table).values(upload.__dict__))
        return upload

    def get(self, upload: str, owner: str | None) -> Parted:
        """
        Raises:
            NotFoundError: there is none of this owner's, or no longer.
        """
        mine = (_table.c.id == upload, _table.c.owner.is_not_distinct_from(owner))
        with self._database.read() as connection:
            row = connection.execute(sa.select(_table).where(*mine)).one_or_none()
        if row is None:
            raise NotFoundError("no upload of this id", where=upload[:100], remedy="Begin it again.")
        found = dict(row._mapping)
        if found["status"] == "pending" and found["expires"] <= self._clock():
            found["status"] = "expired"
        return Parted(**found)

    def add(self, files: Uploads, upload: Parted, data: Iterable[bytes]) -> FileRecord:
        """Takes one part in, whole or not at all; `part_id` tells its id.

        Raises:
            ConflictError: the upload is over.
        """
        _check_pending(upload)
        return files.add(
            data,
            owner=upload.id,
            name="part",
            mime="application/octet-stream",
            purpose="part",
            lifetime=LIFETIME,
        )

    def complete(
        self, files: Uploads, upload: Parted, part_ids: Iterable[str], md5: str | None
    ) -> tuple[Parted, FileRecord]:
        """The file of the parts in this order. Repeated, it answers as the first time.

        Raises:
            InvalidRequestError: not a part of it, a part twice, or other bytes than were announced.
            ConflictError: the upload is over, and there is no file.
        """
        with self._completing:
            upload = self.get(upload.id, upload.owner)
            if upload.status == "completed" and upload.file is not None:
                return upload, files.get(upload.file, owner=upload.owner)
            _check_pending(upload)
            # The file's id is that of the upload, so that a process that dies here does not make it twice.
            made = upload.id.replace("upload_", "file-", 1)
            with suppress(NotFoundError):
                record = files.get(made, owner=upload.owner)
                return self._ended(files, upload, "completed", record.id), record
            parts = _parts(files, upload, part_ids)
            record = files.add(
                _joined(files, parts, md5),
                owner=upload.owner,
                name=upload.name,
                mime=upload.mime,
                purpose=upload.purpose,
                lifetime=upload.lifetime,
                id=made,
            )
            return self._ended(files, upload, "completed", record.id), record

    def cancel(self, files: Uploads, upload: Parted) -> Parted:
        """Forgets what was sent.

        Raises:
            ConflictError: the upload is over.
        """
        with self._completing:
            upload = self.get(upload.id, upload.owner)
            _check_pending(upload)
            return self._ended(files, upload, "cancelled", None)

    def _ended(self, files: Uploads, upload: Parted, status: Status, file: str | None) -> Parted:
        with self._database.begin() as connection:
            mine = sa.update(_table).where(_table.c.id == upload.id)
            connection.execute(mine.values(status=status, file=file))
        while parts := files.page(owner=upload.id).files:
            for part in parts:
                files.delete(part.id, owner=upload.id)
        return self.get(upload.id, upload.owner)


def part_id(part: FileRecord) -> str:
    """What clients call a part."""
    return part.id.replace(_PART[1], _PART[0], 1)


def _check_pending(upload: Parted) -> None:
    if upload.status != "pending":
        raise ConflictError(f"this upload is {upload.status}", where=upload.id, remedy="Begin a new one.")


def _parts(files: Uploads, upload: Parted, part_ids: Iterable[str]) -> list[FileRecord]:
    """The parts, checked against what was announced."""
    found: dict[str, FileRecord] = {}
    for number, part in enumerate(part_ids):
        where = f"part_ids[{number}]"
        try:
            record = files.get(part.replace(_PART[0], _PART[1], 1), owner=upload.id)
        except NotFoundError:
            raise InvalidRequestError("not a part of this upload", where=where) from None
        if record.id in found:
            raise InvalidRequestError("this part is named twice", where=where)
        found[record.id] = record
    if (size := sum(part.size for part in found.values())) != upload.size:
        raise InvalidRequestError(
            f"these parts have {size:,} bytes, and {upload.size:,} were announced", where="part_ids"
        )
    return list(found.values())


def _joined(files: Uploads, parts: Iterable[FileRecord], md5: str | None) -> Iterator[bytes]:
    """The bytes of the parts one after the other; an error at their end if they are not the right ones."""
    seen = hashlib.md5(usedforsecurity=False)
    for part in parts:
        with files.path(part.id).open("rb") as file:
            while piece := file.read(_CHUNK):
                seen.update(piece)
                yield piece
    if md5 is not None and seen.hexdigest() != md5.lower():
        raise InvalidRequestError(f"the bytes that came have the MD5 {seen.hexdigest()}", where="md5")


_of: WeakKeyDictionary[Database, PartedUploads] = WeakKeyDictionary()


def parted_in(database: Database) -> PartedUploads:
    """Those of a database, whose table is made on first use."""
    if database not in _of:
        _of[database] = PartedUploads(database)
    return _of[database]

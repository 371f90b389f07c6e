"""Files that were uploaded: in pieces, resumed after any interruption, whole or absent in the end.

The bytes lie in `files/` of the data folder, under the file's id; what is still on its way in `files/parts/`.
How much of it is there is the size of that file and nothing else, so it is right also after a crash.
"""

from __future__ import annotations

import os
import re
import secrets
import threading
from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any

import sqlalchemy as sa

from studiolo.errors import ConflictError, NotFoundError, StudioloError, TooLargeError
from studiolo.store.database import Database, Moment, metadata
from studiolo.store.files import sha256_bytes, sha256_file

Session = sa.Row[Any]
GIB = 2**30
SESSION = timedelta(days=1)
"""How long an upload may take from its beginning to its end."""

_ID = re.compile(r"[a-z0-9](?:[a-z0-9-]{0,38}[a-z0-9])?")
_MIME = re.compile(r"[A-Za-z0-9!#$&^_.+-]{1,60}/[A-Za-z0-9!#$&^_.+-]{1,100}")
_CONTROL = re.compile(r"[\x00-\x1f\x7f\u2028\u2029]")

_files = sa.Table(
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
_sessions = sa.Table(
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


class Uploads:
    """All uploaded files. Every call waits for the disk.

    Args:
        folder: where the bytes lie.
        largest: bytes of one file.
        total: bytes of all of them together, those on their way included.
        clock: the time now, with a zone.
    """

    def __init__(
        self,
        database: Database,
        folder: Path,
        *,
        largest: int = 2 * GIB,
        total: int = 20 * GIB,
        clock: Callable[[], datetime] = lambda: datetime.now(UTC),
    ) -> None:
        self._database, self.folder, self._clock = database, folder, clock
        self.largest, self.total = largest, total
        self._busy: set[str] = set()
        self._guard = threading.Lock()
        (folder / "parts").mkdir(parents=True, exist_ok=True)
        database.make(_files, _sessions)

    def begin(
        self,
        *,
        owner: str | None,
        name: str,
        mime: str,
        purpose: str,
        size: int | None = None,
        lifetime: timedelta | None = None,
        id: str | None = None,  # noqa: A002  what the file's owner calls it
    ) -> str:
        """Makes room for a file, and returns the token by which its bytes are sent.

        The token cannot be guessed and is kept as a hash: to have it is to be allowed to upload.

        Args:
            size: bytes, where they are known before; then no more and no fewer are taken.
            lifetime: from when it is whole; None: until it is deleted.
            id: its name here, 1 to 40 lower-case letters, digits or dashes; made up if not given. An upload
                of that id that this owner has begun and not ended is given up: who begins again has not got
                its token.

        Raises:
            StudioloError: a name or a type that cannot be one.
            ConflictError: there is a file of that id, or somebody else's upload.
            TooLargeError: the file, or all files together.
        """
        check_names(name, mime)
        file = f"file-{secrets.token_hex(12)}" if id is None else _checked_id(id)
        if id is not None and self._is_begun(file, owner):
            self._give_up(file)
        if size is not None:
            self._check_size(size)
        token = secrets.token_urlsafe(32)
        row = {
            "token": _hashed(token), "file": file, "owner": owner, "name": name, "mime": mime, "size": size,
            "purpose": purpose, "lifetime": lifetime.total_seconds() if lifetime else None,
            "ends": self._clock() + SESSION,
        }  # fmt: skip
        self.expire()
        with self._database.begin() as connection:
            self._check_free(connection, file)
            self._check_room(connection, size or 0)
            self._part(file).touch()
            connection.execute(_sessions.insert().values(row))
        return token

    def append(self, upload: str, offset: int, chunks: Iterable[bytes] | bytes) -> int:
        """Adds bytes at `offset`, which is where the last ones ended; returns how many there are now.

        What was written stays when `chunks` fails in its midst.

        Raises:
            NotFoundError: no such upload, or no longer.
            ConflictError: bytes are missing before `offset`, or there already; the error names the offset.
            TooLargeError: more than was announced, or than is taken.
        """
        session = self._session(upload)
        with self._locked(session.file):
            there = self._there(session)
            if there is None or offset != there:
                raise _wrong_offset(session, there)
            most = self.largest if session.size is None else session.size
            with self._database.read() as connection:
                most = min(most, there + self._room(connection) + (session.size or 0))
            with open(self._part(session.file), "ab") as part:
                for chunk in [chunks] if isinstance(chunks, bytes) else chunks:
                    if there + len(chunk) > most:
                        raise TooLargeError(
                            f"more than the {most:,} bytes that are taken of this file",
                            remedy="Announce its size rightly, or send less.",
                        )
                    part.write(chunk)
                    there += len(chunk)
            return there

    def offset(self, upload: str) -> int:
        """Where to go on; the whole size when it is finished. Raises as `append`."""
        session = self._session(upload)
        there = self._there(session)
        return self.path(session.file).stat().st_size if there is None else there

    def finished(self, upload: str) -> FileRecord | None:
        """The file that an upload has become; None while it is under way. Raises as `append`."""
        return self._record(self._session(upload).file)

    def finish(self, upload: str) -> FileRecord:
        """Makes a file of what was sent. A second call answers as the first, so it may be repeated after a
        crash or a lost answer.

        Raises:
            NotFoundError: no such upload, or no longer.
            ConflictError: fewer bytes than were announced.
        """
        session = self._session(upload)
        with self._locked(session.file):
            if (done := self._record(session.file)) is not None:
                return done
            part, final = self._part(session.file), self.folder / session.file
            if part.exists():
                there = part.stat().st_size
                if session.size is not None and there != session.size:
                    raise ConflictError(
                        f"{there:,} bytes are here, and {session.size:,} were announced",
                        remedy=f"Send the rest from offset {there}.",
                    )
                _sync(part)
                part.replace(final)
            return self._keep(session, final)

    def add(
        self,
        data: bytes | Iterable[bytes],
        *,
        owner: str | None,
        name: str,
        mime: str,
        purpose: str,
        lifetime: timedelta | None = None,
        id: str | None = None,  # noqa: A002
    ) -> FileRecord:
        """`begin`, `append` and `finish` in one; nothing is left of it if one of them fails.

        With an `id`, what is left of an earlier one of the same id that never became a file is removed.
        """
        if id is not None:
            self._give_up(id)
        upload = self.begin(owner=owner, name=name, mime=mime, purpose=purpose, lifetime=lifetime, id=id)
        try:
            self.append(upload, 0, data)
            return self.finish(upload)
        except BaseException:
            self.cancel(upload)
            raise

    def cancel(self, upload: str) -> None:
        """Forgets what was sent; a file that was finished stays.

        Raises:
            NotFoundError: no such upload, or no longer.
        """
        session = self._session(upload)
        with self._locked(session.file):
            with self._database.begin() as connection:
                connection.execute(_sessions.delete().where(_sessions.c.file == session.file))
            self._part(session.file).unlink(missing_ok=True)

    def get(self, id: str, *, owner: str | None) -> FileRecord:  # noqa: A002
        """The file of that id.

        Raises:
            NotFoundError: there is none, it has expired, or it is another owner's.
        """
        record = self._record(id)
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
        table, now = _files.c, self._clock()
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
        query = sa.select(_files).where(*wanted).order_by(*order).limit(size + 1)
        with self._database.read() as connection:
            found = [FileRecord(**row._mapping) for row in connection.execute(query)]
        shown = tuple(found[:size])
        return Page(shown, shown[-1].id if len(found) > size else None)

    def path(self, id: str) -> Path:  # noqa: A002
        """Where the bytes of a file lie. Ask `get` first, whether it is whose it should be."""
        return self.folder / _checked_id(id)

    def delete(self, id: str, *, owner: str | None) -> FileRecord:  # noqa: A002
        """Forgets a file at once; raises as `get`."""
        record = self.get(id, owner=owner)
        self._forget([record.id])
        return record

    def expire(self) -> int:
        """Removes files and uploads whose time is over; says how many files."""
        now = self._clock()
        with self._database.read() as connection:
            files = connection.execute(sa.select(_files.c.id).where(_files.c.expires <= now)).scalars().all()
            ended = sa.select(_sessions.c.file).where(_sessions.c.ends <= now)
            uploads = connection.execute(ended).scalars().all()
        if files:
            self._forget(files)
        for file in uploads:
            with suppress(ConflictError), self._locked(file):  # one that is at work is left to the next look
                with self._database.begin() as connection:
                    connection.execute(_sessions.delete().where(_sessions.c.file == file))
                self._part(file).unlink(missing_ok=True)
                if self._record(file) is None:  # it had its name, and died before it was written down
                    (self.folder / file).unlink(missing_ok=True)
        return len(files)

    def sweep(self) -> int:
        """Removes bytes that no record and no upload tells of, as a crash may leave; says how many files.

        For the start of a process, before anything is uploaded.
        """
        with self._database.read() as connection:
            known = set(connection.execute(sa.select(_sessions.c.file)).scalars())
            known |= set(connection.execute(sa.select(_files.c.id)).scalars())
        lost = [
            path
            for path in (*self.folder.iterdir(), *(self.folder / "parts").iterdir())
            if path.is_file() and path.name not in known
        ]
        for path in lost:
            path.unlink(missing_ok=True)
        return len(lost)

    def _is_begun(self, file: str, owner: str | None) -> bool:
        """Whether there is an upload of that id, and this owner's."""
        mine = (_sessions.c.file == file, _sessions.c.owner.is_not_distinct_from(owner))
        with self._database.read() as connection:
            return connection.execute(sa.select(_sessions.c.file).where(*mine)).first() is not None

    def _give_up(self, file: str) -> None:
        """Forgets an upload that was broken off, with its bytes; a file stays."""
        with self._locked(_checked_id(file)):
            if self._record(file) is not None:
                return
            with self._database.begin() as connection:
                connection.execute(_sessions.delete().where(_sessions.c.file == file))
            self._part(file).unlink(missing_ok=True)
            (self.folder / file).unlink(missing_ok=True)

    def _session(self, upload: str) -> Session:
        query = sa.select(_sessions).where(
            _sessions.c.token == _hashed(upload), _sessions.c.ends > self._clock()
        )
        with self._database.read() as connection:
            found = connection.execute(query).one_or_none()
        if found is None:
            raise NotFoundError("no such upload, or no longer", remedy="Begin it again.")
        return found

    def _record(self, file: str) -> FileRecord | None:
        alive = sa.or_(_files.c.expires.is_(None), _files.c.expires > self._clock())
        with self._database.read() as connection:
            row = connection.execute(sa.select(_files).where(_files.c.id == file, alive)).one_or_none()
        return None if row is None else FileRecord(**row._mapping)

    def _keep(self, session: Session, final: Path) -> FileRecord:
        now = self._clock()
        record = FileRecord(
            id=session.file, name=session.name, mime=session.mime, size=final.stat().st_size,
            sha256=sha256_file(final), purpose=session.purpose, owner=session.owner, created=now,
            expires=None if session.lifetime is None else now + timedelta(seconds=session.lifetime),
        )  # fmt: skip
        with self._database.begin() as connection:
            connection.execute(_files.insert().values(**record.__dict__))
        return record

    def _there(self, session: Session) -> int | None:
        """Bytes that have come; None for a file that is finished."""
        try:
            return self._part(session.file).stat().st_size
        except FileNotFoundError:
            return None

    def _forget(self, files: Iterable[str]) -> None:
        files = list(files)
        with self._database.begin() as connection:  # first the name, then the bytes
            connection.execute(_files.delete().where(_files.c.id.in_(files)))
            connection.execute(_sessions.delete().where(_sessions.c.file.in_(files)))
        for file in files:
            (self.folder / file).unlink(missing_ok=True)

    def _check_free(self, connection: sa.Connection, file: str) -> None:
        taken = sa.union_all(
            sa.select(_files.c.id).where(_files.c.id == file),
            sa.select(_sessions.c.file).where(_sessions.c.file == file),
        )
        if connection.execute(taken).first() is not None:
            raise ConflictError("a file of this name exists", where=file, remedy="Choose another name.")

    def _check_size(self, size: int) -> None:
        if size < 0:
            raise StudioloError("a file has 0 bytes or more", where=f"size {size}")
        if size > self.largest:
            raise TooLargeError(f"a file of {size:,} bytes, and at most {self.largest:,} are taken")

    def _check_room(self, connection: sa.Connection, size: int) -> None:
        if size > (room := self._room(connection)):
            raise TooLargeError(
                f"no room for {size:,} more bytes of files: {max(room, 0):,} are left",
                remedy="Delete files that are no longer needed.",
            )

    def _room(self, connection: sa.Connection) -> int:
        """Bytes that may still come; what was announced is counted whole."""
        kept = connection.scalar(sa.select(sa.func.coalesce(sa.func.sum(_files.c.size), 0)))
        open_ones = sa.select(_sessions.c.file, _sessions.c.size).where(
            _sessions.c.file.not_in(sa.select(_files.c.id))
        )
        coming = sum(
            self._size_on_disk(file) if size is None else size for file, size in connection.execute(open_ones)
        )
        return self.total - int(kept or 0) - coming

    def _size_on_disk(self, file: str) -> int:
        try:
            return self._part(file).stat().st_size
        except FileNotFoundError:
            return 0

    def _part(self, file: str) -> Path:
        return self.folder / "parts" / file

    @contextmanager
    def _locked(self, file: str) -> Iterator[None]:
        """One at a time works on a file."""
        with self._guard:
            if file in self._busy:
                raise ConflictError("another request sends to this upload now", remedy="One at a time.")
            self._busy.add(file)
        try:
            yield
        finally:
            with self._guard:
                self._busy.discard(file)


def _hashed(token: str) -> str:
    return sha256_bytes(token.encode())


def _checked_id(given: str) -> str:
    if not _ID.fullmatch(given):
        raise StudioloError(
            "not a name for a file",
            where=repr(given[:100]),
            remedy="Use 1 to 40 lower-case letters, digits or '-', with no '-' at either end.",
        )
    return given


def check_names(name: str, mime: str) -> None:
    """
    Raises:
        StudioloError: a name or a media type that no file can have.
    """
    if not name or len(name) > 512 or _CONTROL.search(name):
        raise StudioloError(
            "a file's name has 1 to 512 characters, none of them control characters", where=repr(name[:100])
        )
    if not _MIME.fullmatch(mime):
        raise StudioloError("not a media type", where=repr(mime[:100]), remedy="Give one, such as image/png.")


def _wrong_offset(session: Session, there: int | None) -> ConflictError:
    if there is None:
        return ConflictError("this upload is finished", where=session.file)
    return ConflictError(f"{there} bytes are here", where="offset", remedy=f"Go on from offset {there}.")


def _sync(file: Path) -> None:
    with open(file, "rb+") as handle:
        os.fsync(handle.fileno())

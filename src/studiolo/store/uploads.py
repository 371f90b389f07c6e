"""Files that were uploaded: in pieces, resumed after any interruption, whole or absent in the end.

The bytes lie in `files/` of the data folder, under the file's id; what is still on its way in `files/parts/`
(`upload_bytes`). What is told of them is in the database (`upload_records`).
"""

from __future__ import annotations

import secrets
from collections.abc import Callable, Iterable
from contextlib import AbstractContextManager, suppress
from datetime import UTC, datetime, timedelta
from pathlib import Path

from studiolo.errors import ConflictError, TooLargeError
from studiolo.store.database import Database
from studiolo.store.upload_bytes import Bytes
from studiolo.store.upload_names import check_names, checked_id
from studiolo.store.upload_records import FileRecord, Page, Records, Session, check_free, hashed, sessions
from studiolo.store.upload_room import Room

__all__ = ["SESSION", "FileRecord", "Page", "Uploads", "check_names"]

GIB = 2**30
SESSION = timedelta(days=1)
"""How long an upload may take from its beginning to its end."""


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
        self.largest = largest
        self._bytes, self._records = Bytes(folder), Records(database, clock)
        self._room = Room(self._bytes, largest=largest, total=total)

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
        file = f"file-{secrets.token_hex(12)}" if id is None else checked_id(id)
        if id is not None and self._records.is_begun(file, owner):
            self._give_up(file)
        if size is not None:
            self._room.check_size(size)
        token = secrets.token_urlsafe(32)
        row = {
            "token": hashed(token), "file": file, "owner": owner, "name": name, "mime": mime, "size": size,
            "purpose": purpose, "lifetime": lifetime.total_seconds() if lifetime else None,
            "ends": self._clock() + SESSION,
        }  # fmt: skip
        self.expire()
        with self._database.begin() as connection:
            check_free(connection, file)
            self._room.check(connection, size or 0)
            self._bytes.part(file).touch()
            connection.execute(sessions.insert().values(row))
        return token

    def append(self, upload: str, offset: int, chunks: Iterable[bytes] | bytes) -> int:
        """Adds bytes at `offset`, which is where the last ones ended; returns how many there are now.

        What was written stays when `chunks` fails in its midst.

        Raises:
            NotFoundError: no such upload, or no longer.
            ConflictError: bytes are missing before `offset`, or there already; the error names the offset.
            TooLargeError: more than was announced, or than is taken.
        """
        session = self._records.session(upload)
        with self._locked(session.file):
            there = self._bytes.size(session.file)
            if there is None or offset != there:
                raise _wrong_offset(session, there)
            most = self.largest if session.size is None else session.size
            with self._database.read() as connection:
                most = min(most, there + self._room.left(connection) + (session.size or 0))
            with open(self._bytes.part(session.file), "ab") as part:
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
        session = self._records.session(upload)
        there = self._bytes.size(session.file)
        return self.path(session.file).stat().st_size if there is None else there

    def finished(self, upload: str) -> FileRecord | None:
        """The file that an upload has become; None while it is under way. Raises as `append`."""
        return self._records.find(self._records.session(upload).file)

    def finish(self, upload: str) -> FileRecord:
        """Makes a file of what was sent. A second call answers as the first, so it may be repeated after a
        crash or a lost answer.

        Raises:
            NotFoundError: no such upload, or no longer.
            ConflictError: fewer bytes than were announced.
        """
        session = self._records.session(upload)
        with self._locked(session.file):
            if (done := self._records.find(session.file)) is not None:
                return done
            there = self._bytes.size(session.file)
            if there is not None and session.size is not None and there != session.size:
                raise ConflictError(
                    f"{there:,} bytes are here, and {session.size:,} were announced",
                    remedy=f"Send the rest from offset {there}.",
                )
            return self._keep(session, self._bytes.seal(session.file))

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
        session = self._records.session(upload)
        with self._locked(session.file):
            self._records.end(session.file)
            self._bytes.drop_part(session.file)

    def get(self, id: str, *, owner: str | None) -> FileRecord:  # noqa: A002
        """The file of that id.

        Raises:
            NotFoundError: there is none, it has expired, or it is another owner's.
        """
        return self._records.get(id, owner=owner)

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
        return self._records.page(
            owner=owner, size=size, after=after, purpose=purpose, oldest_first=oldest_first
        )

    def path(self, id: str) -> Path:  # noqa: A002
        """Where the bytes of a file lie. Ask `get` first, whether it is whose it should be."""
        return self._bytes.path(id)

    def delete(self, id: str, *, owner: str | None) -> FileRecord:  # noqa: A002
        """Forgets a file at once; raises as `get`."""
        record = self.get(id, owner=owner)
        self._forget([record.id])
        return record

    def expire(self) -> int:
        """Removes files and uploads whose time is over; says how many files."""
        files, uploads = self._records.expired()
        if files:
            self._forget(files)
        for file in uploads:
            with suppress(ConflictError), self._locked(file):  # one that is at work is left to the next look
                self._records.end(file)
                self._bytes.drop_part(file)
                if self._records.find(file) is None:  # it had its name, and died before it was written down
                    self._bytes.drop(file)
        return len(files)

    def sweep(self) -> int:
        """Removes bytes that no record and no upload tells of, as a crash may leave; says how many files.

        For the start of a process, before anything is uploaded.
        """
        return self._bytes.sweep(self._records.known())

    def _give_up(self, file: str) -> None:
        """Forgets an upload that was broken off, with its bytes; a file stays."""
        with self._locked(checked_id(file)):
            if self._records.find(file) is not None:
                return
            self._records.end(file)
            self._bytes.drop_part(file)
            self._bytes.drop(file)

    def _forget(self, files: Iterable[str]) -> None:
        files = list(files)
        self._records.forget(files)  # first the name, then the bytes
        for file in files:
            self._bytes.drop(file)

    def _keep(self, session: Session, final: Path) -> FileRecord:
        return self._records.keep(session, final)

    def _locked(self, file: str) -> AbstractContextManager[None]:
        return self._bytes.locked(file)


def _wrong_offset(session: Session, there: int | None) -> ConflictError:
    if there is None:
        return ConflictError("this upload is finished", where=session.file)
    return ConflictError(f"{there} bytes are here", where="offset", remedy=f"Go on from offset {there}.")

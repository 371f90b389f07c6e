"""How large uploaded files may be, and how much room is left for them."""

from __future__ import annotations

import sqlalchemy as sa

from studiolo.errors import StudioloError, TooLargeError
from studiolo.store.upload_bytes import Bytes
from studiolo.store.upload_records import files, sessions


class Room:
    """`largest` are bytes of one file, `total` of all of them together, those on their way included."""

    def __init__(self, bytes_: Bytes, *, largest: int, total: int) -> None:
        self._bytes, self._largest, self._total = bytes_, largest, total

    def check_size(self, size: int) -> None:
        """
        Raises:
            StudioloError: no file has this size.
            TooLargeError: none may.
        """
        if size < 0:
            raise StudioloError("a file has 0 bytes or more", where=f"size {size}")
        if size > self._largest:
            raise TooLargeError(f"a file of {size:,} bytes, and at most {self._largest:,} are taken")

    def check(self, connection: sa.Connection, size: int) -> None:
        """
        Raises:
            TooLargeError: there is no room for so many more bytes.
        """
        if size > (left := self.left(connection)):
            raise TooLargeError(
                f"no room for {size:,} more bytes of files: {max(left, 0):,} are left",
                remedy="Delete files that are no longer needed.",
            )

    def left(self, connection: sa.Connection) -> int:
        """Bytes that may still come; what was announced is counted whole."""
        kept = connection.scalar(sa.select(sa.func.coalesce(sa.func.sum(files.c.size), 0)))
        under_way = sa.select(sessions.c.file, sessions.c.size).where(
            sessions.c.file.not_in(sa.select(files.c.id))
        )
        coming = sum(
            (self._bytes.size(file) or 0) if size is None else size
            for file, size in connection.execute(under_way)
        )
        return self._total - int(kept or 0) - coming

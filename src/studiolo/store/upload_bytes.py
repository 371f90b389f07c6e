"""Where the bytes of uploaded files lie, and those that are still on their way."""

from __future__ import annotations

import os
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from studiolo.errors import ConflictError
from studiolo.store.upload_names import checked_id


class Bytes:
    """A folder: files under their ids, and what has come of others in `parts` below it.

    How much of an upload is there is the size of its part and nothing else: it is right also after a crash.
    """

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self._busy: set[str] = set()
        self._guard = threading.Lock()
        (folder / "parts").mkdir(parents=True, exist_ok=True)

    def path(self, file: str) -> Path:
        """Where a file lies when it is whole.

        Raises:
            StudioloError: not a name for a file.
        """
        return self.folder / checked_id(file)

    def part(self, file: str) -> Path:
        """Where what has come of it lies until then."""
        return self.folder / "parts" / file

    def size(self, file: str) -> int | None:
        """Bytes that have come; None for a file that is finished."""
        try:
            return self.part(file).stat().st_size
        except FileNotFoundError:
            return None

    def seal(self, file: str) -> Path:
        """Makes a file of its part, if it has one; where it lies."""
        part, final = self.part(file), self.folder / file
        if part.exists():
            _sync(part)
            part.replace(final)
        return final

    def drop(self, file: str) -> None:
        """Removes a file."""
        (self.folder / file).unlink(missing_ok=True)

    def drop_part(self, file: str) -> None:
        """Removes what has come of it."""
        self.part(file).unlink(missing_ok=True)

    def sweep(self, known: set[str]) -> int:
        """Removes all bytes but those of these ids; says how many files."""
        lost = [
            path
            for path in (*self.folder.iterdir(), *(self.folder / "parts").iterdir())
            if path.is_file() and path.name not in known
        ]
        for path in lost:
            path.unlink(missing_ok=True)
        return len(lost)

    @contextmanager
    def locked(self, file: str) -> Iterator[None]:
        """One at a time works on a file.

        Raises:
            ConflictError: another one does.
        """
        with self._guard:
            if file in self._busy:
                raise ConflictError("another request sends to this upload now", remedy="One at a time.")
            self._busy.add(file)
        try:
            yield
        finally:
            with self._guard:
                self._busy.discard(file)


def _sync(file: Path) -> None:
    with open(file, "rb+") as handle:
        os.fsync(handle.fileno())

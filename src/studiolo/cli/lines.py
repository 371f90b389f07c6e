"""A file of JSON lines, one a document, that is in order whenever the process is killed.

A line is {"document": ..., "data": ...}. It is written when its data is there and ends with the file's only
kind of line break, so a last line without one that is no whole object was torn off; the next run drops it.
"""

from __future__ import annotations

import json
import os
from pathlib import Path
from types import TracebackType
from typing import Any

from studiolo.errors import StudioloError

_BEGINNING = b'{"document": "'


class Lines:
    """Such a file, open to be added to. A pipe or device is written to and never read.

    Args:
        path: made if it is not there; a torn last line of it is dropped.

    Attributes:
        path: the same.
        documents: those whose line is in the file.
        torn: bytes that were dropped.

    Raises:
        StudioloError: the file is something else; it is left as it was.
        OSError: it cannot be read or written.
    """

    def __init__(self, path: Path) -> None:
        self.path, self.documents, self.torn = path, set[str](), 0
        there = path.is_file()
        whole, ended = self._read() if there else (0, True)
        self._file = open(path, "ab", buffering=0)  # noqa: SIM115  closed by `__exit__`
        if there:
            self.torn = path.stat().st_size - whole
            self._file.truncate(whole)
        if not ended:
            self._write(b"\n")

    def __enter__(self) -> Lines:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._file.close()

    def add(self, document: str, line: bytes) -> None:
        """Writes the line of a document (see `encoded`); when this returns, it is on the disk.

        Raises:
            StudioloError: it cannot be written.
        """
        self._write(line)
        self.documents.add(document)

    def _write(self, line: bytes) -> None:
        try:
            while line:
                line = line[self._file.write(line) :]
            if self.path.is_file():
                os.fsync(self._file.fileno())
        except OSError as error:
            raise StudioloError(error.strerror or str(error), where=self.path) from error

    def _read(self) -> tuple[int, bool]:
        """Finds the documents. Returns the length of all whole lines, and whether the last of them has its
        line break."""
        whole, line = 0, b"\n"
        with open(self.path, "rb") as file:
            for number, line in enumerate(file, 1):
                document = _document(line)
                if document is None:
                    self._check_torn(line, number)
                    return whole, True
                self.documents.add(document)
                whole += len(line)
        return whole, line.endswith(b"\n")

    def _check_torn(self, line: bytes, number: int) -> None:
        if line.endswith(b"\n") or not _BEGINNING.startswith(line[: len(_BEGINNING)]):
            raise StudioloError(
                "not a line that `studiolo extract` writes",
                where=f"{self.path}, line {number}",
                remedy="Name another file; this one is left as it is.",
            )


def encoded(document: str, data: Any) -> bytes:
    """The line of a document.

    Raises:
        StudioloError: a number in the data is infinite, for which JSON has no word.
    """
    line = {"document": document, "data": data}
    try:
        return json.dumps(line, ensure_ascii=False, allow_nan=False).encode() + b"\n"
    except UnicodeEncodeError:  # the name of a file may hold bytes that are no UTF-8
        return json.dumps(line, allow_nan=False).encode() + b"\n"
    except ValueError:
        raise StudioloError("a number in the answer is too large for JSON") from None


def _document(line: bytes) -> str | None:
    """Whose line it is; None for what is no such line."""
    try:
        found = json.loads(line)
    except ValueError:
        return None
    if not isinstance(found, dict) or found.keys() != {"document", "data"}:
        return None
    return found["document"] if isinstance(found["document"], str) else None

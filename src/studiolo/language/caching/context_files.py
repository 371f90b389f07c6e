"""A context on the disk: a file of two lines, the record, so that a list reads no prefixes, and the prefix.

No more of a file is read than can have been written.
"""

from __future__ import annotations

from contextlib import suppress
from pathlib import Path

from pydantic import ValidationError

from studiolo.errors import StudioloError
from studiolo.language.caching.prefix import Context
from studiolo.store.files import atomic_path

_RECORD = 2**16  # bytes of the longest first line, far above what is written


def write(file: Path, context: Context, body: bytes) -> None:
    """Both lines, or nothing."""
    with atomic_path(file) as temporary:
        temporary.write_bytes(context.model_dump_json().encode() + b"\n" + body + b"\n")


def read(file: Path, most: int) -> tuple[Context, bytes]:
    """The record, and the prefix of at most so many bytes.

    Raises:
        FileNotFoundError: there is no such file.
        StudioloError: it is not as it was written.
    """
    whole = _RECORD + most + len(b"\n\n")
    with file.open("rb") as opened:
        data = opened.read(whole + 1)
    if len(data) > whole:
        raise damaged(file, f"more than {most:,} bytes")
    head, _, body = data.partition(b"\n")
    return _parsed(head, file), body.rstrip(b"\n")


def record(file: Path) -> Context | None:
    """The record; None if another process has just deleted the file. Raises as `read`."""
    try:
        with file.open("rb") as opened:
            return _parsed(opened.readline(_RECORD), file)
    except FileNotFoundError:
        return None


def size(file: Path) -> int:
    """Bytes of a file; 0 if it has just been deleted."""
    with suppress(FileNotFoundError):
        return file.stat().st_size
    return 0


def damaged(file: Path, how: str = "not as it was written") -> StudioloError:
    return StudioloError(f"damaged context: {how}", where=file, remedy="Delete this file.")


def _parsed(line: bytes, file: Path) -> Context:
    try:
        return Context.model_validate_json(line)
    except ValidationError as error:
        raise damaged(file) from error

"""Files that are whole or absent, and the hashes that name them by content."""

from __future__ import annotations

import hashlib
import json
import os
import shutil
import uuid
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any


@contextmanager
def atomic_path(final: str | os.PathLike[str]) -> Iterator[Path]:
    """Yields a temporary path to write a file to; renames it to `final` if the block succeeds.

    The temporary file lies in the same folder (a rename is atomic only within a file system) and
    keeps the suffix (writers choose the format by it). If the block raises, `final` is left as it was.
    """
    target = Path(final)
    target.parent.mkdir(parents=True, exist_ok=True)
    temporary = _temporary(target)
    try:
        yield temporary
        _sync(temporary)
        temporary.replace(target)
    finally:
        temporary.unlink(missing_ok=True)


@contextmanager
def atomic_dir(final: str | os.PathLike[str]) -> Iterator[Path]:
    """Yields a temporary folder to fill; renames it to `final` if the block succeeds.

    A folder that stood there is replaced as a whole: it is moved aside, never mixed with the new one.
    If the block raises, `final` is left as it was.
    """
    target = Path(final)
    target.parent.mkdir(parents=True, exist_ok=True)
    temporary = _temporary(target)
    temporary.mkdir()
    try:
        yield temporary
        readable = temporary.stat().st_mode & 0o666  # as the user's umask has it; some writers make 0600
        for file in temporary.rglob("*"):
            if file.is_file():
                file.chmod(readable)
                _sync(file)
        _replace_dir(temporary, target)
    finally:
        shutil.rmtree(temporary, ignore_errors=True)


def sha256_file(path: str | os.PathLike[str]) -> str:
    """The SHA-256 of a file's bytes, in hex."""
    with open(path, "rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


def sha256_bytes(data: bytes) -> str:
    """The SHA-256 of `data`, in hex."""
    return hashlib.sha256(data).hexdigest()


def sha256_json(value: Any) -> str:
    """The SHA-256 of a JSON value in one canonical form (sorted keys, no spaces, UTF-8), in hex.

    Raises:
        ValueError: for NaN and infinities, which JSON cannot say.
        TypeError: for values that are not JSON.
    """
    text = json.dumps(value, sort_keys=True, separators=(",", ":"), ensure_ascii=False, allow_nan=False)
    return sha256_bytes(text.encode())


def _temporary(target: Path) -> Path:
    return target.with_name(f".tmp-{uuid.uuid4().hex[:12]}-{target.name}")


def _sync(file: Path) -> None:
    """Brings the bytes to the disk before the name: else a power cut may leave the name without them."""
    with open(file, "rb+") as handle:
        os.fsync(handle.fileno())


def _replace_dir(new: Path, target: Path) -> None:
    if not target.exists():
        new.rename(target)
        return
    old = _temporary(target)
    target.rename(old)
    try:
        new.rename(target)
    except OSError:
        old.rename(target)
        raise
    shutil.rmtree(old)

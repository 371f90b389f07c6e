"""Uploaded images of a subject, or archives of them, to a folder of images: bounded before they are read."""

from __future__ import annotations

import re
import struct
import zipfile
import zlib
from collections.abc import Iterable, Iterator
from pathlib import Path, PurePosixPath

from studiolo.errors import StudioloError, TooLargeError
from studiolo.language.errors import InvalidRequestError
from studiolo.store.files import atomic_path

MOST_IMAGES = 200
MOST_BYTES = 2**30
"""Of all images together."""
_ENTRIES, _DIRECTORY = 10_000, 16 * 2**20
"""Of an archive: how many names its directory may have, and bytes."""
_METHODS = (zipfile.ZIP_STORED, zipfile.ZIP_DEFLATED)


def unpack(files: Iterable[tuple[str, Path]], folder: Path) -> list[Path]:
    """Writes the images in `files`, (name, path) of each, to `folder`, under safe names that resemble theirs.

    Raises:
        InvalidRequestError: something is no image, an archive is damaged or encrypted, or there is none.
        TooLargeError: too many, or too much of them.
    """
    written: list[Path] = []
    left = MOST_BYTES
    for name, data in _images(files):
        left -= len(data)
        if left < 0:
            raise TooLargeError(f"the images have more than {MOST_BYTES:,} bytes together", where=name)
        if len(written) == MOST_IMAGES:
            raise TooLargeError(f"more than {MOST_IMAGES} images", remedy="Choose the 3 to 10 best.")
        path = _free(folder, name)
        with atomic_path(path) as temporary:
            temporary.write_bytes(data)
        written.append(path)
    if not written:
        raise InvalidRequestError("no images there", where="files", remedy="Give 3 to 10 of the subject.")
    return written


def _images(files: Iterable[tuple[str, Path]]) -> Iterator[tuple[str, bytes]]:
    """Name and bytes of each image, looked at."""
    from studiolo.dreambooth.images import decode, read_bytes

    for name, path in files:
        for inner, data in _archived(name, path) if _is_zip(path) else [(name, read_bytes(path))]:
            try:
                decode(data, inner)
            except StudioloError as error:
                raise InvalidRequestError(error.message, where=inner, remedy=error.remedy) from error
            yield inner, data


def _is_zip(path: Path) -> bool:
    with path.open("rb") as file:
        return file.read(2) == b"PK"


def _archived(name: str, path: Path) -> Iterator[tuple[str, bytes]]:
    """Name and bytes of each file in an archive; what operating systems put beside them is left out."""
    from studiolo.dreambooth.images import MAX_BYTES

    _check_directory(name, path)
    try:
        with zipfile.ZipFile(path) as archive:
            for entry in archive.infolist():
                base = PurePosixPath(entry.filename.replace("\\", "/")).name
                if entry.is_dir() or base.startswith(".") or entry.filename.startswith("__MACOSX/"):
                    continue
                if entry.flag_bits & 1 or entry.compress_type not in _METHODS:
                    raise InvalidRequestError("encrypted, or packed in an uncommon way", where=base)
                with archive.open(entry) as file:
                    data = file.read(MAX_BYTES + 1)  # whatever its header says
                if len(data) > MAX_BYTES:
                    raise TooLargeError(f"more than {MAX_BYTES:,} bytes", where=base)
                yield base, data
    except (zipfile.BadZipFile, zlib.error, EOFError, OSError, ValueError, NotImplementedError) as error:
        raise InvalidRequestError(f"not a readable ZIP file ({error})", where=name) from error


def _check_directory(name: str, path: Path) -> None:
    """Looks at the end record before `zipfile` reads all of the directory into memory.

    The record: https://pkware.cachefly.net/webdocs/casestudies/APPNOTE.TXT, 4.3.16; an archive that needs the
    64-bit one is far beyond what is taken here.
    """
    with path.open("rb") as file:
        size = file.seek(0, 2)
        file.seek(max(0, size - 22 - 2**16 - 20))
        tail = file.read()
    end = tail.rfind(b"PK\x05\x06")
    if end < 0 or len(tail) < end + 22:
        raise InvalidRequestError("a ZIP file without its end, or no ZIP file", where=name)
    entries, directory = struct.unpack_from("<HI", tail, end + 10)
    if entries > _ENTRIES or directory > _DIRECTORY or tail[max(0, end - 20) : end].startswith(b"PK\x06\x07"):
        raise TooLargeError("an archive of too many files", where=name)


def _free(folder: Path, name: str) -> Path:
    """A path in `folder` that is not taken; nothing in the name can lead out of it."""
    base = PurePosixPath(name.replace("\\", "/")).name
    stem, dot, suffix = base.rpartition(".")
    stem = re.sub(r"[^\w \-\[\]()',]+", "_", stem if dot else base).strip(" _")[:80] or "image"
    suffix = f".{suffix.lower()}" if re.fullmatch(r"\w{1,5}", suffix) and dot else ".png"
    path, number = folder / f"{stem}{suffix}", 2
    while path.exists():
        path = folder / f"{stem}-{number}{suffix}"
        number += 1
    return path

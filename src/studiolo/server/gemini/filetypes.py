"""Media types of files, and whether their bytes are of them."""

from __future__ import annotations

import mimetypes
from pathlib import Path

from studiolo.store.uploads import FileRecord

_SIGNS: dict[str, tuple[bytes, ...]] = {
    "image/png": (b"\x89PNG\r\n\x1a\n",),
    "image/jpeg": (b"\xff\xd8\xff",),
    "image/gif": (b"GIF87a", b"GIF89a"),
    "image/webp": (b"RIFF",),
    "audio/wav": (b"RIFF",),
    "application/pdf": (b"%PDF-",),
    "application/zip": (b"PK\x03\x04", b"PK\x05\x06"),
}
"""How the bytes of a type begin."""


def problem_of(file: FileRecord, path: Path) -> str | None:
    """Why a file cannot be used as what it says to be; None if it can."""
    signs = _SIGNS.get(file.mime.lower())
    if signs is None:
        return None
    try:
        with path.open("rb") as opened:
            start = opened.read(16)
    except FileNotFoundError:  # it was deleted a moment ago
        return "The bytes of this file are gone."
    if start.startswith(signs):
        return None
    return f"The bytes of this file are not {file.mime}."


def media_type(said: str) -> str:
    """The media type that a client names, without its parameters.

    Google's guide to batches names that of their files `jsonl` (https://ai.google.dev/gemini-api/docs/batch-api).
    """
    plain = said.partition(";")[0].strip()
    return "application/jsonl" if plain == "jsonl" else plain


def type_of(name: str) -> str:
    """The media type that a file's name tells."""
    return mimetypes.guess_type(name)[0] or "application/octet-stream"

"""What uploaded files may be called, and of which types they may be."""

from __future__ import annotations

import re

from studiolo.errors import StudioloError

_ID = re.compile(r"[a-z0-9](?:[a-z0-9-]{0,38}[a-z0-9])?")
_MIME = re.compile(r"[A-Za-z0-9!#$&^_.+-]{1,60}/[A-Za-z0-9!#$&^_.+-]{1,100}")
_CONTROL = re.compile(r"[\x00-\x1f\x7f\u2028\u2029]")


def checked_id(given: str) -> str:
    """The id, if it can be one: it is the name of a file on the disk, too.

    Raises:
        StudioloError: it cannot.
    """
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

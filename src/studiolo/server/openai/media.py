"""Pictures, sounds and files of a request."""

from __future__ import annotations

import base64
import binascii
import mimetypes
import re
from urllib.parse import unquote_to_bytes, urlsplit

from studiolo.language.conversation import Data, FileRef
from studiolo.language.errors import InvalidRequestError

OWN_FILES = "files/"
"""What the URI of an uploaded file begins with; its id follows."""

_AUDIO = {"wav": "audio/wav", "mp3": "audio/mpeg"}
_DATA_URL = re.compile(r"data:(?P<type>[\w.+-]+/[\w.+*-]+)?(?P<more>(?:;[^;,]*)*),", re.ASCII)


def picture(url: str, *, where: str) -> Data | FileRef:
    """A picture by its URL: data is decoded, all else is left for the engine to fetch."""
    return linked(url, media_type="image/*", where=where)


def linked(url: str, *, media_type: str, where: str, name: str | None = None) -> Data | FileRef:
    """What a URL points to; `media_type` is taken to be its type where nothing tells it.

    Raises:
        InvalidRequestError: bad data, or a URL that is not one of the web.
    """
    if url.startswith("data:"):
        return _data(url, media_type, where, name)
    try:
        parts = urlsplit(url)
    except ValueError:  # brackets that hold no address
        parts = urlsplit("")
    if parts.scheme not in ("http", "https", "gs") or not parts.netloc:
        raise InvalidRequestError("not a URL of data or of the web", where=where)
    guessed, _ = mimetypes.guess_type(parts.path)
    return FileRef(uri=url, media_type=guessed or media_type)


def sound(data: str, form: str, *, where: str) -> Data:
    return Data(media_type=_AUDIO[form], data=decoded(data, where=where))


def file(
    *, data: str | None, uploaded: str | None, url: str | None = None, name: str | None, where: str
) -> Data | FileRef:
    """A file, given as base64 or a URL of data, by its link, or by the id of an uploaded one.

    Raises:
        InvalidRequestError: given in no way or in two.
    """
    if sum(way is not None for way in (data, uploaded, url)) != 1:
        raise InvalidRequestError("a file is given by one of its data, its id and its URL", where=where)
    if uploaded is not None:
        return FileRef(uri=f"{OWN_FILES}{uploaded}")
    guessed = mimetypes.guess_type(name or "")[0] or "application/pdf"
    if url is not None:
        return linked(url, media_type=guessed, where=where, name=name)
    assert data is not None
    if data.startswith("data:"):
        return _data(data, guessed, where, name)
    return Data(media_type=guessed, data=decoded(data, where=where), name=name)


def decoded(text: str, *, where: str) -> bytes:
    """
    Raises:
        InvalidRequestError: it is not base64.
    """
    try:
        return base64.b64decode(text, validate=True)
    except (binascii.Error, ValueError):
        raise InvalidRequestError("not base64", where=where) from None


def _data(url: str, media_type: str, where: str, name: str | None) -> Data:
    head = _DATA_URL.match(url)
    if head is None:
        raise InvalidRequestError("not a URL of data (RFC 2397)", where=where)
    rest = url[head.end() :]
    content = decoded(rest, where=where) if ";base64" in head["more"] else unquote_to_bytes(rest)
    return Data(media_type=head["type"] or media_type, data=content, name=name)

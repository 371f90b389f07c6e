"""Large files over HTTP: gone on with where they were cut, whole and right or not there."""

from __future__ import annotations

import base64
import errno
import http.client
import netrc
import re
import shutil
import ssl
import time
import urllib.error
import urllib.parse
import urllib.request
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from email.message import Message
from http.client import HTTPResponse
from pathlib import Path
from typing import IO, Any

from studiolo.errors import StudioloError
from studiolo.store.files import sha256_file

OnBytes = Callable[[int, int | None], None]
"""Called with the bytes that are there and those that there will be (None: the server does not say)."""

PATIENCE = 1.0
"""Seconds before the second try; each further one waits twice as long."""

_TRIES, _CHUNK, _TIMEOUT = 5, 1 << 18, 60.0
_SPARE = 64 << 20  # what the disk keeps free


class UnreachableError(StudioloError):
    """Nobody answered there, or nobody who would let us in."""


@dataclass(frozen=True)
class Remote:
    """A file that lies elsewhere. `size` in bytes; `headers` are not sent along a redirect."""

    url: str
    filename: str
    size: int | None = None
    sha256: str | None = None
    headers: Mapping[str, str] = field(default_factory=dict, hash=False)
    cert: str | None = None


def open_url(url: str, headers: Mapping[str, str], own: Mapping[str, str], cert: str | None) -> Any:
    """The response to a GET. `own` headers (keys, passwords) are not sent along when it redirects.

    `cert` is a file of certificates to trust instead of those of the system.
    """
    request = urllib.request.Request(url, headers=dict(headers))
    for name, value in own.items():
        request.add_unredirected_header(name, value)
    return urllib.request.urlopen(  # http, https and file; a redirect cannot lead to a file
        request, timeout=_TIMEOUT, context=ssl.create_default_context(cafile=cert)
    )


def basic_login(url: str) -> tuple[str, dict[str, str]]:
    """The URL without its user and password, and the header that says them; else those of ~/.netrc."""
    parts = urllib.parse.urlsplit(url)
    user, password = parts.username, parts.password
    host = parts.netloc.rpartition("@")[2]
    if user is None and parts.hostname:
        try:
            login = netrc.netrc().authenticators(parts.hostname)
        except (OSError, netrc.NetrcParseError):
            login = None
        user, password = (login[0], login[2]) if login else (None, None)
    if user is None:
        return url, {}
    said = f"{urllib.parse.unquote(user)}:{urllib.parse.unquote(password or '')}"
    bare = urllib.parse.urlunsplit(parts._replace(netloc=host))
    return bare, {"Authorization": f"Basic {base64.b64encode(said.encode()).decode()}"}


def require_space(folder: Path, needed: int) -> None:
    """Refuses what would not fit on the disk of `folder`, before it is begun."""
    free = shutil.disk_usage(folder).free
    if needed + _SPARE > free:
        raise StudioloError(
            f"not enough room on the disk: {needed / 1e6:,.0f} MB are needed, {free / 1e6:,.0f} MB are free",
            where=folder,
            remedy="Make room, or choose another data folder by STUDIOLO_HOME.",
        )


def download(remote: Remote, folder: Path, on_bytes: OnBytes) -> Path:
    """The file, in `folder` (or where it lies already, for file: URLs), checked against its SHA-256.

    What was fetched before is gone on with if the checksum is known, since only that tells whether the
    two halves belong together.

    Raises:
        UnreachableError: the server cannot be reached or refuses us.
        StudioloError: the bytes are not those that were promised, or do not fit on the disk.
    """
    if remote.url.startswith("file:"):
        here = Path(urllib.request.url2pathname(urllib.parse.urlsplit(remote.url).path))
        _check(remote, here)
        return here
    final = folder / f"{(remote.sha256 or 'unchecked')[:16]}-{remote.filename}"
    if final.exists() and remote.sha256:
        return final
    part = final.with_name(f"{final.name}.part")
    if remote.sha256 is None:
        part.unlink(missing_ok=True)
    _fetch(remote, part, on_bytes)
    try:
        _check(remote, part)
    except StudioloError:
        part.unlink(missing_ok=True)
        raise
    part.replace(final)
    return final


def _fetch(remote: Remote, part: Path, on_bytes: OnBytes) -> None:
    """Tries until the file is as long as it should be, or until nothing more comes."""
    failures = 0
    while True:
        before = _length(part)
        try:
            if _fetch_on(remote, part, on_bytes):
                return
            fault: object = "the connection was cut"
        except urllib.error.HTTPError as error:
            if error.code < 500 and error.code not in (408, 429):
                raise UnreachableError(
                    f"the server refuses it ({error.code} {error.reason})",
                    where=remote.url,
                    remedy="Check the name, and whether it asks for a login.",
                ) from error
            fault = error
        except (OSError, http.client.HTTPException) as error:
            if isinstance(error, OSError) and error.errno == errno.ENOSPC:
                raise
            fault = error
        failures = 0 if _length(part) > before else failures + 1
        if failures == _TRIES:
            raise UnreachableError(
                f"the download does not go on ({fault})",
                where=remote.url,
                remedy=f"Check the network and run it again: it goes on from {_length(part) / 1e6:,.1f} MB.",
            )
        if failures:
            time.sleep(PATIENCE * 2 ** (failures - 1))


def _fetch_on(remote: Remote, part: Path, on_bytes: OnBytes) -> bool:
    """Adds to `part` what one answer brings; True if it is whole then."""
    offset = _length(part)
    if remote.size is not None and offset >= remote.size:
        if offset == remote.size:
            return True
        part.unlink()  # longer than it can be
        offset = 0
    wanted = {"Range": f"bytes={offset}-"} if offset else {}
    try:
        response = open_url(remote.url, wanted, remote.headers, remote.cert)
    except urllib.error.HTTPError as error:
        if error.code != 416:  # no such range: the file is whole, or another one
            raise
        error.close()
        if error.headers.get("Content-Range") == f"bytes */{offset}":
            return True
        part.unlink()
        return False
    with response:
        start, total = _span(response.headers, response.status, offset)
        total = total if remote.size is None else remote.size
        require_space(part.parent, (total or 0) - start)
        with open(part, "r+b" if start else "wb") as file:
            file.seek(start)
            _copy(response, file, total, part.parent, on_bytes)
        return total is None or _length(part) == total


def _span(headers: Message, status: int, offset: int) -> tuple[int, int | None]:
    """Where the bytes of this answer begin, and how long the whole file is."""
    said = re.fullmatch(r"bytes (\d+)-\d+/(\d+|\*)", headers.get("Content-Range") or "")
    if status == 206 and said and int(said[1]) == offset:
        return offset, None if said[2] == "*" else int(said[2])
    length = headers.get("Content-Length")
    return 0, int(length) if length and length.isdigit() else None


def _copy(
    response: HTTPResponse, file: IO[bytes], total: int | None, folder: Path, on_bytes: OnBytes
) -> None:
    """What comes, up to `total`; without one, as long as the disk has room."""
    on_bytes(file.tell(), total)
    while total is None or file.tell() < total:
        chunk = response.read1(_CHUNK if total is None else min(_CHUNK, total - file.tell()))
        if not chunk:
            return
        if total is None:
            require_space(folder, len(chunk))
        file.write(chunk)
        on_bytes(file.tell(), total)


def _check(remote: Remote, file: Path) -> None:
    if remote.sha256 is not None and (found := sha256_file(file)) != remote.sha256:
        raise StudioloError(
            f"wrong checksum: SHA-256 {found}, and {remote.sha256} was expected. Nothing of it is kept",
            where=remote.url,
            remedy="Run it again; if that does not help, the index gives out another file than it should.",
        )


def _length(file: Path) -> int:
    return file.stat().st_size if file.exists() else 0

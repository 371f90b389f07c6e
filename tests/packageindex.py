"""A package index on loopback: pages of PEP 503 or 691, files with Range, and faults on demand."""

from __future__ import annotations

import hashlib
import io
import json
import re
import threading
import zipfile
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer


def wheel(members: dict[str, bytes], compression: int = zipfile.ZIP_STORED) -> bytes:
    """A zip file of these members, which is all that a wheel is to us."""
    data = io.BytesIO()
    with zipfile.ZipFile(data, "w", compression) as archive:
        for name, content in members.items():
            archive.writestr(name, content)
    return data.getvalue()


@dataclass
class Index:
    """`files` are served by name, with the checksums in `told` (by default the true ones).

    Attributes:
        json: pages as JSON rather than HTML.
        ranges: answers to Range are 206, else the whole file each time.
        cut: bytes after which the connection breaks, once for each value.
        hold: after so many bytes the server falls silent until `released`.
        authorization: the header that lets one in; None for everybody.
        asked: path, Range and bytes sent of each request for a file.
    """

    files: dict[str, bytes] = field(default_factory=dict)
    told: dict[str, str] = field(default_factory=dict)
    json: bool = False
    ranges: bool = True
    cut: list[int] = field(default_factory=list)
    hold: int | None = None
    held: threading.Event = field(default_factory=threading.Event)
    released: threading.Event = field(default_factory=threading.Event)
    authorization: str | None = None
    asked: list[tuple[str, str | None, int]] = field(default_factory=list)
    url: str = ""

    def put(self, filename: str, data: bytes) -> str:
        self.files[filename] = data
        self.told[filename] = hashlib.sha256(data).hexdigest()
        return self.told[filename]

    def page(self, package: str) -> bytes | None:
        names = [name for name in self.files if name.split("-")[0].replace("_", "-") == package]
        if not names:
            return None
        if self.json:
            listed = [
                {"filename": name, "url": f"/files/{name}", "hashes": self._hashes(name),
                 "size": len(self.files[name])} for name in names
            ]  # fmt: skip
            return json.dumps({"meta": {"api-version": "1.1"}, "name": package, "files": listed}).encode()
        links = []
        for name in names:
            fragment = "".join(f"#{kind}={value}" for kind, value in self._hashes(name).items())
            links.append(f'<a href="../../files/{name}{fragment}">{name}</a>')
        return f"<!DOCTYPE html><html><body>{''.join(links)}</body></html>".encode()

    def _hashes(self, name: str) -> dict[str, str]:
        return {"sha256": self.told[name]} if self.told.get(name) else {}


class _Handler(BaseHTTPRequestHandler):
    index: Index

    def do_GET(self) -> None:
        index = self.index
        if index.authorization and self.headers.get("Authorization") != index.authorization:
            return self._answer(401, b"", {"WWW-Authenticate": "Basic"})
        if found := re.fullmatch(r"/simple/([^/]+)/", self.path):
            page = index.page(found[1])
            kind = "application/vnd.pypi.simple.v1+json" if index.json else "text/html"
            return self._answer(404 if page is None else 200, page or b"", {"Content-Type": kind})
        name = self.path.rpartition("/")[2]
        if name not in index.files:
            return self._answer(404, b"")
        return self._file(name, index.files[name])

    do_HEAD = do_GET  # noqa: N815 - the name that http.server calls

    def _file(self, name: str, data: bytes) -> None:
        wanted = self.headers.get("Range")
        start = int(wanted.removeprefix("bytes=").rstrip("-")) if wanted and self.index.ranges else 0
        headers = {"Content-Range": f"bytes {start}-{len(data) - 1}/{len(data)}"} if start else {}
        end = self.index.cut.pop(0) if self.index.cut else len(data)
        self.index.asked.append((name, wanted, max(0, min(end, len(data)) - start)))
        self._answer(206 if start else 200, data[start:], headers, max(0, end - start))

    def _answer(
        self, status: int, body: bytes, headers: dict[str, str] | None = None, sent: int | None = None
    ) -> None:
        self.send_response(status)
        for header, value in {**(headers or {}), "Content-Length": str(len(body))}.items():
            self.send_header(header, value)
        self.end_headers()
        if self.command == "HEAD":
            return
        hold = self.index.hold
        if hold is not None and len(body) > hold:
            self.index.hold = None
            self.wfile.write(body[:hold])
            self.wfile.flush()
            self.index.held.set()
            self.index.released.wait(60)
            self.close_connection = True
            return
        self.wfile.write(body[:sent])
        self.close_connection = True

    def log_message(self, *args: object) -> None:
        pass


@contextmanager
def serving(index: Index) -> Iterator[Index]:
    """Serves it on a free port; `index.url` is what pip calls its index-url."""
    server = ThreadingHTTPServer(("127.0.0.1", 0), type("Handler", (_Handler,), {"index": index}))
    server.daemon_threads = True
    thread = threading.Thread(target=server.serve_forever, kwargs={"poll_interval": 0.02})
    thread.start()
    index.url = f"http://127.0.0.1:{server.server_port}/simple"
    try:
        yield index
    finally:
        index.released.set()
        server.shutdown()
        thread.join()
        server.server_close()

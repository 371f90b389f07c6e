"""Kills the server at any line of what keeps things, starts it again, and sees what its client finds.

    python benchmarks/crash_matrix.py [--points 20] [--seed 1] [--only STORY]

A story is what a careful client does: uploads in pieces, batches, contexts, and after a broken connection it
asks how far things are and goes on from there. The server (`stub_server.py`, SQLite) kills itself by SIGKILL
at a line chosen by the seed, and is started again. A story ends with an error if something that was
acknowledged is lost, happens twice or is not whole. Then the server is stopped, the clock is put two days
ahead, and what is on the disk is compared with what the database tells.
"""

from __future__ import annotations

import argparse
import asyncio
import base64
import hashlib
import json
import random
import signal
import subprocess
import sys
import tempfile
import time
from collections.abc import Awaitable, Callable
from contextlib import suppress
from dataclasses import dataclass
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any

from measuring import table
from raw_client import HERE, Connection, Heard
from stub_server import NAME, expected

from studiolo.language.caching.contexts import Contexts
from studiolo.store.database import Database
from studiolo.store.files import sha256_file
from studiolo.store.uploads import Uploads

PIECES = 3
ITEMS = 12
_LOOK = 0.2  # seconds between two looks at a batch
_CHUNK = 100_000
_EDGE = "the-edge-of-a-part"


class House:
    """A server that may die once, and its client.

    Args:
        crash: the line at which it dies; None: it counts them.
    """

    def __init__(self, home: Path, crash: int | None) -> None:
        self.home, self._crash = home, crash
        self.place: str | None = None
        self.lines = 0

    def start(self) -> None:
        died = self.place is not None
        options = [] if died else ["--count"] if self._crash is None else ["--crash", str(self._crash)]
        command = [sys.executable, str(HERE / "stub_server.py"), str(self.home), "--pieces", str(PIECES)]
        with (self.home / "log").open("ab") as log:
            self._process = subprocess.Popen(
                [*command, *options], stdout=subprocess.PIPE, stderr=log, bufsize=0
            )
        self._port = int(self._out().readline())

    async def ready(self) -> None:
        """Waits until it answers; lines count from here on."""
        self._connection = Connection(self._port)
        heard = await self._connection.request("GET", "/health")
        assert heard.status == 200
        if self.place is None:
            self._process.send_signal(signal.SIGUSR1)

    def stop(self) -> None:
        self._connection.close()
        self._process.send_signal(signal.SIGTERM)
        for line in self._out().read().decode().splitlines():
            self.lines = int(line.split()[1])
        assert self._process.wait(60) == 0, (self.home / "log").read_text()[-2000:]

    def kill(self) -> None:
        self._process.kill()
        self._process.wait()

    async def ask(
        self, method: str, path: str, body: Any = None, headers: dict[str, str] | None = None
    ) -> Heard | None:
        """The answer; None if the server died before it had come. It is up again then."""
        data = body if isinstance(body, bytes) else b"" if body is None else json.dumps(body).encode()
        try:
            return await self._connection.request(method, path, data, headers)
        except (EOFError, OSError):
            assert self.place is None, "it died again"
            told = self._out().read().decode()
            assert self._process.wait(60) == -signal.SIGKILL, told
            self.place = told.split()[-1]
            self.start()
            await self.ready()
            return None

    async def told(self, method: str, path: str, body: Any = None) -> dict[str, Any] | None:
        """The same in JSON, where all is well."""
        heard = await self.ask(method, path, body)
        if heard is None:
            return None
        assert heard.status == 200, heard.body
        found = json.loads(heard.body)
        assert isinstance(found, dict)
        return found

    async def surely(self, method: str, path: str, body: Any = None) -> dict[str, Any]:
        """The same; asked again if the server died, for what may be repeated."""
        first = await self.told(method, path, body)
        if first is not None:
            return first
        again = await self.told(method, path, body)
        assert again is not None
        return again

    def _out(self) -> Any:
        return self._process.stdout


# --- what clients do --------------------------------------------------------------------------------------


def _data(seed: int, size: int) -> bytes:
    return random.Random(seed).randbytes(size)


async def gemini_upload(house: House) -> None:
    """A file in four pieces by the resumable protocol; then it is deleted, and another one stays."""
    for number in range(2):
        data = _data(number, 3 * _CHUNK + 17)
        name = await _resumable(house, data, f"book-{number}")
        shown = await house.surely("GET", f"/v1beta/files/{name}?key=x")
        assert base64.b64decode(shown["sha256Hash"]) in (_digest(data), _digest(data).hex().encode())
        assert int(shown["sizeBytes"]) == len(data)
        if not number:
            await _gone(house, f"/v1beta/files/{name}?key=x")
    listed = await house.surely("GET", "/v1beta/files?key=x")
    assert [file["name"] for file in listed["files"]] == [f"files/{name}"]


async def _resumable(house: House, data: bytes, name: str) -> str:
    path = await _begun(house, len(data), name)
    there, acknowledged = 0, 0
    while True:
        piece = data[there : there + _CHUNK]
        last = there + len(piece) == len(data)
        heard = await house.ask("POST", path, piece, _upload("upload, finalize" if last else "upload", there))
        if heard is not None:
            assert heard.status == 200, heard.body
            if last:
                return str(json.loads(heard.body)["file"]["name"]).removeprefix("files/")
            there = acknowledged = there + len(piece)
            continue
        query = await house.ask("POST", path, b"", _upload("query", 0))
        assert query is not None
        assert query.status == 200, query.body
        there = int(query.headers["x-goog-upload-size-received"])
        assert acknowledged <= there <= acknowledged + len(piece), "acknowledged bytes are lost"
        if there == len(data):
            final = await house.ask("POST", path, b"", _upload("finalize", there))
            assert final is not None
            assert final.status == 200, final.body
            return str(json.loads(final.body)["file"]["name"]).removeprefix("files/")


async def _begun(house: House, size: int, name: str) -> str:
    """The path of a new upload. One whose answer was lost cannot be gone on with: its name is free again
    when it ends, so a client takes another one."""
    start = _upload("start", 0) | {
        "x-goog-upload-protocol": "resumable",
        "x-goog-upload-header-content-type": "application/x-book",
        "x-goog-upload-header-content-length": str(size),
    }
    bodies: list[dict[str, Any]] = [{"file": {"name": f"files/{name}"}}, {"file": {}}]
    for body in bodies:
        heard = await house.ask("POST", "/upload/v1beta/files?key=x", body, start)
        if heard is not None and heard.status == 200:
            url = heard.headers["x-goog-upload-url"]
            return "/" + url.split("/", 3)[3]
    raise AssertionError("the upload cannot be begun again")


def _upload(command: str, offset: int) -> dict[str, str]:
    return {"x-goog-upload-command": command, "x-goog-upload-offset": str(offset)}


async def openai_upload(house: House) -> None:
    """A file in three parts, completed; what has no answer is done again."""
    data = _data(7, 3 * _CHUNK)
    announced = {"bytes": len(data), "filename": "in.txt", "mime_type": "text/plain", "purpose": "user_data"}
    upload = (await house.surely("POST", "/v1/uploads", announced))["id"]
    parts = []
    for number in range(3):
        form = _form({}, "data", data[number * _CHUNK :][:_CHUNK])
        heard = await house.ask("POST", f"/v1/uploads/{upload}/parts", *form)
        heard = heard or await house.ask("POST", f"/v1/uploads/{upload}/parts", *form)
        assert heard is not None
        assert heard.status == 200, heard.body
        parts.append(json.loads(heard.body)["id"])
    done = await house.surely("POST", f"/v1/uploads/{upload}/complete", {"part_ids": parts})
    assert done["status"] == "completed"
    files = (await house.surely("GET", "/v1/files"))["data"]
    assert [file["id"] for file in files] == [done["file"]["id"]], "the file was made twice"
    await _has(house, done["file"]["id"], data)
    await _gone(house, f"/v1/files/{done['file']['id']}")
    assert (await house.surely("GET", "/v1/files"))["data"] == []


async def openai_batch(house: House) -> None:
    """A file of requests, a batch of it, and its answers."""
    lines = b"".join(json.dumps(_line(number)).encode() + b"\n" for number in range(ITEMS))
    form = _form({"purpose": "batch"}, "file", lines)
    heard = await house.ask("POST", "/v1/files", *form) or await house.ask("POST", "/v1/files", *form)
    assert heard is not None
    assert heard.status == 200, heard.body
    body = {
        "input_file_id": json.loads(heard.body)["id"],
        "endpoint": "/v1/chat/completions",
        "completion_window": "24h",
    }
    batch = await house.told("POST", "/v1/batches", body)
    if batch is None:  # a client looks whether it was taken in before it asks again
        found = (await house.surely("GET", "/v1/batches"))["data"]
        batch = found[0] if found else await house.surely("POST", "/v1/batches", body)
    while batch["status"] not in ("completed", "failed", "cancelled", "expired"):
        await asyncio.sleep(_LOOK)
        batch = await house.surely("GET", f"/v1/batches/{batch['id']}")
    assert batch["status"] == "completed"
    assert batch["request_counts"] == {"total": ITEMS, "completed": ITEMS, "failed": 0}
    assert len((await house.surely("GET", "/v1/batches"))["data"]) == 1
    wanted = [(f"n{number}", expected(number, PIECES)) for number in range(ITEMS)]
    said = [
        (line["custom_id"], line["response"]["body"]["choices"][0]["message"]["content"])
        for line in map(json.loads, (await _content(house, batch["output_file_id"])).splitlines())
    ]
    assert said == wanted
    outputs = (await house.surely("GET", "/v1/files?purpose=batch_output"))["data"]
    assert [file["id"] for file in outputs] == [batch["output_file_id"]], "answers were written twice"
    assert _rows(house, "SELECT COUNT(*) FROM batches WHERE state != 'filling'") == [(1,)], (
        "a batch that nobody knows of"
    )


async def gemini_batch(house: House) -> None:
    """Requests within a body, and their answers."""
    requests = [{"request": {"contents": [{"parts": [{"text": f"{n} please"}]}]}} for n in range(ITEMS)]
    body = {"batch": {"displayName": "many", "inputConfig": {"requests": {"requests": requests}}}}
    made = await house.told("POST", f"/v1beta/models/{NAME}:batchGenerateContent?key=x", body)
    if made is None:
        found = (await house.surely("GET", "/v1beta/batches?key=x")).get("operations", [])
        again = f"/v1beta/models/{NAME}:batchGenerateContent?key=x"
        made = found[0] if found else await house.surely("POST", again, body)
    while not made.get("done"):
        await asyncio.sleep(_LOOK)
        made = await house.surely("GET", f"/v1beta/{made['name']}?key=x")
    answers = made["response"]["inlinedResponses"]["inlinedResponses"]
    said = [one["response"]["candidates"][0]["content"]["parts"][0]["text"] for one in answers]
    assert said == [expected(number, PIECES) for number in range(ITEMS)]
    assert made["metadata"]["batchStats"] == {
        "requestCount": str(ITEMS),
        "successfulRequestCount": str(ITEMS),
    }
    assert _rows(house, "SELECT COUNT(*) FROM batches WHERE state != 'filling'") == [(1,)]
    assert _rows(house, "SELECT done + failed, answer FROM batches WHERE state != 'filling'") == [
        (ITEMS, ITEMS * PIECES)
    ]


async def contexts(house: House) -> None:
    """Contexts made, kept longer and deleted."""
    path, kept = "/v1beta/cachedContents", []
    for number in range(4):
        text = f"{number} " * 2000
        body = {"model": f"models/{NAME}", "displayName": f"c{number}", "ttl": "3600s"}
        body["contents"] = [{"role": "user", "parts": [{"text": text}]}]  # type: ignore[assignment]
        made = await house.told("POST", f"{path}?key=x", body)
        if made is None:
            listed = (await house.surely("GET", f"{path}?key=x")).get("cachedContents", [])
            found = [one for one in listed if one["displayName"] == f"c{number}"]
            assert len(found) <= 1
            made = found[0] if found else await house.surely("POST", f"{path}?key=x", body)
        one = f"/v1beta/{made['name']}?key=x"
        longer = await house.surely("PATCH", one, {"ttl": "7200s"})
        assert longer["expireTime"] > made["expireTime"]
        assert await house.surely("GET", one) == longer
        if number % 2:
            await _gone(house, one)
        else:
            kept.append(longer)
            asked = {"contents": [{"parts": [{"text": "5 please"}]}], "cachedContent": made["name"]}
            said = await house.surely("POST", f"/v1beta/models/{NAME}:generateContent?key=x", asked)
            assert said["candidates"][0]["content"]["parts"][0]["text"] == expected(5, PIECES)
    assert (await house.surely("GET", f"{path}?key=x"))["cachedContents"] == kept


@dataclass(frozen=True)
class Story:
    """`lines` are run in it for sure, of those that are counted (see `--count`)."""

    play: Callable[[House], Awaitable[None]]
    lines: int


STORIES = {
    "resumable upload (Gemini)": Story(gemini_upload, 1700),
    "upload in parts (OpenAI)": Story(openai_upload, 1500),
    "batch (OpenAI)": Story(openai_batch, 3000),
    "batch (Gemini)": Story(gemini_batch, 2000),
    "cachedContents": Story(contexts, 950),
}


async def _gone(house: House, path: str) -> None:
    """Deletes it; if the answer was lost, it may be gone already."""
    heard = await house.ask("DELETE", path)
    if heard is None:
        heard = await house.ask("DELETE", path)
        assert heard is not None
        assert heard.status in (200, 404), heard.body
    else:
        assert heard.status == 200, heard.body
    shown = await house.ask("GET", path) or await house.ask("GET", path)
    assert shown is not None
    assert shown.status == 404, "what was deleted is there again"


async def _content(house: House, file: str) -> bytes:
    path = f"/v1/files/{file}/content"
    heard = await house.ask("GET", path) or await house.ask("GET", path)
    assert heard is not None
    assert heard.status == 200
    return heard.body


async def _has(house: House, file: str, data: bytes) -> None:
    assert await _content(house, file) == data


def _form(fields: dict[str, str], name: str, data: bytes) -> tuple[bytes, dict[str, str]]:
    head = f"--{_EDGE}\r\ncontent-disposition: form-data; name="
    told = "".join(f'{head}"{key}"\r\n\r\n{value}\r\n' for key, value in fields.items())
    file = f'{head}"{name}"; filename="in.jsonl"\r\ncontent-type: application/octet-stream\r\n\r\n'
    body = f"{told}{file}".encode() + data + f"\r\n--{_EDGE}--\r\n".encode()
    return body, {"content-type": f"multipart/form-data; boundary={_EDGE}"}


def _line(number: int) -> dict[str, Any]:
    body = {"model": NAME, "messages": [{"role": "user", "content": f"{number} please"}]}
    return {"custom_id": f"n{number}", "method": "POST", "url": "/v1/chat/completions", "body": body}


def _digest(data: bytes) -> bytes:
    return hashlib.sha256(data).digest()


# --- what is left -----------------------------------------------------------------------------------------


def _rows(house: House, query: str) -> list[tuple[Any, ...]]:
    import sqlite3

    with sqlite3.connect(house.home / "studiolo.sqlite") as connection:
        return connection.execute(query).fetchall()


def check_disk(home: Path) -> None:
    """Raises AssertionError where files and records differ after the sweeps of two days later."""

    def later() -> datetime:
        return datetime.now(UTC) + timedelta(days=2)

    for file, path, size, sha in _files(home):
        assert path.stat().st_size == size, f"{file} is not whole"
        assert sha256_file(path) == sha, f"{file} is not whole"
    database = Database(f"sqlite:///{home / 'studiolo.sqlite'}")
    Uploads(database, home / "files", clock=later).expire()
    Contexts(home / "contexts", clock=later).expire()
    database.close()
    known = {path for _, path, _, _ in _files(home)}
    left = {path for path in (home / "files").rglob("*") if path.is_file()}
    assert left == known, f"bytes without a record: {left ^ known}"
    temporary = [path for path in home.rglob("*") if ".tmp" in path.name]
    assert temporary == []


def _files(home: Path) -> list[tuple[str, Path, int, str]]:
    import sqlite3

    with sqlite3.connect(home / "studiolo.sqlite") as connection:
        rows = connection.execute("SELECT id, size, sha256 FROM files").fetchall()
    return [(file, home / "files" / file, size, sha) for file, size, sha in rows]


# --- all of it --------------------------------------------------------------------------------------------


def played(story: Story, home: Path, crash: int | None) -> House:
    """Plays it to its end in that folder; raises AssertionError for what was found wrong."""
    home.mkdir(parents=True, exist_ok=True)
    house = House(home, crash)
    house.start()

    async def play() -> None:
        await house.ready()
        await story.play(house)
        house.stop()

    try:
        asyncio.run(play())
    finally:
        with suppress(ProcessLookupError):
            house.kill()
    check_disk(home)
    return house


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--points", type=int, default=20)
    parser.add_argument("--seed", type=int, default=1)
    parser.add_argument("--only", choices=STORIES)
    parser.add_argument("--count", action="store_true", help="tell how many lines each story is")
    options = parser.parse_args()
    names = [options.only] if options.only else list(STORIES)
    dice, rows = random.Random(options.seed), []
    for number in range(len(names) if options.count else options.points):
        name = names[number % len(names)]
        line = None if options.count else dice.randrange(1, STORIES[name].lines)
        rows.append(_row(number + 1, name, line))
        print(rows[-1], file=sys.stderr, flush=True)
    print(table(("point", "story", "killed in line", "which is", "seconds", "found"), rows))


def _row(number: int, name: str, line: int | None) -> list[str]:
    began, found, place = time.perf_counter(), "all well", "-"
    with tempfile.TemporaryDirectory() as folder:
        house = None
        try:
            house = played(STORIES[name], Path(folder) / "home", line)
            place = house.place or "not reached"
            found = "all well" if line else f"{house.lines} lines"
        except AssertionError as error:
            found = f"WRONG: {error}"[:300]
    return [str(number), name, str(line), place, f"{time.perf_counter() - began:.0f}", found]


if __name__ == "__main__":
    main()

"""A server that is killed once, its client, and what is on the disk when all is over."""

from __future__ import annotations

import asyncio
import json
import os
import signal
import subprocess
import sys
import time
from contextlib import suppress
from dataclasses import dataclass
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any, Literal

import sqlalchemy as sa
from raw_client import HERE, Connection, Heard

from studiolo.jobs.queue import Queue
from studiolo.jobs.tuning_table import TUNINGS
from studiolo.jobs.tunings import STALE, Tunings
from studiolo.language.caching.contexts import Contexts
from studiolo.models import registry
from studiolo.store.database import Database
from studiolo.store.files import sha256_file
from studiolo.store.uploads import Uploads

PIECES = 3
"""Of an answer of the stub's."""
Victim = Literal["server", "training"]


@dataclass(frozen=True)
class Crash:
    """Who dies, at which line of what it keeps things with; None: nobody, and lines are counted."""

    victim: Victim
    line: int | None


class House:
    """A server that may die once, or whose training may, and its client.

    Args:
        home: its data folder.
        url: of its database.

    Attributes:
        place: where it died, when it has.
        lines: how many were counted, at the end.
    """

    def __init__(self, home: Path, url: str, crash: Crash) -> None:
        self.home, self.url, self._crash = home, url, crash
        self.place: str | None = None
        self.lines = 0

    def start(self) -> None:
        command = [sys.executable, str(HERE / "stub_server.py"), str(self.home), "--pieces", str(PIECES)]
        command += ["--database", self.url, *self._options()]
        with (self.home / "log").open("ab") as log:
            self._process = subprocess.Popen(command, stdout=subprocess.PIPE, stderr=log, bufsize=0)
        told = self._out().readline()
        assert told, f"the server does not start: {self._log()}"
        self._port = int(told)

    def _options(self) -> list[str]:
        if self.place is not None:
            return []
        if self._crash.line is None:
            return ["--count"]
        return ["--crash" if self._crash.victim == "server" else "--crash-training", str(self._crash.line)]

    async def ready(self) -> None:
        """Waits until it answers; lines count from here on."""
        self._connection = Connection(self._port)
        heard = await self._connection.request("GET", "/health")
        assert heard.status == 200
        if self.place is None and "--crash-training" not in self._options():
            self._process.send_signal(signal.SIGUSR1)

    def stop(self) -> None:
        self._connection.close()
        self._process.send_signal(signal.SIGTERM)
        told = self._out().read().decode().splitlines()
        assert self._process.wait(60) == 0, self._log()
        if self._crash.victim == "training":
            told = [(self.home / "killed").read_text()]
        for line in told:
            if line.startswith("lines "):
                self.lines = int(line.split()[1])
            elif self._crash.victim == "training":
                self.place = line

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
            ended = self._process.wait(60)
            assert ended == -signal.SIGKILL, f"the server ended with {ended}: {self._log()}"
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

    async def twice(self, method: str, path: str, body: Any, headers: dict[str, str]) -> dict[str, Any]:
        """The same for bodies that are no JSON."""
        heard = await self.ask(method, path, body, headers) or await self.ask(method, path, body, headers)
        assert heard is not None
        assert heard.status == 200, heard.body
        found = json.loads(heard.body)
        assert isinstance(found, dict)
        return found

    async def content(self, file: str) -> bytes:
        """The bytes of a file, by its id with OpenAI."""
        path = f"/v1/files/{file}/content"
        heard = await self.ask("GET", path) or await self.ask("GET", path)
        assert heard is not None
        assert heard.status == 200
        return heard.body

    async def gone(self, path: str) -> None:
        """Deletes it; if the answer was lost, it may be gone already."""
        heard = await self.ask("DELETE", path)
        if heard is None:
            heard = await self.ask("DELETE", path)
            assert heard is not None
            assert heard.status in (200, 404), heard.body
        else:
            assert heard.status == 200, heard.body
        shown = await self.ask("GET", path) or await self.ask("GET", path)
        assert shown is not None
        assert shown.status == 404, "what was deleted is there again"

    def rows(self, query: str) -> list[tuple[Any, ...]]:
        """What the database tells."""
        database = Database(self.url)
        try:
            with database.read() as connection:
                return [tuple(row) for row in connection.execute(sa.text(query))]
        finally:
            database.close()

    def _log(self) -> str:
        return (self.home / "log").read_text()[-2000:]

    def _out(self) -> Any:
        return self._process.stdout


def check_disk(house: House) -> None:
    """Raises AssertionError where files and records differ after the sweeps of two days later."""

    def later() -> datetime:
        return datetime.now(UTC) + timedelta(days=2)

    home = house.home
    for file, size, sha in house.rows("SELECT id, size, sha256 FROM files"):
        assert (home / "files" / file).stat().st_size == size, f"{file} is not whole"
        assert sha256_file(home / "files" / file) == sha, f"{file} is not whole"
    database = Database(house.url)
    try:
        uploads = Uploads(database, home / "files", clock=later)
        uploads.expire()
        Contexts(home / "contexts", clock=later).expire()
        _check_tunings(home, Tunings(database, Queue(database), uploads, folder=home / "tunings"), database)
    finally:
        database.close()
    known = {home / "files" / file for (file,) in house.rows("SELECT id FROM files")}
    left = {path for path in (home / "files").rglob("*") if path.is_file()}
    assert left == known, f"bytes without a record: {left ^ known}"
    temporary = [path for path in home.rglob("*") if ".tmp" in path.name]
    assert temporary == []


def _check_tunings(home: Path, tunings: Tunings, database: Database) -> None:
    for folder in (home / "tunings").glob("*"):
        os.utime(folder, (time.time() - 2 * STALE,) * 2)
    tunings._sweep()
    with database.read() as connection:
        known = set(connection.scalars(sa.select(TUNINGS.c.id)))
    assert {folder.name for folder in (home / "tunings").glob("*")} == known, "folders without a record"
    for ref in registry.list_models():
        assert ref.path.exists(), f"the name {ref.name} leads nowhere"


def played(play: Any, home: Path, url: str, crash: Crash) -> House:
    """Plays a story to its end in that folder; raises AssertionError for what was found wrong."""
    home.mkdir(parents=True, exist_ok=True)
    os.environ["STUDIOLO_HOME"] = str(home)
    house = House(home, url, crash)
    house.start()

    async def play_all() -> None:
        await house.ready()
        await play(house)
        house.stop()

    try:
        asyncio.run(play_all())
    finally:
        with suppress(ProcessLookupError):
            house.kill()
    check_disk(house)
    return house

"""The server is killed at any line of what keeps things, or told to stop in the midst of a crowd."""

from __future__ import annotations

import asyncio
import json
import signal
import socket
import subprocess
import sys
from datetime import UTC, datetime, timedelta
from pathlib import Path

import openai
import pytest
from google import genai
from google.genai import errors, types

from jobs.databases import NoServerError, postgres
from studiolo.language.caching.contexts import Contexts
from studiolo.server.openai.uploads_kept import PartedUploads, part_id
from studiolo.store.database import Database
from studiolo.store.uploads import Uploads

BENCHMARKS = Path(__file__).parents[2] / "benchmarks"
sys.path.insert(0, str(BENCHMARKS))

from raw_client import Connection, asked, stub_server  # noqa: E402
from stub_server import NAME, expected  # noqa: E402

CROWD = 50


def run(python: str, name: str, *options: str) -> str:
    """What a benchmark prints."""
    done = subprocess.run(
        [python, str(BENCHMARKS / f"{name}.py"), *options],
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.returncode == 0, done.stderr
    return done.stdout


def rows(table: str) -> list[list[str]]:
    return [[cell.strip() for cell in line.split("|")[1:-1]] for line in table.splitlines() if "|" in line]


@pytest.mark.parametrize("seed", [1, 2, 3])
def test_killed_anywhere_it_loses_nothing_and_does_nothing_twice(studiolo_home, warm_python, seed):
    """Two stories each time; all points are in docs/performance-server.md."""
    stories = ["upload in parts (OpenAI)", "batch (OpenAI)", "cachedContents", "resumable upload (Gemini)",
               "batch of pictures (OpenAI)", "tuning (OpenAI), its training"]  # fmt: skip
    for story in stories[2 * seed - 2 : 2 * seed]:
        _killed(warm_python, story, seed)


def test_the_same_on_postgresql(studiolo_home, warm_python):
    try:
        with postgres() as url:
            _killed(warm_python, "batch (Gemini)", 1, "--url", url)
    except NoServerError as error:
        pytest.skip(f"no PostgreSQL: {error}")


def _killed(python: str, story: str, seed: int, *options: str) -> None:
    asked = ["--points", "1", "--seed", str(seed), "--only", story, *options]
    *_, point = rows(run(python, "crash_matrix", *asked))
    assert point[-1] == "all well"
    assert point[3] != "not reached"


def test_the_benchmark_of_the_server_still_runs(studiolo_home, warm_python):
    told = rows(run(warm_python, "server_load", "--quick"))
    alone = [row for row in told if "streamed" in row[0] or "whole" in row[0]]
    crowds = [row for row in told if row[1].isdecimal()]
    assert len(alone) >= 6
    assert [row[2] for row in crowds] == [row[1] for row in crowds]  # each whole, and its own


def test_the_benchmark_of_batches_still_runs(studiolo_home, warm_python):
    assert ["items that are answered rightly, in order", "200 of 200"] in rows(
        run(warm_python, "batch_load", "--quick")
    )


# --- between two lines ------------------------------------------------------------------------------------


class DiedError(BaseException):
    """Stands for the end of the process."""


def dies(*_):
    raise DiedError


@pytest.fixture
def database(tmp_path):
    database = Database(f"sqlite:///{tmp_path / 'studiolo.sqlite'}")
    yield database
    database.close()


@pytest.mark.parametrize("where", [(PartedUploads, "_ended"), (Uploads, "_keep"), (Uploads, "finish")])
def test_parts_become_one_file_though_the_process_died_meanwhile(tmp_path, database, monkeypatch, where):
    uploads, parted = Uploads(database, tmp_path / "files"), PartedUploads(database)
    upload = parted.begin(owner=None, name="a", mime="a/b", size=4, purpose="user_data", lifetime=None)
    parts = [part_id(parted.add(uploads, upload, [data])) for data in (b"ab", b"cd")]

    with monkeypatch.context() as patch:
        patch.setattr(*where, dies)
        patch.setattr(Uploads, "cancel", dies)  # nothing is cleared up either
        with pytest.raises(DiedError):
            parted.complete(uploads, upload, parts, None)
    again = Uploads(database, tmp_path / "files")
    made = PartedUploads(database).complete(again, upload, parts, None)[1]
    assert [file.id for file in again.page(owner=None).files] == [made.id]
    assert again.path(made.id).read_bytes() == b"abcd"
    assert PartedUploads(database).complete(again, upload, parts, None)[1] == made


def test_bytes_that_were_never_written_down_go_with_their_upload(tmp_path, database, monkeypatch):
    now = datetime.now(UTC)
    uploads = Uploads(database, tmp_path / "files", clock=lambda: now)
    token = uploads.begin(owner=None, name="a", mime="a/b", purpose="user_data")
    uploads.append(token, 0, b"abc")
    with monkeypatch.context() as patch:
        patch.setattr(Uploads, "_keep", dies)
        with pytest.raises(DiedError):
            uploads.finish(token)
    assert [path for path in (tmp_path / "files").iterdir() if path.is_file()] != []
    now += timedelta(days=2)
    uploads.expire()
    assert [path for path in (tmp_path / "files").rglob("*") if path.is_file()] == []


def test_what_a_writer_of_contexts_left_when_it_died_goes_with_the_next_expiry(tmp_path):
    left = tmp_path / ".tmp-0123-a.jsonl"
    left.touch()
    Contexts(tmp_path).expire()
    assert left.exists()  # somebody may be writing it
    Contexts(tmp_path, clock=lambda: datetime.now(UTC) + timedelta(hours=2)).expire()
    assert not left.exists()


# --- SIGTERM in the midst of a crowd ----------------------------------------------------------------------


async def _by_openai(port: int, number: int, begun: asyncio.Semaphore) -> str:
    said = ""
    async with openai.AsyncOpenAI(
        base_url=f"http://127.0.0.1:{port}/v1", api_key="-", max_retries=0
    ) as client:
        stream = await client.chat.completions.create(
            model=NAME, messages=[{"role": "user", "content": f"{number} please"}], stream=True
        )
        async for chunk in stream:
            begun.release() if not said and chunk.choices[0].delta.content else None
            said += chunk.choices[0].delta.content or ""
    return said


async def _by_google(port: int, number: int, begun: asyncio.Semaphore) -> str:
    said = ""
    client = genai.Client(
        api_key="-", http_options=types.HttpOptions(base_url=f"http://127.0.0.1:{port}")
    ).aio
    async for chunk in await client.models.generate_content_stream(model=NAME, contents=f"{number} please"):
        begun.release() if not said and chunk.text else None
        said += chunk.text or ""
    return said


async def _stopped(server, batch: bool) -> tuple[list[str | BaseException], str]:
    """What each of a crowd heard when the server was told to stop, and the id of a batch given to it."""
    job = await _batch(server.port) if batch else ""
    begun = asyncio.Semaphore(0)
    ways = [_by_openai if number % 2 else _by_google for number in range(CROWD)]
    crowd = [asyncio.create_task(way(server.port, number, begun)) for number, way in enumerate(ways)]
    for _ in crowd:
        await begun.acquire()
    server.process.send_signal(signal.SIGTERM)
    while _lets_in(server.port):
        await asyncio.sleep(0)
    return await asyncio.gather(*crowd, return_exceptions=True), job


def _lets_in(port: int) -> bool:
    try:
        socket.create_connection(("127.0.0.1", port)).close()
    except OSError:
        return False
    return True


async def _batch(port: int) -> str:
    connection = Connection(port)
    path = f"/v1beta/models/{NAME}:batchGenerateContent?key=-"
    requests = [{"request": json.loads(asked("gemini", number)[1])} for number in range(3)]
    body = {"batch": {"inputConfig": {"requests": {"requests": requests}}}}
    made = await connection.request("POST", path, json.dumps(body).encode())
    assert made.status == 200, made.body
    connection.close()
    return json.loads(made.body)["name"]


async def _answers(port: int, batch: str) -> list[str]:
    connection = Connection(port)
    while True:
        told = json.loads((await connection.request("GET", f"/v1beta/{batch}?key=-")).body)
        if told.get("done"):
            answers = told["response"]["inlinedResponses"]["inlinedResponses"]
            return [one["response"]["candidates"][0]["content"]["parts"][0]["text"] for one in answers]
        await asyncio.sleep(0.05)


def test_told_to_stop_it_lets_a_crowd_hear_all(tmp_path):
    with stub_server(tmp_path, "--pieces", "20", "--pause", "0.2") as server:
        heard, _ = asyncio.run(_stopped(server, batch=False))
        assert server.process.wait(60) == 0
    assert heard == [expected(number, 20) for number in range(CROWD)]


def test_who_cannot_hear_all_is_told_and_jobs_go_on_later(tmp_path):
    with stub_server(tmp_path, "--pieces", "1000", "--pause", "0.2", "--drain", "1") as server:
        heard, batch = asyncio.run(_stopped(server, batch=True))
        assert server.process.wait(60) == 0
    assert [error for error in heard if not isinstance(error, openai.APIError | errors.APIError)] == []
    assert {"the server is stopping" in str(error) for error in heard} == {True}
    with stub_server(tmp_path, "--pieces", "2") as server:
        assert asyncio.run(_answers(server.port, batch)) == [expected(number, 2) for number in range(3)]

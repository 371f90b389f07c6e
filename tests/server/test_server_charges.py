"""What is charged: each item of a batch once, whatever becomes of the process; an answer whose client goes
as far as it was made."""

from __future__ import annotations

import asyncio
import json
import signal
import subprocess
import sys
import threading
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import httpx
import pytest
import sqlalchemy as sa
from charges import DOLLARS, ITEMS, PRICE, USAGE
from serving import Serving, serving, waited

from language.stub import Say, StubCompleter, StubEngine
from studiolo.language.engines.base import Capabilities
from studiolo.language.engines.local import LocalEngine
from studiolo.server import shelf
from studiolo.server.keys import KeyStore
from studiolo.store.database import Database

WORKER = Path(__file__).with_name("charged_worker.py")


def accounts(database: Database, key: str) -> list[dict[str, Any]]:
    """The rows of a key's account, without its day."""
    with database.read() as connection:
        rows = connection.execute(sa.text("SELECT * FROM spending WHERE key = :key"), {"key": key})
        return [{name: value for name, value in row.items() if name != "day"} for row in rows.mappings()]


@pytest.fixture(scope="module")
def worker() -> Iterator[Callable[..., int]]:
    """Starts a `charged_worker` with these words; how it ended."""
    forks = subprocess.Popen(
        [sys.executable, str(WORKER)], stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True
    )
    assert forks.stdin is not None
    assert forks.stdout is not None

    def worked(*words: object) -> int:
        forks.stdin.write(" ".join(map(str, words)) + "\n")
        forks.stdin.flush()
        return int(forks.stdout.readline())

    with forks:
        yield worked
        forks.stdin.close()


@pytest.mark.parametrize("dies", ["before", "after"])
def test_an_item_is_charged_once_though_the_process_died_over_it(database_url, studiolo_home, worker, dies):
    database = Database(database_url)
    _, key = KeyStore(database).create("ada")

    assert worker(database_url, studiolo_home, key.id, dies) == -signal.SIGKILL
    (half,) = accounts(database, key.id)
    with database.read() as connection:
        kept = connection.scalar(sa.text("SELECT done FROM batches WHERE owner = :key"), {"key": key.id})
    assert half["requests"] == kept
    # Items are kept side by side: while the third was, another may have been.
    assert kept in ((2,) if dies == "before" else (3, 4))
    assert worker(database_url, studiolo_home, key.id) == 0
    (whole,) = accounts(database, key.id)
    assert whole.pop("dollars") == pytest.approx(ITEMS * DOLLARS)
    assert whole == {
        "key": key.id, "model": "stub", "batch": True, "requests": ITEMS, "thoughts": 0,
        "prompt": ITEMS * USAGE.prompt, "cached": ITEMS * USAGE.cached, "answer": ITEMS * USAGE.answer,
    }  # fmt: skip
    assert KeyStore(database).spent(key.id).today == pytest.approx(ITEMS * DOLLARS)
    database.close()


# --- clients that go early --------------------------------------------------------------------------------

MADE = 7
"""Tokens after which the engine waits, and the client goes."""
WORDS = "Tell me of the fox, and do not stop."
CHAT = {"model": "stub", "messages": [{"role": "user", "content": WORDS}]}
CONTENT = {"contents": [{"parts": [{"text": WORDS}]}]}
RESPONSE = {"model": "stub", "input": WORDS}
GENERATE = "/v1beta/models/stub"


class Held:
    """A whole engine over scripted tokens. It waits after `MADE` of them, for ever."""

    def __init__(self) -> None:
        self.completer = StubCompleter([Say("a fox " * 99)], pause=self._pause)
        self.engine = LocalEngine(self.completer)
        self.here = threading.Event()

    async def _pause(self) -> None:
        await asyncio.sleep(0)
        if self.completer.made == MADE:
            self.here.set()
            await asyncio.Event().wait()

    def gone(self) -> bool:
        return self.completer.seen[0].cancelled


@pytest.fixture
def half_way(
    studiolo_home: Path, monkeypatch: pytest.MonkeyPatch
) -> Iterator[tuple[Serving, Held, str, str]]:
    """A server that needs keys, its engine, a key and its id."""
    monkeypatch.setattr(shelf, "price_of", lambda model: PRICE)
    held = Held()
    with serving(studiolo_home, {"stub": held.engine}, host="0.0.0.0") as here:
        key, known = here.studio.keys.store.create("ada")
        yield here, held, key, known.id


@pytest.mark.parametrize(
    ("path", "body"),
    [
        (f"{GENERATE}:generateContent", CONTENT),
        (f"{GENERATE}:streamGenerateContent?alt=sse", CONTENT),
        (f"{GENERATE}:streamGenerateContent", CONTENT),
        ("/v1/chat/completions", CHAT),
        ("/v1/chat/completions", CHAT | {"stream": True}),
        ("/v1/responses", RESPONSE),
        ("/v1/responses", RESPONSE | {"stream": True}),
    ],
)
def test_who_goes_early_pays_for_what_was_made(half_way, path, body):
    here, held, key, id_ = half_way
    data = json.dumps(body).encode()
    head = f"POST {path} HTTP/1.1\r\nhost: x\r\nx-goog-api-key: {key}\r\n"
    with here.connect() as client:
        client.sendall(f"{head}content-length: {len(data)}\r\n\r\n".encode() + data)
        assert held.here.wait(60)
    waited(held.gone)
    (account,) = waited(lambda: accounts(here.studio.database, id_))
    prompt = len(held.completer.seen[0].completion.prompt)
    assert (account["prompt"], account["answer"], account["requests"]) == (prompt, MADE, 1)
    assert account["dollars"] == pytest.approx(prompt * PRICE.prompt + MADE * PRICE.answer)
    assert (
        f'studiolo_tokens_total{{kind="answer",model="stub"}} {MADE}.0'
        in httpx.get(f"{here.url}/metrics").text
    )


@pytest.mark.parametrize("path", ["/v1/embeddings", f"{GENERATE}:embedContent"])
def test_who_goes_before_the_vector_is_there_pays_for_its_text(studiolo_home, monkeypatch, path):
    monkeypatch.setattr(shelf, "price_of", lambda model: PRICE)
    begun, gone = threading.Event(), threading.Event()

    class Slow(StubEngine):
        async def embed(self, texts, *, dimensions=None):
            begun.set()
            try:
                await asyncio.Event().wait()
            finally:
                gone.set()

    engine = Slow(capabilities=Capabilities(context=512, embeddings=True))
    body = {"input": WORDS, "model": "stub"} if "v1/" in path else {"content": CONTENT["contents"][0]}
    with serving(studiolo_home, {"stub": engine}, host="0.0.0.0") as here:
        key, known = here.studio.keys.store.create("ada")
        data = json.dumps(body).encode()
        head = f"POST {path} HTTP/1.1\r\nhost: x\r\nx-goog-api-key: {key}\r\n"
        with here.connect() as client:
            client.sendall(f"{head}content-length: {len(data)}\r\n\r\n".encode() + data)
            assert begun.wait(60)
        assert gone.wait(60)
        (account,) = waited(lambda: accounts(here.studio.database, known.id))
    assert (account["prompt"], account["answer"]) == (len(WORDS.split()), 0)


def test_an_answer_that_fails_costs_nothing_and_a_whole_one_once(studiolo_home, monkeypatch):
    monkeypatch.setattr(shelf, "price_of", lambda model: PRICE)
    scripts = [Say("a fox", then=RuntimeError("broken")), "a fox"]
    engine = LocalEngine(StubCompleter(scripts))
    with serving(studiolo_home, {"stub": engine}, host="0.0.0.0") as here:
        key, known = here.studio.keys.store.create("ada")
        codes = [
            httpx.post(
                f"{here.url}/v1/chat/completions", json=CHAT, headers={"x-goog-api-key": key}
            ).status_code
            for _ in scripts
        ]
    assert codes == [500, 200]
    database = Database(f"sqlite:///{studiolo_home / 'studiolo.sqlite'}")
    (account,) = accounts(database, known.id)
    assert (account["requests"], account["answer"]) == (1, len("a fox"))
    database.close()

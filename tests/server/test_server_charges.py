"""What is charged: each item of a batch once, whatever becomes of the process; an answer whose client goes
as far as it was made."""

from __future__ import annotations

import signal
import subprocess
import sys
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
import sqlalchemy as sa
from charges import DOLLARS, ITEMS, USAGE

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
    assert half["requests"] == (2 if dies == "before" else 3)
    assert worker(database_url, studiolo_home, key.id) == 0
    (whole,) = accounts(database, key.id)
    assert whole.pop("dollars") == pytest.approx(ITEMS * DOLLARS)
    assert whole == {
        "key": key.id, "model": "stub", "batch": True, "requests": ITEMS, "thoughts": 0,
        "prompt": ITEMS * USAGE.prompt, "cached": ITEMS * USAGE.cached, "answer": ITEMS * USAGE.answer,
    }  # fmt: skip
    assert KeyStore(database).spent(key.id).today == pytest.approx(ITEMS * DOLLARS)
    database.close()

"""Which library should carry durable jobs? The same batch of tiny items by each, killed again and again.

    python benchmarks/jobs_queue.py                                # SQLite, 10,000 items
    python benchmarks/jobs_queue.py --url postgresql+psycopg://... # an empty database of PostgreSQL

An item writes a line to a file (it was computed) and a row to a table (its answer was recorded). A process
works; the driver kills it (SIGKILL) after random times and starts it again, until no item is waiting. Counted
are the items whose answer was never recorded, those recorded more than once, and the computations; measured
are, in a run that nobody disturbs, the time of an item beyond the bare insert, the time from the start of the
process to its first item, and the peak of memory.

huey with PostgreSQL takes the part of the URL behind `postgresql+psycopg` as its own.
"""

from __future__ import annotations

import argparse
import asyncio
import json
import os
import random
import resource
import subprocess
import sys
import tempfile
import threading
import time
from pathlib import Path
from typing import Any

import sqlalchemy as sa

WAYS = ("bare", "table", "dbos-one-job", "dbos-steps", "dbos-items", "huey-items", "studiolo")
WORKERS = 8
START = time.time()


class Ledger:
    """What was computed (a file) and what was recorded (a table without a key, so that twice is seen)."""

    def __init__(self, url: str, folder: Path, name: str) -> None:
        self.file = os.open(folder / f"{name}.computed", os.O_WRONLY | os.O_APPEND | os.O_CREAT)
        self.engine = sa.create_engine(url)
        if url.startswith("sqlite"):
            sa.event.listen(self.engine, "connect", _wal)
        meta = sa.MetaData()
        self.effects = sa.Table(f"effects_{name.replace('-', '_')}", meta, sa.Column("item", sa.Integer))
        self.items = sa.Table(
            f"items_{name.replace('-', '_')}",
            meta,
            sa.Column("item", sa.Integer, primary_key=True, autoincrement=False),
            sa.Column("answer", sa.Text, nullable=True),
        )
        meta.create_all(self.engine)

    def compute(self, item: int) -> str:
        os.write(self.file, b"%d\n" % item)
        return f"answer {item}"

    def record(self, item: int) -> None:
        with self.engine.begin() as connection:
            connection.execute(self.effects.insert().values(item=item))


def _wal(connection: Any, _: Any) -> None:
    for pragma in ("journal_mode=WAL", "synchronous=NORMAL", "busy_timeout=30000"):
        connection.execute(f"PRAGMA {pragma}")


def bare(ledger: Ledger, count: int) -> None:
    """No queue at all: the cost of one insert a commit."""
    for item in range(count):
        ledger.compute(item)
        ledger.record(item)


def fill(ledger: Ledger, count: int) -> None:
    with ledger.engine.begin() as connection:
        if connection.scalar(sa.select(sa.func.count()).select_from(ledger.items)) == 0:
            connection.execute(ledger.items.insert(), [{"item": item} for item in range(count)])


def work_off(ledger: Ledger, count: int) -> None:
    """Items are rows; an answer is recorded where there is none yet, in one statement."""
    fill(ledger, count)
    items, after = ledger.items, -1
    while True:
        with ledger.engine.connect() as connection:
            waiting = sa.select(items.c.item).where(items.c.answer.is_(None), items.c.item > after)
            found = list(connection.scalars(waiting.order_by(items.c.item).limit(64)))
        if not found:
            return
        for item in found:
            answer = ledger.compute(item)
            mine = items.update().where(items.c.item == item, items.c.answer.is_(None))
            with ledger.engine.begin() as connection:
                if connection.execute(mine.values(answer=answer)).rowcount:
                    connection.execute(ledger.effects.insert().values(item=item))
        after = found[-1]


def launch_dbos(url: str) -> Any:
    from dbos import DBOS

    engine = sa.create_engine(url, pool_size=20)
    if url.startswith("sqlite"):
        sa.event.listen(
            engine, "connect", _wal
        )  # as huey has it, and much quicker than what DBOS opens itself
    DBOS(
        config={
            "name": "bench",
            "system_database_engine": engine,
            "application_version": "1",
            "log_level": "ERROR",
            "max_executor_threads": 64,
        }
    )
    return DBOS


def dbos_one_job(ledger: Ledger, count: int, url: str) -> None:
    """One workflow for the batch; its items are rows of our own."""
    dbos = launch_dbos(url)
    over = threading.Event()

    @dbos.workflow(name="batch")
    def batch(total: int) -> None:
        work_off(ledger, total)
        over.set()

    _start_one(dbos, batch, count, over)


def dbos_steps(ledger: Ledger, count: int, url: str) -> None:
    """One workflow for the batch, one step an item."""
    dbos = launch_dbos(url)
    over = threading.Event()

    @dbos.step(name="answer")
    def answer(item: int) -> str:
        found = ledger.compute(item)
        ledger.record(item)
        return found

    @dbos.workflow(name="batch")
    def batch(total: int) -> None:
        for item in range(total):
            answer(item)
        over.set()

    _start_one(dbos, batch, count, over)


def _start_one(dbos: Any, batch: Any, count: int, over: threading.Event) -> None:
    from dbos import SetWorkflowID

    dbos.launch()
    dbos.register_queue("jobs", worker_concurrency=1, polling_interval_sec=0.05)
    with SetWorkflowID("the-batch"):
        handle = dbos.enqueue_workflow("jobs", batch, count)
    while not over.wait(0.1):
        if handle.get_status().status not in ("PENDING", "ENQUEUED"):
            break


def dbos_items(ledger: Ledger, count: int, url: str) -> None:
    """A workflow of its own for each item, in a queue."""
    from dbos import SetWorkflowID

    dbos = launch_dbos(url)

    @dbos.workflow(name="item")
    def answer(item: int) -> str:
        found = ledger.compute(item)
        ledger.record(item)
        return found

    dbos.launch()
    dbos.register_queue("items", worker_concurrency=WORKERS, polling_interval_sec=0.05)
    queued = len(dbos.list_workflows(load_input=False, load_output=False))
    for item in range(queued, count):
        with SetWorkflowID(str(item)):
            dbos.enqueue_workflow("items", answer, item)
    while dbos.list_workflows(status=["PENDING", "ENQUEUED"], limit=1):
        time.sleep(0.1)


def huey_items(ledger: Ledger, count: int, url: str) -> None:
    """A task for each item, by threads of huey's consumer."""
    from huey import SqliteHuey
    from huey.api import PostgresHuey

    if url.startswith("sqlite"):
        huey: Any = SqliteHuey(filename=url.removeprefix("sqlite:///"), results=False)
    else:
        huey = PostgresHuey(dsn=url.replace("postgresql+psycopg", "postgresql"), results=False)

    @huey.task(name="answer")
    def answer(item: int) -> None:
        ledger.compute(item)
        ledger.record(item)

    fill(ledger, 1)
    with ledger.engine.connect() as connection:
        queued = int(connection.scalar(sa.select(ledger.items.c.answer)) or 0)
    for item in range(queued, count):
        answer(item)
        if (item + 1) % 100 == 0 or item + 1 == count:
            with ledger.engine.begin() as connection:
                connection.execute(ledger.items.update().values(answer=str(item + 1)))
    consumer = huey.create_consumer(workers=WORKERS, periodic=False, initial_delay=0.01, max_delay=0.05)
    consumer.start()
    while huey.pending_count():
        time.sleep(0.1)
    consumer.stop(graceful=True)


def studiolo(ledger: Ledger, count: int, url: str) -> None:
    """What was made of it: `studiolo.jobs.batches`, whole, eight items at once."""
    from studiolo.jobs.batches import Batches
    from studiolo.jobs.queue import Queue
    from studiolo.jobs.room import Room
    from studiolo.store.database import Database

    async def run() -> None:
        queue = Queue(Database(url), poll=0.05)
        batches = Batches(queue.database, queue, Room(), lives=1000)

        async def answer(kind: str, body: dict[str, Any], owner: str | None) -> dict[str, Any]:
            return {"response": {"text": ledger.compute(body["item"])}}

        batches.answerers["bench"] = answer
        await queue.start()
        await batches.start()
        if not await batches.page(None):
            items = ((None, {"item": item}) for item in range(count))
            await batches.create(owner=None, kind="bench", model="m", items=items)
        while not all(batch.ended for batch in await batches.page(None)):
            await asyncio.sleep(0.1)

    asyncio.run(run())


def recorded(way: str, ledger: Ledger) -> sa.Select[Any]:
    """Each item that has an answer, and how many."""
    if way == "studiolo":
        from studiolo.jobs.items import ITEMS

        answered = ITEMS.c.failed.is_not(None)
        return sa.select(ITEMS.c.number, sa.func.count()).where(answered).group_by(ITEMS.c.number)
    return sa.select(ledger.effects.c.item, sa.func.count()).group_by(ledger.effects.c.item)


def work(way: str, url: str, count: int, folder: Path) -> None:
    """The process that is killed; it ends by itself when nothing is waiting."""
    ledger = Ledger(url, folder, way)
    queue_url = url if not url.startswith("sqlite") else f"sqlite:///{folder / f'{way}.queue.sqlite'}"
    begun = time.perf_counter()
    if way == "studiolo":
        queue_url = url  # one database
    if way == "bare":
        bare(ledger, count)
    elif way == "table":
        work_off(ledger, count)
    else:
        does = {
            "dbos-one-job": dbos_one_job,
            "dbos-steps": dbos_steps,
            "dbos-items": dbos_items,
            "huey-items": huey_items,
            "studiolo": studiolo,
        }[way]
        does(ledger, count, queue_url)
    told = {
        "seconds": time.perf_counter() - begun,
        "peak_mb": resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024,
    }
    print(json.dumps(told), flush=True)
    os._exit(0)  # what a library still has in its threads is not ours to wait for


def start(way: str, url: str, count: int, folder: Path) -> subprocess.Popen[str]:
    command = [sys.executable, __file__, "--work", way, "--url", url, "--items", str(count)]
    return subprocess.Popen([*command, "--folder", str(folder)], stdout=subprocess.PIPE, text=True)


def undisturbed(way: str, url: str, count: int, folder: Path) -> dict[str, float]:
    begun = time.time()
    process = start(way, url, count, folder)
    computed = folder / f"{way}.computed"
    while not (computed.exists() and computed.stat().st_size) and process.poll() is None:
        time.sleep(0.005)
    first = time.time() - begun
    told, _ = process.communicate()
    return {**json.loads(told.splitlines()[-1]), "first": first}


def disturbed(way: str, url: str, count: int, folder: Path, kills: int, seed: int) -> dict[str, int]:
    """Kills the worker `kills` times at random moments while it works, then lets it end."""
    chance, done = random.Random(seed), 0
    computed = folder / f"{way}.computed"
    while True:
        process = start(way, url, count, folder)
        if done == kills:
            process.communicate()
            break
        before = computed.stat().st_size if computed.exists() else 0
        wanted = before + chance.randrange(1, 4 * count // kills)  # bytes: a random item, then a random wait
        while process.poll() is None and (computed.stat().st_size if computed.exists() else 0) < wanted:
            time.sleep(0.002)
        if process.poll() is not None:
            break
        time.sleep(chance.random() * 0.02)
        process.kill()
        process.wait()
        done += 1
    ledger = Ledger(url, folder, way)
    with ledger.engine.connect() as connection:
        rows = connection.execute(recorded(way, ledger))
        counts: dict[int, int] = {row[0]: row[1] for row in rows}
    return {
        "kills": done,
        "lost": count - len(counts),
        "twice": sum(times > 1 for times in counts.values()),
        "computed": len(computed.read_bytes().splitlines()),
    }


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--url", help="of an empty database; default: new files of SQLite")
    parser.add_argument("--items", type=int, default=10_000)
    parser.add_argument("--kills", type=int, default=20)
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--ways", nargs="+", choices=WAYS, default=list(WAYS))
    parser.add_argument("--work", choices=WAYS, help=argparse.SUPPRESS)
    parser.add_argument("--folder", type=Path, help=argparse.SUPPRESS)
    given = parser.parse_args()
    if given.work:
        work(given.work, given.url, given.items, given.folder)
    print("| by | ms an item | first item, s | peak, MB | kills | lost | recorded twice | computed again |")
    print("|---|--:|--:|--:|--:|--:|--:|--:|")
    for way in given.ways:
        print(row(way, given), flush=True)


def row(way: str, given: argparse.Namespace) -> str:
    """A line of the table."""
    with tempfile.TemporaryDirectory() as calm, tempfile.TemporaryDirectory() as rough:
        url = _fresh(given.url, way, "calm") or f"sqlite:///{calm}/own.sqlite"
        quiet = undisturbed(way, url, given.items, Path(calm))
        cells = [
            f"{1000 * quiet['seconds'] / given.items:.2f}",
            f"{quiet['first']:.1f}",
            f"{quiet['peak_mb']:.0f}",
        ]
        if way == "bare":
            return f"| {way} | {' | '.join(cells)} | | | | |"
        url = _fresh(given.url, way, "rough") or f"sqlite:///{rough}/own.sqlite"
        told = disturbed(way, url, given.items, Path(rough), given.kills, given.seed)
    again = told["computed"] - (given.items - told["lost"])
    cells += [str(told["kills"]), str(told["lost"]), str(told["twice"]), str(again)]
    return f"| {way} | {' | '.join(cells)} |"


def _fresh(url: str | None, way: str, kind: str) -> str | None:
    """A database of its own on the server of `url`."""
    if url is None:
        return None
    name = f"{way}_{kind}_{os.getpid()}".replace("-", "_")
    with sa.create_engine(url, isolation_level="AUTOCOMMIT").connect() as connection:
        connection.execute(sa.text(f"CREATE DATABASE {name}"))
    return sa.make_url(url).set(database=name).render_as_string(hide_password=False)


if __name__ == "__main__":
    main()

"""Batches: every item answered once, whatever becomes of the process; cancelled, retried, kept for a time."""

from __future__ import annotations

import asyncio
import os
import random
import signal
import subprocess
import sys
import time
import tracemalloc
from collections import Counter
from contextlib import asynccontextmanager
from datetime import UTC, datetime, timedelta
from pathlib import Path

import pytest
import sqlalchemy as sa

from jobs.waiting import until
from studiolo.errors import ConflictError, NotFoundError
from studiolo.jobs.batches import FILES, INLINE, Batches, read_lines
from studiolo.jobs.items import BatchTable
from studiolo.jobs.queue import Queue
from studiolo.jobs.room import Room
from studiolo.language.errors import InvalidRequestError, RateLimitError
from studiolo.language.prices import Price, Rates
from studiolo.store.database import Database

WORKER = Path(__file__).with_name("batch_worker.py")
NOON = datetime(2026, 11, 21, 12, tzinfo=UTC)


async def square(kind, body, owner):
    return {"response": {"square": body["n"] ** 2}}


@asynccontextmanager
async def at_work(url, answer=square, room=None, **options):
    database = Database(url)
    queue = Queue(database, worker="test", poll=0.02)
    batches = Batches(database, queue, room or Room(), **options)
    batches.answerers["test"] = answer
    await queue.start()
    await batches.start()
    try:
        yield batches
    finally:
        await queue.close()
        database.close()


def items(count):
    return [(f"key-{n}", {"n": n}) for n in range(count)]


async def over(batches, batch):
    await until(lambda: _over(batches, batch.id))
    return await batches.get(batch.id, batch.owner)


async def _over(batches, identity):
    return (await batches.get(identity, None)).ended is not None


def made(batches, given, **told):
    return batches.create(owner=None, kind="test", model="m", items=given, **told)


@pytest.fixture
def workers():
    """`workers(url, computed, *items)` starts a process that works, and returns its id."""
    forks = subprocess.Popen(
        [sys.executable, str(WORKER)], stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True
    )

    def start(*told):
        forks.stdin.write(" ".join(map(str, told)) + "\n")
        forks.stdin.flush()
        return int(forks.stdout.readline())

    start.line = lambda: forks.stdout.readline().rstrip("\n")
    with forks:
        yield start
        forks.stdin.close()


def test_every_item_is_answered_once_though_the_process_is_killed_again_and_again(url, tmp_path, workers):
    count, computed, chance = 600, tmp_path / "computed", random.Random(url.startswith("sqlite"))
    computed.touch()
    process = workers(url, computed, count)
    assert workers.line() == "created"
    for _ in range(6):
        wanted = computed.stat().st_size + chance.randrange(300)  # of some 2,300 bytes in all
        while computed.stat().st_size < wanted:
            time.sleep(0.001)
        os.kill(process, signal.SIGKILL)
        assert workers.line() == "ended -9"
        process = workers(url, computed)
    assert workers.line() == "ended 0"
    times = Counter(map(int, computed.read_text().split()))
    assert times.keys() == set(range(count))
    assert (
        sum(times.values()) > count
    )  # the kills did hit: some items were computed, lost, and computed again

    database = Database(url)
    batches = Batches(database, Queue(database), Room())
    (record,) = asyncio.run(batches.page(None))
    assert record.state == "succeeded"
    assert record.counts.model_dump() == {"total": count, "done": count * 9 // 10, "failed": count // 10}
    assert (record.usage.prompt, record.usage.answer) == (2 * record.counts.done, record.counts.done)
    found = list(batches.results(record.id))
    assert [(item.number, item.key) for item in found] == [(n, f"key-{n}") for n in range(count)]
    for item in found:
        n = item.number
        expected = {"error": {"message": f"no {n}"}} if n % 10 == 9 else {"response": {"square": n * n}}
        assert (item.answer, item.failed) == (expected, n % 10 == 9)


def test_a_batch_killed_while_it_is_taken_in_is_not_there(tmp_path):
    url = f"sqlite:///{tmp_path / 'db'}"

    def endless():
        yield from items(600)
        raise KeyboardInterrupt  # as a kill, but that something is undone then: see the next lines

    async def main():
        async with at_work(url) as batches:
            table = batches._table
            table.delete = lambda identity: None  # a killed process undoes nothing
            with pytest.raises(KeyboardInterrupt):
                table.create(
                    {"id": "x", "owner": None, "kind": "test", "model": "m", "title": "", "metadata": {},
                     "lifetime": INLINE, "created": NOON - timedelta(days=400)}, endless(),
                )  # fmt: skip
        async with at_work(url) as batches:
            assert await batches.page(None) == ()
            with pytest.raises(NotFoundError):
                await batches.get("x", None)
            await batches.expire()
            with batches._table.database.read() as connection:
                assert connection.scalar(sa.text("SELECT count(*) FROM batch_items")) == 0

    asyncio.run(main())


def test_ten_thousand_items_take_no_more_memory_than_a_thousand(tmp_path):
    """Peaks of what Python has allocated while a batch is taken in, answered and read."""

    async def peak(count: int) -> int:
        async with at_work(f"sqlite:///{tmp_path / str(count)}") as batches:
            tracemalloc.start()
            await asyncio.to_thread(
                batches._table.create,
                {"id": "x", "owner": None, "kind": "test", "model": "m", "title": "", "metadata": {},
                 "lifetime": INLINE, "created": NOON},
                ((None, {"n": n, "text": "x" * 500}) for n in range(count)),
            )  # fmt: skip
            assert sum(1 for _ in batches.results("x")) == count
            numbers = [n async for n in batches._waiting("x", asyncio.Event())]
            assert len(numbers) == count
            del numbers
            _, most = tracemalloc.get_traced_memory()
            tracemalloc.stop()
            return most

    few, many = asyncio.run(peak(1000)), asyncio.run(peak(10_000))
    assert many < 1.5 * few + 10_000 * 40  # the list of numbers above, and no bodies


def test_large_items_are_not_in_memory_together(tmp_path):
    database = Database(f"sqlite:///{tmp_path / 'db'}")
    record = {"id": "x", "owner": None, "kind": "test", "model": "m", "title": "", "metadata": {},
              "lifetime": INLINE, "created": NOON}  # fmt: skip
    tracemalloc.start()
    BatchTable(database).create(record, ((None, {"n": str(n) * 2**20}) for n in range(60)))
    _, peak = tracemalloc.get_traced_memory()
    tracemalloc.stop()
    assert peak < 30 * 2**20
    assert BatchTable(database).load("x").counts.total == 60
    database.close()


def test_cancelling_keeps_what_is_done(url):
    async def main():
        begun = asyncio.Event()

        async def answer(kind, body, owner):
            if body["n"] < 3:
                return {"response": {}}
            begun.set()
            return await asyncio.Event().wait()

        async with at_work(url, answer, concurrency=2) as batches:
            batch = await made(batches, items(50))
            await begun.wait()
            await until(lambda: _done(batches, batch.id, 3))
            assert (await batches.cancel(batch.id, None)).state == "cancelling"
            record = await over(batches, batch)
            assert (record.state, record.counts.done) == ("cancelled", 3)
            answers = [item.answer for item in batches.results(batch.id)]
            assert answers == [{"response": {}}] * 3 + [None] * 47
            with pytest.raises(ConflictError):
                await batches.cancel(batch.id, None)

    asyncio.run(main())


def test_a_model_that_takes_its_time_holds_up_no_batch_of_another(tmp_path):
    async def main():
        begun = asyncio.Event()

        async def answer(kind, body, owner):
            if "slow" in body:
                begun.set()
                await asyncio.Event().wait()
            return {"response": {}}

        async with at_work(f"sqlite:///{tmp_path / 'db'}", answer, concurrency=2) as batches:
            given = [(None, {"slow": True})] * 3
            slow = await batches.create(owner=None, kind="test", model="painter", items=given)
            await begun.wait()
            assert (await over(batches, await made(batches, items(5)))).counts.done == 5
            assert (await batches.get(slow.id, None)).counts.done == 0
            await batches.cancel(slow.id, None)

    asyncio.run(main())


async def _done(batches, identity, count):
    return (await batches.get(identity, None)).counts.done == count


def test_what_may_pass_is_asked_again_and_what_may_not_is_an_error(tmp_path):
    asked, slept = Counter(), []

    async def answer(kind, body, owner):
        asked[body["n"]] += 1
        if body["n"] == 0 and asked[0] < 3:
            raise RateLimitError("busy", retry_after=7)
        if body["n"] == 1:
            raise InvalidRequestError("wrong")
        if body["n"] == 2:
            raise RateLimitError("always busy")
        return {"response": {}}

    async def sleep(seconds):
        slept.append(seconds)

    async def main():
        async with at_work(f"sqlite:///{tmp_path / 'db'}", answer, sleep=sleep, tries=3) as batches:
            batch = await made(batches, items(4))
            record = await over(batches, batch)
            assert (record.state, record.counts.done, record.counts.failed) == ("succeeded", 2, 2)
            assert asked == {0: 3, 1: 1, 2: 3, 3: 1}
            assert sorted(slept) == [1.0, 2.0, 7, 7]
            errors = [item.answer for item in batches.results(batch.id) if item.failed]
            assert errors == [{"error": {"message": "wrong"}}, {"error": {"message": "always busy"}}]

    asyncio.run(main())


def test_an_item_that_ends_the_process_each_time_is_given_up(tmp_path):
    url = f"sqlite:///{tmp_path / 'db'}"
    asked = []

    async def answer(kind, body, owner):
        asked.append(body["n"])
        return {"response": {}}

    async def main():
        async with at_work(url, answer, lives=3) as batches:
            table = batches._table
            record = {
                "id": "x", "owner": None, "kind": "test", "model": "m", "title": "", "metadata": {},
                "lifetime": INLINE, "created": NOON,
            }  # fmt: skip
            await asyncio.to_thread(table.create, record, items(2))
            for _ in range(3):
                table.begin("x", 1)  # and then the process was gone
            await batches.start()
            await until(lambda: _over(batches, "x"))
            assert asked == [0]
            first, second = batches.results("x")
            assert (first.failed, second.failed) == (False, True)
            assert "ended 3 times" in second.answer["error"]["message"]

    asyncio.run(main())


def test_a_stop_of_the_server_costs_an_item_no_life(tmp_path):
    url = f"sqlite:///{tmp_path / 'db'}"

    async def main():
        begun = asyncio.Event()

        async def answer(kind, body, owner):
            begun.set()
            await asyncio.Event().wait()

        for _ in range(3):
            begun.clear()
            async with at_work(url, answer, lives=1) as batches:
                if not await batches.page(None):
                    await made(batches, items(1))
                await begun.wait()
        async with at_work(url, lives=1) as batches:
            (batch,) = await batches.page(None)
            assert (await over(batches, batch)).counts.done == 1

    asyncio.run(main())


def test_interactive_work_goes_first(tmp_path):
    async def main():
        room, asked = Room(patience=1e6), []

        async def answer(kind, body, owner):
            assert not room.busy
            asked.append(body["n"])
            return {"response": {}}

        async with at_work(f"sqlite:///{tmp_path / 'db'}", answer, room) as batches:
            with room.interactive():
                batch = await made(batches, items(20))
                await until(lambda: _running(batches, batch.id))
                assert asked == []
            assert (await over(batches, batch)).counts.done == 20

    asyncio.run(main())


async def _running(batches, identity):
    return (await batches.get(identity, None)).state == "running"


def test_background_work_is_not_kept_waiting_for_ever():
    async def main():
        room = Room(patience=0.0)
        with room.interactive():
            await room.wait()

    asyncio.run(main())


def test_a_batch_costs_half(tmp_path):
    half = Price(prompt=4e-6, answer=8e-6)
    own = Price(prompt=4e-6, answer=8e-6, batch=Rates(prompt=1e-6, answer=1e-6))

    async def answer(kind, body, owner):
        model = "own" if body["n"] else "half"
        return {"response": {}, "model": model, "usage": {"prompt": 1000, "answer": 500}}

    async def main():
        prices = {"half": half, "own": own}
        async with at_work(f"sqlite:///{tmp_path / 'db'}", answer, price=prices.get) as batches:
            record = await over(batches, await made(batches, items(2)))
            assert record.dollars == pytest.approx((4e-3 + 4e-3) / 2 + 1e-3 + 0.5e-3)
            assert (record.usage.prompt, record.usage.answer) == (2000, 1000)

    asyncio.run(main())


def test_results_have_a_lifetime(url, tmp_path):
    now = [NOON]

    async def main():
        async with at_work(url, clock=lambda: now[0]) as batches:
            file = tmp_path / "items.jsonl"
            file.write_text('{"key": "a", "body": {"n": 1}}\n\n{"body": {"n": 2}}\n')
            inline = await over(batches, await made(batches, items(1)))
            kept = await over(batches, await made(batches, file, metadata={"a": "b"}, title="t"))
            assert (inline.expires, kept.expires) == (NOON + INLINE, NOON + FILES)
            assert (kept.metadata, kept.title, kept.counts.total) == ({"a": "b"}, "t", 2)
            assert [item.key for item in batches.results(kept.id)] == ["a", None]
            now[0] = NOON + INLINE
            assert await batches.expire() == 1
            assert (await batches.get(inline.id, None)).state == "expired"
            assert list(batches.results(inline.id)) == []
            assert len(list(batches.results(kept.id))) == 2
            await batches.delete(kept.id, None)
            with pytest.raises(NotFoundError):
                await batches.get(kept.id, None)

    asyncio.run(main())


def test_batches_are_their_owners(tmp_path):
    async def main():
        async with at_work(f"sqlite:///{tmp_path / 'db'}") as batches:
            mine = await batches.create(owner="me", kind="test", model="m", items=items(1))
            made_by_me = [mine.id]
            for _ in range(4):
                record = await batches.create(owner="me", kind="test", model="m", items=items(1))
                made_by_me.insert(0, record.id)
            for call in (batches.get, batches.cancel, batches.delete):
                with pytest.raises(NotFoundError):
                    await call(mine.id, "you")
            assert await batches.page("you") == ()
            first = await batches.page("me", size=3)
            rest = await batches.page("me", size=3, after=first[-1].id)
            assert [record.id for record in (*first, *rest)] == made_by_me

    asyncio.run(main())


@pytest.mark.parametrize(
    ("given", "told"),
    [
        ([], "without items"),
        ([("a", {}), ("a", {})], "same key"),
        ([("a" * 513, {})], "key"),
        ([("a\0", {})], "key"),
    ],
)
def test_what_is_no_batch_is_refused(tmp_path, given, told):
    async def main():
        async with at_work(f"sqlite:///{tmp_path / 'db'}") as batches:
            with pytest.raises(InvalidRequestError, match=told):
                await made(batches, given)
            assert await batches.page(None) == ()
            with pytest.raises(InvalidRequestError, match="not taken"):
                await batches.create(owner=None, kind="other", model="m", items=items(1))

    asyncio.run(main())


@pytest.mark.parametrize("line", ["[1]", "{", "1", "nan", "[" * 100_000, '{"a": NaN}', '{"a": "\ud800"}'])
def test_lines_that_are_no_objects_are_refused(tmp_path, line):
    file = tmp_path / "lines"
    file.write_bytes(b'{"a": 1}\n' + line.encode("utf-8", "surrogatepass") + b"\n")
    with pytest.raises(InvalidRequestError, match="line 2"):
        list(read_lines(file))

"""The queue of durable jobs: order, limits, interruption, jobs that break off."""

from __future__ import annotations

import asyncio
from contextlib import asynccontextmanager

import pytest

from studiolo.errors import ConflictError
from studiolo.jobs.queue import BULK, FIRST, Queue
from studiolo.store.database import Database


@asynccontextmanager
async def at_work(url, run, at_once=1, **options):
    queue = Queue(Database(url), worker="test", poll=0.02, **options)
    queue.carry("things", run, at_once)
    await queue.start()
    try:
        yield queue
    finally:
        await queue.close()
        queue.database.close()


def test_urgent_jobs_go_first_and_so_many_at_once(url):
    async def main():
        order, at_work_now, go, all_done = [], [], asyncio.Event(), asyncio.Event()

        async def run(job):
            at_work_now.append(job)
            assert len(at_work_now) == 1
            await go.wait()
            order.append(job)
            at_work_now.remove(job)
            if len(order) == 4:
                all_done.set()

        async with at_work(url, run) as queue:
            for job, priority in [("first", BULK), ("bulk", BULK), ("urgent", FIRST), ("bulk 2", BULK)]:
                await queue.put("things", job, priority)
            await queue.put("things", "bulk")  # is there already
            go.set()
            await all_done.wait()
            assert set(order) == {"first", "bulk", "urgent", "bulk 2"}
            assert order.index("urgent") <= 1
            assert order.index("bulk") < order.index("bulk 2")

    asyncio.run(main())


def test_what_was_interrupted_goes_on_and_what_ended_does_not(url):
    async def main():
        begun, ended, seen = asyncio.Event(), asyncio.Event(), []

        async def never(job):
            if job == "short":
                return
            begun.set()
            await asyncio.Event().wait()

        async def at_last(job):
            seen.append(job)
            ended.set()

        async with at_work(url, never) as queue:
            await queue.put("things", "short")
            await queue.put("things", "long")
            await begun.wait()
        async with at_work(url, at_last) as queue:
            await ended.wait()
            await queue.put("things", "again", FIRST)
            while seen != ["long", "again"]:
                await asyncio.sleep(0.01)

    asyncio.run(main())


def test_what_breaks_off_is_begun_again(tmp_path):
    async def main():
        tries, slept, ended = [], [], asyncio.Event()

        async def run(job):
            tries.append(job)
            if len(tries) < 3:
                raise OSError("the database is away")
            ended.set()

        async def sleep(seconds):
            slept.append(seconds)

        async with at_work(f"sqlite:///{tmp_path / 'db'}", run, sleep=sleep) as queue:
            await queue.put("things", "a")
            await ended.wait()
            assert slept == [1.0, 4.0]
            ended.clear()

            async def over():
                while queue._tasks:
                    await asyncio.sleep(0.01)

            await over()
            while not ended.is_set():  # as soon as DBOS knows that it has ended, it can be put again
                await queue.put("things", "a")
                await asyncio.sleep(0.05)
            await queue.close()
            await queue.forget("things", "a")
            with pytest.raises(ConflictError, match="no jobs"):
                await queue.put("things", "b")

    asyncio.run(main())


def test_one_queue_a_process(tmp_path):
    async def run(job):
        pass

    async def main():
        async with at_work(f"sqlite:///{tmp_path / 'a'}", run):
            with pytest.raises(ConflictError, match="in this process"):
                async with at_work(f"sqlite:///{tmp_path / 'b'}", run):
                    pass
        async with at_work(f"sqlite:///{tmp_path / 'b'}", run):
            pass

    asyncio.run(main())

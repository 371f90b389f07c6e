"""Bulk pictures: interrupted at any picture, they come out with the same bytes, each once."""

from __future__ import annotations

import asyncio
import threading
from contextlib import asynccontextmanager

import pytest

from jobs.waiting import until
from studiolo.errors import ConflictError, NotFoundError
from studiolo.jobs import pictures as module
from studiolo.jobs.artist import Artist
from studiolo.jobs.pictures import Pictures, Wish
from studiolo.jobs.queue import Queue
from studiolo.language.errors import InvalidRequestError
from studiolo.models.registry import NoSuchModelError, register
from studiolo.store.database import Database
from tiny import tiny_folder

WISH = Wish(prompts=("a fox", "a dog"), seeds=(3, 1, 2, 5, 8), steps=2)


@asynccontextmanager
async def at_work(url, folder=None):
    database = Database(url)
    queue = Queue(database, worker="test", poll=0.02)
    pictures = Pictures(database, queue, Artist(), folder=folder)
    await queue.start()
    await pictures.start()
    try:
        yield pictures
    finally:
        await queue.close()
        database.close()


@pytest.fixture
def tiny(tmp_path):
    register(tiny_folder(tmp_path / "tiny"), "tiny")
    return "tiny"


async def over(pictures, identity):
    async def ended():
        return (await pictures.get(identity, None)).ended is not None

    await until(ended)
    return await pictures.get(identity, None)


def test_prompts_times_seeds_also_when_interrupted(url, tiny, tmp_path, monkeypatch):
    written, stopped = [], threading.Event()
    write = module._write

    def counted(path, data):
        if len(written) == 3:
            stopped.wait()
        write(path, data)
        written.append(path.name)

    monkeypatch.setattr(module, "_write", counted)

    async def main():
        async with at_work(url) as pictures:
            record = await pictures.create(owner=None, model=tiny, wish=WISH)
            assert (record.total, record.wish) == (10, WISH)
            await until(lambda: _so_many(written, 3))
        assert len(written) == 3
        stopped.set()
        async with at_work(url) as pictures:
            record = await over(pictures, record.id)
            assert (record.state, record.done) == ("succeeded", 10), record.problem
            files = pictures.files(record.id)
            assert [file.name for file in files] == [f"{i:05d}.png" for i in range(10)]
            straight = await pictures.create(owner=None, model=tiny, wish=WISH)
            await over(pictures, straight.id)
            for one, two in zip(files, pictures.files(straight.id), strict=True):
                assert one.read_bytes() == two.read_bytes()
            await pictures.delete(record.id, None)
            assert not files[0].exists()
            with pytest.raises(NotFoundError):
                await pictures.get(record.id, None)

    asyncio.run(main())


async def _so_many(written, count):
    return len(written) >= count


def test_cancelled_failed_and_refused(tiny, tmp_path):
    async def main():
        async with at_work(f"sqlite:///{tmp_path / 'db'}") as pictures:
            many = Wish(prompts=("a fox",), seeds=tuple(range(1000)), steps=1)
            job = await pictures.create(owner="me", model=tiny, wish=many)
            waiting = await pictures.create(owner="me", model=tiny, wish=many)

            async def begun():
                return (await pictures.get(job.id, "me")).done > 0

            await until(begun)
            with pytest.raises(ConflictError):
                await pictures.delete(job.id, "me")
            assert (await pictures.cancel(waiting.id, "me")).state == "cancelled"
            await pictures.cancel(job.id, "me")

            async def ended():
                return (await pictures.get(job.id, "me")).ended is not None

            await until(ended)
            record = await pictures.get(job.id, "me")
            assert record.state == "cancelled"
            assert 0 < record.done < 1000
            wrong = Wish(prompts=("a [V] fox",), seeds=(1,))
            failed = await over(pictures, (await pictures.create(owner=None, model=tiny, wish=wrong)).id)
            assert failed.state == "failed"
            assert "learned no subject" in failed.problem
            with pytest.raises(NoSuchModelError):
                await pictures.create(owner=None, model="/etc", wish=WISH)
            huge = Wish(prompts=("a",) * 1000, seeds=tuple(range(101)))
            with pytest.raises(InvalidRequestError, match="101,000"):
                await pictures.create(owner=None, model=tiny, wish=huge)

    asyncio.run(main())

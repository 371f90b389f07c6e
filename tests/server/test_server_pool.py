"""Models come and go under a memory limit, the least recently used first; none goes that answers."""

from __future__ import annotations

import asyncio
from contextlib import AsyncExitStack
from datetime import UTC, datetime

import pytest

from language.stub import StubEngine
from studiolo.language.caching.cached import Cached
from studiolo.language.caching.contexts import Contexts, Prefix
from studiolo.language.conversation import Request, user
from studiolo.language.errors import (
    OverloadedError,
    UnknownContextError,
    UnknownModelError,
    UnsupportedError,
    UpstreamError,
)
from studiolo.server import pool as pool_module
from studiolo.server.metrics import Metrics
from studiolo.server.pool import EnginePool, ModelInfo

BORN = datetime(2026, 1, 1, tzinfo=UTC)
GIB = 2**30  # far more than a stub adds to the memory of this process


class Shelf:
    """Models of which each takes some GiB; `opened` and `closed` are names in their order."""

    def __init__(self, folder, sizes: dict[str, float]) -> None:
        self.folder, self.sizes, self.engines = folder, sizes, {}
        self.opened: list[str] = []
        self.gate: asyncio.Event | None = None
        self.fault: Exception | None = None

    def pool(self, memory: float | None = None, **options) -> EnginePool:
        return EnginePool(
            self.models, self.open, self.contexts, metrics=Metrics(),
            size=lambda name: round(self.sizes[name] * GIB),
            memory=None if memory is None else round(memory * GIB), **options,
        )  # fmt: skip

    def models(self) -> list[ModelInfo]:
        drawing = ModelInfo(name="fox", kind="subject", title="fox", created=BORN)
        return [
            drawing,
            *(
                ModelInfo(
                    name=name, kind="chat", title=name, created=BORN, capabilities=StubEngine().capabilities
                )
                for name in self.sizes
            ),
        ]

    def contexts(self, owner: str | None) -> Contexts:
        return Contexts(self.folder / (owner or "common"))

    async def open(self, name: str) -> Cached:
        self.opened.append(name)
        if self.gate is not None:
            await self.gate.wait()
        if self.fault is not None:
            raise self.fault
        engine = self.engines[name] = StubEngine(model=name)
        return Cached(engine, self.contexts(None))

    @property
    def closed(self) -> list[str]:
        return [name for name, engine in self.engines.items() if engine.closed]


@pytest.fixture
def shelf(tmp_path) -> Shelf:
    return Shelf(tmp_path, {"a": 1, "b": 1, "c": 1, "huge": 9})


async def used(pool: EnginePool, *names: str) -> None:
    for name in names:
        async with pool.lease(name):
            pass


def test_the_least_recently_used_goes(shelf):
    async def go() -> None:
        pool = shelf.pool(memory=2.5)
        await used(pool, "a", "b", "a", "c")
        assert shelf.closed == ["b"]
        assert set(pool.loaded()) == {"a", "c"}
        await used(pool, "b")
        assert set(pool.loaded()) == {"b", "c"}

    asyncio.run(go())


def test_without_a_limit_all_stay(shelf):
    async def go() -> None:
        pool = shelf.pool()
        await used(pool, "a", "b", "c", "huge", "a")
        assert shelf.opened == ["a", "b", "c", "huge"]
        await pool.close()
        assert set(shelf.closed) == {"a", "b", "c", "huge"}

    asyncio.run(go())


def test_a_leased_model_stays_and_who_needs_its_room_waits(shelf):
    async def go() -> None:
        pool = shelf.pool(memory=1.5)
        async with AsyncExitStack() as answering:
            await answering.enter_async_context(pool.lease("a"))
            waiting = asyncio.create_task(used(pool, "b"))
            for _ in range(20):
                await asyncio.sleep(0)
            assert shelf.opened == ["a"]
            assert not await pool.unload("a")
        await waiting
        assert (shelf.opened, shelf.closed) == (["a", "b"], ["a"])

    asyncio.run(go())


def test_who_waits_too_long_is_told_to_come_again(shelf):
    async def go() -> None:
        pool = shelf.pool(memory=1.5, patience=0.01)
        async with pool.lease("a"):
            with pytest.raises(OverloadedError, match="no room") as refused:
                await used(pool, "b")
            assert refused.value.retry_after
        await used(pool, "b")  # and later it works

    asyncio.run(go())


def test_a_model_that_never_fits_is_refused_and_nothing_goes_for_it(shelf):
    async def go() -> None:
        pool = shelf.pool(memory=2.5)
        await used(pool, "a")
        with pytest.raises(UnsupportedError, match=r"9\.0 GiB.*2\.5 GiB"):
            await used(pool, "huge")
        assert set(pool.loaded()) == {"a"}

    asyncio.run(go())


def test_a_model_that_turns_out_larger_is_measured(shelf, monkeypatch):
    """b adds 2 GiB where 1 was expected, so a goes after all; c adds 4 and is refused, once it is known."""
    added = {"a": 1, "b": 2, "c": 4}
    monkeypatch.setattr(pool_module, "resident", lambda: GIB * sum(added[name] for name in shelf.opened))

    async def go() -> None:
        pool = shelf.pool(memory=2.5)
        await used(pool, "a", "b")
        assert pool.loaded() == {"b": 2 * GIB}
        for _ in range(2):
            with pytest.raises(UnsupportedError, match=r"4\.0 GiB"):
                await used(pool, "c")
        assert shelf.opened == ["a", "b", "c"]  # the second time it was known before
        assert "c" in shelf.closed

    asyncio.run(go())


def test_many_callers_load_once(shelf):
    async def go() -> None:
        shelf.gate = asyncio.Event()
        pool = shelf.pool()
        callers = [asyncio.create_task(used(pool, "a")) for _ in range(20)]
        await asyncio.sleep(0)
        callers[0].cancel()  # whoever began it: the others need it all the same
        await asyncio.wait(callers[:1])
        shelf.gate.set()
        await asyncio.gather(*callers[1:])
        assert shelf.opened == ["a"]

    asyncio.run(go())


def test_what_could_not_be_loaded_is_tried_again(shelf):
    async def go() -> None:
        pool = shelf.pool()
        shelf.fault = UpstreamError("no")
        for _ in range(2):
            with pytest.raises(UpstreamError):
                await used(pool, "a")
        shelf.fault = None
        await used(pool, "a")
        assert shelf.opened == ["a", "a", "a"]

    asyncio.run(go())


def test_names(shelf):
    async def go() -> None:
        pool = shelf.pool()
        assert pool.info("a").kind == "chat"
        assert pool.info("a+fox").name == "a"
        for name in ("hug", "a+b+c", "a+nothing", "/etc", "../a", ""):
            with pytest.raises(UnknownModelError):
                pool.info(name)
        with pytest.raises(UnknownModelError, match="Did you mean huge"):
            pool.info("hugee")
        with pytest.raises(UnsupportedError, match="draws"):
            await used(pool, "fox")
        with pytest.raises(UnsupportedError):
            await used(pool, "a+fox")  # nobody here can draw

    asyncio.run(go())


def test_a_model_that_has_gone_is_not_there_from_the_moment_on_in_which_that_is_told(shelf):
    pool = shelf.pool()
    assert pool.info("a").name == "a"
    del shelf.sizes["a"]
    assert pool.info("a").name == "a"  # believed for a moment
    pool.look_again()
    with pytest.raises(UnknownModelError):
        pool.info("a")


def test_a_chat_model_may_draw(shelf):
    async def go() -> None:
        made = []

        def draws(engine: Cached, name: str) -> StubEngine:
            made.append((engine.model, name))
            return StubEngine(model="drawing")

        async with shelf.pool(draws=draws).lease("a+fox") as engine:
            assert engine.model == "drawing"
        assert made == [("a", "fox")]

    asyncio.run(go())


def test_contexts_are_their_owners_alone(shelf):
    async def go() -> None:
        pool = shelf.pool()
        from datetime import timedelta

        async with pool.lease("a", owner="anna") as engine:
            await engine.create(Prefix(system="hush"), ttl=timedelta(hours=1), name="mine")
        asked = Request(model="a", contents=(user("hi"),), cache="mine")
        for owner in ("ben", None):
            async with pool.lease("a", owner=owner) as engine:
                with pytest.raises(UnknownContextError):
                    [delta async for delta in engine.generate(asked)]
        async with pool.lease("a", owner="anna") as engine:
            assert [delta async for delta in engine.generate(asked)]
        assert shelf.engines["a"].requests[-1].system == "hush"

    asyncio.run(go())


def test_who_waits_for_a_first_token_is_counted(shelf):
    async def go() -> None:
        pool = shelf.pool()
        asked = Request(model="a", contents=(user("hi"),))
        async with pool.lease("a") as engine:
            shelf.engines["a"]._pause = asyncio.Event().wait
            stream = engine.generate(asked)
            first = asyncio.ensure_future(anext(stream))
            for _ in range(20):
                await asyncio.sleep(0)
            text = pool._metrics.text().decode()
            assert 'studiolo_queue_length{model="a"} 1.0' in text
            assert 'studiolo_model_bytes{model="a"} 1.07' in text
            first.cancel()
            await asyncio.wait([first])
        text = pool._metrics.text().decode()
        assert 'studiolo_queue_length{model="a"} 0.0' in text
        assert 'studiolo_first_token_seconds_count{model="a"} 0.0' in text

    asyncio.run(go())

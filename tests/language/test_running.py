"""Synchronous callers of one event loop: results, faults, and what stops the work."""

from __future__ import annotations

import asyncio
import inspect
import os
import signal
import subprocess
import sys
import threading
from collections.abc import AsyncGenerator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import pytest

from studiolo.errors import StudioloError
from studiolo.language import running
from studiolo.language.running import iterate, run

ROOT = Path(__file__).parents[2]


async def loop_and_thread() -> tuple[asyncio.AbstractEventLoop, int]:
    return asyncio.get_running_loop(), threading.get_ident()


class Stream:
    """Counts for ever, or to `end`; remembers whether and where it was closed."""

    def __init__(self, end: int | None = None, fault: Exception | None = None) -> None:
        self.end, self.fault = end, fault
        self.given = 0
        self.closed_on: asyncio.AbstractEventLoop | None = None

    async def items(self) -> AsyncGenerator[int]:
        try:
            while self.given != self.end:
                self.given += 1
                yield self.given
                await asyncio.sleep(0)
            if self.fault:
                raise self.fault
        finally:
            self.closed_on = asyncio.get_running_loop()


def test_all_work_is_done_on_one_loop_in_a_thread_of_its_own():
    first, second = run(loop_and_thread()), run(loop_and_thread())
    assert first == second
    assert first[1] != threading.get_ident()


def test_a_fault_comes_to_the_caller_as_it_was_raised():
    fault = KeyError("that")

    async def failing() -> None:
        raise fault

    with pytest.raises(KeyError) as raised:
        run(failing())
    assert raised.value is fault
    assert run(loop_and_thread())  # the loop lives on


def test_an_iteration_gives_every_item_and_closes_its_stream():
    stream = Stream(end=5)
    assert list(iterate(stream.items())) == [1, 2, 3, 4, 5]
    assert stream.closed_on is run(loop_and_thread())[0]


def test_a_fault_in_a_stream_comes_after_the_items_before_it():
    stream = Stream(end=2, fault=ValueError("broken"))
    items = iterate(stream.items())
    assert [next(items), next(items)] == [1, 2]
    with pytest.raises(ValueError, match="broken"):
        next(items)
    assert stream.closed_on


def test_leaving_an_iteration_early_closes_its_stream():
    stream = Stream()
    items = iterate(stream.items())
    assert [next(items), next(items)] == [1, 2]
    assert stream.closed_on is None
    items.close()
    assert stream.closed_on is run(loop_and_thread())[0]
    assert stream.given == 2


def test_an_iteration_that_never_began_leaves_nothing_open():
    stream = Stream()
    iterate(stream.items()).close()
    assert (stream.given, stream.closed_on) == (0, None)


def test_from_several_threads_the_work_runs_at_the_same_time():
    """Each waits for all the others, so one after another they would wait for ever."""
    meeting: dict[str, asyncio.Barrier] = {}

    async def meet(number: int) -> int:
        await meeting.setdefault("here", asyncio.Barrier(8)).wait()
        return number

    with ThreadPoolExecutor(8) as pool:
        assert sorted(pool.map(lambda number: run(meet(number)), range(8))) == list(range(8))


def test_streams_of_several_threads_do_not_mix():
    with ThreadPoolExecutor(4) as pool:
        found = pool.map(lambda end: list(iterate(Stream(end=end).items())), range(50, 54))
        assert list(found) == [list(range(1, end + 1)) for end in range(50, 54)]


def test_it_may_be_called_while_a_loop_of_the_callers_own_runs():
    async def asking() -> tuple[asyncio.AbstractEventLoop, list[int]]:
        return run(loop_and_thread())[0], list(iterate(Stream(end=3).items()))

    async def both() -> None:
        loop, items = await asking()
        assert loop is not asyncio.get_running_loop()
        assert items == [1, 2, 3]

    asyncio.run(both())


def test_work_that_would_wait_for_itself_is_refused():
    async def outer() -> None:
        run(loop_and_thread())

    with pytest.raises(StudioloError, match="wait for itself"):
        run(outer())
    assert run(loop_and_thread())


_INTERRUPTED = """
import asyncio, os, signal, sys
from studiolo.language.running import iterate, run

log = []

async def work():
    os.kill(os.getpid(), signal.SIGINT)
    try:
        await asyncio.Event().wait()
    finally:
        for _ in range(100):  # cleaning up takes its time
            await asyncio.sleep(0)
        log.append("cleaned up")

async def stream():
    yield 1
    await work()

async def alive():
    return "alive"

for _ in range(100):  # the signal comes wherever this thread happens to be
    try:
        run(work()) if sys.argv[1] == "run" else list(iterate(stream()))
    except KeyboardInterrupt:
        log.append("interrupted")
assert log == ["cleaned up", "interrupted"] * 100, log
print(run(alive()))
"""


@pytest.mark.parametrize("way", ["run", "iterate"])
def test_ctrl_c_cancels_the_work_and_waits_until_it_is_clean(way):
    done = subprocess.run(
        [sys.executable, "-c", _INTERRUPTED, way],
        env=os.environ | {"PYTHONPATH": str(ROOT / "src")}, capture_output=True, text=True, check=False,
        timeout=60, preexec_fn=lambda: signal.signal(signal.SIGINT, signal.default_int_handler),
    )  # fmt: skip
    assert (done.stdout, done.stderr) == ("alive\n", "")


def test_ctrl_c_before_the_work_has_begun_ends_it(monkeypatch):
    run(loop_and_thread())
    call, calls = running._loop.call_soon_threadsafe, []

    def interrupted_at_first(callback):
        calls.append(callback)
        if len(calls) == 1:
            raise KeyboardInterrupt
        return call(callback)

    monkeypatch.setattr(running._loop, "call_soon_threadsafe", interrupted_at_first)
    work = loop_and_thread()
    with pytest.raises(KeyboardInterrupt):
        run(work)
    assert inspect.getcoroutinestate(work) == inspect.CORO_CLOSED
    assert run(loop_and_thread())

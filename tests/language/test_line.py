"""The line before local weights: bounded, fair, and nothing is lost when somebody leaves it."""

from __future__ import annotations

import asyncio
import threading

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from studiolo.language.engines.line import Line
from studiolo.language.errors import LanguageError, OverloadedError


async def _settled():
    """Lets all that can go on go on."""
    for _ in range(10):
        await asyncio.sleep(0)


def test_first_come_first_served_and_no_more_than_there_are_places():
    async def play():
        line, order = Line(places=2, tokens=100, waiting=10), []

        async def visit(name):
            await line.enter(1)
            order.append(name)

        visits = [asyncio.create_task(visit(name)) for name in range(6)]
        await _settled()
        assert order == [0, 1]
        for served in (3, 4, 5, 6):
            line.leave(1)
            await _settled()
            assert order == list(range(served))
        await asyncio.gather(*visits)

    asyncio.run(play())


def test_a_long_request_waits_for_its_tokens_and_is_not_overtaken():
    async def play():
        line, order = Line(places=9, tokens=10, waiting=10), []

        async def visit(tokens):
            await line.enter(tokens)
            order.append(tokens)

        visits = [asyncio.create_task(visit(tokens)) for tokens in (6, 5, 1)]
        await _settled()
        assert order == [6]
        line.leave(6)
        await asyncio.gather(*visits)
        assert order == [6, 5, 1]

    asyncio.run(play())


def test_one_too_many_is_refused_at_once():
    async def play():
        line = Line(places=1, tokens=10, waiting=2)
        await line.enter(1)
        waiting = [asyncio.create_task(line.enter(1)) for _ in range(2)]
        await _settled()
        with pytest.raises(OverloadedError, match="2 requests wait already"):
            await line.enter(1)
        line.leave(1)
        line.leave(1)
        await asyncio.gather(*waiting)

    asyncio.run(play())


def test_who_is_refused_is_told_how_long_those_before_will_take():
    """Three requests of which one is done every 2 s, so two that wait are served in 4 s."""

    async def play():
        now = 100.0
        line = Line(places=1, tokens=10, waiting=2, clock=lambda: now)
        await line.enter(1)
        visits = [asyncio.create_task(line.enter(1)) for _ in range(2)]
        await _settled()
        with pytest.raises(OverloadedError) as refused:
            await line.enter(1)
        assert refused.value.retry_after is None  # nobody knows yet
        for _ in range(3):
            now += 2.0
            line.leave(1)
            visits.append(asyncio.create_task(line.enter(1)))
            await _settled()
        with pytest.raises(OverloadedError) as refused:
            await line.enter(1)
        assert refused.value.retry_after == pytest.approx(4.0)
        for visit in visits:
            visit.cancel()

    asyncio.run(play())


@settings(deadline=None)
@given(st.lists(st.tuples(st.integers(1, 10), st.booleans()), max_size=12))
def test_nothing_is_lost_when_some_give_up(visitors):
    async def play():
        line = Line(places=3, tokens=10, waiting=20)

        async def visit(tokens):
            await line.enter(tokens)
            try:
                await asyncio.sleep(0)
            finally:
                line.leave(tokens)

        tasks = [asyncio.create_task(visit(tokens)) for tokens, _ in visitors]
        await asyncio.sleep(0)
        for task, (_, gives_up) in zip(tasks, visitors, strict=True):
            if gives_up:
                task.cancel()
        await asyncio.wait_for(asyncio.gather(*tasks, return_exceptions=True), 60)
        await asyncio.wait_for(line.enter(8), 60)
        await asyncio.wait_for(line.enter(1), 60)
        await asyncio.wait_for(line.enter(1), 60)

    asyncio.run(play())


def test_who_is_cancelled_in_the_moment_of_admission_gives_the_place_on():
    async def play():
        line = Line(places=1, tokens=10, waiting=5)
        await line.enter(10)
        first, second = (asyncio.create_task(line.enter(10)) for _ in range(2))
        await _settled()
        line.leave(10)  # admits the first, which has not run yet
        first.cancel()
        await asyncio.wait_for(second, 60)

    asyncio.run(play())


def test_places_come_back_from_other_threads():
    async def play():
        line = Line(places=1, tokens=10, waiting=5)
        await line.enter(1)
        waiting = asyncio.create_task(line.enter(1))
        await _settled()
        thread = threading.Thread(target=line.leave, args=(1,))
        thread.start()
        await asyncio.wait_for(waiting, 60)
        thread.join()

    asyncio.run(play())


def test_a_loop_that_has_ended_holds_nobody_up():
    line = Line(places=1, tokens=10, waiting=5)
    asyncio.run(line.enter(1))
    gone = asyncio.new_event_loop()
    left = gone.create_task(line.enter(1))
    gone.run_until_complete(asyncio.sleep(0))
    gone.close()
    assert not left.done()
    line.leave(1)
    asyncio.run(line.enter(1))


def test_closing_sends_all_away():
    async def play():
        line = Line(places=1, tokens=10, waiting=5)
        await line.enter(1)
        waiting = asyncio.create_task(line.enter(1))
        await _settled()
        line.close()
        for late in (waiting, line.enter(1)):
            with pytest.raises(LanguageError, match="was closed"):
                await late

    asyncio.run(play())

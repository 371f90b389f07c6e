"""Rates, the queue and the circuit breaker, on a clock that the tests move."""

from __future__ import annotations

import asyncio
import contextlib

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from language.clocks import HandClock, LeapingClock, settle
from studiolo.language.errors import (
    InvalidRequestError,
    OverloadedError,
    RateLimitError,
    TimedOutError,
    UpstreamError,
)
from studiolo.language.limits import Breaker, BreakerPolicy, Bucket, Gate, Limits


@settings(deadline=None)
@given(
    per_minute=st.floats(1, 600),
    amounts=st.lists(st.floats(0.1, 5), min_size=1, max_size=40),
    steps=st.lists(st.floats(0, 20), min_size=40, max_size=40),
)
def test_a_bucket_never_gives_more_than_its_rate_and_one_minute_ahead(per_minute, amounts, steps):
    """The definition of a token bucket: what was let through by time t is at most capacity + rate * t."""
    clock = LeapingClock()
    bucket, start, taken = Bucket(per_minute, clock), clock.now(), 0.0
    for amount, step in zip(amounts, steps, strict=False):
        clock.time += step
        wait = bucket.delay(amount)
        bucket.take(amount)
        taken += amount
        elapsed = clock.now() + wait - start
        most = max(per_minute, 1) + per_minute / 60 * elapsed
        # What exceeds the whole bucket may pass when it is full.
        assert taken <= most + max(0, amount - max(per_minute, 1)) + 1e-6


def test_requests_wait_their_turn_in_order():
    async def go():
        clock = HandClock()
        gate = Gate(Limits(requests_per_minute=60, longest_wait=100), clock, upstream="u")
        done: list[int] = []

        async def ask(number: int) -> None:
            async with gate.admitted(0):
                done.append(number)

        tasks = [asyncio.create_task(ask(number)) for number in range(63)]
        await settle()
        assert done == list(range(60))  # a minute's worth at once
        assert gate.waiting == 3
        for expected in (60, 61, 62):
            await clock.advance(1.0)
            assert done == list(range(expected + 1))
        await asyncio.gather(*tasks)

    asyncio.run(go())


def test_tokens_count_and_are_corrected_by_what_was_used():
    async def go():
        clock = HandClock()
        gate = Gate(Limits(tokens_per_minute=600, longest_wait=100), clock, upstream="u")
        async with gate.admitted(100) as correct:
            correct(600)  # it took the whole bucket
        task = asyncio.create_task(_pass(gate, 10))
        await clock.advance(0.9)
        assert not task.done()
        await clock.advance(0.1)  # 10 tokens at 10 a second
        assert task.done()
        async with gate.admitted(0) as correct:
            correct(-600)

    asyncio.run(go())


async def _pass(gate: Gate, tokens: int = 0) -> None:
    async with gate.admitted(tokens):
        pass


def test_only_so_many_at_a_time_and_first_come_first_served():
    async def go():
        gate = Gate(Limits(concurrency=2, queue=3), HandClock(), upstream="u")
        begun, doors = [], [asyncio.Event() for _ in range(5)]

        async def ask(number: int) -> None:
            async with gate.admitted(0):
                begun.append(number)
                await doors[number].wait()

        tasks = [asyncio.create_task(ask(number)) for number in range(5)]
        await settle()
        assert begun == [0, 1]
        with pytest.raises(OverloadedError, match="queue is full"):
            await ask(9)
        tasks[2].cancel()  # leaves its place in the queue
        for number, expected in ((1, [0, 1, 3]), (0, [0, 1, 3, 4])):
            doors[number].set()
            await settle()
            assert begun == expected
        for door in doors:
            door.set()
        await asyncio.wait(tasks)
        assert gate.waiting == 0
        await _pass(gate)

    asyncio.run(go())


def test_who_gives_up_waiting_gives_back_what_was_kept_for_it():
    async def go():
        clock = HandClock()
        gate = Gate(Limits(requests_per_minute=1, longest_wait=1000), clock, upstream="u")
        await _pass(gate)
        waiting = asyncio.create_task(_pass(gate))
        await settle()
        waiting.cancel()
        await asyncio.wait([waiting])
        next_one = asyncio.create_task(_pass(gate))
        await settle()
        await clock.advance(60)
        assert next_one.done()

    asyncio.run(go())


def test_a_wait_that_is_too_long_is_refused_with_its_length():
    async def go():
        gate = Gate(Limits(requests_per_minute=1, longest_wait=10), HandClock(), upstream="u")
        await _pass(gate)
        with pytest.raises(OverloadedError) as caught:
            await _pass(gate)
        assert caught.value.retry_after == pytest.approx(60)

    asyncio.run(go())


def _try(breaker: Breaker, error: Exception | None = None) -> None:
    kinds = () if error is None else (type(error),)
    with contextlib.suppress(*kinds), breaker.trying() as goes_well:
        if error:
            raise error
        goes_well()


POLICY = BreakerPolicy(failures=3, window=60, rest=30)


@pytest.mark.parametrize("error", [UpstreamError("x"), TimedOutError("x"), OverloadedError("x")])
def test_the_breaker_opens_after_failures_within_the_window(error):
    clock = LeapingClock()
    breaker = Breaker(POLICY, clock, upstream="u")
    _try(breaker, error)
    clock.time += 61  # forgotten by now
    _try(breaker, error)
    _try(breaker, error)
    assert breaker.state == "closed"
    _try(breaker, error)
    assert breaker.state == "open"
    clock.time += 20
    with pytest.raises(OverloadedError) as caught:
        breaker.check()
    assert caught.value.retry_after == pytest.approx(10)


@pytest.mark.parametrize("error", [InvalidRequestError("x"), RateLimitError("x")])
def test_errors_of_the_request_do_not_count(error):
    breaker = Breaker(POLICY, LeapingClock(), upstream="u")
    for _ in range(10):
        _try(breaker, error)
    assert breaker.state == "closed"


@pytest.mark.parametrize(("error", "after"), [(None, "closed"), (UpstreamError("x"), "open")])
def test_after_its_rest_one_try_decides(error, after):
    clock = LeapingClock()
    breaker = Breaker(POLICY, clock, upstream="u")
    for _ in range(3):
        _try(breaker, UpstreamError("x"))
    clock.time += 30
    assert breaker.state == "half-open"
    with contextlib.suppress(UpstreamError), breaker.trying() as goes_well:
        with pytest.raises(OverloadedError):  # one alone
            breaker.check()
        if error:
            raise error
        goes_well()
    assert breaker.state == after


def test_a_try_that_is_given_up_decides_nothing():
    clock = LeapingClock()
    breaker = Breaker(POLICY, clock, upstream="u")
    for _ in range(3):
        _try(breaker, UpstreamError("x"))
    clock.time += 30
    with contextlib.suppress(asyncio.CancelledError), breaker.trying():
        raise asyncio.CancelledError
    assert breaker.state == "half-open"
    breaker.check()


def test_an_answer_from_before_the_failures_does_not_close_it():
    breaker = Breaker(POLICY, LeapingClock(), upstream="u")
    with breaker.trying() as goes_well:
        for _ in range(3):
            _try(breaker, UpstreamError("x"))
        goes_well()
    assert breaker.state == "open"

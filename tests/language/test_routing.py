"""The router, over engines that do what a test says, on a clock that leaps."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncGenerator, Sequence
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from language.clocks import LeapingClock
from studiolo.language.collect import collected
from studiolo.language.conversation import (
    Delta,
    FinishReason,
    GenerationConfig,
    Request,
    Response,
    Text,
    Usage,
    user,
)
from studiolo.language.engines.base import Capabilities, Token
from studiolo.language.engines.upstream import TimeLimits
from studiolo.language.errors import (
    AuthenticationError,
    InvalidRequestError,
    LanguageError,
    OverloadedError,
    RateLimitError,
    TimedOutError,
    UnknownModelError,
    UnsupportedError,
    UpstreamError,
)
from studiolo.language.limits import BreakerPolicy, Limits
from studiolo.language.prices import Price, Rates, cost
from studiolo.language.routing import Answered, RetryPolicy, Route, Router, guess_tokens

HELLO = Request(model="name", contents=(user("hello"),))
CAPABLE = Capabilities(context=100)
USAGE = Usage(prompt=10, cached=4, answer=3, thoughts=2)


class Scripted:
    """Each request takes the next turn of the script: an error is raised, anything else is the answer's text.

    A turn may be a list of both, given one after the other.
    """

    model, capabilities = "scripted", CAPABLE

    def __init__(self, *turns: Any) -> None:
        self.turns, self.asked, self.closed = list(turns), list[Request](), 0

    async def generate(self, request: Request) -> AsyncGenerator[Delta]:
        self.asked.append(request)
        turn = self.turns.pop(0)
        for step in turn if isinstance(turn, list) else [turn]:
            if isinstance(step, Exception):
                raise step
            if isinstance(step, asyncio.Event):
                await step.wait()
            else:
                yield Delta(part=Text(text=step), model="upstream's own name", notes=("own",))
        yield Delta(finish=FinishReason.STOP, usage=USAGE)

    async def count_tokens(self, request: Request) -> int:
        return await self._next()

    async def tokenize(self, texts: Sequence[str]) -> list[list[Token]]:
        return await self._next()

    async def embed(self, texts: Sequence[str], *, dimensions: int | None = None) -> list[list[float]]:
        return await self._next()

    async def _next(self) -> Any:
        turn = self.turns.pop(0)
        if isinstance(turn, Exception):
            raise turn
        return turn

    async def close(self) -> None:
        self.closed += 1


class Half:
    """Draws the middle, and remembers from what."""

    def __init__(self) -> None:
        self.ranges: list[tuple[float, float]] = []

    def uniform(self, a: float, b: float) -> float:
        self.ranges.append((a, b))
        return (a + b) / 2


def route(engine: Scripted, upstream: str = "one", **more: Any) -> Route:
    return Route(upstream, f"{upstream}-name", lambda: engine, CAPABLE, **more)


def run(*engines: Scripted, request: Request = HELLO, **options: Any) -> Response:
    """The answer by way of routes to upstreams one, two, ..."""

    async def go() -> Response:
        chain = [route(engine, name) for engine, name in zip(engines, ("one", "two", "three"), strict=False)]
        router = Router({"name": chain}, **{"clock": LeapingClock(), "chance": Half(), **options})
        try:
            return await collected(router.generate(request))
        finally:
            await router.close()

    return asyncio.run(go())


# --- names ------------------------------------------------------------------------------------------------


def test_names_and_aliases():
    async def go():
        engine = Scripted("hi", "hi")
        router = Router({"name": [route(engine)]}, aliases={"nick": "name"})
        for asked in ("name", "nick"):
            response = await collected(router.generate(HELLO.model_copy(update={"model": asked})))
            assert (response.text, response.model, response.notes) == ("hi", "name", ("own",))
        assert [request.model for request in engine.asked] == ["one-name"] * 2
        with pytest.raises(UnknownModelError, match="Did you mean name"):
            await collected(router.generate(HELLO.model_copy(update={"model": "nam"})))
        await router.close()
        assert engine.closed == 1

    asyncio.run(go())


def test_a_name_as_an_engine():
    async def go():
        router = Router({"name": [route(Scripted("hi", 7, [[Token(1, b"a")]], [[1.0]]))]})
        engine = router.engine("name")
        assert (engine.model, engine.capabilities) == ("name", CAPABLE)
        other = HELLO.model_copy(update={"model": "whatever"})
        assert (await collected(engine.generate(other))).text == "hi"
        assert await engine.count_tokens(other) == 7
        assert await engine.tokenize(["a"]) == [[(1, b"a")]]
        assert await engine.embed(["a"]) == [[1.0]]
        await engine.close()

    asyncio.run(go())


def test_an_engine_is_opened_once_and_only_when_it_is_asked():
    opened = []

    async def open_engine() -> Scripted:
        opened.append(1)
        await asyncio.sleep(0)
        return Scripted(*["hi"] * 5)

    async def go():
        router = Router({"name": [Route("one", "m", open_engine, CAPABLE)]})
        assert opened == []
        await asyncio.gather(*(collected(router.generate(HELLO)) for _ in range(5)))

    asyncio.run(go())
    assert opened == [1]


# --- failures ---------------------------------------------------------------------------------------------


def test_it_is_tried_again_with_full_jitter():
    clock, chance = LeapingClock(), Half()
    engine = Scripted(UpstreamError("a"), TimedOutError("b"), RateLimitError("c"), "hi")
    response = run(
        engine, clock=clock, chance=chance, retry=RetryPolicy(attempts=4, first_pause=1, longest_pause=3)
    )
    assert response.text == "hi"
    assert chance.ranges == [(0, 1), (0, 2), (0, 3)]
    assert clock.slept == [0.5, 1, 1.5]
    assert response.notes == (
        "one failed: UpstreamError",
        "one failed: TimedOutError",
        "one failed: RateLimitError",
        "own",
    )


def test_what_the_upstream_asks_for_is_waited():
    clock = LeapingClock()
    assert run(Scripted(RateLimitError("a", retry_after=7), "hi"), clock=clock).text == "hi"
    assert clock.slept == [7]


def test_a_long_wait_is_spent_elsewhere():
    clock = LeapingClock()
    first, second = Scripted(RateLimitError("a", retry_after=60)), Scripted("hi")
    assert run(first, second, clock=clock).text == "hi"
    assert clock.slept == []


def test_the_next_route_is_asked_when_one_has_failed_often_enough():
    first, second = Scripted(*[UpstreamError("a")] * 3), Scripted("hi")
    response = run(first, second)
    assert response.text == "hi"
    assert len(first.asked) == 3
    assert response.notes == (*["one failed: UpstreamError"] * 3, "own")


@pytest.mark.parametrize("error", [AuthenticationError("a"), UnknownModelError("a"), UnsupportedError("a")])
def test_what_only_this_upstream_cannot_do_is_asked_elsewhere_at_once(error):
    first = Scripted(error)
    assert run(first, Scripted("hi")).text == "hi"
    assert len(first.asked) == 1


def test_a_wrong_request_is_wrong_everywhere():
    second = Scripted("hi")
    with pytest.raises(InvalidRequestError):
        run(Scripted(InvalidRequestError("a")), second)
    assert second.asked == []


def test_after_the_first_piece_a_failure_is_told():
    second = Scripted("hi")
    with pytest.raises(UpstreamError, match="broke"):
        run(Scripted(["half", UpstreamError("broke")]), second)
    assert second.asked == []


def test_an_engine_that_cannot_be_opened_is_a_failed_route():
    def no_key() -> Scripted:
        raise AuthenticationError("no key")

    async def go():
        router = Router({"name": [Route("one", "m", no_key, CAPABLE), route(Scripted("hi"), "two")]})
        return await collected(router.generate(HELLO))

    assert asyncio.run(go()).notes[0] == "one failed: AuthenticationError"


def test_when_all_fail_the_error_that_may_pass_is_raised_and_tells_all_that_was_tried():
    with pytest.raises(RateLimitError) as caught:
        run(Scripted(RateLimitError("a", retry_after=99)), Scripted(AuthenticationError("b")))
    assert caught.value.retry_after == 99
    assert caught.value.__notes__ == ["one failed: RateLimitError", "two failed: AuthenticationError"]
    with pytest.raises(AuthenticationError):
        run(Scripted(AuthenticationError("b")))


def test_silence_is_a_failure_that_the_next_route_mends():
    never = asyncio.Event()
    limits = TimeLimits(first=0.05)
    response = run(Scripted([never]), Scripted("hi"), time_limits=limits, retry=RetryPolicy(attempts=1))
    assert response.notes[0] == "one failed: TimedOutError"


_STEPS = st.sampled_from(["ok", "broken", "retry", "elsewhere", "wrong"])
_ERRORS: dict[str, LanguageError] = {
    "retry": UpstreamError("r"), "elsewhere": UnsupportedError("e"), "wrong": InvalidRequestError("w"),
}  # fmt: skip


@settings(deadline=None)
@given(st.lists(st.lists(_STEPS, min_size=3, max_size=3), min_size=1, max_size=3))
def test_the_order_of_tries_is_that_of_the_rules(script):
    """Against the rules written down once more, as a walk over the script."""

    def walk() -> tuple[str, list[int]]:
        tries = []
        for number, steps in enumerate(script):
            for step in steps:
                tries.append(number)
                if step in ("ok", "broken", "wrong"):
                    return step, tries
                if step == "elsewhere":
                    break
        return "failed", tries

    order: list[int] = []

    class Noted(Scripted):
        def __init__(self, number: int, steps: list[str]) -> None:
            turns = {"ok": "hi", "broken": ["half", UpstreamError("b")], **_ERRORS}
            super().__init__(*(turns[step] for step in steps))
            self.number = number

        async def generate(self, request: Request) -> AsyncGenerator[Delta]:
            order.append(self.number)
            async for delta in super().generate(request):
                yield delta

    try:
        run(*(Noted(*pair) for pair in enumerate(script)), breaker=BreakerPolicy(failures=99))
        end = "ok"
    except InvalidRequestError as error:
        end = "failed" if isinstance(error, UnsupportedError) else "wrong"
    except UpstreamError as error:
        end = "broken" if error.message == "b" else "failed"
    assert (end, order) == walk()


# --- protection -------------------------------------------------------------------------------------------


def test_an_open_breaker_sends_requests_elsewhere_and_half_open_lets_one_back():
    async def go():
        clock = LeapingClock()
        first, second = Scripted(UpstreamError("a"), UpstreamError("a"), "back"), Scripted("hi", "hi")
        router = Router(
            {"name": [route(first), route(second, "two")]},
            clock=clock, retry=RetryPolicy(attempts=2), breaker=BreakerPolicy(failures=2, rest=30),
        )  # fmt: skip
        assert (await collected(router.generate(HELLO))).text == "hi"
        assert router.breaker("one").state == "open"
        assert (await collected(router.generate(HELLO))).notes[0] == "one failed: NotAskedError"
        assert (len(first.asked), len(clock.slept)) == (2, 1)  # nobody waited for it
        clock.time += 31
        assert (await collected(router.generate(HELLO))).text == "back"
        assert router.breaker("one").state == "closed"

    asyncio.run(go())


def test_a_full_upstream_is_refused_and_a_closed_answer_makes_room():
    async def go():
        never = asyncio.Event()
        router = Router(
            {"name": [route(Scripted(["a", never], "hi"))]},
            limits={"one": Limits(concurrency=1, queue=0)},
        )  # fmt: skip
        answer = router.generate(HELLO)
        await anext(answer)
        with pytest.raises(OverloadedError, match="queue is full"):
            await collected(router.generate(HELLO))
        await answer.aclose()
        assert (await collected(router.generate(HELLO))).text == "hi"

    asyncio.run(go())


def test_a_guess_of_tokens_counts_letters_and_the_bound():
    request = Request(
        model="m", contents=(user("x" * 40),), system="y" * 8, config=GenerationConfig(max_tokens=5)
    )
    assert guess_tokens(request) == 12 + 5


def test_counts_and_vectors_come_from_the_first_that_can():
    async def go():
        first = Scripted(UnsupportedError("no"), UnsupportedError("no"), UpstreamError("a"), [[1.0]])
        router = Router(
            {"name": [route(first), route(Scripted(7, [[Token(1, b"a")]]), "two")]},
            clock=LeapingClock(),
            chance=Half(),
        )
        assert await router.count_tokens(HELLO) == 7
        assert await router.tokenize("name", ["a"]) == [[(1, b"a")]]
        assert await router.embed("name", ["a"]) == [[1.0]]

    asyncio.run(go())


# --- cost -------------------------------------------------------------------------------------------------


def test_every_kind_of_token_has_its_own_price():
    price = Price(
        prompt=1, cached=0.25, answer=4, thoughts=8, prompt_by_modality={"audio": 3},
        batch=Rates(prompt=0.5, answer=2),
    )  # fmt: skip
    assert cost(USAGE, price) == 6 * 1 + 4 * 0.25 + 3 * 4 + 2 * 8
    assert cost(USAGE, price, batch=True) == 10 * 0.5 + 5 * 2  # no rates of their own for cached and thoughts
    mixed = Usage(prompt=10, cached=5, prompt_by_modality={"text": 6, "audio": 4})
    assert cost(mixed, price) == pytest.approx(5 * (6 * 1 + 4 * 3) / 10 + 5 * 0.25)
    assert cost(Usage(), price) == 0
    with pytest.raises(UnsupportedError):
        cost(USAGE, Price(prompt=1, answer=1), batch=True)


def test_each_answer_is_told_with_its_cost():
    told: list[Answered] = []

    async def go():
        price = Price(prompt=1, answer=2)
        router = Router(
            {"name": [route(Scripted(AuthenticationError("a"))), route(Scripted("hi"), "two", price=price)]},
            on_answer=told.append,
        )
        await collected(router.generate(HELLO))

    asyncio.run(go())
    assert told == [Answered("name", "two", "two-name", USAGE, 10 + 10, ("one failed: AuthenticationError",))]

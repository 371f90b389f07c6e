"""From the name of a model to an answer: where to ask, what to do when it fails, and what it cost."""

from __future__ import annotations

import asyncio
import difflib
import inspect
import random
from collections import defaultdict
from collections.abc import AsyncGenerator, Awaitable, Callable, Mapping, Sequence
from contextlib import aclosing
from dataclasses import dataclass, field
from typing import Protocol, TypeVar

from studiolo.language.conversation import Delta, Request, Text, Thought, Usage
from studiolo.language.engines.base import Capabilities, Engine, Token
from studiolo.language.engines.upstream import TimeLimits, timed
from studiolo.language.errors import (
    AuthenticationError,
    LanguageError,
    UnknownModelError,
    UnsupportedError,
)
from studiolo.language.limits import (
    Breaker,
    BreakerPolicy,
    Clock,
    Gate,
    Limits,
    NotAskedError,
    RealClock,
)
from studiolo.language.prices import Price, cost

T = TypeVar("T")

_ELSEWHERE = (AuthenticationError, UnknownModelError, UnsupportedError)
"""Errors that only this upstream makes; the request itself is sound."""

_NO_LIMITS = TimeLimits(connect=None, first=None, between=None, whole=None)


@dataclass(frozen=True)
class Route:
    """One place where a model answers.

    Attributes:
        upstream: the service; its limits and its circuit breaker hold for all models there.
        model: the model's name at that service.
        open: makes the engine, when it is first needed.
        capabilities: what the model can do there.
        price: what it costs there, if that is known.
    """

    upstream: str
    model: str
    open: Callable[[], Engine | Awaitable[Engine]] = field(repr=False)
    capabilities: Capabilities
    price: Price | None = None


@dataclass(frozen=True)
class RetryPolicy:
    """How often each route is tried before the next one, and the pauses between, in seconds.

    The pause before try n + 1 is drawn evenly from 0 to `first_pause` * 2**(n - 1), at most
    `longest_pause` ("full jitter": https://aws.amazon.com/blogs/architecture/exponential-backoff-and-jitter/).
    It is never shorter than the upstream asks; one that asks for more than `longest_wait` is left at once.
    """

    attempts: int = 3
    first_pause: float = 0.5
    longest_pause: float = 8.0
    longest_wait: float = 20.0


@dataclass(frozen=True)
class Answered:
    """The record of an answer that came to its end. `dollars` is None where no price is known."""

    name: str
    upstream: str
    model: str
    usage: Usage
    dollars: float | None
    tried: tuple[str, ...]


class Random(Protocol):
    def uniform(self, a: float, b: float) -> float: ...


class Router:
    """Answers by name, over one or several routes. Safe to use from many tasks of one event loop.

    A failure before the first delta is tried again, then elsewhere; after it, it is the caller's to know.
    What was tried is told in the notes of the first delta.

    Args:
        routes: for each name the places to ask, in order.
        aliases: other names for these.
        limits: for each upstream, where it has any.
        retry: how often to try again.
        breaker: when to leave an upstream alone.
        time_limits: for each try; the engines have their own.
        on_answer: is told of each answer, for accounts and metrics.
    """

    def __init__(
        self,
        routes: Mapping[str, Sequence[Route]],
        *,
        aliases: Mapping[str, str] | None = None,
        limits: Mapping[str, Limits] | None = None,
        retry: RetryPolicy | None = None,
        breaker: BreakerPolicy | None = None,
        time_limits: TimeLimits = _NO_LIMITS,
        on_answer: Callable[[Answered], None] | None = None,
        clock: Clock | None = None,
        chance: Random | None = None,
    ) -> None:
        self._routes = {name: tuple(chain) for name, chain in routes.items()}
        self._aliases = dict(aliases or {})
        self._retry, self._time_limits, self._on_answer = retry or RetryPolicy(), time_limits, on_answer
        self._clock, self._chance = clock or RealClock(), chance or random.Random()
        upstreams = {route.upstream for chain in self._routes.values() for route in chain}
        self._gates = {
            name: Gate((limits or {}).get(name, Limits()), self._clock, upstream=name) for name in upstreams
        }
        self._breakers = {
            name: Breaker(breaker or BreakerPolicy(), self._clock, upstream=name) for name in upstreams
        }
        self._engines: dict[tuple[str, str], Engine] = {}
        self._opening: defaultdict[tuple[str, str], asyncio.Lock] = defaultdict(asyncio.Lock)

    # --- names --------------------------------------------------------------------------------------------

    def names(self) -> list[str]:
        """All names, without the aliases."""
        return sorted(self._routes)

    def resolve(self, name: str) -> tuple[str, tuple[Route, ...]]:
        """The name that an alias stands for, and its routes.

        Raises:
            UnknownModelError: there is no such name.
        """
        known = self._aliases.get(name, name)
        if routes := self._routes.get(known):
            return known, routes
        near = difflib.get_close_matches(name, [*self._routes, *self._aliases], n=3, cutoff=0.5)
        remedy = f"Did you mean {' or '.join(near)}?" if near else f"There are: {', '.join(self.names())}."
        raise UnknownModelError("no model of this name", where=name, remedy=remedy)

    def engine(self, name: str) -> RoutedEngine:
        """The model of this name as an `Engine`.

        Raises:
            UnknownModelError: there is no such name.
        """
        known, routes = self.resolve(name)
        return RoutedEngine(self, known, routes[0].capabilities)

    def breaker(self, upstream: str) -> Breaker:
        """The circuit breaker of an upstream, to be looked at."""
        return self._breakers[upstream]

    # --- what it does -------------------------------------------------------------------------------------

    async def generate(self, request: Request) -> AsyncGenerator[Delta]:
        """The answer of the model that `request.model` names; see `Engine.generate`."""
        name, routes = self.resolve(request.model)
        tried: list[str] = []

        def ask(engine: Engine, route: Route) -> AsyncGenerator[Delta]:
            return engine.generate(request.model_copy(update={"model": route.model}))

        first = True
        async with aclosing(self._routed(routes, ask, tried, guess_tokens(request))) as deltas:
            async for route, delta in deltas:
                notes = (*tried, *delta.notes) if first else delta.notes
                if delta.usage is not None:
                    self._tell(name, route, delta.usage, tried)
                first = False
                yield delta.model_copy(update={"model": name, "notes": notes})

    async def count_tokens(self, request: Request) -> int:
        """Tokens of the prompt, by the first route that can count them."""
        _, routes = self.resolve(request.model)

        async def ask(engine: Engine, route: Route) -> AsyncGenerator[int]:
            yield await engine.count_tokens(request.model_copy(update={"model": route.model}))

        return await self._only(routes, ask, 0)

    async def tokenize(self, name: str, texts: Sequence[str]) -> list[list[Token]]:
        """The tokens of each text, by the first route of that name that tells them; see `Engine.tokenize`."""
        _, routes = self.resolve(name)

        async def ask(engine: Engine, route: Route) -> AsyncGenerator[list[list[Token]]]:
            yield await engine.tokenize(texts)

        return await self._only(routes, ask, 0)

    async def embed(
        self, name: str, texts: Sequence[str], *, dimensions: int | None = None
    ) -> list[list[float]]:
        """One unit vector a text, by the model of that name; see `Engine.embed`."""
        _, routes = self.resolve(name)

        async def ask(engine: Engine, route: Route) -> AsyncGenerator[list[list[float]]]:
            yield await engine.embed(texts, dimensions=dimensions)

        return await self._only(routes, ask, sum(map(len, texts)) // 4)

    async def close(self) -> None:
        """Closes all engines that were opened."""
        engines, self._engines = list(self._engines.values()), {}
        for engine in engines:
            await engine.close()

    # --- how ----------------------------------------------------------------------------------------------

    async def _only(
        self, routes: Sequence[Route], ask: Callable[[Engine, Route], AsyncGenerator[T]], tokens: int
    ) -> T:
        async with aclosing(self._routed(routes, ask, [], tokens)) as answers:
            _, answer = await anext(answers)
            return answer

    async def _routed(
        self,
        routes: Sequence[Route],
        ask: Callable[[Engine, Route], AsyncGenerator[T]],
        tried: list[str],
        tokens: int,
    ) -> AsyncGenerator[tuple[Route, T]]:
        """What the first route that answers gives, with that route; `tried` grows with each failure."""
        failures: list[LanguageError] = []
        for route in routes:
            for attempt in range(1, self._retry.attempts + 1):
                begun = False
                try:
                    async with aclosing(self._attempt(route, ask, tokens)) as answers:
                        async for answer in answers:
                            begun = True
                            yield route, answer
                    return
                except LanguageError as error:
                    if begun or not (error.retry or isinstance(error, _ELSEWHERE)):
                        raise
                    failures.append(error)
                    tried.append(f"{route.upstream} failed: {type(error).__name__}")
                    pause = self._pause(error, attempt)
                if pause is None:
                    break
                await self._clock.sleep(pause)
        raise _most_telling(failures, tried)

    async def _attempt(
        self, route: Route, ask: Callable[[Engine, Route], AsyncGenerator[T]], tokens: int
    ) -> AsyncGenerator[T]:
        breaker = self._breakers[route.upstream]
        breaker.check()  # before the queue: no use to stand in it
        engine = await self._engine(route)
        async with self._gates[route.upstream].admitted(tokens) as correct:
            with breaker.trying() as goes_well:
                async with aclosing(
                    timed(ask(engine, route), self._time_limits, where=route.upstream)
                ) as answers:
                    async for answer in answers:
                        goes_well()
                        if isinstance(answer, Delta) and answer.usage is not None:
                            correct(answer.usage.total)
                        yield answer

    async def _engine(self, route: Route) -> Engine:
        key = route.upstream, route.model
        async with self._opening[key]:
            if key not in self._engines:
                opened = route.open()
                self._engines[key] = await opened if inspect.isawaitable(opened) else opened
            return self._engines[key]

    def _pause(self, error: LanguageError, attempt: int) -> float | None:
        """Seconds until this route is tried again, or None if it is not."""
        if not error.retry or isinstance(error, NotAskedError) or attempt >= self._retry.attempts:
            return None
        most = min(self._retry.longest_pause, self._retry.first_pause * 2 ** (attempt - 1))
        pause = self._chance.uniform(0, most)
        wanted = getattr(error, "retry_after", None) or 0.0
        return None if wanted > self._retry.longest_wait else max(pause, wanted)

    def _tell(self, name: str, route: Route, usage: Usage, tried: Sequence[str]) -> None:
        if self._on_answer:
            dollars = None if route.price is None else cost(usage, route.price)
            self._on_answer(Answered(name, route.upstream, route.model, usage, dollars, tuple(tried)))


class RoutedEngine:
    """One name of a router, as an `Engine`."""

    def __init__(self, router: Router, name: str, capabilities: Capabilities) -> None:
        self._router, self._name, self._capabilities = router, name, capabilities

    @property
    def model(self) -> str:
        return self._name

    @property
    def capabilities(self) -> Capabilities:
        return self._capabilities

    def generate(self, request: Request) -> AsyncGenerator[Delta]:
        return self._router.generate(request.model_copy(update={"model": self._name}))

    async def count_tokens(self, request: Request) -> int:
        return await self._router.count_tokens(request.model_copy(update={"model": self._name}))

    async def tokenize(self, texts: Sequence[str]) -> list[list[Token]]:
        return await self._router.tokenize(self._name, texts)

    async def embed(self, texts: Sequence[str], *, dimensions: int | None = None) -> list[list[float]]:
        return await self._router.embed(self._name, texts, dimensions=dimensions)

    async def close(self) -> None:
        """Closes the router, with all that it has opened."""
        await self._router.close()


def guess_tokens(request: Request) -> int:
    """A rough count of what a request will take, for rate limits: four letters a token, and its bound."""
    letters = len(request.system or "")
    for content in request.contents:
        letters += sum(len(part.text) for part in content.parts if isinstance(part, Text | Thought))
    return letters // 4 + (request.config.max_tokens or 0)


def _most_telling(failures: Sequence[LanguageError], tried: Sequence[str]) -> LanguageError:
    """The failure to raise: one that may pass, if there is one, for it says when to come again."""
    error = next((failure for failure in reversed(failures) if failure.retry), failures[0])
    for line in tried if len(tried) > 1 else ():
        error.add_note(line)
    return error

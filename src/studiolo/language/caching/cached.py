"""An engine whose requests may name a context."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncGenerator
from contextlib import aclosing
from datetime import timedelta

from studiolo.language.caching.contexts import Context, Contexts, Prefix
from studiolo.language.caching.pins import Pins
from studiolo.language.conversation import Delta, Request, user
from studiolo.language.engines.around import Around
from studiolo.language.engines.base import Engine
from studiolo.language.errors import TooLongError


class Cached(Around):
    """An `Engine` before which explicit contexts are written out.

    How many tokens of a prompt were not computed is what the engine says in `Usage.cached`: nothing is
    claimed for a context that the engine no longer has.

    Args:
        pins: computes prefixes ahead; by default the engine itself where it offers that (see `Pins`).
    """

    def __init__(self, engine: Engine, contexts: Contexts, pins: Pins | None = None) -> None:
        super().__init__(engine)
        self.contexts = contexts
        self.pins = engine if pins is None and isinstance(engine, Pins) else pins

    async def generate(self, request: Request) -> AsyncGenerator[Delta]:
        whole = await self._resolved(request)
        async with aclosing(self.engine.generate(whole)) as stream:
            async for delta in stream:
                yield delta

    async def count_tokens(self, request: Request) -> int:
        return await self.engine.count_tokens(await self._resolved(request))

    async def create(
        self,
        prefix: Prefix,
        *,
        ttl: timedelta,
        model: str | None = None,
        name: str | None = None,
        title: str = "",
    ) -> Context:
        """Keeps a prefix (see `Contexts.create`) and computes it where the engine can.

        `tokens` is exact for an engine that pins; of another it is the count of a prompt made of the prefix
        and one short turn.

        Raises:
            InvalidRequestError: also (a TooLongError) if the prefix fills the model's whole context.
        """
        model = self.model if model is None else model
        # Before it is counted, which takes longer.
        await asyncio.to_thread(self.contexts.check, prefix, title)
        await self.expire()
        tokens = await self.count_tokens(prefix.before(Request(model=model, contents=(user("."),))))
        if tokens >= self.capabilities.context:
            raise TooLongError(
                f"the context has {tokens:,} tokens, and {model} reads {self.capabilities.context:,}",
                remedy="Shorten it: a request and its answer must fit beside it.",
            )
        context = await asyncio.to_thread(
            self.contexts.create, prefix, model=model, ttl=ttl, tokens=tokens, name=name, title=title
        )
        return context if self.pins is None else await self._pin(context, prefix)

    async def delete(self, name: str) -> Context:
        context = await asyncio.to_thread(self.contexts.delete, name)
        await self._unpin(context)
        return context

    async def expire(self) -> tuple[Context, ...]:
        """Removes and unpins what has expired."""
        gone = await asyncio.to_thread(self.contexts.expire)
        for context in gone:
            await self._unpin(context)
        return gone

    async def restore(self) -> int:
        """Pins all live contexts of this model again, after a restart; says how many there are."""
        page = await asyncio.to_thread(self.contexts.page, self.contexts.limits.number)
        mine = [context for context in page.contexts if context.model == self.model]
        if self.pins is not None:
            for context in mine:
                prefix = await asyncio.to_thread(self.contexts.prefix, context.name)
                await self.pins.pin(context.name, context.model, prefix)
        return len(mine)

    async def _resolved(self, request: Request) -> Request:
        """With its context written out; in a thread, as that lies on the disk."""
        if request.cache is None:
            return request
        return await asyncio.to_thread(self.contexts.resolve, request)

    async def _pin(self, context: Context, prefix: Prefix) -> Context:
        assert self.pins is not None
        try:
            tokens = await self.pins.pin(context.name, context.model, prefix)
        except BaseException:
            await asyncio.to_thread(self.contexts.delete, context.name)
            raise
        return await asyncio.to_thread(self.contexts.recount, context.name, tokens)

    async def _unpin(self, context: Context) -> None:
        if self.pins is not None:
            await self.pins.unpin(context.name)

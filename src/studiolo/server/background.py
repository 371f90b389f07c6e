"""Answers that are made in the background: nobody waits at a socket, and whoever asks later finds them.

They are made in this process. While one is made, its events are here, for as many readers as there are, from
any event on; its end is kept in the database (`kept`). A server that stops ends them, and says so in what is
kept; one that dies says so when it starts again.
"""

from __future__ import annotations

import asyncio
import logging
from collections.abc import AsyncGenerator, Awaitable, Callable, Iterable, Iterator
from contextlib import aclosing, contextmanager
from typing import Any

from studiolo.language.errors import OverloadedError
from studiolo.server.errors import Told
from studiolo.server.sse import told_and_logged

JSON = dict[str, Any]
MOST = 64
"""Answers that are made at once."""

log = logging.getLogger("studiolo.server")


class Run:
    """One answer that is being made. `events` are those so far, `owner` is the key that asked for it; nothing
    ends it otherwise while it is `ending`."""

    def __init__(self, owner: str | None, look: Callable[[], JSON]) -> None:
        self.owner, self._look = owner, look
        self.events: list[JSON] = []
        self.ending = self.ended = self.unwanted = False
        self.task: asyncio.Task[None]
        self._more = asyncio.Condition()

    @property
    def body(self) -> JSON:
        """The answer as it is now."""
        return self._look()

    async def add(self, event: JSON) -> None:
        self.events.append(event)
        async with self._more:
            self._more.notify_all()

    async def end(self) -> None:
        self.ended = True
        async with self._more:
            self._more.notify_all()

    async def follow(self, after: int = 0) -> AsyncGenerator[JSON]:
        """Its events as they come, all but the first so many."""
        at = after
        while True:
            while at < len(self.events):
                yield self.events[at]
                at += 1
            if self.ended:
                return
            async with self._more:
                while at >= len(self.events) and not self.ended:
                    await self._more.wait()

    async def cancel(self) -> None:
        """Ends it as unwanted, if it has not just ended, and waits until its end is kept."""
        self.unwanted = self.unwanted or not self.ending
        self.stop()
        await asyncio.wait((self.task,))

    def stop(self) -> None:
        """Ends it, once: what keeps its end is not to be interrupted."""
        if not self.ending:
            self.ending = True
            self.task.cancel()


Made = Callable[[], AsyncGenerator[JSON]]
"""Begins to make an answer; gives its events."""
Broken = Callable[[Told | None], Iterable[JSON]]
"""Puts what ended it early into the answer (None: nobody wants it any more); gives the events of that."""
Keep = Callable[[list[JSON]], Awaitable[None]]
"""Keeps how it ended, with its events."""


class Background:
    """All that are being made in this process."""

    def __init__(self) -> None:
        self._runs: dict[str, Run] = {}
        self._coming = 0

    @contextmanager
    def place(self) -> Iterator[None]:
        """Holds a place for one that begins within the block.

        Raises:
            OverloadedError: no more can be begun now.
        """
        if len(self._runs) + self._coming >= MOST:
            raise OverloadedError(
                f"{MOST} answers are being made in the background", retry_after=5.0, remedy="Try again later."
            )
        self._coming += 1
        try:
            yield
        finally:
            self._coming -= 1

    def begin(
        self, id_: str, owner: str | None, *, made: Made, look: Callable[[], JSON], broken: Broken, keep: Keep
    ) -> Run:
        """Begins to make an answer that is kept as running already.

        Args:
            look: the answer as it is now.
        """
        run = self._runs[id_] = Run(owner, look)
        run.task = asyncio.create_task(self._make(id_, run, made, broken, keep))
        return run

    def get(self, id_: str, owner: str | None) -> Run | None:
        """The one of that name, while it is being made, if it is this owner's."""
        run = self._runs.get(id_)
        return run if run is not None and run.owner == owner else None

    async def close(self) -> None:
        """Ends all of them."""
        runs = list(self._runs.values())
        for run in runs:
            run.stop()
        await asyncio.gather(*(run.task for run in runs), return_exceptions=True)

    async def _make(self, id_: str, run: Run, made: Made, broken: Broken, keep: Keep) -> None:
        try:
            async with aclosing(made()) as events:
                async for event in events:
                    await run.add(event)
            run.ending = True
        except (Exception, asyncio.CancelledError) as error:  # whatever ended it, what is kept says so
            run.ending = True
            for event in broken(None if run.unwanted else told_and_logged(error)):
                await run.add(event)
        finally:
            try:
                await keep(run.events)
            except Exception:
                log.exception("the end of an answer cannot be kept")
            del self._runs[id_]
            await run.end()

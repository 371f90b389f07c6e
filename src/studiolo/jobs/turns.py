"""One at a time, and who is more urgent goes first."""

from __future__ import annotations

import asyncio
import heapq
import itertools
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager


class Turns:
    """A lock with priorities, for one event loop: lower ones first, among equals in the order they came."""

    def __init__(self) -> None:
        self._taken = False
        self._line: list[tuple[int, int, asyncio.Future[None]]] = []
        self._number = itertools.count()

    @property
    def waiting(self) -> int:
        return sum(not ticket.done() for _, _, ticket in self._line)

    @asynccontextmanager
    async def turn(self, priority: int) -> AsyncIterator[None]:
        """Waits for one's turn and has it for the time of the block."""
        if self._taken:
            ticket = asyncio.get_running_loop().create_future()
            heapq.heappush(self._line, (priority, next(self._number), ticket))
            try:
                await ticket
            except asyncio.CancelledError:
                if ticket.done() and not ticket.cancelled():  # it was our turn at that very moment
                    self._next()
                raise
        self._taken = True
        try:
            yield
        finally:
            self._next()

    def _next(self) -> None:
        while self._line:
            _, _, ticket = heapq.heappop(self._line)
            if not ticket.done():
                ticket.set_result(None)
                return
        self._taken = False

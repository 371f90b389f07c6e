"""Interactive work goes first: whoever works in the background waits here for room."""

from __future__ import annotations

import asyncio
from collections.abc import Iterator
from contextlib import contextmanager


class Room:
    """Counts the interactive requests under way; background work waits until there is none.

    For one event loop. A server that is never idle would never do its batches, so the first in line goes
    after `patience` seconds all the same, one at a time.
    """

    def __init__(self, patience: float = 30.0) -> None:
        self.patience = patience
        self._guests = 0
        self._free = asyncio.Event()
        self._free.set()
        self._first = asyncio.Lock()

    @property
    def busy(self) -> bool:
        return self._guests > 0

    @contextmanager
    def interactive(self) -> Iterator[None]:
        """For the time of an interactive request."""
        self._guests += 1
        self._free.clear()
        try:
            yield
        finally:
            self._guests -= 1
            if not self._guests:
                self._free.set()

    async def wait(self) -> None:
        """Returns when background work may begin; those that wait go in the order in which they came."""
        if not self.busy and not self._first.locked():
            return
        async with self._first:
            try:
                await asyncio.wait_for(self._free.wait(), self.patience)
            except TimeoutError:
                return

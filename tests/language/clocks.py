"""Time that passes only when a test says so."""

from __future__ import annotations

import asyncio


class LeapingClock:
    """A sleep is over at once, and time has passed by it; `slept` are all the sleeps."""

    def __init__(self) -> None:
        self.time, self.slept = 1000.0, list[float]()

    def now(self) -> float:
        return self.time

    async def sleep(self, seconds: float) -> None:
        self.slept.append(seconds)
        self.time += seconds
        await asyncio.sleep(0)


class HandClock:
    """Sleepers wake when `advance` has brought their hour."""

    def __init__(self) -> None:
        self.time, self._sleepers = 1000.0, list[tuple[float, asyncio.Event]]()

    def now(self) -> float:
        return self.time

    async def sleep(self, seconds: float) -> None:
        over = asyncio.Event()
        self._sleepers.append((self.time + seconds, over))
        await over.wait()

    async def advance(self, seconds: float) -> None:
        self.time += seconds
        for hour, over in sorted(self._sleepers, key=lambda sleeper: sleeper[0]):
            if hour <= self.time + 1e-9:
                over.set()
        await settle()


async def settle() -> None:
    """Lets all tasks run until they wait for something."""
    for _ in range(50):
        await asyncio.sleep(0)

"""Waiting for what no event tells of."""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Callable


async def until(true: Callable[[], Awaitable[bool]]) -> None:
    """Returns when it is."""
    while not await true():
        await asyncio.sleep(0.01)

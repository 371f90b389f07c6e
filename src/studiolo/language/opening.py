"""Engines by name: opened once a process, kept until they are closed."""

from __future__ import annotations

import asyncio
from typing import Any

from studiolo.language.engines.base import Engine

DEFAULT_MODEL = "smollm2"

_open: dict[tuple[asyncio.AbstractEventLoop, str], asyncio.Task[Engine]] = {}


async def engine(model: str) -> Engine:
    """The engine of that model on the running event loop, opened on first use.

    Raises:
        UnknownModelError: nothing has that name.
        StudioloError: its weights are not here, or cannot be read.
    """
    key = asyncio.get_running_loop(), model
    if key not in _open or _failed(_open[key]):
        _open[key] = asyncio.create_task(_opened(model))
    return await asyncio.shield(_open[key])


async def close_all() -> None:
    """Closes every engine of the running event loop and frees its memory."""
    loop = asyncio.get_running_loop()
    for key in [key for key in _open if key[0] is loop]:
        task = _open.pop(key)
        if not _failed(task):
            await (await task).close()


def _failed(task: asyncio.Task[Any]) -> bool:
    return task.done() and (task.cancelled() or task.exception() is not None)


async def _opened(model: str) -> Engine:
    raise NotImplementedError(model)

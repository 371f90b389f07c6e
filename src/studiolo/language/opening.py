"""Engines by name: opened once a process, kept until they are closed."""

from __future__ import annotations

import asyncio
from functools import cache
from pathlib import Path
from typing import Any

from studiolo.language.catalog import load_catalog, router_of
from studiolo.language.engines.base import Engine
from studiolo.language.engines.completer import Completer
from studiolo.language.routing import Router
from studiolo.models import known, weights

DEFAULT_MODEL = "smollm2"

_open: dict[tuple[asyncio.AbstractEventLoop, str], asyncio.Task[Engine]] = {}


async def engine(model: str) -> Engine:
    """The engine of that model on the running event loop, opened on first use.

    Raises:
        UnknownModelError: nothing has that name.
        StudioloError: its weights are not here, or cannot be read.
        AuthenticationError: it is hosted, and there is no key for it.
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
    path = Path(model).expanduser()
    if weights.has(model):
        return await _open_weights(model)
    if path.suffix == ".gguf" or path.is_dir():
        return await _local(path, path.name)
    if model in known.table().weights:
        raise weights.not_here(model)
    return _router().engine(model)


@cache
def _router() -> Router:
    """The hosted models of the catalogue; for those that are open weights too, these are a route."""
    return router_of(load_catalog(), open_local=_open_weights)


async def _open_weights(name: str) -> Engine:
    return await _local(weights.find(name).path, name)


async def _local(path: Path, model: str) -> Engine:
    """Weights of one's own, by what their files are."""
    from studiolo.language.engines.local import LocalEngine

    completer: Completer
    if path.is_dir():
        from studiolo.language.engines.transformers import TransformersCompleter

        completer = await asyncio.to_thread(TransformersCompleter, path, model)
    else:
        from studiolo.language.engines.llamacpp import LlamaCpp

        completer = await LlamaCpp.open(path, model=model)
    return LocalEngine(completer)

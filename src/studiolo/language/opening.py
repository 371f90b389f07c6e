"""Engines by name: opened once a process, kept until they are closed.

What stands around an engine, from the outside in: explicit contexts are written out, prompts and answers are
judged where a request has safety settings, and the model answers.
"""

from __future__ import annotations

import asyncio
import os
from functools import cache
from pathlib import Path
from typing import Any

from studiolo.language.caching.cached import Cached
from studiolo.language.caching.contexts import Contexts
from studiolo.language.caching.pins import Warming
from studiolo.language.caching.reusing import Reusing
from studiolo.language.caching.semantic import SemanticIndex
from studiolo.language.catalog import load_catalog, router_of
from studiolo.language.embedders import MiniLM
from studiolo.language.engines.completer import Completer, Sampling
from studiolo.language.errors import InvalidRequestError
from studiolo.language.routing import Router
from studiolo.language.safety.guarded import Guarded
from studiolo.language.safety.lexicon import Lexicon
from studiolo.models import known, weights
from studiolo.models.recommended import recommended
from studiolo.store.paths import cache_dir

_open: dict[tuple[asyncio.AbstractEventLoop, str], asyncio.Task[Cached]] = {}


async def engine(model: str, *, reuse: float | None = None) -> Cached:
    """The engine of that model on the running event loop, opened on first use.

    Args:
        reuse: from which cosine on a question is answered as an earlier one; None: never. Who asks for it
            means sampled answers too.

    Raises:
        UnknownModelError: nothing has that name.
        StudioloError: its weights are not here, or cannot be read.
        AuthenticationError: it is hosted, and there is no key for it.
    """
    key = asyncio.get_running_loop(), model
    if key not in _open or _failed(_open[key]):
        _open[key] = asyncio.create_task(opened(model))
    found = await asyncio.shield(_open[key])
    if reuse is None:
        return found
    return Cached(Reusing(found, answers(), threshold=reuse, sampled=True), found.contexts)


def answers() -> SemanticIndex:
    """The index of earlier answers in the data folder.

    Raises:
        StudioloError: the weights of the embedder are not here.
    """
    return _index(weights.find("minilm").path, cache_dir("answers") / "answers.sqlite")


@cache
def _index(embedder: Path, file: Path) -> SemanticIndex:
    return SemanticIndex(MiniLM(embedder), file)


async def close_all() -> None:
    """Closes every engine of the running event loop and frees its memory."""
    loop = asyncio.get_running_loop()
    for key in [key for key in _open if key[0] is loop]:
        task = _open.pop(key)
        if not _failed(task):
            await (await task).close()


def _failed(task: asyncio.Task[Any]) -> bool:
    return task.done() and (task.cancelled() or task.exception() is not None)


async def opened(model: str) -> Cached:
    """An engine of that model that nobody else has; who opens it closes it. Raises as `engine`."""
    path = Path(model).expanduser()
    if weights.has(model):
        return await _open_weights(model)
    if path.suffix == ".gguf" or path.is_dir():
        return await _local(path, path.name)
    catalog = load_catalog()
    if model in known.table().weights and model not in catalog.models:
        raise weights.not_here(model)
    return Cached(_router().engine(model), Contexts())


@cache
def _router() -> Router:
    """The hosted models of the catalogue; for those that are open weights too, these are a route."""
    return router_of(load_catalog(), open_local=_open_weights)


async def _open_weights(name: str) -> Cached:
    found = weights.find(name)
    if found.purpose == "embedding" and found.format == "safetensors":
        from studiolo.language.engines.embedding import EmbeddingEngine

        return Cached(EmbeddingEngine(MiniLM(found.path), name), Contexts())
    return await _local(found.path, name)


async def _local(path: Path, model: str) -> Cached:
    """Weights of one's own, by what their files are."""
    from studiolo.language.engines.local import LocalEngine

    completer: Completer
    if path.is_dir():
        from studiolo.language.engines.transformers import TransformersCompleter

        completer = await asyncio.to_thread(TransformersCompleter, path, model)
    else:
        from studiolo.language.engines.llamacpp import LlamaCpp

        completer = await LlamaCpp.open(path, model=model, context=longest_context())
    local = LocalEngine(completer, _sampling(path, model))
    return Cached(Guarded(local, Lexicon()), Contexts(), Warming(completer, local.prompt_tokens))


def longest_context() -> int:
    """Tokens that a GGUF model may have for prompt and answer together, if it was trained for so many:
    `$STUDIOLO_CONTEXT`, or what the engine takes by itself.

    Raises:
        InvalidRequestError: the variable is no such number.
    """
    from studiolo.language.engines.llamacpp import DEFAULT_CONTEXT

    said = os.environ.get("STUDIOLO_CONTEXT") or str(DEFAULT_CONTEXT)
    if not said.isdecimal() or int(said) < 1:
        raise InvalidRequestError(
            f"not a number of tokens: {said}", where="STUDIOLO_CONTEXT", remedy="Say 32768, or unset it."
        )
    return int(said)


def _sampling(path: Path, model: str) -> Sampling:
    """What is recommended for these weights: by our table, or else by their files."""
    entry = known.table().weights.get(model)
    ours = entry.sampling.model_dump(exclude_none=True) if entry else {}
    return Sampling(**(recommended(path).model_dump(exclude_none=True) | ours))

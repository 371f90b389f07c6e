"""How llama.cpp's server is started, and what it leaves behind."""

from __future__ import annotations

import ctypes
import socket
import sys
from pathlib import Path
from typing import Any

from studiolo.errors import StudioloError
from studiolo.language.engines.gguf import Card
from studiolo.language.engines.native import xllamacpp

BATCH = 512
"""Tokens of prompts that are read between two looks at who was cancelled and who waits for a next token."""
_PREFIX_CACHE_MIB = 256


def params_of(
    path: str | Path, folder: str, key: str, context: int, slots: int, pool: int, threads: int | None
) -> Any:
    """The server's settings; see `LlamaCpp` for what they mean. It listens on a socket in `folder`."""
    params = xllamacpp().CommonParams()
    params.model.path = str(path)
    params.hostnames = [f"{folder}/engine.sock" if hasattr(socket, "AF_UNIX") else "127.0.0.1"]
    params.api_keys = [key]
    params.ui = False
    params.endpoint_metrics = True  # counts what it computes
    params.verbosity = 0
    params.n_ctx = pool
    params.n_parallel = slots
    params.kv_unified = True  # else every slot has its n-th of the pool and no more
    params.n_batch = params.n_ubatch = BATCH
    # Prefixes stay in their slots; what has to leave one is kept aside, within bounds.
    params.cache_idle_slots = False
    params.cache_ram_mib = _PREFIX_CACHE_MIB
    if threads is not None:
        params.cpuparams.n_threads = params.cpuparams_batch.n_threads = threads
    return params


def give_memory_back() -> None:
    """glibc keeps what its threads freed; this hands it to the system."""
    if sys.platform == "linux" and (trim := getattr(ctypes.CDLL(None), "malloc_trim", None)):
        trim(0)


def embed_with(params: Any, card: Card, context: int) -> None:
    """Has it make vectors; of tokens that are not pooled by the model itself, the mean."""
    params.embedding = True
    params.n_batch = params.n_ubatch = context  # a text must fit in one batch
    if not card.pools:
        params.pooling_type = xllamacpp().llama_pooling_type.LLAMA_POOLING_TYPE_MEAN


def start(params: Any, path: str | Path) -> Any:
    """The server, with the weights in memory.

    Raises:
        StudioloError: they cannot be loaded.
    """
    try:
        return xllamacpp().Server(params)
    except RuntimeError as error:
        raise StudioloError(
            "llama.cpp could not load these weights",
            where=path,
            remedy="The file may be damaged or of an unknown kind, or the memory too small for the context.",
        ) from error

"""Rows of a batch on threads of their own: how a CPU draws.

The cores share each operation by themselves, which makes them wait for each other some thousand times in a
call of the denoiser: for nothing where operations are small, and for long where another program has a core.
Rows do not depend on each other: with a part of them each, the threads meet once a call.
"""

from __future__ import annotations

import os
from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import AbstractContextManager
from functools import cache
from itertools import pairwise
from threading import Barrier
from typing import TypeVar

import torch

T = TypeVar("T")

MOST = 4
"""Threads at most; further cores help within each. Python itself runs on one of them at a time."""


def sharing_threads(device: torch.device, rows: int) -> int:
    """How many threads share `rows` out among them; 1 where these stay together.

    Together they stay on a GPU, under autograd and autocast, which a thread has for itself, and where
    several processes train: networks that are spread over them have to be called in one order.
    """
    if device.type != "cpu" or torch.is_grad_enabled() or torch.is_autocast_enabled("cpu"):
        return 1
    if torch.distributed.is_available() and torch.distributed.is_initialized():
        return 1
    return max(1, min(rows, torch.get_num_threads(), MOST))


def equal_parts(rows: int, parts: int) -> list[slice]:
    """`rows` in so many parts, of which none has two rows more than another."""
    ends = [rows * i // parts for i in range(parts + 1)]
    return [slice(*pair) for pair in pairwise(ends)]


def on_threads(
    calls: Sequence[Callable[[], T]],
    threads: int,
    within: Callable[[], AbstractContextManager[object]] | None = None,
) -> list[T]:
    """What `calls` return, in order, made by so many threads that share out torch's own among them.

    Each is made `within` a context, since what torch is told of autograd and autocast holds for one thread
    only; without, they compute without autograd. The first call that raises does so here.
    """
    if threads == 1:
        return [call() for call in calls]
    if within is None:
        within = torch.inference_mode if torch.is_inference_mode_enabled() else torch.no_grad

    def run(call: Callable[[], T]) -> T:
        with within():
            return call()

    return list(_pool(os.getpid(), threads, torch.get_num_threads()).map(run, calls))


@cache
def _pool(process: int, threads: int, total: int) -> ThreadPoolExecutor:
    """Threads with `total` of torch's among them; of this process, since a fork has none of its parent's."""
    barrier = Barrier(threads)

    def start() -> None:
        torch.get_num_threads()  # a thread's first look sets its number anew
        torch.set_num_threads(total // threads)
        barrier.wait()

    pool = ThreadPoolExecutor(threads, "rows")
    for started in [pool.submit(start) for _ in range(threads)]:
        started.result()
    torch.set_num_threads(total)  # what threads that come later begin with is one number for all
    return pool

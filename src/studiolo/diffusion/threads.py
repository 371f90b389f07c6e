"""Rows of a batch on threads of their own: how a CPU draws.

The cores share each operation by themselves, which makes them wait for each other some thousand times in a
call of the denoiser: for nothing where operations are small, and for long where another program has a core.
Rows do not depend on each other: with a part of them each, the threads meet once a call.
"""

from __future__ import annotations

import os
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor, wait
from contextlib import AbstractContextManager, contextmanager
from functools import cache
from itertools import pairwise
from threading import Barrier, Lock
from typing import TypeVar

import torch

T = TypeVar("T")

MOST = 4
"""Threads at most; further cores help within each. Python itself runs on one of them at a time."""


@contextmanager
def torch_threads(number: int) -> Iterator[None]:
    """Runs with so many threads of torch's: how a sum is shared among them decides its last bits."""
    before = torch.get_num_threads()
    torch.set_num_threads(number)
    try:
        yield
    finally:
        torch.set_num_threads(before)


def sharing_threads(device: torch.device, rows: int) -> int:
    """How many threads share `rows` out among them; 1 where these stay together.

    Together they stay on a GPU, under autograd and autocast, which a thread has for itself, and where
    several processes train: networks that are spread over them have to be called in one order.
    """
    alone = torch.is_grad_enabled() or torch.is_autocast_enabled("cpu")
    if device.type != "cpu" or alone or several_processes():
        return 1
    return best_sharing(rows, torch.get_num_threads())


def several_processes() -> bool:
    """Whether this process is one of several that train together."""
    return torch.distributed.is_available() and torch.distributed.is_initialized()


def best_sharing(rows: int, cores: int, most: int = MOST) -> int:
    """The number of threads that keep most of the cores busy: the longest part over the cores that it gets.

    Where several are as good, more threads, which meet less often.
    """
    numbers = range(1, max(1, min(rows, cores, most)) + 1)
    return min(numbers, key=lambda n: ((-(-rows // n) if n > 1 else rows) / (cores // n), -n))


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
    only; without, they compute without autograd. The first call that raises does so here, when none runs any
    more.
    """
    if threads == 1:
        return [call() for call in calls]
    if within is None:
        within = torch.inference_mode if torch.is_inference_mode_enabled() else torch.no_grad

    def run(call: Callable[[], T]) -> T:
        with within():
            return call()

    with _building:
        pool = _pool(os.getpid(), threads, torch.get_num_threads())
    begun = [pool.submit(run, call) for call in calls]
    try:
        return [one.result() for one in begun]
    finally:
        for one in begun:
            one.cancel()
        wait(begun)


_building = Lock()
if hasattr(os, "register_at_fork"):
    os.register_at_fork(after_in_child=_building._at_fork_reinit)  # type: ignore[attr-defined]


@cache
def _pool(process: int, threads: int, total: int) -> ThreadPoolExecutor:
    """Threads with `total` of torch's among them; of this process, since a fork has none of its parent's.

    A thread's number cannot be set without that with which others begin later; this one is put back at once.
    """
    barrier = Barrier(threads, timeout=60)

    def start() -> None:
        torch.get_num_threads()  # a thread's first look sets its number anew
        torch.set_num_threads(total // threads)
        barrier.wait()

    pool = ThreadPoolExecutor(threads, "rows")
    try:
        for started in [pool.submit(start) for _ in range(threads)]:
            started.result()
    finally:
        torch.set_num_threads(total)
    return pool

"""Drawing while a subject is taught: on one GPU the training has what it needs, drawings what it leaves.

A training is a process of its own, so it is the memory of the GPU that has to be shared out. On the CPU both
go on, and the operating system shares out the cores.
"""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Awaitable, Callable, Iterator
from contextlib import asynccontextmanager, contextmanager
from dataclasses import dataclass
from functools import cached_property
from typing import Protocol

from studiolo.errors import StudioloError, TooLargeError
from studiolo.language.errors import OverloadedError

RESERVE = 0.1
"""Of the GPU's memory: what drawings leave to a training beyond what it has after its first step."""
BEGINNING, TAUGHT = 15.0, 60.0
"""Seconds after which who wants to draw may ask again: while a training begins, and while it goes on."""


class Gpu(Protocol):
    """The memory of a GPU, in bytes."""

    total: int

    def free(self) -> int:
        """What no process has."""

    def held(self) -> int:
        """What this process has, in use or not."""

    def limit(self, most: int | None) -> None:
        """This process is to have no more than that; None: without limit."""

    def give_back(self) -> None:
        """Lets other processes have what this one does not use."""


class Cuda:
    """The GPU that torch uses where none is named."""

    def __init__(self) -> None:
        import torch

        self._cuda = torch.cuda
        self.total = self._cuda.mem_get_info()[1]

    def free(self) -> int:
        return self._cuda.mem_get_info()[0]

    def held(self) -> int:
        return self._cuda.memory_reserved()

    def limit(self, most: int | None) -> None:
        share = 1.0 if most is None else max(0.0, most / self.total)
        self._cuda.set_per_process_memory_fraction(min(1.0, share))

    def give_back(self) -> None:
        self._cuda.empty_cache()


def find_gpu() -> Gpu | None:
    """The GPU that trainings and drawings share, if there is one. It imports torch."""
    import torch

    return Cuda() if torch.cuda.is_available() else None


@dataclass
class Training:
    """A training that is under way.

    Attributes:
        alone: nothing is drawn beside it.
        settled: it has all the memory that it needs, about.
        shared: something was drawn beside it.
    """

    alone: bool = False
    settled: bool = False
    shared: bool = False


class Sharing:
    """Who uses the GPU of this process; for one event loop.

    Args:
        find: looks for it, once, in the thread of a drawing.
    """

    def __init__(self, find: Callable[[], Gpu | None] = find_gpu) -> None:
        self._find = find
        self._trainings: list[Training] = []
        self._over = asyncio.Event()
        self._over.set()
        self.make_way: Callable[[], Awaitable[object]] | None = None
        """Frees what drawing has of the GPU, when what is being drawn is done."""

    @cached_property
    def gpu(self) -> Gpu | None:
        return self._find()

    @property
    def busy(self) -> bool:
        """Whether a training uses the GPU that drawings use."""
        return bool(self._trainings) and self.gpu is not None

    async def over(self) -> None:
        """Waits until it is not `busy`; for drawings that nobody waits for."""
        if await asyncio.to_thread(lambda: self.gpu) is not None:
            await self._over.wait()

    def give_back(self) -> None:
        """Lets the training have what drawing does not use any more."""
        if self.gpu is not None:
            self.gpu.give_back()

    @asynccontextmanager
    async def teaching(self, *, alone: bool = False) -> AsyncIterator[Training]:
        """For the time of a training on the GPU."""
        training = Training(alone)
        self._trainings.append(training)
        self._over.clear()
        try:
            if self.make_way is not None:
                await self.make_way()
            yield training
        finally:
            self._trainings.remove(training)
            if not self._trainings:
                self._over.set()

    @contextmanager
    def drawing(self) -> Iterator[None]:
        """For the time of a drawing, in its thread.

        Raises:
            OverloadedError: trainings leave no room now.
        """
        if self.gpu is None:
            yield
            return
        trainings = list(self._trainings)
        if any(training.alone or not training.settled for training in trainings):
            raise self._no_room(trainings)
        for training in trainings:
            training.shared = True
        left = self.gpu.held() + self.gpu.free() - round(RESERVE * self.gpu.total)
        self.gpu.limit(left if trainings else None)
        try:
            yield
        finally:
            if trainings:
                self.gpu.give_back()

    def too_much(self) -> StudioloError:
        """What to tell whoever asked for a drawing that did not fit."""
        if self._trainings:
            return self._no_room(self._trainings)
        return TooLargeError(
            "the GPU has not enough memory for this drawing", remedy="Ask for fewer or smaller pictures."
        )

    def _no_room(self, trainings: list[Training]) -> OverloadedError:
        if any(not training.settled and not training.alone for training in trainings):
            return OverloadedError(
                "a subject begins to be taught on this GPU, and has not yet the memory that it needs",
                remedy="Ask again in a moment.",
                retry_after=BEGINNING,
            )
        return OverloadedError(
            "a subject is being taught on this GPU, and leaves too little memory for this drawing",
            remedy="Ask for fewer or smaller pictures, or when it has been taught.",
            retry_after=TAUGHT,
        )

"""A server over a scripted engine in a process of its own, for benchmarks and tests: no weights are needed,
all else is as `studiolo serve` has it.

    python benchmarks/stub_server.py HOME [--pieces N] [--pause SECONDS] [--drain SECONDS] [--crash N]

Prints its port. The model `stub` answers "N ..." with the pieces "N.0 ", "N.1 ", and so on, so that everybody
can check that an answer is whole and his own.

With `--crash N` the process kills itself by SIGKILL when the N-th line of what keeps things (`store`, `jobs`,
`contexts.py`, and the modules of uploads and batches) is run; with `--count` it tells at its end how many
lines that were. Both count from SIGUSR1 on.
"""

from __future__ import annotations

import argparse
import asyncio
import itertools
import os
import signal
import sys
import threading
from collections.abc import AsyncGenerator, Sequence
from datetime import UTC, datetime
from pathlib import Path
from types import FrameType
from typing import Any

from studiolo.language import opening
from studiolo.language.caching.cached import Cached
from studiolo.language.caching.contexts import Contexts
from studiolo.language.conversation import Delta, FinishReason, Request, Text, Usage
from studiolo.language.engines.base import Capabilities
from studiolo.server import shelf, starting
from studiolo.server.pool import ModelInfo
from studiolo.server.settings import Settings

NAME = "stub"
KEEPERS = ("studiolo/store/", "studiolo/jobs/", "contexts.py", "uploading.py", "uploads", "batches")
"""What the path of a module has in it whose lines are counted."""


class Counting:
    """An engine that counts: the answer to "N ..." is `expected(N, pieces)`.

    Args:
        pieces: of an answer.
        pause: seconds before each; 0: the others are let go on, and no more.
    """

    model = NAME

    def __init__(self, pieces: int = 32, pause: float = 0.0) -> None:
        self.pieces, self.pause = pieces, pause
        self.capabilities = Capabilities(context=4096, tools=True)

    async def generate(self, request: Request) -> AsyncGenerator[Delta]:
        number = request.contents[-1].text.split()[0]
        for index in range(self.pieces):
            await asyncio.sleep(self.pause)
            yield Delta(part=Text(text=f"{number}.{index} "), model=NAME)
        yield Delta(finish=FinishReason.STOP, usage=Usage(prompt=2, answer=self.pieces), model=NAME)

    async def count_tokens(self, request: Request) -> int:
        """Words, also of what a context has."""
        return sum(len(content.text.split()) for content in request.contents)

    async def embed(self, texts: Sequence[str], *, dimensions: int | None = None) -> list[list[float]]:
        return [[1.0] * (dimensions or 4) for _ in texts]

    async def close(self) -> None:
        pass


def expected(number: int | str, pieces: int) -> str:
    """The whole answer to "NUMBER ..."."""
    return "".join(f"{number}.{index} " for index in range(pieces))


class Lines:
    """Counts the lines that are run in modules that keep things, in all threads that begin after it.

    Args:
        last: the line at which the process dies; None: at none.
    """

    def __init__(self, last: int | None) -> None:
        self._last, self._numbers, self.seen = last, itertools.count(1), 0
        self.armed = False
        self._ours: dict[str, bool] = {}
        threading.settrace(self._called)
        sys.settrace(self._called)

    def _called(self, frame: FrameType, event: str, _: Any) -> Any:
        path = frame.f_code.co_filename
        if path not in self._ours:
            self._ours[path] = "/studiolo/" in path and any(word in path for word in KEEPERS)
        return self._ran if self._ours[path] else None

    def _ran(self, frame: FrameType, event: str, _: Any) -> Any:
        if event == "line" and self.armed:
            self.seen = next(self._numbers)
            if self.seen == self._last:
                where = f"{Path(frame.f_code.co_filename).name}:{frame.f_lineno}"
                os.write(1, f"killed at {where}\n".encode())
                os.kill(os.getpid(), signal.SIGKILL)
        return self._ran


def main() -> None:
    parser = argparse.ArgumentParser()
    parser.add_argument("home", type=Path)
    parser.add_argument("--pieces", type=int, default=32)
    parser.add_argument("--pause", type=float, default=0.0)
    parser.add_argument("--drain", type=float, default=30.0)
    parser.add_argument("--crash", type=int)
    parser.add_argument("--count", action="store_true")
    options = parser.parse_args()
    os.environ["STUDIOLO_HOME"] = str(options.home)
    lines = Lines(options.crash) if options.count or options.crash else None
    studio = starting.open_studio(_settings(options))
    listener = starting.bind(studio.settings)
    print(listener.getsockname()[1], flush=True)
    if lines is not None:
        signal.signal(signal.SIGUSR1, lambda *_: setattr(lines, "armed", True))
    starting.serve(studio, listener)
    if options.count and lines is not None:
        print(f"lines {lines.seen}", flush=True)


def _settings(options: argparse.Namespace) -> Settings:
    """Those of the server, with our engine in the place of what is on the shelf."""
    engine = Counting(options.pieces, options.pause)
    shelved = shelf.models

    async def opened(model: str) -> Cached:
        return Cached(engine, Contexts())

    def models() -> list[ModelInfo]:
        drawing = [model for model in shelved() if model.kind in ("drawing", "subject")]
        born = datetime(2026, 1, 1, tzinfo=UTC)
        ours = ModelInfo(name=NAME, kind="chat", title=NAME, created=born, capabilities=engine.capabilities)
        return [ours, *drawing]

    shelf.models, opening.opened = models, opened
    return Settings(data=options.home, model=NAME, port=0, drain=options.drain)


if __name__ == "__main__":
    main()

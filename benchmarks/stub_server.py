"""A server over a scripted engine in a process of its own, for benchmarks and tests: no weights are needed,
all else is as `studiolo serve` has it.

    python benchmarks/stub_server.py HOME [--pieces N] [--pause SECONDS] [--drain SECONDS] [--database URL]
        [--crash N] [--crash-training N]

Prints its port. The model `stub` answers "N ..." with the pieces "N.0 ", "N.1 ", and so on, so that everybody
can check that an answer is whole and his own; `studiolo-base` draws and is taught.

With `--crash N` the process kills itself by SIGKILL when the N-th line of what keeps things (`store`, `jobs`,
`contexts.py`, and the modules of uploads, batches and tunings) is run; with `--count` it tells at its end how
many lines that were. Both count from SIGUSR1 on. With `--crash-training N` the first training does so
(`stub_training.py`), and HOME/killed tells where.
"""

from __future__ import annotations

import argparse
import asyncio
import os
import signal
import sys
from collections.abc import AsyncGenerator, Sequence
from datetime import UTC, datetime
from pathlib import Path

from killing import Lines

from studiolo.jobs import tunings
from studiolo.language.caching.cached import Cached
from studiolo.language.caching.contexts import Contexts
from studiolo.language.conversation import Delta, FinishReason, Request, Text, Usage
from studiolo.language.engines.base import Capabilities
from studiolo.server import shelf, starting
from studiolo.server.pool import ModelInfo
from studiolo.server.settings import Settings
from studiolo.server.studio import Studio

NAME = "stub"
POLL = 0.2
KEEPERS = (
    "studiolo/store/", "studiolo/jobs/", "caching/context", "uploading.py", "uploads", "batches",
    "fine_tuning", "gemini/tunings.py",
)  # fmt: skip


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


def main() -> None:
    parser = argparse.ArgumentParser()
    parser.add_argument("home", type=Path)
    parser.add_argument("--pieces", type=int, default=32)
    parser.add_argument("--pause", type=float, default=0.0)
    parser.add_argument("--drain", type=float, default=30.0)
    parser.add_argument("--database")
    parser.add_argument("--crash", type=int)
    parser.add_argument("--crash-training", type=int)
    parser.add_argument("--count", action="store_true")
    options = parser.parse_args()
    os.environ["STUDIOLO_HOME"] = str(options.home)
    lines = None
    if options.count or options.crash:
        lines = Lines(KEEPERS, options.crash, lambda place: os.write(1, f"killed at {place}\n".encode()))
    if options.count or options.crash_training:
        training = [sys.executable, str(Path(__file__).with_name("stub_training.py"))]
        training += ["--told", str(options.home / "killed")]
        training += ["--crash", str(options.crash_training)] if options.crash_training else []
        tunings.LEASH = training
    studio = _opened(options)
    listener = starting.bind(studio.settings)
    print(listener.getsockname()[1], flush=True)
    if lines is not None:
        signal.signal(signal.SIGUSR1, lambda *_: setattr(lines, "armed", True))
    starting.serve(studio, listener)
    if options.count and lines is not None:
        print(f"lines {lines.seen}", flush=True)


def _opened(options: argparse.Namespace) -> Studio:
    """The studio of a server, with our engine in the place of what speaks."""
    engine = Counting(options.pieces, options.pause)

    async def opened(model: str) -> Cached:
        return Cached(engine, Contexts())

    def models() -> list[ModelInfo]:
        drawing = [model for model in shelf.models() if model.kind in ("drawing", "subject")]
        born = datetime(2026, 1, 1, tzinfo=UTC)
        ours = ModelInfo(name=NAME, kind="chat", title=NAME, created=born, capabilities=engine.capabilities)
        return [ours, *drawing]

    settings = Settings(data=options.home, database=options.database, model=NAME, port=0, drain=options.drain)
    return starting.open_studio(settings, models=models, open_engine=opened, poll=POLL)


if __name__ == "__main__":
    main()

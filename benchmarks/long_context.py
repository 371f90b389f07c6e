"""Time and memory against the length of the prompt.

    python benchmarks/long_context.py --plot docs/long_context.png

For each length the model is opened with just so much context in a process of its own, so that the memory is
that of this length: resident after the answer, less what there was before the model. Each prompt is asked
three times with other first words (once, if longer than 1,000 tokens), and the times are medians. CPU time is
that of all threads; it holds on a machine with other things to do as well, where seconds do not. Then one
prompt of as many tokens as the context has, and its refusal. SmolLM2 reads 8,192 tokens. Gemma 3 270M, which
reads 32,768 and looks far back in every sixth layer only, is there for comparison.
"""

from __future__ import annotations

import asyncio
import sys
import time
from concurrent.futures import ProcessPoolExecutor
from contextlib import aclosing
from dataclasses import dataclass, fields
from multiprocessing import get_context
from pathlib import Path

from measuring import TEXT, arguments, median, resident_mb, table, weights

from studiolo.language.engines.completer import Completion, Sampling, Tokens
from studiolo.language.engines.llamacpp import LlamaCpp
from studiolo.language.errors import InvalidRequestError

ANSWER = 16
LENGTHS = {"smollm2": (256, 512, 1024, 2048, 4096, 8176), "gemma3-270m": (256, 512, 1024, 2048)}
HEAD = (
    "model",
    "prompt",
    "first token, s",
    "CPU s until then",
    "CPU ms a token of the prompt",
    "CPU ms a further token",
    "memory, MiB",
)


@dataclass(frozen=True)
class Times:
    """Of one answer, in seconds: until its first token, and for each further one."""

    first: float
    first_cpu: float
    each_cpu: float


@dataclass(frozen=True)
class Point:
    """Of one length; `memory` in MiB."""

    model: str
    length: int
    times: Times
    memory: float

    def row(self) -> list[str]:
        first, first_cpu, each_cpu = self.times.first, self.times.first_cpu, self.times.each_cpu
        per_token = f"{1000 * first_cpu / self.length:.1f}"
        times = (f"{first:.1f}", f"{first_cpu:.1f}", per_token, f"{1000 * each_cpu:.0f}")
        return [self.model, f"{self.length:,}", *times, f"{self.memory:.0f}"]


def main() -> None:
    parser = arguments(__doc__)
    parser.add_argument("--plot", type=Path, help="a PNG file to draw the table to")
    options = parser.parse_args()
    lengths = {"smollm2": (64,)} if options.quick else LENGTHS
    points = [
        alone(name, weights(options.model if name == "smollm2" else None, name), length)
        for name, row in lengths.items()
        for length in row
    ]
    print(table(HEAD, [point.row() for point in points]))
    print()
    print(asyncio.run(refusal(weights(options.model))))
    if options.plot:
        draw(points, options.plot)


def alone(name: str, path: Path, length: int) -> Point:
    with ProcessPoolExecutor(1, mp_context=get_context("spawn")) as process:
        point = process.submit(in_this_process, name, path, length, 1 if length > 1000 else 3).result()
    print(point, file=sys.stderr)
    return point


def in_this_process(name: str, path: Path, length: int, times: int) -> Point:
    return asyncio.run(measured(name, path, length, times))


async def measured(name: str, path: Path, length: int, times: int) -> Point:
    before = resident_mb()
    engine = await LlamaCpp.open(path, context=length + ANSWER, slots=1, pool=length + ANSWER)
    found = [await _asked(engine, _prompt(engine, number, length)) for number in range(times)]
    memory = resident_mb() - before
    await engine.close()
    middle = (median([getattr(one, told.name) for one in found]) for told in fields(Times))
    return Point(name, length, Times(*middle), memory)


async def refusal(path: Path) -> str:
    """What is told of a prompt that fills the whole context."""
    engine = await LlamaCpp.open(path, slots=1)
    try:
        await _asked(engine, _prompt(engine, 0, engine.capabilities.context))
    except InvalidRequestError as error:
        return str(error)
    finally:
        await engine.close()
    raise AssertionError("it was not refused")


def _prompt(engine: LlamaCpp, number: int, length: int) -> Tokens:
    tokens = engine.tokenize(f"{number} times {number}. {TEXT * (length // 30 + 1)}")
    assert len(tokens) >= length
    return tokens[:length]


async def _asked(engine: LlamaCpp, prompt: Tokens) -> Times:
    start, cpu = time.perf_counter(), time.process_time()
    seen: list[tuple[float, float]] = []
    made = 0
    async with aclosing(engine.complete(Completion(prompt, ANSWER, Sampling(temperature=0)))) as pieces:
        async for piece in pieces:
            if piece.tokens:
                seen.append((time.perf_counter() - start, time.process_time() - cpu))
                made += len(piece.tokens)
    return Times(*seen[0], (seen[-1][1] - seen[0][1]) / max(made - 1, 1))


TITLES = ("CPU s until the first token", "CPU ms for each further token", "memory, MiB")


def draw(points: list[Point], file: Path) -> None:
    import matplotlib

    matplotlib.use("Agg")
    import matplotlib.pyplot as plt

    figure, axes = plt.subplots(1, 3, figsize=(11, 3.6), layout="constrained")
    for model in dict.fromkeys(point.model for point in points):
        these = [point for point in points if point.model == model]
        lengths = [point.length for point in these]
        axes[0].plot(lengths, [point.times.first_cpu for point in these], "o-", label=model)
        axes[1].plot(lengths, [1000 * point.times.each_cpu for point in these], "o-", label=model)
        axes[2].plot(lengths, [point.memory for point in these], "o-", label=model)
    for axis, told in zip(axes, TITLES, strict=True):
        axis.set(xlabel="tokens of the prompt", ylabel=told, xlim=0, ylim=0)
    axes[0].legend()
    figure.savefig(file, dpi=150)


if __name__ == "__main__":
    main()

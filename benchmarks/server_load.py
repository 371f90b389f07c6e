"""What does the server take beside the engine: time to the first byte, tokens a second, memory?

    python benchmarks/server_load.py

The server is a process of its own over an engine without weights that says its pieces as fast as they are
taken (`stub_server.py`); the client is another one that only reads (`raw_client.py`), and for one row the
official package. Two tables:

1 at a time: the same requests in turn to the engine itself, called in the client's process, and through the
server in each dialect, over one connection that is kept. Shown is what the server adds, to the first piece
and to the end of the answer, and the mean CPU time of both processes, which other programs on the machine
change less (the system counts it in ticks of 10 ms, so it says nothing of a single request).

Many at once: streams that all begin together, each over a connection of its own. Every answer is checked:
whole, and the answer to its own question.
"""

from __future__ import annotations

import argparse
import asyncio
import sys
import tempfile
import time
from collections.abc import Awaitable, Callable
from contextlib import aclosing
from dataclasses import dataclass, field
from functools import partial
from pathlib import Path
from statistics import mean

from measuring import at, table
from raw_client import SURFACES, Connection, Heard, Server, asked, stub_server, text_of
from stub_server import NAME, Counting, expected

from studiolo.language.caching.cached import Cached
from studiolo.language.caching.contexts import Contexts
from studiolo.language.conversation import Request, user

SHORT = 8  # pieces of an answer that is asked for alone
HEAD = (
    "streamed by",
    "at once",
    "whole and its own",
    "first byte, p50 ms",
    "p99 ms",
    "tokens/s",
    "server's CPU, ms a stream",
    "RSS before, MiB",
    "peak",
    "after",
)


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--rounds", type=int, default=500)
    parser.add_argument("--pieces", type=int, default=64, help="of each of many answers at once")
    parser.add_argument("--at-once", type=int, nargs="+", default=[1, 50, 500])
    parser.add_argument("--only", choices=("alone", "many"))
    parser.add_argument("--quick", action="store_true", help="as little as shows that it runs")
    options = parser.parse_args()
    if options.quick:
        options.rounds, options.pieces, options.at_once = 10, 8, [1, 20]
    with tempfile.TemporaryDirectory() as folder:
        if options.only != "many":
            with stub_server(Path(folder) / "alone", "--pieces", str(SHORT)) as server:
                print(asyncio.run(alone(server, options.rounds)), end="\n\n")
        if options.only != "alone":
            with stub_server(Path(folder) / "many", "--pieces", str(options.pieces)) as server:
                print(asyncio.run(many(server, options.at_once, options.pieces)))


# --- one at a time ----------------------------------------------------------------------------------------


@dataclass
class Way:
    """How the same is asked, and what it took: seconds to the first piece and to the end, CPU seconds."""

    ask: Callable[[int], Awaitable[tuple[float, float]]]
    first: list[float] = field(default_factory=list)
    whole: list[float] = field(default_factory=list)
    cpu: list[float] = field(default_factory=list)


async def alone(server: Server, rounds: int) -> str:
    connection = await Connection(server.port).open()
    engine = Cached(Counting(SHORT), Contexts(Path(tempfile.gettempdir()) / "no-contexts"))
    ways = {"the engine itself": Way(lambda number: _directly(engine, number))}
    for surface in SURFACES:
        for stream in (True, False):
            name = f"{surface}, {'streamed' if stream else 'whole'}"
            ways[name] = Way(_by_server(connection, surface, stream=stream))
    for number in range(rounds + 20):
        for way in ways.values():
            cpu = server.cpu() + time.process_time()
            first, whole = await way.ask(number)
            if number >= 20:  # the first ones make caches warm
                way.cpu.append(server.cpu() + time.process_time() - cpu)
                way.first.append(first)
                way.whole.append(whole)
    connection.close()
    direct = ways.pop("the engine itself")
    rows = [_row_alone(name, way, direct) for name, way in ways.items()]
    return table(("asked by", "first byte, p50 ms", "p99 ms", "end, p50 ms", "p99 ms", "CPU, mean ms"), rows)


def _row_alone(name: str, way: Way, direct: Way) -> list[str]:
    """What is added, request by request."""
    cells = [name]
    for measure in ("first", "whole"):
        pairs = zip(getattr(way, measure), getattr(direct, measure), strict=True)
        added = [one - other for one, other in pairs]
        cells += [f"{1000 * at(added, share):.2f}" for share in (0.5, 0.99)]
    return [*cells, f"{1000 * (mean(way.cpu) - mean(direct.cpu)):.2f}"]


async def _directly(engine: Cached, number: int) -> tuple[float, float]:
    began, first = time.perf_counter(), 0.0
    async with aclosing(engine.generate(Request(model=NAME, contents=(user(f"{number} please"),)))) as deltas:
        async for _ in deltas:
            first = first or time.perf_counter() - began
    return first, time.perf_counter() - began


def _by_server(
    connection: Connection, surface: str, *, stream: bool
) -> Callable[[int], Awaitable[tuple[float, float]]]:
    async def ask(number: int) -> tuple[float, float]:
        path, body = asked(surface, number, stream=stream)
        heard = await connection.request("POST", path, body)
        assert heard.status == 200, heard.body
        return heard.first, heard.whole

    return ask


# --- many at once -----------------------------------------------------------------------------------------


async def many(server: Server, crowds: list[int], pieces: int) -> str:
    rows = []
    for surface in SURFACES:
        crowd = partial(_crowd, server, surface, pieces)
        await crowd(5)  # makes caches warm
        for size in crowds:
            rows.append(await _measured(server, surface, size, pieces, crowd))
            print(f"{surface}, {size}: done", file=sys.stderr)
    official = partial(_official, server, pieces)
    rows.append(await _measured(server, "chat, openai's client", crowds[len(crowds) // 2], pieces, official))
    return table(HEAD, rows)


async def _measured(
    server: Server, name: str, size: int, pieces: int, crowd: Callable[[int], Awaitable[list[float]]]
) -> list[str]:
    """A row; `crowd` gives the seconds to the first byte of each stream that was right."""
    before, cpu, began = server.resident_mb(), server.cpu(), time.perf_counter()
    seen = [before]
    watching = asyncio.create_task(_watch(server, seen))
    firsts = await crowd(size)
    seconds, cpu = time.perf_counter() - began, server.cpu() - cpu
    watching.cancel()
    cells = [name, str(size), str(len(firsts))]
    cells += [f"{1000 * at(firsts, share):.1f}" for share in (0.5, 0.99)]
    cells += [f"{len(firsts) * pieces / seconds:,.0f}", f"{1000 * cpu / size:.1f}"]
    return cells + [f"{memory:.0f}" for memory in (before, max(seen), server.resident_mb())]


async def _watch(server: Server, seen: list[float]) -> None:
    while True:
        seen.append(server.resident_mb())
        await asyncio.sleep(0.02)


async def _crowd(server: Server, surface: str, pieces: int, size: int) -> list[float]:
    connections = [await Connection(server.port).open() for _ in range(size)]
    heard = await asyncio.gather(
        *(one.request("POST", *asked(surface, number)) for number, one in enumerate(connections))
    )
    for one in connections:
        one.close()
    return [one.first for number, one in enumerate(heard) if _right(surface, one, number, pieces)]


def _right(surface: str, heard: Heard, number: int, pieces: int) -> bool:
    return heard.status == 200 and text_of(surface, heard) == expected(number, pieces)


async def _official(server: Server, pieces: int, size: int) -> list[float]:
    from openai import AsyncOpenAI

    async def one(number: int) -> float | None:
        began, first, said = time.perf_counter(), 0.0, ""
        stream = await client.chat.completions.create(
            model=NAME, messages=[{"role": "user", "content": f"{number} please"}], stream=True
        )
        async for chunk in stream:
            first = first or time.perf_counter() - began
            said += chunk.choices[0].delta.content or ""
        return first if said == expected(number, pieces) else None

    async with AsyncOpenAI(
        base_url=f"http://127.0.0.1:{server.port}/v1", api_key="none", max_retries=0
    ) as client:
        found = await asyncio.gather(*(one(number) for number in range(size)))
    return [first for first in found if first is not None]


if __name__ == "__main__":
    main()

"""How much of llama.cpp's speed is left when one goes through Studiolo?

    python benchmarks/language_load.py

1, 4 and 16 requests at once, the same questions and token counts, answered in four ways in turn, round after
round: by xllamacpp's own `Server` called from threads, with prompts as tokens (`bare`) or as chats (`bare
chat`), and by Studiolo's `LlamaCpp` and by `LocalEngine` on it. All stream. Every question is new in its
round, and the same for all four. Prints the medians over the rounds of tokens a second, of the time to the
first text (of a round's requests, their median) and of the CPU time, and of the ratios within a round. The
CPU time is what can be trusted on a machine that has other things to do.

The bare server and Studiolo's have weights of their own, so that neither profits from what the other has
read; slots, context and threads are the same. Who begins changes from round to round.
"""

from __future__ import annotations

import asyncio
import sys
import time
from collections.abc import Awaitable, Callable
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from measuring import arguments, median, table, weights

from studiolo.language.conversation import GenerationConfig, Request, Text, user
from studiolo.language.engines.completer import Completion, Sampling
from studiolo.language.engines.llamacpp import LlamaCpp
from studiolo.language.engines.local import LocalEngine

PLACES = ("Lisbon", "Oslo", "Kyoto", "Quito", "Cairo", "Perth", "Turin", "Dakar")
CONTEXT = 1024
HEAD = (
    "at once",
    "way",
    "tokens",
    "tokens/s",
    "of bare",
    "first text, ms",
    "of bare",
    "CPU ms a token",
    "of bare",
)


@dataclass(frozen=True)
class Heard:
    """Of one request: tokens made, and seconds to the first text."""

    tokens: int
    first: float


@dataclass(frozen=True)
class Round:
    """Of all requests at once: tokens, tokens a second, seconds to the first text, CPU seconds a token."""

    tokens: int
    rate: float
    first: float
    cpu: float


Way = Callable[[str, int], Awaitable[Heard]]


def main() -> None:
    parser = arguments(__doc__)
    parser.add_argument("--rounds", type=int, default=7)
    parser.add_argument("--tokens", type=int, default=32, help="to be made for each request")
    parser.add_argument("--slots", type=int, default=16)
    parser.add_argument("--at-once", type=int, nargs="+", default=[1, 4, 16])
    options = parser.parse_args()
    if options.quick:
        options.rounds, options.tokens, options.slots, options.at_once = 1, 8, 2, [2]
    print(asyncio.run(measured(weights(options.model), options)))


async def measured(path: Path, options: Any) -> str:
    bare = _bare_server(path, options.slots)
    engine = await LlamaCpp.open(path, context=CONTEXT, slots=options.slots, pool=CONTEXT * options.slots)
    with ThreadPoolExecutor(options.slots) as threads:
        ways = _ways(bare, engine, threads)
        rows = []
        for many in options.at_once:
            rounds = await _rounds(ways, many, options.rounds, options.tokens)
            rows += _rows(many, rounds)
            print(f"{many} at once: done", file=sys.stderr)
    await engine.close()
    return table(HEAD, rows)


def _bare_server(path: Path, slots: int) -> Any:
    """As its package makes it, but for what must be the same: slots, room, what stays of earlier prompts."""
    import xllamacpp

    params = xllamacpp.CommonParams()
    params.model.path = str(path)
    params.hostnames = ["127.0.0.1"]
    params.port = 0
    params.verbosity = 0
    params.n_ctx, params.n_parallel, params.kv_unified = CONTEXT * slots, slots, True
    params.cache_idle_slots = False
    return xllamacpp.Server(params)


def _ways(bare: Any, engine: LlamaCpp, threads: ThreadPoolExecutor) -> dict[str, Way]:
    local = LocalEngine(engine)

    async def by_bare(text: str, tokens: int) -> Heard:
        body = {"prompt": list(engine.tokenize(_written(text))), "max_tokens": tokens, "temperature": 0}
        return await _direct(threads, bare.handle_completions, body, lambda choice: choice["text"])

    async def by_bare_chat(text: str, tokens: int) -> Heard:
        body = {"messages": [{"role": "user", "content": text}], "max_tokens": tokens, "temperature": 0}
        return await _direct(
            threads, bare.handle_chat_completions, body, lambda choice: choice["delta"].get("content")
        )

    async def by_completer(text: str, tokens: int) -> Heard:
        start, first, made = time.perf_counter(), 0.0, 0
        prompt = engine.tokenize(_written(text))
        async for piece in engine.complete(Completion(prompt, tokens, Sampling(temperature=0))):
            first = first or (time.perf_counter() - start if piece.text else 0.0)
            made += len(piece.tokens)
        return Heard(made, first)

    async def by_engine(text: str, tokens: int) -> Heard:
        start, first, made = time.perf_counter(), 0.0, 0
        config = GenerationConfig(max_tokens=tokens, temperature=0)
        async for delta in local.generate(Request(model="m", contents=(user(text),), config=config)):
            if isinstance(delta.part, Text) and not first:
                first = time.perf_counter() - start
            made = delta.usage.answer if delta.usage else made
        return Heard(made, first)

    return {
        "bare": by_bare,
        "LlamaCpp": by_completer,
        "bare chat": by_bare_chat,
        "LocalEngine": by_engine,
    }


async def _direct(
    threads: ThreadPoolExecutor, handle: Any, body: dict[str, Any], text_of: Callable[[Any], str | None]
) -> Heard:
    """One call of xllamacpp's own, in a thread, heard by a callback."""
    start, first, made = time.perf_counter(), 0.0, 0

    def hear(chunk: dict[str, Any]) -> None:
        nonlocal first, made
        if not first and chunk["choices"] and text_of(chunk["choices"][0]):
            first = time.perf_counter() - start
        if "usage" in chunk:
            made = chunk["usage"]["completion_tokens"]

    body |= {"stream": True, "stream_options": {"include_usage": True}}
    await asyncio.get_running_loop().run_in_executor(threads, handle, body, hear)
    return Heard(made, first)


def _written(text: str) -> str:
    """As the chat template of SmolLM2 writes it, without its system text."""
    return f"<|im_start|>user\n{text}<|im_end|>\n<|im_start|>assistant\n"


async def _rounds(ways: dict[str, Way], many: int, rounds: int, tokens: int) -> dict[str, list[Round]]:
    """One more is played first and not counted: what is new at the first time is not what is measured."""
    found: dict[str, list[Round]] = {name: [] for name in ways}
    names = list(ways)
    for number in range(rounds + 1):
        texts = [_question(many, number, place) for place in range(many)]
        for name in names[number % len(names) :] + names[: number % len(names)]:
            played = await _round(ways[name], texts, tokens)
            if number:
                found[name].append(played)
    return found


def _question(many: int, number: int, place: int) -> str:
    """One that no round before had, with an answer that is long enough."""
    where = PLACES[place % len(PLACES)]
    return f"Tale {many}.{number}.{place}: write a very long story about a clockmaker in {where}."


async def _round(way: Way, texts: list[str], tokens: int) -> Round:
    start, used = time.perf_counter(), time.process_time()
    heard = await asyncio.gather(*(way(text, tokens) for text in texts))
    seconds, used = time.perf_counter() - start, time.process_time() - used
    made = sum(one.tokens for one in heard)
    return Round(made, made / seconds, median([one.first for one in heard]), used / made)


def _rows(many: int, rounds: dict[str, list[Round]]) -> list[list[str]]:
    return [_row(many, name, played, rounds[_peer(name)]) for name, played in rounds.items()]


def _peer(name: str) -> str:
    return "bare chat" if name in ("bare chat", "LocalEngine") else "bare"


def _row(many: int, name: str, played: list[Round], peer: list[Round]) -> list[str]:
    cells = [str(many), name, str(sum(one.tokens for one in played))]
    for measure, scale, digits in (("rate", 1, 1), ("first", 1000, 0), ("cpu", 1000, 1)):
        pairs = [
            (getattr(one, measure), getattr(other, measure)) for one, other in zip(played, peer, strict=True)
        ]
        cells.append(f"{scale * median([one for one, _ in pairs]):.{digits}f}")
        cells.append(f"{100 * median([one / other for one, other in pairs]):.0f} %")
    return cells


if __name__ == "__main__":
    main()

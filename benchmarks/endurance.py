"""Does memory stay flat over a thousand requests, and do a hundred at once meet an end each?

    python benchmarks/endurance.py

First: requests one after another with few at a time, of varied prompts; every third has to keep to a JSON
Schema of its own, every fourth is cancelled after its second piece. Prints the resident memory after each
tenth of them, and before the model was loaded and after it was closed. Then: a hundred requests at once on
a line with fewer places, each of which may say one thing only, and no other the same; and a hundred again.
Prints how many were answered, and rightly, how many were refused and how, and by how many a request was
overtaken.
"""

from __future__ import annotations

import asyncio
import json
import sys
import time
from collections.abc import Callable
from contextlib import aclosing
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import jsonschema
from measuring import arguments, resident_mb, table, weights

from studiolo.language.engines.completer import Completion, Constraint, Sampling
from studiolo.language.engines.llamacpp import LlamaCpp
from studiolo.language.errors import OverloadedError

THINGS = ("a lamp", "two boats", "the sea", "an old map", "rain", "a clock", "seven apples")
GREEDY = Sampling(temperature=0)


def main() -> None:
    parser = arguments(__doc__)
    parser.add_argument("--requests", type=int, default=1000)
    parser.add_argument("--crowd", type=int, default=100)
    parser.add_argument("--queue", type=int, default=64)
    parser.add_argument("--only", choices=("long", "crowd"))
    options = parser.parse_args()
    if options.quick:
        options.requests, options.crowd, options.queue = 20, 12, 5
    path = weights(options.model)
    if options.only != "crowd":
        print(asyncio.run(long_run(path, options.requests)), "\n")
    if options.only != "long":
        print(asyncio.run(crowd(path, options.crowd, options.queue)))


# --- a long run -------------------------------------------------------------------------------------------


async def long_run(path: Path, requests: int) -> str:
    rows = [["before the model was loaded", f"{resident_mb():.0f}", ""]]
    engine = await LlamaCpp.open(path, context=512, slots=4)
    rows.append(["loaded", f"{resident_mb():.0f}", ""])
    ends = {"answered": 0, "answered in JSON": 0, "cancelled": 0}
    numbers = iter(range(requests))

    async def worker() -> None:
        for number in numbers:
            ends[await _one(engine, number)] += 1
            done = sum(ends.values())
            if done % (requests // 10) == 0:
                told = ", ".join(f"{count} {end}" for end, count in ends.items())
                rows.append([f"after {done}", f"{resident_mb():.0f}", told])
                print(*rows[-1], file=sys.stderr)

    await asyncio.gather(*(worker() for _ in range(4)))
    await engine.close()
    rows.append(["closed", f"{resident_mb():.0f}", ""])
    return table(("when", "resident, MiB", "until then"), rows)


async def _one(engine: LlamaCpp, number: int) -> str:
    """Asks request `number` and says how it ended."""
    thing = THINGS[number % len(THINGS)]
    schema = _schema(number) if number % 3 == 0 else None
    prompt = _chat(engine, f"{number}. Tell me something about {thing}, {number % 8 * 'and more, '} please.")
    wanted = Completion(prompt, 48 if schema else 8, GREEDY, constraint=schema and Constraint("json", schema))
    text = ""
    async with aclosing(engine.complete(wanted)) as pieces:
        told = 0
        async for piece in pieces:
            text, told = text + piece.text, told + 1
            if number % 4 == 0 and told == 2:
                return "cancelled"
    if schema is None:
        return "answered"
    jsonschema.validate(json.loads(text), schema)
    return "answered in JSON"


def _schema(number: int) -> dict[str, Any]:
    """A new one for each number, with short answers."""
    properties = {
        f"size{number}": {"enum": [number, number + 1]},
        "kind": {"type": "string", "maxLength": 6},
    }
    return {
        "type": "object",
        "properties": properties,
        "required": list(properties),
        "additionalProperties": False,
    }


# --- a crowd ----------------------------------------------------------------------------------------------


@dataclass
class Crowd:
    """What became of requests that came at once; `begun` has them in the order of their first words."""

    begun: list[int] = field(default_factory=list)
    answers: dict[int, str] = field(default_factory=dict)
    refused: dict[int, OverloadedError] = field(default_factory=dict)
    seconds: float = 0.0

    async def play(self, engine: LlamaCpp, many: int) -> None:
        start = time.perf_counter()
        await asyncio.gather(*(self._ask(engine, number) for number in range(many)))
        self.seconds = time.perf_counter() - start

    async def _ask(self, engine: LlamaCpp, number: int) -> None:
        only = Constraint("choice", (_own(number),))
        wanted = Completion(_chat(engine, f"Say {_own(number)}."), 24, GREEDY, constraint=only)
        text = ""
        try:
            async with aclosing(engine.complete(wanted)) as pieces:
                async for piece in pieces:
                    if not text and piece.text:
                        self.begun.append(number)
                    text += piece.text
            self.answers[number] = text
        except OverloadedError as error:
            self.refused[number] = error


async def crowd(path: Path, many: int, queue: int) -> str:
    """Twice: the second time it is known how fast the line moves."""
    slots = 4
    engine = await LlamaCpp.open(path, context=512, slots=slots, queue=queue)
    first, second = Crowd(), Crowd()
    await first.play(engine, many)
    await second.play(engine, many)
    await engine.close()
    rows = [
        _told("requests at once", lambda _: many, first, second),
        _told("places, and places in the queue", lambda _: f"{slots}, {queue}", first, second),
        _told("answered", lambda one: len(one.answers), first, second),
        _told("of these, rightly", _right, first, second),
        _told("refused", lambda one: len(one.refused), first, second),
        _told("of these, the last to come", lambda one: _late(one, slots + queue), first, second),
        _told("places lost at most to later ones", _lost, first, second),
        _told("told to come again after, s", _hint, first, second),
        _told("all were served after, s", lambda one: f"{one.seconds:.1f}", first, second),
    ]
    error = next(iter(second.refused.values()))
    return f"{table(('a crowd', 'first', 'second'), rows)}\n\n{error}"


def _told(what: str, tell: Callable[[Crowd], object], *crowds: Crowd) -> list[object]:
    return [what, *map(tell, crowds)]


def _right(one: Crowd) -> int:
    return sum(text == _own(number) for number, text in one.answers.items())


def _late(one: Crowd, places: int) -> int:
    return sum(number >= places for number in one.refused)


def _lost(one: Crowd) -> int:
    return max(place - number for place, number in enumerate(one.begun))


def _hint(one: Crowd) -> str:
    hint = next(iter(one.refused.values())).retry_after
    return "unknown" if hint is None else f"{hint:.1f}"


def _own(number: int) -> str:
    return f"number {number} of the crowd"


def _chat(engine: LlamaCpp, question: str) -> tuple[int, ...]:
    return engine.tokenize(f"<|im_start|>user\n{question}<|im_end|>\n<|im_start|>assistant\n")


if __name__ == "__main__":
    main()

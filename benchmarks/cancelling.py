"""How much is still computed for a request that nobody wants any more, and who gets its place?

    python benchmarks/cancelling.py

Requests are cancelled while they answer, after some tokens, and while a long prompt of theirs is read, after
its first batch. Prints how many times the server still ran the model (its own counter,
`llamacpp:n_decode_total`; a run is one token of an answer, or up to 512 tokens of a prompt). Then the same
with all slots taken and one request waiting: how many tokens the others made until it had its first, and
whether they were all still answering.
"""

from __future__ import annotations

import asyncio
from collections import Counter
from contextlib import aclosing
from pathlib import Path

from measuring import TEXT, arguments, counter, median, settled, table, weights

from studiolo.language.engines.completer import Completion, Sampling
from studiolo.language.engines.llamacpp import BATCH, LlamaCpp

GREEDY = Sampling(temperature=0)
SLOTS = 4


def main() -> None:
    parser = arguments(__doc__)
    parser.add_argument("--repeats", type=int, default=20)
    options = parser.parse_args()
    repeats = 2 if options.quick else options.repeats
    print(asyncio.run(measured(weights(options.model), repeats)))


async def measured(path: Path, repeats: int) -> str:
    engine = await LlamaCpp.open(path, context=2048, slots=SLOTS, pool=2048 * SLOTS)
    answering = [await still_run_while_answering(engine, number) for number in range(repeats)]
    reading = [await still_run_while_reading(engine, number) for number in range(repeats)]
    followed = [await until_place_is_taken(engine, number) for number in range(repeats)]
    await engine.close()
    rows = [
        ["runs of the model after it was cancelled while it answered", repeats, *_spread(answering)],
        ["the same, while its prompt of four batches was read", repeats, *_spread(reading)],
        ["tokens of each of the others until the one that waited had its first", repeats, *_spread(followed)],
    ]
    return table(("cancelled", "times", "least", "median", "most"), rows)


async def still_run_while_answering(engine: LlamaCpp, number: int) -> int:
    """Runs of the model beyond those of the tokens that were given out."""
    before, made = _runs(engine), 0
    async with aclosing(engine.complete(_story(engine, number))) as pieces:
        async for piece in pieces:
            made += len(piece.tokens)
            if made >= 5 + number % 7:
                break
    await _idle(engine)
    return _runs(engine) - before - made  # the run that ends the prompt makes the first token


async def still_run_while_reading(engine: LlamaCpp, number: int) -> int:
    """Runs beyond the first, at the end of which it is cancelled."""
    prompt = engine.tokenize(f"{number}. {TEXT * 60}")[: 4 * BATCH - 100]
    before = _runs(engine)
    task = asyncio.create_task(_all(engine, Completion(prompt, 10, GREEDY)))
    while _runs(engine) == before:
        await asyncio.sleep(0)
    task.cancel()
    seen = _runs(engine)
    await asyncio.wait([task])
    await _idle(engine)
    return _runs(engine) - seen


async def until_place_is_taken(engine: LlamaCpp, number: int) -> float:
    """Tokens that each of the requests that stay makes, from the cancelling to the newcomer's first token."""
    made: Counter[int] = Counter()

    async def tell(place: int) -> None:
        async with aclosing(engine.complete(_story(engine, SLOTS * number + place))) as pieces:
            async for piece in pieces:
                made[place] += len(piece.tokens)

    tasks = [asyncio.create_task(tell(place)) for place in range(SLOTS)]
    while min(made[place] for place in range(SLOTS)) < 3:
        await asyncio.sleep(0)
    newcomer = engine.complete(_story(engine, -number))
    first = asyncio.create_task(anext(newcomer))
    await settled()
    assert not first.done(), "a place was free"
    tasks[0].cancel()
    before = made.total() - made[0]
    await first
    between = made.total() - made[0] - before
    assert not any(task.done() for task in tasks[1:]), "the others have ended: raise the length of answers"
    await newcomer.aclose()
    for task in tasks:
        task.cancel()
    await asyncio.wait(tasks)
    await _idle(engine)
    return between / (SLOTS - 1)


def _story(engine: LlamaCpp, number: int) -> Completion:
    prompt = f"<|im_start|>user\n{number}. Write a very long story.<|im_end|>\n<|im_start|>assistant\n"
    return Completion(engine.tokenize(prompt), 1000, GREEDY)


async def _all(engine: LlamaCpp, completion: Completion) -> None:
    async with aclosing(engine.complete(completion)) as pieces:
        async for _ in pieces:
            pass


async def _idle(engine: LlamaCpp) -> None:
    """Waits until the server runs nothing."""
    while engine._running:
        await asyncio.sleep(0.01)
    runs = -1
    while runs != (runs := _runs(engine)):
        await asyncio.sleep(0.1)


def _runs(engine: LlamaCpp) -> int:
    """How often the model has been run."""
    return counter(engine, "n_decode_total")


def _spread(found: list[int] | list[float]) -> list[str]:
    return [f"{value:g}" for value in (min(found), median(found), max(found))]


if __name__ == "__main__":
    main()

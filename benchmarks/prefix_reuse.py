"""What is computed of a prompt whose beginning has been read before?

    python benchmarks/prefix_reuse.py

Plays conversations, each on a newly loaded model with two slots. Prints for each request the tokens of its
prompt, how many of them the server computed (by its own counter, `llamacpp:prompt_tokens_total`), how many
Studiolo reported as cached, the time to the first text, and the same time where nothing is known of the
prompt: a second model is asked the same with another first word.
"""

from __future__ import annotations

import asyncio
import tempfile
import time
from collections.abc import AsyncGenerator, Sequence
from contextlib import aclosing, asynccontextmanager
from dataclasses import dataclass, field
from datetime import timedelta
from pathlib import Path

from measuring import TEXT, arguments, counter, table, weights

from studiolo.language.caching.cached import Cached
from studiolo.language.caching.contexts import Contexts, Prefix
from studiolo.language.caching.pins import Warming
from studiolo.language.conversation import Content, GenerationConfig, Request, Text, Usage, model, user
from studiolo.language.engines.base import Engine
from studiolo.language.engines.llamacpp import LlamaCpp
from studiolo.language.engines.local import LocalEngine

HEAD = ("request", "prompt", "computed", "cached", "first text, ms", "nothing known, ms")
BOOK = "Answer briefly, from this book. " + TEXT * 14
QUESTIONS = (
    "Who wrote the names of the ships in a book?",
    "And what did most of the ships carry?",
    "How often came the one with letters?",
    "When did the ships pass?",
)


@dataclass
class Bench:
    """A model that is played on, and one beside it that is never asked the same twice."""

    path: Path
    completer: LlamaCpp
    beside: LlamaCpp
    rows: list[list[str]] = field(default_factory=list)

    async def play(self, what: str, request: Request, engine: Engine | None = None) -> str:
        """The answer; what it took is noted."""
        before = counter(self.completer, "prompt_tokens_total")
        text, usage, first = await _asked(engine or LocalEngine(self.completer), request)
        computed = counter(self.completer, "prompt_tokens_total") - before
        whole = request if request.cache is None else Prefix(system=BOOK).before(request)
        other = whole.model_copy(update={"system": f"{len(self.rows)} of {id(self)}. {whole.system}"})
        _, _, unknown = await _asked(LocalEngine(self.beside), other)
        times = [f"{1000 * seconds:.0f}" for seconds in (first, unknown)]
        self.rows.append([what, *map(str, (usage.prompt, computed, usage.cached)), *times])
        return text


def main() -> None:
    options = arguments(__doc__).parse_args()
    rows = asyncio.run(played(weights(options.model), quick=options.quick))
    print(table(HEAD, rows))


async def played(path: Path, *, quick: bool) -> list[list[str]]:
    rows = []
    for scene in (
        (same_system,) if quick else (same_system, one_chat, two_chats, three_chats, pinned, reopened)
    ):
        async with _bench(path) as bench:
            await scene(bench)
        rows += bench.rows
    return rows


# --- what is played ---------------------------------------------------------------------------------------


async def same_system(bench: Bench) -> None:
    for number, question in enumerate(QUESTIONS[:3], 1):
        await bench.play(f"one system text, question {number}", _request([user(question)]))


async def one_chat(bench: Bench) -> None:
    await _chats(bench, "one chat", 1, len(QUESTIONS))


async def two_chats(bench: Bench) -> None:
    await _chats(bench, "two chats in turn", 2, 3)


async def three_chats(bench: Bench) -> None:
    await _chats(bench, "three chats in turn", 3, 3)


async def pinned(bench: Bench) -> None:
    """A context is created, used, and used again after others have had the slots."""
    engine = LocalEngine(bench.completer)
    pins = Warming(bench.completer, lambda request: engine._prompt(request, None)[0])
    with tempfile.TemporaryDirectory() as folder:
        cached = Cached(engine, Contexts(Path(folder)), pins)
        await cached.create(Prefix(system=BOOK), ttl=timedelta(hours=1), model="m", name="book")
        named = _request([user(QUESTIONS[0])], system=None, cache="book")
        await bench.play("a context, first use", named, cached)
        for number in (1, 2, 3):
            other = _request([user(QUESTIONS[0])], system=f"Book {number}. {BOOK}")
            await bench.play(f"another prompt, {number}", other)
        named = _request([user(QUESTIONS[1])], system=None, cache="book")
        await bench.play("the context again", named, cached)


async def reopened(bench: Bench) -> None:
    await bench.play("before the model is closed", _request([user(QUESTIONS[0])]))
    await bench.completer.close()
    bench.completer = await LlamaCpp.open(bench.path, slots=2)
    await bench.play("after it was opened again", _request([user(QUESTIONS[0])]))


async def _chats(bench: Bench, what: str, chats: int, turns: int) -> None:
    """Each has a system text of its own; they take turns."""
    said: list[list[Content]] = [[] for _ in range(chats)]
    for turn, question in enumerate(QUESTIONS[:turns], 1):
        for chat, contents in enumerate(said):
            contents.append(user(question))
            name = f"{what}, {'ABC'[chat]}{turn}" if chats > 1 else f"{what}, turn {turn}"
            system = f"{'ABC'[chat]} is your name. {BOOK}"
            contents.append(model(await bench.play(name, _request(contents, system=system))))


# --- asking -----------------------------------------------------------------------------------------------


def _request(contents: Sequence[Content], system: str | None = BOOK, cache: str | None = None) -> Request:
    config = GenerationConfig(max_tokens=16, temperature=0)
    return Request(model="m", contents=tuple(contents), system=system, cache=cache, config=config)


async def _asked(engine: Engine, request: Request) -> tuple[str, Usage, float]:
    """The answer, what it took, and seconds to its first text."""
    start, first, text, usage = time.perf_counter(), 0.0, "", Usage()
    async with aclosing(engine.generate(request)) as deltas:
        async for delta in deltas:
            if isinstance(delta.part, Text):
                first = first or time.perf_counter() - start
                text += delta.part.text
            usage = delta.usage or usage
    return text, usage, first


@asynccontextmanager
async def _bench(path: Path) -> AsyncGenerator[Bench]:
    bench = Bench(path, await LlamaCpp.open(path, slots=2), await LlamaCpp.open(path, slots=1))
    try:
        yield bench
    finally:
        await bench.completer.close()
        await bench.beside.close()


if __name__ == "__main__":
    main()

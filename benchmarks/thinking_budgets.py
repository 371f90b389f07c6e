"""Are thoughts kept to their budget, and do the accounts add up?

    python benchmarks/thinking_budgets.py

Asks a small model 200 questions with each budget, and counts apart from the engine: how many tokens the
server says it made for each completion, and how many came out. A thought or an answer that is longer than it
may be, or a usage that is not the sum of what was made, is listed. The model is fetched once.
"""

from __future__ import annotations

import asyncio
import itertools
import time
from collections import Counter
from collections.abc import AsyncGenerator, Callable, Sequence
from contextlib import aclosing
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from measuring import arguments, table, weights

from studiolo.language.collect import collected
from studiolo.language.conversation import GenerationConfig, Request, Thinking, ThinkingMode, Usage, user
from studiolo.language.decoding.thinking import DYNAMIC_SHARE
from studiolo.language.engines.completer import Completion, Piece
from studiolo.language.engines.local import LocalEngine

ANSWER = 8
"""Tokens for the answer."""
DYNAMIC = 64
"""Tokens for thought and answer together where the thought has no budget of its own."""
SLOTS = 16

MODES: dict[str, tuple[Thinking, int]] = {
    **{
        str(budget): (Thinking(mode=ThinkingMode.BUDGET, budget=budget), budget + ANSWER)
        for budget in (0, 1, 16, 256)
    },
    f"dynamic, within {DYNAMIC}": (Thinking(mode=ThinkingMode.DYNAMIC), DYNAMIC),
}
"""The wish, and max_tokens."""

QUESTIONS = (
    "What is {} plus {}?",
    "Is {} larger than {}?",
    "I have {} apples and eat {}. How many are left?",
    "Count from {} to {}.",
    "Write one sentence with {} words, then one with {}.",
    "Which numbers between {} and {} are prime?",
    "Ein Zug fährt um {} Uhr ab und {} Minuten lang. Wann kommt er an?",
    "Si tengo {} euros y gasto {}, ¿cuántos quedan?",
    "{} と {} を足すといくつですか。",
    "def f(n): return n * {} + {}\nWhat does f(2) return?",
)


def questions(count: int) -> list[str]:
    """So many, all different."""
    pairs = zip(itertools.count(3), itertools.cycle((1, 2, 5, 7, 11, 12, 30)), strict=False)
    return [
        question.format(*pair)
        for question, pair in itertools.islice(zip(itertools.cycle(QUESTIONS), pairs, strict=False), count)
    ]


def main() -> None:
    options = arguments(__doc__).parse_args()
    asyncio.run(measured(weights(options.model), 10 if options.quick else 200))


# --- counting ----------------------------------------------------------------------------------------------


@dataclass
class Made:
    """One completion, as it came out of the completer."""

    wanted: Completion
    ids: list[int] = field(default_factory=list)
    text: str = ""
    end: str | None = None
    stop: str | None = None
    cached: int = 0
    count: int = 0
    """Tokens: the ids, and those of a character that the end cut in two."""


class Listening:
    """The server, and how many tokens it says it made for each prompt."""

    def __init__(self, server: Any) -> None:
        self._server = server
        self.made: dict[tuple[int, ...], int] = {}

    def __getattr__(self, name: str) -> Any:
        return getattr(self._server, name)

    def handle_completions(self, body: dict[str, Any], hear: Callable[[dict[str, Any]], bool]) -> Any:
        def heard(chunk: dict[str, Any]) -> bool:
            if made := chunk.get("__verbose", {}).get("tokens_predicted"):
                self.made[tuple(body["prompt"])] = made
            return hear(chunk)

        return self._server.handle_completions(body, heard)


class Counting:
    """A completer, and what came out of it for one request."""

    def __init__(self, completer: Any) -> None:
        self._completer = completer
        self.all: list[Made] = []

    def __getattr__(self, name: str) -> Any:
        return getattr(self._completer, name)

    async def complete(self, completion: Completion) -> AsyncGenerator[Piece]:
        made = Made(completion)
        self.all.append(made)
        async with aclosing(self._completer.complete(completion)) as pieces:
            async for piece in pieces:
                made.ids += piece.tokens
                made.count += piece.made
                made.text += piece.text
                made.cached += piece.cached or 0
                made.end, made.stop = piece.end, piece.stop
                yield piece


@dataclass(frozen=True)
class Told:
    """One answer: its completions (a thought, unless the budget is 0, and the answer) and its usage."""

    question: str
    made: Sequence[Made]
    usage: Usage


def faults(
    told: Told, budget: int, max_tokens: int, server: dict[tuple[int, ...], int], spell: Any
) -> list[str]:
    """What is not as it must be."""
    thoughts = sum(one.count for one in told.made[:-1])
    answer, usage = told.made[-1].count, told.usage
    checks = {
        "thought over budget": thoughts > budget,
        "answer too long": thoughts + answer > max_tokens,
        "no thought": budget > 0 and len(told.made) != 2,
        "a thought unasked": budget == 0 and len(told.made) != 1,
        "thoughts miscounted": usage.thoughts != thoughts,
        "answer miscounted": usage.answer != answer,
        "prompt miscounted": usage.prompt != len(told.made[0].wanted.prompt),
        "total is no sum": usage.total != usage.prompt + usage.thoughts + usage.answer,
        "the tag came through": any("</think>" in one.text for one in told.made[:-1]),
    }
    for one in told.made:
        # The token that ends a turn is made, and neither text nor counted.
        counted = one.count + (one.end == "eos")
        checks |= {
            "the server made another number": server[one.wanted.prompt] != counted,
            "other tokens than the text": not spell(one.ids).startswith(one.text),
        }
    return [name for name, wrong in checks.items() if wrong]


# --- the table ---------------------------------------------------------------------------------------------


async def measured(model: Path, count: int) -> None:
    from studiolo.language.engines.llamacpp import LlamaCpp

    completer: Any = await LlamaCpp.open(
        model, model="smollm2", context=1024, slots=SLOTS, pool=SLOTS * 1024, queue=count
    )
    completer._server = server = Listening(completer._server)
    rows: list[tuple[object, ...]] = []
    for name, (thinking, max_tokens) in MODES.items():
        began = time.perf_counter()
        answers = await asyncio.gather(
            *(asked(completer, question, thinking, max_tokens) for question in questions(count))
        )
        seconds = time.perf_counter() - began
        budget = most_thought(thinking, max_tokens)
        wrong = Counter(
            fault
            for told in answers
            for fault in faults(told, budget, max_tokens, server.made, completer.detokenize)
        )
        print(f"{name}: {dict(wrong) or 'no faults'}", flush=True)
        rows.append((name, *row(answers, budget), sum(wrong.values()), f"{seconds:.0f}"))
    await completer.close()
    head = ["budget", "answers", "tokens of thought: mean", "most", "over budget", "closed by the model"]
    print(table([*head, "by us", "computed again", "faults in the accounts", "seconds"], rows))


def most_thought(thinking: Thinking, max_tokens: int) -> int:
    """Tokens that a thought may have."""
    return int(max_tokens * DYNAMIC_SHARE) if thinking.budget is None else thinking.budget


async def asked(completer: Any, question: str, thinking: Thinking, max_tokens: int) -> Told:
    counting = Counting(completer)
    config = GenerationConfig(max_tokens=max_tokens, temperature=0.8, seed=7, thinking=thinking)
    request = Request(model="smollm2", contents=(user(question),), config=config)
    response = await collected(LocalEngine(counting).generate(request))  # type: ignore[arg-type]
    return Told(question, counting.all, response.usage)


def row(answers: Sequence[Told], budget: int) -> tuple[object, ...]:
    thoughts = [told.made[0] for told in answers if len(told.made) > 1]
    lengths = [thought.count for thought in thoughts] or [0]
    by_us = sum(thought.end == "length" for thought in thoughts)
    again = [
        len(told.made[1].wanted.prompt) - len(told.made[0].wanted.prompt) - len(told.made[0].ids)
        for told in answers
        if len(told.made) > 1
    ]
    computed = [
        len(told.made[1].wanted.prompt) - told.made[1].cached for told in answers if len(told.made) > 1
    ]
    share = (lambda part: f"{100 * part / len(thoughts):.0f} %") if thoughts else (lambda part: "-")
    return (
        len(answers),
        f"{sum(lengths) / len(lengths):.1f}",
        max(lengths),
        sum(length > budget for length in lengths),
        share(len(thoughts) - by_us),
        share(by_us),
        f"{sum(computed) / len(computed):.1f} (tag: {sum(again) / len(again):.1f})" if computed else "-",
    )


if __name__ == "__main__":
    main()

"""What a constraint costs in the llama.cpp engine: a regular expression by llguidance, and the same as GBNF,
which llama.cpp enforces itself.

    python benchmarks/grammar_cost.py
    python benchmarks/grammar_cost.py --model gemma-3-270m-q4_k_m.gguf

Processor time of the whole process for each token of a greedy answer, with one thread, against the same model
without a constraint; the three take turns, and the median of the turns counts. See
docs/decisions/llguidance.md.
"""

from __future__ import annotations

import asyncio
import time

from measuring import arguments, median, table, weights

from studiolo.language.engines.completer import Completion, Constraint, Sampling
from studiolo.language.engines.llamacpp import LlamaCpp

KINDS = {
    "none": None,
    "llguidance": Constraint("regex", "([0-9][a-z][.,][A-Z])+"),
    "GBNF": Constraint("gbnf", "root ::= ([0-9][a-z][.,][A-Z])+"),
}
"""No model says this of itself, so nearly every token has to be looked for."""


async def cost(engine: LlamaCpp, constraint: Constraint | None, tokens: int) -> float:
    """Milliseconds of processor time a token."""
    prompt = engine.tokenize("Once upon a time")
    completion = Completion(prompt, tokens, Sampling(temperature=0.0), constraint=constraint)
    start, made = time.process_time(), 0
    async for piece in engine.complete(completion):
        made += len(piece.tokens)
    return (time.process_time() - start) * 1000 / made


async def main() -> None:
    parser = arguments(__doc__)
    parser.add_argument("--turns", type=int, default=9)
    options = parser.parse_args()
    turns, tokens = (1, 8) if options.quick else (options.turns, 64)
    engine = await LlamaCpp.open(weights(options.model), context=512, slots=1, threads=1)
    found: dict[str, list[float]] = {kind: [] for kind in KINDS}
    for _ in range(turns):
        for kind, constraint in KINDS.items():
            found[kind].append(await cost(engine, constraint, tokens))
    await engine.close()
    free = median(found["none"])
    rows = [[kind, f"{median(ms):.1f}", f"{median(ms) / free:.2f}"] for kind, ms in found.items()]
    print(table(["constraint", "ms a token", "of none"], rows))


if __name__ == "__main__":
    asyncio.run(main())

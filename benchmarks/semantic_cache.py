"""How often does the semantic cache answer a rephrased question, and how often a different one, wrongly?

    python benchmarks/semantic_cache.py

Takes the pairs of semantic_pairs.json: questions that may share an answer, and questions that look alike and
may not. Prints, for each threshold, the share of either that would be answered from the cache, with and
without the guard that looks for numbers, names and opposites (studiolo.language.caching.guard). With --plot
FILE.png it is drawn. The weights of all-MiniLM-L6-v2 are fetched once.
"""

from __future__ import annotations

import argparse
import json
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from studiolo import models
from studiolo.language.caching.guard import difference
from studiolo.language.embedders import MiniLM, Vectors

PAIRS = Path(__file__).with_name("semantic_pairs.json")
THRESHOLDS = (0.70, 0.75, 0.80, 0.85, 0.90, 0.925, 0.95, 0.975, 0.99)


@dataclass(frozen=True)
class Pair:
    """Two questions. `kind` is "same", or says in what they differ."""

    one: str
    other: str
    kind: str
    similarity: float
    told_apart: str | None


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--weights", type=Path, help="folder of all-MiniLM-L6-v2 (default: pulled)")
    parser.add_argument("--pairs", type=Path, default=PAIRS)
    parser.add_argument("--plot", type=Path, help="a PNG file to draw the table to")
    parser.add_argument("--show", type=float, help="also list what goes wrong at this threshold")
    options = parser.parse_args()
    weights = options.weights or models.pull("minilm").path
    pairs = measured(options.pairs, MiniLM(weights).embed_now)
    print(table(pairs))
    print()
    print(by_kind(pairs))
    if options.show is not None:
        print("\n".join(mistakes(pairs, options.show)))
    if options.plot:
        draw(pairs, options.plot)


def measured(file: Path, embed: Any) -> list[Pair]:
    """The pairs of a file with their cosines; `embed` takes texts to unit vectors [N, D]."""
    told = json.loads(file.read_text(encoding="utf-8"))
    rows = [("same", one, other) for one, other in told["same"]]
    rows += [(kind, one, other) for kind, pairs in told["different"].items() for one, other in pairs]
    vectors: Vectors = embed([text for _, *texts in rows for text in texts])
    cosines = np.sum(vectors[::2] * vectors[1::2], axis=1)
    return [
        Pair(one, other, kind, float(cosine), difference(one, other))
        for (kind, one, other), cosine in zip(rows, cosines, strict=True)
    ]


def rate(pairs: Sequence[Pair], threshold: float, *, guarded: bool) -> float:
    """Share of the pairs whose second question would be answered as the first was."""
    hits = [pair.similarity >= threshold and not (guarded and pair.told_apart) for pair in pairs]
    return sum(hits) / len(hits)


def table(pairs: Sequence[Pair]) -> str:
    same, different = split(pairs)
    lines = [
        f"Answered from the cache, of {len(same)} rephrased and {len(different)} different questions:",
        "",
        "| threshold | rephrased | different | rephrased, no guard | different, no guard |",
        "|---|---|---|---|---|",
    ]
    for threshold in THRESHOLDS:
        rates = [
            rate(of, threshold, guarded=guarded) for guarded in (True, False) for of in (same, different)
        ]
        lines.append(f"| {threshold:g} | " + " | ".join(f"{100 * share:.0f} %" for share in rates) + " |")
    return "\n".join(lines)


def by_kind(pairs: Sequence[Pair]) -> str:
    """Of each kind of difference: how many pairs, how many the guard tells apart, and the cosines."""
    lines = [
        "| questions that differ in | pairs | told apart by the guard | median cosine | wrong at 0.9 |",
        "|---|---|---|---|---|",
    ]
    _, different = split(pairs)
    for kind in dict.fromkeys(pair.kind for pair in different):
        these = [pair for pair in different if pair.kind == kind]
        apart = sum(pair.told_apart is not None for pair in these)
        middle = np.median([pair.similarity for pair in these])
        wrong = sum(pair.similarity >= 0.9 and not pair.told_apart for pair in these)
        lines.append(f"| {kind} | {len(these)} | {apart} | {middle:.2f} | {wrong} |")
    return "\n".join(lines)


def mistakes(pairs: Sequence[Pair], threshold: float) -> list[str]:
    """What is reused wrongly, and what the guard keeps from being reused."""
    same, different = split(pairs)
    wrong = [pair for pair in different if pair.similarity >= threshold and not pair.told_apart]
    missed = [pair for pair in same if pair.similarity >= threshold and pair.told_apart]
    lines = ["", f"Reused wrongly at {threshold:g}:"]
    lines += [f"  {pair.similarity:.3f}  {pair.one}  <->  {pair.other}" for pair in wrong]
    lines += ["", "Kept from being reused, without need:"]
    lines += [
        f"  {pair.similarity:.3f}  {pair.one}  <->  {pair.other}  ({pair.told_apart})" for pair in missed
    ]
    return lines


def split(pairs: Sequence[Pair]) -> tuple[list[Pair], list[Pair]]:
    return [p for p in pairs if p.kind == "same"], [p for p in pairs if p.kind != "same"]


def draw(pairs: Sequence[Pair], file: Path) -> None:
    import matplotlib

    matplotlib.use("Agg")
    import matplotlib.pyplot as plt

    figure, axes = plt.subplots(figsize=(6, 4), layout="constrained")
    thresholds = np.linspace(0.6, 1, 81)
    for name, of, colour in zip(
        ("rephrased", "different"), split(pairs), ("tab:green", "tab:red"), strict=True
    ):
        for guarded, style in ((True, "-"), (False, ":")):
            rates = [100 * rate(of, threshold, guarded=guarded) for threshold in thresholds]
            axes.plot(thresholds, rates, style, color=colour, label=name if guarded else f"{name}, no guard")
    axes.set(xlabel="threshold (cosine)", ylabel="answered from the cache, %", xlim=(0.6, 1), ylim=(0, 100))
    axes.legend()
    figure.savefig(file, dpi=150)


if __name__ == "__main__":
    main()

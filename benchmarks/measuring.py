"""What the benchmarks of the language half share: the model, medians, tables, memory."""

from __future__ import annotations

import argparse
import asyncio
import re
import statistics
from collections.abc import Sequence
from pathlib import Path

from studiolo import models
from studiolo.language.engines.llamacpp import LlamaCpp

TEXT = (
    "The lighthouse keeper counted the ships that passed in the night and wrote their names in a book. "
    "Some carried grain, some carried salt, and one, every second year, carried nothing but letters. "
)
"""Words to make long prompts of."""


def arguments(doc: str | None) -> argparse.ArgumentParser:
    """What all of them take."""
    parser = argparse.ArgumentParser(description=doc, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--model", type=Path, help="a GGUF file (default: smollm2, pulled)")
    parser.add_argument("--quick", action="store_true", help="as little as shows that it runs")
    return parser


def weights(given: Path | None, name: str = "smollm2") -> Path:
    return given or models.pull(name, accept_licence=True).path


def table(head: Sequence[str], rows: Sequence[Sequence[object]]) -> str:
    """Markdown; the first column to the left, the others to the right."""
    lines = [head, ["---", *["--:"] * (len(head) - 1)], *rows]
    return "\n".join("| " + " | ".join(map(str, line)) + " |" for line in lines)


def median(values: Sequence[float]) -> float:
    return statistics.median(values)


def at(values: Sequence[float], share: float) -> float:
    """The value below which that share of them lies: `at(values, 0.99)` is the 99th of a hundred."""
    ordered = sorted(values)
    return ordered[min(len(ordered) - 1, int(share * len(ordered)))] if ordered else float("nan")


def resident_mb() -> float:
    """Memory of this process that is in RAM, in MiB (Linux)."""
    for line in Path("/proc/self/status").read_text().splitlines():
        if line.startswith("VmRSS"):
            return int(line.split()[1]) / 1024
    raise OSError("no VmRSS in /proc/self/status")


def counter(completer: LlamaCpp, name: str) -> int:
    """One of the counters that the server of llama.cpp itself keeps."""
    found = re.search(rf"^llamacpp:{name} (\d+)$", completer._server.handle_metrics(), re.MULTILINE)
    assert found, name
    return int(found[1])


async def settled(times: int = 20) -> None:
    """Lets all tasks go on that can."""
    for _ in range(times):
        await asyncio.sleep(0)

"""The benchmarks of speed and endurance still run; what they find is in docs/performance-language.md."""

from __future__ import annotations

import os
import re
import subprocess
import sys
from functools import cache
from pathlib import Path

import pytest

BENCHMARKS = Path(__file__).parents[2] / "benchmarks"

EXPECTED = {
    "language_load": ["bare", "LlamaCpp", "bare chat", "LocalEngine"],
    "busy_cores": ["by default", "sleeping"],
    "cancelling": ["runs of the model after it was cancelled while it answered"],
    "endurance": ["after 20", "closed", "a crowd"],
    "long_context": ["smollm2 | 64 |", "answer included"],
}


@cache
def shown(name, model):
    """What the benchmark prints when it is to be quick."""
    done = subprocess.run(
        [sys.executable, str(BENCHMARKS / f"{name}.py"), "--quick", "--model", str(model)],
        capture_output=True, text=True, check=False,
        env={**os.environ, "PYTHONPATH": str(BENCHMARKS.parent / "src")},
    )  # fmt: skip
    assert done.returncode == 0, done.stderr
    return done.stdout


@pytest.mark.parametrize("name", EXPECTED)
def test_it_runs_and_shows_its_table(name, smollm2):
    told = shown(name, smollm2)
    assert re.search(r"^\| --- \|", told, re.MULTILINE)
    assert [words for words in EXPECTED[name] if words not in told] == []


def test_what_a_server_computes_is_what_is_not_cached(smollm2):
    """The two are counted by different sides: prompt = computed + cached, in each row."""
    lines = shown("prefix_reuse", smollm2).splitlines()
    rows = [[int(cell) for cell in line.split("|")[2:5]] for line in lines if "question" in line]
    assert len(rows) == 3
    assert all(prompt == computed + cached for prompt, computed, cached in rows)
    assert [cached > 500 for _, _, cached in rows] == [False, True, True]


def test_of_a_crowd_all_are_answered_rightly_or_refused(smollm2):
    """12 requests at once for 4 places and 5 in the queue."""
    lines = [line.split("|")[1:-1] for line in shown("endurance", smollm2).splitlines() if "|" in line]
    table = {cells[0].strip(): [cell.strip() for cell in cells[1:]] for cells in lines}
    assert table["answered"] == table["of these, rightly"]
    assert table["refused"] == table["of these, the last to come"]
    for answered, refused in zip(table["answered"], table["refused"], strict=True):
        assert int(answered) + int(refused) == 12
        assert int(answered) >= 9
        assert int(refused) >= 1

"""The benchmarks of teaching and drawing still run; what they find is in docs/benchmarks.md."""

from __future__ import annotations

import os
import re
import subprocess
from pathlib import Path

import pytest

from lessons import lesson

ROOT = Path(__file__).parents[1]


@pytest.fixture(scope="module")
def given(tmp_path_factory):
    return lesson(tmp_path_factory.mktemp("lesson"))


@pytest.mark.parametrize(
    ("name", "options", "expected"),
    [
        ("training", ["--images", "{images}", "--batch", "1", "--quick"], ["diffusers' steps", "studiolo"]),
        ("equal_score", ["--batch", "1", "--quick"], ["class drift", "| 4 |"]),
        (
            "generation",
            ["--pictures", "2", "--steps", "2", "--rounds", "1"],
            ["of 255 apart", "a call a prompt"],
        ),
        ("trained_parts", ["--quick", "--precision", "bf16-mixed"], ["| full |", "| LoRA |", "of full"]),
        ("trained_parts", ["--quick", "--cast", "--precision", "bf16-mixed"], ["| LoRA |"]),
        ("growth", ["--quick"], ["| 1 | 96 x 96 |"]),
    ],
)
def test_it_runs_and_shows_its_table(name, options, expected, given, tmp_path, warm_python):
    command = [warm_python, str(ROOT / "benchmarks" / f"{name}.py"), "--model", str(given["base"])]
    done = subprocess.run(
        [*command, *(option.format(**given) for option in options)],
        capture_output=True, text=True, check=False, cwd=tmp_path,
        env={**os.environ, "PYTHONPATH": str(ROOT / "src")},
    )  # fmt: skip
    assert done.returncode == 0, done.stderr
    assert [words for words in expected if words not in done.stdout] == []
    assert [int(n) for n in re.findall(r"at most (\d+) of 255 apart", done.stdout) if int(n) > 1] == []

"""`studiolo.estimate`, `sweep` and what else the commands do, as functions."""

from __future__ import annotations

import csv
import json
from pathlib import Path

import pytest
from typer.testing import CliRunner

import studiolo
from lessons import QUICK, lesson
from studiolo.cli.main import app
from studiolo.dreambooth.progress import Display
from studiolo.errors import StudioloError


@pytest.fixture(scope="module")
def given(tmp_path_factory) -> dict[str, Path]:
    return lesson(tmp_path_factory.mktemp("lesson"))


def test_an_estimate_is_that_of_the_command(given, studiolo_home):
    found = studiolo.estimate(given["images"], "fox", given["base"], **QUICK)
    arguments = ["estimate", str(given["images"]), "--class", "fox", "--base", str(given["base"]), "--json"]
    arguments += [f"--set={key}={json.dumps(value)}" for key, value in QUICK.items()]
    told = json.loads(CliRunner().invoke(app, arguments).stdout)
    assert told["memory_parts_mb"]["optimizer"] == pytest.approx(found.memory.optimizer, abs=0.1)
    assert told["device"] == found.device
    assert found.fits
    assert found.total_seconds > 0


def test_a_sweep_leaves_what_the_command_leaves(given, tmp_path, studiolo_home):
    told: list[str] = []
    asked = QUICK | {"scores": {"n": 1, "contexts": 1, "steps": 1}, "images": [str(given["images"])]}
    board = studiolo.sweep(
        class_noun="fox", base=given["base"], params=["steps=1,2"], method="grid", out=tmp_path / "out",
        tell=told.append, display=Display.silent, **asked,
    )  # fmt: skip
    assert len(board.done) == len(told) == 2
    with open(tmp_path / "out" / "leaderboard.csv", encoding="utf-8", newline="") as file:
        assert sorted(row["steps"] for row in csv.DictReader(file)) == ["1", "2"]
    assert studiolo.train(
        recipe=tmp_path / "out" / "best.yaml", name="best", out=tmp_path / "run", display=Display.silent()
    )
    with pytest.raises(StudioloError, match="something already"):
        studiolo.train(recipe=tmp_path / "out" / "best.yaml", name="other", out=tmp_path / "run")
    assert studiolo.resume(tmp_path / "run", display=Display.silent()).ref.name == "best"


@pytest.mark.parametrize(
    ("call", "message"),
    [
        (lambda: studiolo.estimate(), "images of the subject"),
        (lambda: studiolo.sweep("x", "fox", params=[]), "nothing to try"),
        (lambda: studiolo.sweep("x", "fox", params=["steps"]), "KEY=VALUES"),
        (lambda: studiolo.bench("nowhere"), "no such folder"),
        (lambda: studiolo.reproduce(__file__), "PNG"),
    ],
)
def test_wrong_input_is_told(call, message, studiolo_home):
    with pytest.raises(StudioloError, match=message):
        call()

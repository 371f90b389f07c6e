"""Sweeps: the space of settings, the leaderboard, and that a kill loses and repeats nothing."""

from __future__ import annotations

import csv
import json
import os
import signal
import subprocess
from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace

import pytest
import torch
from typer.testing import CliRunner

from lessons import QUICK, lesson, same_weights
from studiolo.cli.main import app
from studiolo.dreambooth.progress import Display
from studiolo.dreambooth.recipe import Recipe
from studiolo.dreambooth.trainer import train
from studiolo.errors import StudioloError
from studiolo.evaluation import sweep as sweeping
from studiolo.evaluation.space import Choice, Range, grid, parse_parameter
from studiolo.evaluation.sweep import Sweep
from studiolo.evaluation.training import training_scorer
from studiolo.models.registry import list_models

SCORES = {"n": 1, "contexts": 1, "steps": 1}


@pytest.fixture(scope="module")
def given(tmp_path_factory) -> dict[str, Path]:
    return lesson(tmp_path_factory.mktemp("lesson"))


def shared(given: dict[str, Path]) -> Recipe:
    paths = {"images": [str(given["images"])], "base": str(given["base"]), "class_noun": "fox"}
    return Recipe().with_values(QUICK | paths | {"steps": 2, "scores": SCORES})


def search(given, out: Path, *parameters: str, **more) -> Sweep:
    parsed = [parse_parameter(text) for text in parameters]
    return Sweep(shared(given), parsed, out, tell=lambda text: None, display=Display.silent, **more)


def board(out: Path) -> list[dict[str, str]]:
    with open(out / "leaderboard.csv", encoding="utf-8", newline="") as file:
        return list(csv.DictReader(file))


def test_the_forms_of_a_parameter():
    assert parse_parameter("steps=100, 200") == Choice("steps", ("100", "200"))
    assert parse_parameter("steps=100..400:50") == Range("steps", 100, 400, 50, whole=True)
    assert parse_parameter("learning_rate=1e-5..1e-3:log") == Range("learning_rate", 1e-5, 1e-3, log=True)
    assert parse_parameter("prior_weight=0..1.5") == Range("prior_weight", 0, 1.5)
    assert parse_parameter("steps=100..400:50").points() == (100, 150, 200, 250, 300, 350, 400)
    assert parse_parameter("a=0.1..0.3:0.1").points() == pytest.approx((0.1, 0.2, 0.3))
    assert parse_parameter("adapter.targets=[attention], [attention,conv]") == Choice(
        "adapter.targets", ("[attention]", "[attention,conv]")
    )
    assert parse_parameter("instance_prompt='a [V], sitting',a [V]").values == ("'a [V], sitting'", "a [V]")
    assert parse_parameter("base=../one,../two").values == ("../one", "../two")
    for wrong in (
        "a=[1,2",
        "a=1],2",
        "a='b,c",
        "steps",
        "steps=",
        "steps=1,1",
        "steps=4..2",
        "a=1..x",
        "a=0..1:log",
        "a=1..9:-1",
        "a=1..9:.5",
    ):
        with pytest.raises(StudioloError):
            parse_parameter(wrong)
    with pytest.raises(StudioloError, match="step of a"):
        grid([parse_parameter("a=1..9")])


def test_a_grid_is_every_combination():
    points = grid([parse_parameter("a=1,2"), parse_parameter("b=5..7:1")])
    assert points == [{"a": a, "b": b} for a in ("1", "2") for b in (5, 6, 7)]


def test_the_leaderboard_ranks_what_was_trained(given, tmp_path):
    out = tmp_path / "out"
    result = CliRunner().invoke(
        app,
        ["sweep", str(given["images"]), "--class", "fox", "--base", str(given["base"]), "--method", "grid",
         "--param", "learning_rate=1e-3,1e-2", "--param", "steps=1..2:1", "--out", str(out),
         *(f"--set={key}={json.dumps(value)}" for key, value in (QUICK | {"scores": SCORES}).items())],
    )  # fmt: skip
    assert result.exit_code == 0, result.output
    rows = board(out)
    assert sorted((row["learning_rate"], row["steps"]) for row in rows) == [
        ("1e-2", "1"), ("1e-2", "2"), ("1e-3", "1"), ("1e-3", "2"),
    ]  # fmt: skip
    scores = [float(row["composite"]) for row in rows]
    assert scores == sorted(scores, reverse=True)
    best = Recipe.from_yaml(out / "best.yaml")
    assert (best.learning_rate, best.steps) == (float(rows[0]["learning_rate"]), int(rows[0]["steps"]))
    again = train(
        recipe=best, name="again", out=tmp_path / "again", display=Display.silent(), scorer=training_scorer
    )
    assert again.ref.card["scores"]["composite"] == pytest.approx(scores[0], abs=1e-6)
    kept = list(out.glob("trials/*/run/model"))
    assert len(kept) == 1  # that of the best
    assert same_weights(kept[0], tmp_path / "again" / "model")
    assert (out / "leaderboard.html").read_text().count("<img") == 4
    assert [ref.name for ref in list_models()] == ["studiolo-base", "again"]


def test_random_and_tpe_stay_in_their_ranges_and_go_on_to_a_larger_number(given, tmp_path, monkeypatch):
    monkeypatch.setattr(Sweep, "_train", lambda self, trial, folder: scripted(trial.params))
    for method in ("random", "tpe"):
        out = tmp_path / method
        parameters = ("learning_rate=1e-5..1e-3:log", "steps=1..9")
        search(given, out, *parameters, method=method, trials=3).run()
        search(given, out, *parameters, method=method, trials=14).run()
        rows = board(out)
        assert len(rows) == 14
        assert all(1e-5 <= float(row["learning_rate"]) <= 1e-3 for row in rows)
        assert all(1 <= int(row["steps"]) <= 9 for row in rows)
        assert len({row["learning_rate"] for row in rows}) == 14
        assert float(rows[0]["composite"]) == max(float(row["composite"]) for row in rows)


def scripted(params) -> dict[str, float]:
    """A score that is best at 9 steps."""
    return {"composite": params["steps"] / 10, "fidelity": 0.5, "prompt": 1.0, "drift": 0.1, "step": 1}


def test_settings_that_cannot_be_are_refused_before_and_during(given, tmp_path, monkeypatch):
    with pytest.raises(StudioloError, match="did you mean 'steps'"):
        search(given, tmp_path / "a", "step=1,2", method="grid").run()
    with pytest.raises(StudioloError, match="steps"):
        search(given, tmp_path / "a", "steps=0..5", trials=2).run()
    with pytest.raises(StudioloError, match="how many"):
        search(given, tmp_path / "a", "steps=1..5").run()
    for parameters in (("scores.export=best,last",), ("steps=1,2",)):
        last = search(given, tmp_path / "a", *parameters, method="grid")
        if parameters == ("steps=1,2",):
            last = replace(last, recipe=last.recipe.with_values({"scores": {"export": "last"}}))
        with pytest.raises(StudioloError, match="by their best step"):
            last.run()
    assert not (tmp_path / "a").exists()

    def refuse(self, trial, folder):
        if trial.params["steps"] == "2":
            raise StudioloError("no such luck")
        return scripted({"steps": 1})

    monkeypatch.setattr(Sweep, "_train", refuse)
    out = tmp_path / "b"
    done = search(given, out, "steps=1,2,3", method="grid").run()
    assert len(done.done) == 2
    assert "failed: no such luck" in (out / "leaderboard.txt").read_text()
    with pytest.raises(StudioloError, match="another parameters"):
        search(given, out, "steps=1,2", method="grid").run()


@pytest.mark.parametrize(
    ("parameters", "allowed", "reason"),
    [
        (("train_text_encoder=true,false", "train_token_embedding=true,false"), 3, "every embedding already"),
        (("buckets=true,false", "bucket_step=8,16"), 2, "set buckets"),
        (("adapter.kind=lora,null", "adapter.targets=[attention],[attention,conv]"), 3, "set adapter.kind"),
    ],
)
def test_what_does_not_go_together_is_no_trial_and_no_end(
    given, tmp_path, monkeypatch, parameters, allowed, reason
):
    def trained(self, trial, folder):
        self._recipe(trial.params)
        return scripted({"steps": 1})

    monkeypatch.setattr(Sweep, "_train", trained)
    done = search(given, tmp_path / "out", *parameters, method="grid").run()
    assert len(done.done) == allowed
    assert len(done.failed) == 4 - allowed
    assert reason in done.text()


def test_a_space_in_which_nothing_goes_together_is_refused_at_once(given, tmp_path):
    for more in ({"method": "grid"}, {"trials": 3}):
        with pytest.raises(StudioloError, match="set buckets"):
            search(given, tmp_path / "out", "bucket_step=8,16", **more).run()
    assert not (tmp_path / "out").exists()


@pytest.mark.parametrize("error", [torch.OutOfMemoryError("CUDA out of memory."), StudioloError("too large")])
def test_a_trial_without_enough_memory_fails_and_the_others_go_on(given, tmp_path, monkeypatch, error):
    tried = []

    def train(name, recipe, out, **more):
        tried.append(recipe.batch_size)
        (out / "checkpoints").mkdir(parents=True)
        (out / "run.json").write_text("{}")
        if recipe.batch_size == 4:
            raise error
        card = {"name": name, "scores": scripted({"steps": 1})}
        return SimpleNamespace(ref=SimpleNamespace(card=card))

    monkeypatch.setattr(sweeping.training, "train", train)
    monkeypatch.setattr(sweeping, "remove", lambda name: None)
    for _ in range(2):
        done = search(given, tmp_path / "out", "batch_size=2,4,3", method="grid").run()
        assert sorted(trial.params["batch_size"] for trial in done.done) == ["2", "3"]
        (failed,) = done.failed
        assert failed.params["batch_size"] == "4"
        assert "memory" in done.text() or "too large" in done.text()
    assert sorted(tried) == [2, 3, 4]  # not again
    assert len(list((tmp_path / "out").glob("trials/*/run/checkpoints"))) == 1  # that of the best


def test_several_subjects_are_swept_by_their_mean(given, tmp_path):
    out, images = tmp_path / "out", str(given["images"])
    result = CliRunner().invoke(
        app,
        ["sweep", f"--subject=vix=fox:{images}", f"--subject=rex=dog:{images}", "--base", str(given["base"]),
         "--method", "grid", "--param", "steps=1,2", "--out", str(out),
         *(f"--set={key}={json.dumps(value)}" for key, value in (QUICK | {"scores": SCORES}).items())],
    )  # fmt: skip
    assert result.exit_code == 0, result.output
    assert sorted(row["steps"] for row in board(out)) == ["1", "2"]
    best = Recipe.from_yaml(out / "best.yaml")
    assert [subject.name for subject in best.subjects] == ["vix", "rex"]


KILLED = """
import os, signal, sys
sys.path.insert(0, {tests!r})
from pathlib import Path
from test_sweep import search
from studiolo.dreambooth import callbacks

calls = 0
original = callbacks.Recorder.on_step
def on_step(self, trainer, module, now):
    global calls
    original(self, trainer, module, now)
    calls += 1
    if calls == {at}:
        os.kill(os.getpid(), signal.SIGKILL)
callbacks.Recorder.on_step = on_step
given = {{"images": Path({images!r}), "base": Path({base!r})}}
search(given, Path({out!r}), "learning_rate=1e-3,1e-2,2e-2", method="grid").run()
"""


def test_a_killed_sweep_goes_on_with_the_same_trials(given, tmp_path, warm_python):
    """Killed within the second of three trials: that one is gone on with, none is done twice."""
    whole, out = tmp_path / "whole", tmp_path / "out"
    search(given, whole, "learning_rate=1e-3,1e-2,2e-2", method="grid").run()
    code = KILLED.format(
        tests=str(Path(__file__).parent), at=3, out=str(out), **{k: str(v) for k, v in given.items()}
    )
    env = os.environ | {"OMP_NUM_THREADS": str(torch.get_num_threads())}
    done = subprocess.run([warm_python, "-c", code], env=env, check=False, capture_output=True, text=True)
    assert done.returncode == -signal.SIGKILL, done.stderr
    first = {file: file.stat().st_mtime_ns for file in out.glob("trials/*/result.json")}
    assert len(first) == 1
    search(given, out, "learning_rate=1e-3,1e-2,2e-2", method="grid").run()
    assert all(file.stat().st_mtime_ns == when for file, when in first.items())

    def told(folder: Path) -> list[tuple[str, str]]:
        return [(row["learning_rate"], row["composite"]) for row in board(folder)]

    assert told(out) == told(whole)


def test_a_trial_that_another_process_does_is_left_to_it(given, tmp_path, monkeypatch):
    monkeypatch.setattr(Sweep, "_train", lambda self, trial, folder: scripted({"steps": 1}))
    one = search(given, tmp_path / "out", "learning_rate=1e-3,1e-2", method="grid")
    wanted = one._prepare()
    mine = one._next(wanted)
    assert mine is not None
    other = search(given, tmp_path / "out", "learning_rate=1e-3,1e-2", method="grid").run()
    assert [trial.params["learning_rate"] for trial in other.done] == ["1e-2"]
    mine[1].release()  # as when its process dies
    last = search(given, tmp_path / "out", "learning_rate=1e-3,1e-2", method="grid").run()
    assert sorted(trial.params["learning_rate"] for trial in last.done) == ["1e-2", "1e-3"]


def test_a_sweep_in_which_nothing_could_be_trained_names_no_best(given, tmp_path, monkeypatch):
    def refuse(self, trial, folder):
        raise StudioloError("no such luck")

    monkeypatch.setattr(Sweep, "_train", refuse)
    arguments = ["sweep", str(given["images"]), "--class", "fox", "--base", str(given["base"])]
    arguments += ["--param", "steps=1,2", "--method", "grid", "--out", str(tmp_path / "out")]
    done = CliRunner().invoke(app, arguments)
    assert done.exit_code == 0, done.output
    assert "failed: no such luck" in done.stdout
    assert "best.yaml" not in done.stdout

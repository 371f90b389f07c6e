"""`studiolo train` as a user meets it: a process, its output, its exit code."""

from __future__ import annotations

import os
import signal
import subprocess
import sys

import pytest
import yaml
from typer.testing import CliRunner

from lessons import lesson, rows
from studiolo.cli.main import app, main
from studiolo.dreambooth.recipe import Recipe

QUICK = [
    "--set",
    "class_images={count: 4, batch_size: 4, steps: 1}",
    "--set",
    "batch_size=2",
    "--set",
    "trackers=[]",
]


@pytest.fixture
def given(tmp_path) -> list[str]:
    made = lesson(tmp_path / "lesson")
    return [str(made["images"]), "--class", "fox", "--name", "rex", "--base", str(made["base"]), *QUICK]


def studiolo(python: str, *arguments: str, code: str = "") -> subprocess.CompletedProcess[str]:
    """The command in a process of its own; `code` runs in it first."""
    start = f"{code}\nimport sys; from studiolo.cli.main import main; sys.argv[0] = 'studiolo'; main()"
    return subprocess.run([python, "-c", start, *arguments], capture_output=True, text=True, env=os.environ)


SIGNALLED = """
import os, signal
from studiolo.dreambooth import callbacks
original = callbacks.Recorder.on_step
def on_step(self, trainer, module, now):
    original(self, trainer, module, now)
    if now == 2:
        os.kill(os.getpid(), signal.SIGTERM)
callbacks.Recorder.on_step = on_step
"""


def test_stop_and_resume(given, tmp_path, warm_python):
    run = tmp_path / "run"
    stopped = studiolo(warm_python, "train", *given, "--set", "steps=3", "--out", str(run), code=SIGNALLED)
    assert stopped.returncode == 128 + signal.SIGTERM
    assert f"studiolo train --resume {run}" in stopped.stderr
    assert "Traceback" not in stopped.stderr
    for told in (f"run folder: {run}", "identifier: "):
        assert told in stopped.stderr
    resumed = CliRunner().invoke(app, ["train", "--resume", str(run)])
    assert resumed.exit_code == 0, resumed.output
    assert "--model rex" in resumed.output
    assert [row[0] for row in rows(run)] == ["1", "2", "3"]


def test_several_subjects(tmp_path):
    made = lesson(tmp_path / "lesson")
    given = ["--name", "pair", "--base", str(made["base"]), "--set", "steps=1", *QUICK]
    subjects = [
        f"--subject={name}={noun}:{made['images']}" for name, noun in (("vix", "fox"), ("rex", "dog"))
    ]
    done = CliRunner().invoke(app, ["train", *subjects, *given, "--out", str(tmp_path / "run")])
    assert done.exit_code == 0, done.output
    assert '"a [vix] fox and a [rex] dog" --model pair' in done.output
    recipe = yaml.safe_load((tmp_path / "run" / "recipe.yaml").read_text())
    assert [(one["name"], one["class_noun"]) for one in recipe["subjects"]] == [
        ("vix", "fox"),
        ("rex", "dog"),
    ]
    wrong = CliRunner().invoke(app, ["train", "--subject", "rex=dog", *given])
    assert "NAME=NOUN:PATH" in str(wrong.exception)


def test_options_stand_above_settings_and_settings_above_the_file(given, tmp_path):
    file = tmp_path / "mine.yaml"
    file.write_text("steps: 9\nseed: 5\nidentifier: abc\n")
    options = [
        "--recipe",
        str(file),
        "--set",
        "steps=1",
        "--identifier",
        "zwx",
        "--out",
        str(tmp_path / "run"),
    ]
    done = CliRunner().invoke(app, ["train", *given, *options])
    assert done.exit_code == 0, done.output
    recipe = yaml.safe_load((tmp_path / "run" / "recipe.yaml").read_text())
    assert (recipe["steps"], recipe["seed"], recipe["identifier"]) == (1, 5, "zwx")


def test_defaults_are_a_recipe(tmp_path):
    shown = CliRunner().invoke(app, ["train", "--defaults"])
    (tmp_path / "r.yaml").write_text(shown.output)
    assert Recipe.from_yaml(tmp_path / "r.yaml") == Recipe()


def test_bad_input_is_told_without_a_traceback(given, capsys, monkeypatch):
    monkeypatch.setattr(sys, "argv", ["studiolo", "train", *given, "--set", "stepps=3"])
    with pytest.raises(SystemExit) as left:
        main()
    assert left.value.code == 2
    assert "did you mean 'steps'" in capsys.readouterr().err


def test_resume_takes_nothing_else(tmp_path):
    both = CliRunner().invoke(app, ["train", "--resume", str(tmp_path), "--name", "rex"])
    assert "alone" in str(both.exception)


def test_help_names_what_matters():
    shown = CliRunner().invoke(app, ["train", "--help"], env={"COLUMNS": "200"}).output
    for word in ("--class", "--resume", "--set", "--recipe", "KEY=VALUE"):
        assert word in shown

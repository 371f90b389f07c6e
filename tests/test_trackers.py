"""What the trackers wrote, read by their own readers."""

from __future__ import annotations

import re
import sys

import pytest

from lessons import lesson, rows, teach
from studiolo.dreambooth.recipe import Recipe
from studiolo.dreambooth.trackers import open_trackers
from studiolo.errors import StudioloError


def test_tensorboard_holds_the_scalars_and_the_previews(tmp_path):
    reader = pytest.importorskip("tensorboard.backend.event_processing.event_accumulator")
    run = tmp_path / "run"
    teach(
        lesson(tmp_path / "lesson"), run, trackers=["tensorboard"], steps=2, previews={"every": 2, "steps": 1}
    )
    events = reader.EventAccumulator(str(run / "tensorboard")).Reload()
    for column in ("loss_instance", "loss_prior", "lr", "lr_text", "grad_norm"):
        written = [float(value) for (value,) in rows(run, column)]
        assert [event.value for event in events.Scalars(column)] == pytest.approx(written)
        assert [event.step for event in events.Scalars(column)] == [1, 2]
    assert {"images_per_second", "memory_mb", "loss"} <= set(events.Tags()["scalars"])
    assert [event.step for event in events.Images("previews")] == [0, 2]


@pytest.mark.parametrize("done", [0, 2])
def test_tensorboard_forgets_what_a_killed_run_wrote_after_its_checkpoint(tmp_path, done):
    """Also a run that had no checkpoint yet, and begins anew."""
    reader = pytest.importorskip("tensorboard.backend.event_processing.event_accumulator")
    for life, first in enumerate((0, done)):
        (tracker,) = open_trackers(Recipe(trackers=("tensorboard",)), tmp_path, first)
        for step in range(first + 1, 5 - life):
            tracker.scalars(step, {"loss": life})
        tracker.close()
        if not life:  # an hour ago: files are named after the second in which they begin
            (file,) = (tmp_path / "tensorboard").iterdir()
            file.rename(re.sub(r"(?<=tfevents\.)\d+", lambda t: str(int(t[0]) - 3600), str(file)))
    seen = reader.EventAccumulator(str(tmp_path / "tensorboard")).Reload().Scalars("loss")
    assert [(event.step, event.value) for event in seen] == [(s, float(s > done)) for s in (1, 2, 3)]


def test_wandb_writes_offline(tmp_path, monkeypatch):
    pytest.importorskip("wandb")
    monkeypatch.setenv("WANDB_MODE", "offline")
    monkeypatch.setenv("WANDB_SILENT", "true")
    run = tmp_path / "run"
    teach(lesson(tmp_path / "lesson"), run, trackers=["wandb"], steps=2)
    (file,) = (run / "wandb").rglob("*.wandb")
    assert b"loss_instance" in file.read_bytes()


def test_wandb_goes_on_with_the_run_it_began(tmp_path, monkeypatch):
    pytest.importorskip("wandb")
    monkeypatch.setenv("WANDB_MODE", "offline")
    monkeypatch.setenv("WANDB_SILENT", "true")
    for step in (0, 2):
        (tracker,) = open_trackers(Recipe(trackers=("wandb",)), tmp_path, step)
        tracker.scalars(step + 1, {"loss": 1.0})
        tracker.close()
    identity = (tmp_path / "wandb" / "run-id").read_text()
    files = {file.stem for file in (tmp_path / "wandb").rglob("*.wandb")}
    assert files == {f"run-{identity}"}


def test_a_tracker_that_is_not_installed_is_named_before_any_work(tmp_path, monkeypatch):
    monkeypatch.setitem(sys.modules, "wandb", None)
    with pytest.raises(StudioloError, match="pip install wandb"):
        teach(lesson(tmp_path / "lesson"), tmp_path / "run", trackers=["wandb"])

"""metrics.csv: one row an optimizer step, the same rows whether or not the run was interrupted."""

from __future__ import annotations

import csv
import io
import sys
import time
from collections.abc import Callable, Sequence
from dataclasses import astuple, dataclass, fields
from pathlib import Path
from typing import Any

import torch

from studiolo.dreambooth.recipe import Recipe
from studiolo.store.files import atomic_path


@dataclass(frozen=True)
class StepRecord:
    """What is known of optimizer step number `step` (from 1).

    `loss` = `loss_instance` + prior_weight * `loss_prior`; `lr` (of the U-Net) and `lr_text` are the rates
    that the step was taken with; `grad_norm` is of all gradients before clipping; `images_per_second` counts
    both halves on all devices; `memory_mb` is the peak so far, of the GPU or else of the process.
    """

    step: int
    loss_instance: float
    loss_prior: float
    loss: float
    lr: float
    lr_text: float
    grad_norm: float
    images_per_second: float
    memory_mb: float

    @classmethod
    def of(
        cls,
        recipe: Recipe,
        step: int,
        losses: list[float],
        grad_norm: float,
        seconds: float,
        rate: float = 1.0,
    ) -> StepRecord:
        """`rate` is what the recipe's rates are factors of: what prodigy has found."""
        instance, prior = losses
        images = recipe.batch_size + (recipe.class_batch_size or recipe.batch_size) * (
            recipe.prior_weight > 0
        )
        images *= recipe.accumulate * recipe.devices * recipe.num_nodes
        factor = rate * recipe.rate_factor(step - 1)
        return cls(
            step=step,
            loss_instance=instance,
            loss_prior=prior,
            loss=instance + recipe.prior_weight * prior,
            lr=factor * (recipe.learning_rate or 0) * recipe.unet_trains_at(step - 1),
            lr_text=factor * (recipe.text_learning_rate or 0) * recipe.text_trains_at(step - 1),
            grad_norm=grad_norm,
            images_per_second=round(images / seconds, 3),
            memory_mb=round(peak_memory_mb(), 1),
        )

    def scalars(self) -> dict[str, float]:
        """Everything but the step, by name."""
        return {field.name: getattr(self, field.name) for field in fields(self) if field.name != "step"}


COLUMNS = [field.name for field in fields(StepRecord)]


class MetricsFile:
    """The rows up to step `upto` of what the file held, and those appended from now on.

    Rows of steps that a killed run took after its last checkpoint go: the resumed run takes these steps
    again.
    """

    def __init__(self, path: Path, upto: int, columns: Sequence[str] = COLUMNS) -> None:
        self.path = path
        kept = [row for row in _rows(path, len(columns)) if int(row[0]) <= upto]
        with atomic_path(path) as temporary:
            temporary.write_text(_text([columns, *kept]), encoding="utf-8")

    def append(self, record: Any) -> None:
        """`record` is a dataclass with the file's columns as fields."""
        # Floats are written by repr: reading them gives the same bits.
        with open(self.path, "a", encoding="utf-8") as file:
            file.write(_text([list(astuple(record))]))


def stopwatch() -> Callable[[], float]:
    """A clock: each call returns the seconds since the one before (the first: since `stopwatch`)."""
    last = time.perf_counter()

    def lap() -> float:
        nonlocal last
        now = time.perf_counter()
        seconds, last = now - last, now
        return seconds

    return lap


def peak_memory_mb() -> float:
    """Most memory used so far, in MiB: of the GPU where there is one, else of this process."""
    if torch.cuda.is_available():
        return torch.cuda.max_memory_allocated() / 2**20
    if sys.platform == "win32":
        return float("nan")
    import resource  # not there on Windows

    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    return peak / (2**20 if sys.platform == "darwin" else 2**10)


def _rows(path: Path, columns: int) -> list[list[str]]:
    """Whole rows of the file; a last line that was cut off by a kill is none."""
    if not path.exists():
        return []
    lines = path.read_text(encoding="utf-8").splitlines(keepends=True)[1:]
    return [row for row in csv.reader(line for line in lines if line.endswith("\n")) if len(row) == columns]


def _text(rows: Sequence[Sequence[object]]) -> str:
    buffer = io.StringIO()
    csv.writer(buffer, lineterminator="\n").writerows(rows)
    return buffer.getvalue()

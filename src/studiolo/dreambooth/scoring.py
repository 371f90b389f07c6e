"""Scores while training: the marks of a step, the best one so far, and when to stop.

Who judges comes from above (`Scorer`); here is what a training does with the marks.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any, Protocol

import pytorch_lightning as pl
import torch
from PIL import Image
from safetensors.torch import load_file, save_file

from studiolo.diffusion.components import Components
from studiolo.drawing.sheet import comparison_table
from studiolo.dreambooth.metrics import MetricsFile
from studiolo.dreambooth.progress import Display
from studiolo.dreambooth.recipe import Recipe
from studiolo.dreambooth.recipe_scores import ScoreSettings
from studiolo.dreambooth.trackers import Tracker
from studiolo.store.files import atomic_path
from studiolo.training.steps import MovingAverage, StepCallback, evaluating

Baseline = Mapping[str, torch.Tensor]


@dataclass(frozen=True)
class Marks:
    """What a model was found to be worth, and the pictures by which: rows of them below heads of `columns`.

    `fidelity` is a cosine, `prompt` lies in [0, 1], `drift` is a cosine distance in [0, 2]. `baseline` is
    what the marks of later steps are measured against.
    """

    fidelity: float
    prompt: float
    drift: float
    columns: Sequence[str]
    rows: Mapping[str, Sequence[Image.Image]]
    baseline: Baseline

    def composite(self, settings: ScoreSettings) -> float:
        """The weighted mean of fidelity, prompt and 1 - drift."""
        weights = settings.fidelity_weight, settings.prompt_weight, settings.drift_weight
        parts = self.fidelity, self.prompt, 1 - self.drift
        return sum(w * part for w, part in zip(weights, parts, strict=True)) / sum(weights)

    def sheet(self, title: str) -> Image.Image:
        return comparison_table(
            list(self.rows.values()), row_captions=list(self.rows), column_captions=self.columns, title=title
        )


class Scorer(Protocol):
    """Draws with a model and judges the pictures, always the same prompts and seeds."""

    def marks(self, components: Components, baseline: Baseline | None) -> Marks:
        """The marks of a model; without a `baseline` it is the untaught model, and becomes the baseline."""
        ...


ScorerMaker = Callable[[Recipe, Sequence[Sequence[Image.Image]]], Scorer]
"""(resolved recipe, images of each of its subjects) -> who judges; StudioloError without their weights."""


@dataclass(frozen=True)
class ScoreRow:
    """A line of scores.csv; `best` is 1 where the composite is the highest of a taught model so far."""

    step: int
    composite: float
    fidelity: float
    prompt: float
    drift: float
    best: int


COLUMNS = ("step", "composite", "fidelity", "prompt", "drift", "best")


class ScoreKeeper(StepCallback):
    """Scores the model every `scores.every` steps and at the last, keeps the best weights, and stops early.

    Its state (baseline, best, patience) is in the checkpoints. The best weights are files of their own: that
    of a checkpoint is deleted only when a later checkpoint knows a better one.

    Args:
        run: the folder for scores.csv, scores/ and best/.
    """

    def __init__(
        self,
        recipe: Recipe,
        scorer: Scorer,
        components: Components,
        run: Path,
        trackers: Sequence[Tracker],
        average: MovingAverage | None,
        display: Display,
    ) -> None:
        self.settings, self.scorer, self.components = recipe.scores, scorer, components
        self.run, self.trackers, self.average, self.display = run, trackers, average, display
        self._dtype = getattr(torch, recipe.weights_dtype)
        self._baseline: Baseline = {}
        self.best: dict[str, float] = {}
        """The line of the best step; empty before there is one."""
        self._stale = 0
        self._saved_best = 0

    def state_dict(self) -> dict[str, Any]:
        return {"baseline": dict(self._baseline), "best": dict(self.best), "stale": self._stale}

    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        self._baseline, self.best = state_dict["baseline"], state_dict["best"]
        self._stale, self._saved_best = state_dict["stale"], int(self.best.get("step", 0))

    def on_train_start(self, trainer: pl.Trainer, pl_module: pl.LightningModule) -> None:
        if trainer.is_global_zero:
            # A run that starts anew loses the line of step 0, too: it is about to write it.
            self._file = MetricsFile(self.run / "scores.csv", trainer.global_step or -1, COLUMNS)
            if trainer.global_step == 0:
                self._score(pl_module, 0)
        if self._patience_is_over:
            trainer.should_stop = True

    def on_step(self, trainer: pl.Trainer, module: Any, step: int) -> None:
        if step % self.settings.every and step != trainer.max_steps:
            return
        if trainer.is_global_zero:
            self._score(module, step)
        stop = trainer.strategy.reduce_boolean_decision(self._patience_is_over, all=False)
        if stop and step < trainer.max_steps:
            self.display.note(f"stopped at step {step}: nothing better since step {self.best['step']:.0f}")
            trainer.should_stop = True

    @property
    def _patience_is_over(self) -> bool:
        return self.settings.patience is not None and self._stale >= self.settings.patience

    def _score(self, module: torch.nn.Module, step: int) -> None:
        with evaluating(module, self.average):
            marks = self.scorer.marks(self.components, self._baseline if step else None)
            self._baseline = marks.baseline
            row = self._row(step, marks)
            if row.best:
                self._keep(module, step)
        self._tell(row, marks)

    def _row(self, step: int, marks: Marks) -> ScoreRow:
        composite = marks.composite(self.settings)
        better = not self.best or composite > self.best["composite"] + self.settings.min_gain
        row = ScoreRow(step, composite, marks.fidelity, marks.prompt, marks.drift, int(bool(step) and better))
        if row.best:
            self.best = asdict(row)
        if step:
            self._stale = 0 if row.best else self._stale + 1
        return row

    def _tell(self, row: ScoreRow, marks: Marks) -> None:
        self._file.append(row)
        values = {key: value for key, value in asdict(row).items() if key not in ("step", "best")}
        told = ", ".join(f"{key} {value:.3f}" for key, value in values.items())
        told = f"step {row.step}: {told}{' (best so far)' if row.best else ''}"
        sheet = marks.sheet(told)
        with atomic_path(self.run / "scores" / f"step-{row.step:06d}.png") as temporary:
            sheet.save(temporary)
        for tracker in self.trackers:
            tracker.scalars(row.step, {f"score/{key}": value for key, value in values.items()})
            tracker.picture(row.step, "scores", sheet)
        self.display.note(told)

    def _keep(self, module: torch.nn.Module, step: int) -> None:
        trained = {n: p.detach().cpu() for n, p in module.named_parameters() if p.requires_grad}
        with atomic_path(_weights(self.run, step)) as temporary:
            save_file({n: p.to(self._dtype, copy=True).contiguous() for n, p in trained.items()}, temporary)

    def on_save_checkpoint(
        self, trainer: pl.Trainer, pl_module: pl.LightningModule, checkpoint: dict[str, Any]
    ) -> None:
        best = int(self.best.get("step", 0))
        if trainer.is_global_zero:
            needed = {_weights(self.run, step) for step in (best, self._saved_best)}
            for file in set((self.run / "best").glob("step-*.safetensors")) - needed:
                file.unlink()
        self._saved_best = best

    def put_best(self, module: torch.nn.Module) -> None:
        """Gives `module` the weights of the best step."""
        kept = load_file(_weights(self.run, int(self.best["step"])))
        with torch.no_grad():
            for name, parameter in module.named_parameters():
                if name in kept:
                    parameter.copy_(kept[name])


def _weights(run: Path, step: int) -> Path:
    return run / "best" / f"step-{step:06d}.safetensors"

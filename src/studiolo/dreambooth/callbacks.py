"""What happens around the steps of a teaching: records, previews, the display."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import pytorch_lightning as pl
import torch

from studiolo.diffusion.components import Components
from studiolo.diffusion.sampling import SamplerSettings, generate
from studiolo.drawing.prompts import fill_identifier
from studiolo.drawing.sheet import comparison_table
from studiolo.dreambooth.material import Taught
from studiolo.dreambooth.metrics import MetricsFile, StepRecord, stopwatch
from studiolo.dreambooth.progress import Display
from studiolo.dreambooth.recipe import Recipe
from studiolo.dreambooth.trackers import Tracker
from studiolo.errors import StudioloError
from studiolo.store.files import atomic_path
from studiolo.training.optimizers import found_rate
from studiolo.training.steps import MovingAverage, StepCallback, evaluating


class Recorder(StepCallback):
    """Measures every step and hands the record to metrics.csv, the trackers and the display."""

    def __init__(self, recipe: Recipe, path: Path, trackers: Sequence[Tracker], display: Display) -> None:
        self.recipe, self.path, self.trackers, self.display = recipe, path, trackers, display
        self._losses: list[torch.Tensor] = []

    def on_train_start(self, trainer: pl.Trainer, pl_module: pl.LightningModule) -> None:
        if trainer.is_global_zero:
            self._file = MetricsFile(self.path, trainer.global_step)
            self.display.begin("training", self.recipe.steps, trainer.global_step)
        self._clock = stopwatch()

    def on_micro_batch(self, outputs: Any) -> None:
        self._losses.append(torch.stack([outputs["loss_instance"], outputs["loss_prior"]]))

    def on_step(self, trainer: pl.Trainer, module: Any, step: int) -> None:
        losses = trainer.strategy.reduce(torch.stack(self._losses).mean(0), reduce_op="mean")
        self._losses.clear()
        if not torch.isfinite(losses).all():
            raise StudioloError(
                f"the loss is {float(losses.sum())} in step {step}: the weights are lost",
                where=self.path.parent,
                remedy="Train again with lower rates: --set rate_multiplier=0.3.",
            )
        if not trainer.is_global_zero:
            return
        rate = found_rate(trainer.optimizers[0])
        norm = float(module.grad_norm)
        record = StepRecord.of(self.recipe, step, losses.tolist(), norm, self._clock(), rate)
        self._file.append(record)
        for tracker in self.trackers:
            tracker.scalars(step, record.scalars())
        self.display.step(step, record.loss)


class PreviewPainter(StepCallback):
    """Draws the preview prompts from fixed seeds every `previews.every` steps, and once before the first."""

    def __init__(
        self,
        recipe: Recipe,
        components: Components,
        taught: Sequence[Taught],
        folder: Path,
        trackers: Sequence[Tracker],
        average: MovingAverage | None,
    ) -> None:
        self.settings, self.size = recipe.previews, recipe.resolution
        words = {one.name: one.identifier for one in taught}
        captions = [
            fill_identifier(one.caption(prompt), words) for one in taught for prompt in self.settings.prompts
        ]
        self.captions = list(dict.fromkeys(captions))
        self.components, self.folder, self.trackers = components, folder, trackers
        self.average = average

    def on_train_start(self, trainer: pl.Trainer, pl_module: pl.LightningModule) -> None:
        if trainer.global_step == 0:
            self.on_step(trainer, pl_module, 0)

    def on_step(self, trainer: pl.Trainer, module: Any, step: int) -> None:
        if step % self.settings.every or not trainer.is_global_zero:
            return
        with evaluating(module, self.average):
            sheet = self._sheet(step)
        with atomic_path(self.folder / f"step-{step:06d}.png") as temporary:
            sheet.save(temporary)
        for tracker in self.trackers:
            tracker.picture(step, "previews", sheet)

    def _sheet(self, step: int) -> Any:
        chosen = self.settings
        seeds = [chosen.seed + i for i in range(chosen.count)]
        settings = SamplerSettings(
            sampler=chosen.sampler, steps=chosen.steps, guidance_scale=chosen.guidance_scale
        )
        rows = [
            generate(self.components, [text] * len(seeds), seeds, settings, height=self.size, width=self.size)
            for text in self.captions
        ]
        columns = [f"seed {seed}" for seed in seeds]
        return comparison_table(
            rows, row_captions=self.captions, column_captions=columns, title=f"step {step}"
        )

"""How every part of the base model is trained: one Lightning module, one loop that resumes, logs and
averages."""

from __future__ import annotations

import json
import math
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytorch_lightning as pl
import torch
from pytorch_lightning.utilities.types import OptimizerLRScheduler
from torch import Tensor

from studiolo.errors import StudioloError
from studiolo.training.checkpoint import Checkpoints, Deadline, Interrupted, all_checkpoints
from studiolo.training.quiet import quiet
from studiolo.training.steps import MovingAverage, StepCallback, evaluating
from studiolo.training.trainer import plain_trainer

FALL = 0.3
"""The part of a training, at its end, in which the learning rate falls."""
WARMUP = 200
"""Steps in which it rises."""
MAX_NORM = 1.0
"""Gradients are clipped to this norm."""


@dataclass(frozen=True)
class Machine:
    """What trains: Lightning's accelerator, devices and precision, and the longest time for one part in
    minutes."""

    accelerator: str = "cpu"
    devices: int = 1
    precision: str = "bf16-mixed"
    minutes: float = 600


class Part(pl.LightningModule):
    """A part of the base model in training; the rate rises, stays, and falls to nothing.

    The plateau makes a longer training out of a shorter one: raise `steps` before the fall begins and go on
    (Hu et al. 2024, "warm-up, stable, decay"). Subclasses say what a batch is and how wrong the model is on
    it.
    """

    def __init__(self, learning_rate: float, steps: int, seed: int) -> None:
        super().__init__()
        self.learning_rate, self.steps, self.seed = learning_rate, steps, seed

    def batch(self, generator: torch.Generator) -> Any:
        """The tensors of one micro-batch, all that is random drawn from `generator`."""
        raise NotImplementedError

    def losses(self, batch: Any) -> dict[str, Tensor]:
        """The loss under "loss", and whatever else is to be logged; scalars."""
        raise NotImplementedError

    def training_step(self, batch: Any, batch_idx: int) -> dict[str, Tensor]:
        return self.losses(batch)

    def train_dataloader(self) -> Iterator[Any]:
        trainer = self.trainer
        return _Batches(self, trainer.global_step, trainer.global_rank, trainer.world_size)  # type: ignore[return-value]

    def optimizer(self) -> torch.optim.Optimizer:
        """What moves the weights."""
        trained = [parameter for parameter in self.parameters() if parameter.requires_grad]
        return torch.optim.AdamW(
            trained, self.learning_rate, betas=(0.9, 0.99), weight_decay=0.01, fused=True
        )

    def configure_optimizers(self) -> OptimizerLRScheduler:
        optimizer = self.optimizer()
        schedule = torch.optim.lr_scheduler.LambdaLR(optimizer, self.rate_factor)
        return {"optimizer": optimizer, "lr_scheduler": {"scheduler": schedule, "interval": "step"}}

    def configure_gradient_clipping(self, optimizer: torch.optim.Optimizer, *_: object, **__: object) -> None:
        # Lightning's own clipping refuses fused optimizers, which only a gradient scaler would upset.
        torch.nn.utils.clip_grad_norm_(self.parameters(), MAX_NORM)

    def rate_factor(self, step: int) -> float:
        """The part in [0, 1] of the highest learning rate that step `step` (from 0) is taken with."""
        return min(1.0, (step + 1) / WARMUP, max(0.0, (self.steps - step) / (FALL * self.steps)))


@dataclass(frozen=True)
class _Batches:
    """Batches from number `start` on; number n of rank r is a function of (seed, n, r) alone."""

    part: Part
    start: int
    rank: int
    world: int

    def __len__(self) -> int:
        return self.part.steps

    def __iter__(self) -> Iterator[Any]:
        for step in range(self.start, self.part.steps):
            seed = self.part.seed * 1_000_003 + step * self.world + self.rank
            yield self.part.batch(torch.Generator().manual_seed(seed))


class Log(StepCallback):
    """Means of what the steps returned, every `every` steps, to a file of JSON lines and to the terminal."""

    def __init__(self, path: Path, every: int = 100) -> None:
        self.path, self.every = path, every
        self._rows: list[dict[str, Tensor]] = []

    def on_train_start(self, trainer: pl.Trainer, pl_module: pl.LightningModule) -> None:
        self._since = time.monotonic()

    def on_micro_batch(self, outputs: Any) -> None:
        self._rows.append({name: value.detach() for name, value in outputs.items()})

    def on_step(self, trainer: pl.Trainer, module: Any, step: int) -> None:
        if step % self.every or not trainer.is_global_zero:
            return
        means = {name: float(torch.stack([row[name] for row in self._rows]).mean()) for name in self._rows[0]}
        if not math.isfinite(means["loss"]):
            raise StudioloError(
                f"the loss is {means['loss']} before step {step}",
                where=self.path,
                remedy="Delete this folder's checkpoints of after it broke, and go on with a lower rate.",
            )
        seconds = (time.monotonic() - self._since) / len(self._rows)
        row = {
            "step": step,
            **means,
            "lr": trainer.optimizers[0].param_groups[0]["lr"],
            "s_per_step": seconds,
        }
        with open(self.path, "a", encoding="utf-8") as file:
            print(json.dumps({name: round(value, 6) for name, value in row.items()}), file=file)
        left = seconds * (module.steps - step) / 60
        print(f"step {step}/{module.steps}  loss {means['loss']:.4f}  {left:.0f} min left", flush=True)
        self._rows.clear()
        self._since = time.monotonic()


class Watch(StepCallback):
    """Calls `look(step)` every `every` steps, with the averaged weights in place."""

    def __init__(self, look: Callable[[int], None], every: int, average: MovingAverage | None) -> None:
        self.look, self.every, self.average = look, every, average

    def on_step(self, trainer: pl.Trainer, module: Any, step: int) -> None:
        if step % self.every == 0 and trainer.is_global_zero:
            with evaluating(module, self.average):
                self.look(step)


@contextmanager
def trained(
    part: Part,
    folder: Path,
    machine: Machine,
    *,
    ema_decay: float = 0.0,
    look: Callable[[int], None] | None = None,
    every: int = 500,
) -> Iterator[bool]:
    """Trains `part` from the newest checkpoint in `folder`; inside the block its (averaged) weights are in
    place.

    Yields whether the last step was reached; else the time was over, and the next call goes on.
    """
    average = MovingAverage(ema_decay) if ema_decay else None
    deadline = Deadline(machine.minutes)
    callbacks: list[pl.Callback] = [deadline, Log(folder / "log.jsonl")]
    callbacks += [average] if average else []
    callbacks += [Checkpoints(folder, every, keep=1, interruption=deadline)]
    callbacks += [Watch(look, every, average)] if look else []
    folder.mkdir(parents=True, exist_ok=True)
    with quiet():
        trainer = plain_trainer(
            folder,
            part.steps,
            callbacks,
            accelerator=machine.accelerator,
            devices=machine.devices,
            strategy="ddp" if machine.devices > 1 else "auto",
            precision=machine.precision,
        )
        newest = all_checkpoints(folder)
        trainer.fit(part, ckpt_path=newest[-1] if newest else None, weights_only=True)
    if deadline.signum is not None:
        raise Interrupted(
            deadline.signum, between_steps=True, where=folder, remedy="The same command goes on."
        )
    with evaluating(part.cpu(), average):
        yield trainer.global_step >= part.steps

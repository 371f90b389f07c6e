"""Checkpoints of the full state, and stopping without losing work.

A checkpoint is a file `step-000100.ckpt`, there whole or not at all, so the newest file is the one to go
on from. It holds weights, optimizer, schedule, counters, scaler and moving average. There are no
generator states in it: every random draw is a function of the step.
"""

from __future__ import annotations

import math
import pickle
import re
import signal
import threading
import time
from pathlib import Path
from types import FrameType
from typing import Any

import pytorch_lightning as pl
import torch
from lightning_fabric.plugins import TorchCheckpointIO

from studiolo.errors import StudioloError
from studiolo.store.files import atomic_path
from studiolo.training.steps import StepCallback

_NAME = re.compile(r"step-(\d+)\.ckpt")


class Interrupted(StudioloError):  # noqa: N818 (an event, told as errors are)
    """The training was asked to end before its last step, and did.

    Attributes:
        signum: the signal that asked; a process conventionally exits with 128 + signum.
        between_steps: whether the state was consistent, so that it could be saved.
    """

    def __init__(self, signum: int, *, between_steps: bool, **told: Any) -> None:
        super().__init__(f"interrupted by {signal.Signals(signum).name}", **told)
        self.signum = signum
        self.between_steps = between_steps


class Interruption(pl.Callback):
    """Turns the first Ctrl-C or SIGTERM into a wish to stop after the step; the second stops at once."""

    signum: int | None = None

    def on_train_start(self, trainer: pl.Trainer, pl_module: pl.LightningModule) -> None:
        # After Lightning has set its handlers, which would end the process in the middle of things;
        # at the end of the training it puts back those that were there before.
        if threading.current_thread() is threading.main_thread():
            for wanted in (signal.SIGINT, signal.SIGTERM):
                signal.signal(wanted, self._ask)

    def _ask(self, signum: int, frame: FrameType | None) -> None:
        if self.signum is not None:
            raise Interrupted(signum, between_steps=False)
        self.signum = signum

    @property
    def asked(self) -> bool:
        """Whether the training is to stop after the present step."""
        return self.signum is not None

    def raise_if_asked(self) -> None:
        """To be called where the training waits between two steps."""
        if self.signum is not None:
            raise Interrupted(self.signum, between_steps=True)


class Deadline(Interruption):
    """Asks for the end by itself, too: when `minutes` have passed since the training began."""

    def __init__(self, minutes: float) -> None:
        self._seconds = 60 * minutes
        self._end = math.inf

    def on_train_start(self, trainer: pl.Trainer, pl_module: pl.LightningModule) -> None:
        super().on_train_start(trainer, pl_module)
        self._end = time.monotonic() + self._seconds

    @property
    def asked(self) -> bool:
        return super().asked or time.monotonic() > self._end


class Checkpoints(StepCallback):
    """Saves the full state every `every` steps, at the last one, and when the training is to stop early.

    Args:
        folder: where the files go.
        every: steps between them.
        keep: how many of the newest stay.
        interruption: what says that the training is to stop.
    """

    def __init__(self, folder: Path, every: int, keep: int, interruption: Interruption) -> None:
        self.folder, self.every, self.keep = folder, every, keep
        self.interruption = interruption

    def on_step(self, trainer: pl.Trainer, module: pl.LightningModule, step: int) -> None:
        wanted = self.interruption.asked or trainer.should_stop  # a callback before this one may have set it
        stop = trainer.strategy.reduce_boolean_decision(wanted, all=False)
        if stop or step % self.every == 0 or step == trainer.max_steps:
            self._save(trainer, step)
        trainer.should_stop = trainer.should_stop or stop

    def on_exception(
        self, trainer: pl.Trainer, pl_module: pl.LightningModule, exception: BaseException
    ) -> None:
        if isinstance(exception, Interrupted) and exception.between_steps:
            batches_done = trainer.fit_loop.epoch_loop.batch_progress.current.completed
            if trainer.world_size == 1 and batches_done % trainer.accumulate_grad_batches == 0:
                self._save(trainer, trainer.global_step)

    def _save(self, trainer: pl.Trainer, step: int) -> None:
        # One process looks: another could find the file that this one is writing, and not take part.
        if step and not trainer.strategy.broadcast(self.path(step).exists()):
            trainer.save_checkpoint(self.path(step))
        if trainer.is_global_zero:
            for old in all_checkpoints(self.folder)[: -self.keep]:
                old.unlink()

    def path(self, step: int) -> Path:
        return self.folder / f"step-{step:06d}.ckpt"


class WholeFiles(TorchCheckpointIO):
    """Lightning's checkpoint files, written under another name first, read without running pickles."""

    def save_checkpoint(self, checkpoint: dict[str, Any], path: Any, storage_options: Any = None) -> None:
        with atomic_path(path) as temporary:
            torch.save(checkpoint, temporary)

    def load_checkpoint(
        self, path: Any, map_location: Any = None, weights_only: bool | None = True
    ) -> dict[str, Any]:
        try:
            return torch.load(path, map_location="cpu", weights_only=True)
        except (OSError, RuntimeError, EOFError, ValueError, KeyError, pickle.UnpicklingError) as error:
            raise StudioloError(
                f"the checkpoint cannot be read: {error}",
                where=path,
                remedy="Delete it to go on from the one before it.",
            ) from error


def all_checkpoints(folder: Path) -> list[Path]:
    """The checkpoints in `folder`, oldest first."""
    found = [(int(match[1]), file) for file in folder.glob("*.ckpt") if (match := _NAME.fullmatch(file.name))]
    return [file for _, file in sorted(found)]

"""Around the steps of any training: counting them, averaging the weights, showing the result as it stands."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import pytorch_lightning as pl
import torch

from studiolo.training.sharding import like, whole


class StepCallback(pl.Callback):
    """A callback that counts optimizer steps, not micro-batches."""

    def on_train_batch_end(
        self, trainer: pl.Trainer, pl_module: pl.LightningModule, outputs: Any, batch: Any, batch_idx: int
    ) -> None:
        self.on_micro_batch(outputs)
        if (batch_idx + 1) % trainer.accumulate_grad_batches == 0:
            self.on_step(trainer, pl_module, trainer.global_step)

    def on_micro_batch(self, outputs: Any) -> None:
        """After each micro-batch, with what `training_step` returned."""

    def on_step(self, trainer: pl.Trainer, module: Any, step: int) -> None:
        """After optimizer step number `step`, counted from 1."""


class MovingAverage(StepCallback):
    """An exponential moving average of the trained weights: avg <- d avg + (1 - d) w after each step.

    d = min(`decay`, (1 + step) / (10 + step)): the usual warm-up, without which a run of some hundred
    steps would export little but the base
    (https://www.tensorflow.org/api_docs/python/tf/train/ExponentialMovingAverage).
    """

    def __init__(self, decay: float) -> None:
        self.decay = decay
        self.average: dict[str, torch.Tensor] = {}

    def on_train_start(self, trainer: pl.Trainer, pl_module: pl.LightningModule) -> None:
        for name, parameter in _trained(pl_module):
            self.average[name] = like(self.average.get(name, parameter.detach()), parameter)

    @torch.no_grad()
    def on_step(self, trainer: pl.Trainer, module: pl.LightningModule, step: int) -> None:
        decay = min(self.decay, (1 + step) / (10 + step))
        for name, parameter in _trained(module):
            self.average[name].lerp_(parameter, 1 - decay)

    def state_dict(self) -> dict[str, Any]:
        return {name: whole(average) for name, average in self.average.items()}

    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        self.average = dict(state_dict)

    @contextmanager
    def applied(self, module: torch.nn.Module) -> Iterator[None]:
        """The averaged weights in place of the module's own, for the time of the block."""
        own = {name: parameter.detach().clone() for name, parameter in _trained(module)}
        _assign(module, self.average)
        try:
            yield
        finally:
            _assign(module, own)


@contextmanager
def evaluating(module: torch.nn.Module, average: MovingAverage | None) -> Iterator[None]:
    """The module as it would be exported now: every part in eval mode, averaged weights if there are any."""
    modes = {part: part.training for part in module.modules()}
    module.eval()
    try:
        if average is None:
            yield
        else:
            with average.applied(module):
                yield
    finally:
        for part, training in modes.items():
            part.training = training


def _trained(module: torch.nn.Module) -> list[tuple[str, torch.nn.Parameter]]:
    return [(name, parameter) for name, parameter in module.named_parameters() if parameter.requires_grad]


@torch.no_grad()
def _assign(module: torch.nn.Module, values: dict[str, torch.Tensor]) -> None:
    for name, parameter in _trained(module):
        parameter.copy_(values[name])

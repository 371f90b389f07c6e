"""What a run was expected to take, said while it runs, and what it took, kept in its record."""

from __future__ import annotations

import time
from collections.abc import Callable
from typing import Any

import pytorch_lightning as pl

from studiolo.dreambooth.metrics import peak_memory_mb
from studiolo.dreambooth.progress import Display
from studiolo.dreambooth.run import Run
from studiolo.training.steps import StepCallback

_SEEN = 3
"""Steps in a row with nothing beside them, after which the rest is forecast; the first allocates."""


class Forecast(StepCallback):
    """Forecasts the end from the first steps, and writes "outcome" to run.json: expected and taken.

    Seconds are of this life of the run, from its first step to its last, with whatever comes between steps.
    """

    def __init__(self, run: Run, display: Display, expected_memory: float | None = None) -> None:
        self.run, self.display = run, display
        self.expected_memory = expected_memory
        """MiB, where they were estimated."""
        self.is_slowed: Callable[[], bool] = lambda: False
        """Whether something computes beside the steps now: class images may still be being made."""
        self._expected: float | None = None
        self._steps = 0

    def on_train_start(self, trainer: pl.Trainer, pl_module: pl.LightningModule) -> None:
        self._begun = self._last = time.perf_counter()
        self._steps = 0
        self._seconds: list[float] = []

    def on_step(self, trainer: pl.Trainer, module: Any, step: int) -> None:
        now = time.perf_counter()
        self._seconds.append(now - self._last)
        self._last = now
        self._steps += 1
        if self._expected is not None:
            return
        if self.is_slowed():
            self._seconds.clear()
        if len(self._seconds) == _SEEN and trainer.is_global_zero:
            a_step = min(self._seconds[1:])
            left = a_step * (trainer.max_steps - step)
            self._expected = now - self._begun + left
            self.display.note(f"about {a_step:.2f} s a step; {left / 60:.1f} min for all that is left")

    def on_train_end(self, trainer: pl.Trainer, pl_module: pl.LightningModule) -> None:
        if trainer.is_global_zero and self._steps:
            self.run.add({"outcome": self.outcome()})

    def outcome(self) -> dict[str, Any]:
        """Steps, seconds and MiB at the worst moment; what was expected is null where nobody could say."""
        return {
            "steps": self._steps,
            "seconds": round(self._last - self._begun, 2),
            "seconds_expected": None if self._expected is None else round(self._expected, 2),
            "memory_mb": round(peak_memory_mb(), 1),
            "memory_mb_expected": None if self.expected_memory is None else round(self.expected_memory, 1),
        }

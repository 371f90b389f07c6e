"""Optimizers by name, and how their rates go over the steps."""

from __future__ import annotations

import importlib
import math
from collections.abc import Callable, Iterable
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, Literal

from studiolo.errors import StudioloError

if TYPE_CHECKING:
    import torch

OptimizerName = Literal["adamw", "adamw8bit", "adafactor", "prodigy"]
ScheduleName = Literal["constant", "linear", "cosine", "cosine_restarts", "polynomial"]


@dataclass(frozen=True)
class ParameterGroup:
    """Parameters that are trained at one rate; `rate` is the highest of the schedule."""

    name: str
    parameters: list[torch.nn.Parameter]
    rate: float
    weight_decay: float

    @property
    def count(self) -> int:
        """How many numbers are trained."""
        return sum(parameter.numel() for parameter in self.parameters)


def make_optimizer(
    name: OptimizerName, groups: Iterable[ParameterGroup], *, fused: bool = True
) -> torch.optim.Optimizer:
    """The optimizer of that name; `fused` lets AdamW update all parameters in one call where it can.

    adamw8bit keeps Adam's moments in 8 bits, in blocks of 256 with a scale each (Dettmers et al. 2022);
    parameters of fewer than 4096 numbers keep them in 32. adafactor keeps the rows' and columns' means of
    the second moment alone (Shazeer & Stern 2018). prodigy finds the rate by itself (Mishchenko & Defazio
    2024): rates are factors of it, 1 in all groups.

    Raises StudioloError for an optimizer that is not installed, and for rates that prodigy does not take.
    """
    import torch  # not above: a recipe knows the names, and is read without torch

    chosen: list[dict[str, Any]] = [
        {"params": g.parameters, "lr": g.rate, "weight_decay": g.weight_decay, "name": g.name} for g in groups
    ]
    if name == "adamw8bit":
        module = _library("bitsandbytes.optim", "bitsandbytes", "eight-bit")
        return module.AdamW8bit(chosen)
    if name == "adafactor":
        # Its own limits of an update (d = 1, relative to the weights' size) replace Adam's first moment.
        return torch.optim.Adafactor(chosen)
    if name == "prodigy":
        _check_factors(chosen)
        from prodigyopt import Prodigy

        # Both as its authors advise for diffusion models with a warm-up.
        return Prodigy(chosen, use_bias_correction=True, safeguard_warmup=True)
    return torch.optim.AdamW(chosen, fused=fused)


def found_rate(optimizer: torch.optim.Optimizer) -> float:
    """What the rates of `optimizer` are factors of: the step size that prodigy has found, else 1."""
    return float(optimizer.param_groups[0].get("d", 1.0))


def rate_factor(
    schedule: ScheduleName, step: int, steps: int, *, warmup: int = 0, cycles: int = 1, power: float = 1.0
) -> float:
    """The part in [0, 1] of the highest rate that optimizer step `step` (from 0) of `steps` is taken with.

    After `warmup` steps, in which it rises linearly, `progress` p goes from 0 to 1 and the factor is 1
    ("constant"), 1 - p ("linear"), (1 + cos(pi p)) / 2 ("cosine"), the same anew in each of `cycles` equal
    parts ("cosine_restarts"; Loshchilov & Hutter 2017), or (1 - p) ^ `power` ("polynomial").
    """
    if step < warmup:
        return (step + 1) / (warmup + 1)
    progress = min(1.0, (step - warmup) / max(1, steps - warmup))
    falls: dict[ScheduleName, Callable[[], float]] = {
        "constant": lambda: 1.0,
        "linear": lambda: 1 - progress,
        "cosine": lambda: _cosine(progress),
        "cosine_restarts": lambda: _cosine(progress * cycles % 1.0) if progress < 1 else 0.0,
        "polynomial": lambda: (1 - progress) ** power,
    }
    return falls[schedule]()


def _cosine(progress: float) -> float:
    return (1 + math.cos(math.pi * progress)) / 2


def _check_factors(groups: list[dict[str, Any]]) -> None:
    rates = {group["lr"] for group in groups}
    if len(rates) > 1:
        told = ", ".join(f"{rate:g}" for rate in sorted(rates))
        raise StudioloError(
            f"prodigy finds one rate for all, and was given {told}",
            where="learning_rate, text_learning_rate",
            remedy="Set both to 1, or leave both to it (null).",
        )


def _library(module: str, package: str, extra: str) -> Any:
    try:
        return importlib.import_module(module)
    except ImportError as error:
        raise StudioloError(
            f"{package} is not installed", where="optimizer", remedy=f"pip install 'studiolo[{extra}]'"
        ) from error

"""Which way from noise to picture: samplers by name, their settings, the diffusers scheduler they mean."""

from __future__ import annotations

import inspect
import math
from dataclasses import asdict, dataclass
from difflib import get_close_matches
from typing import Any

from diffusers import (
    DDIMScheduler,
    DPMSolverMultistepScheduler,
    EulerAncestralDiscreteScheduler,
    EulerDiscreteScheduler,
    FlowMatchEulerDiscreteScheduler,
    FlowMatchHeunDiscreteScheduler,
    PNDMScheduler,
    UniPCMultistepScheduler,
)

from studiolo.diffusion.components import is_flow
from studiolo.errors import StudioloError

SAMPLERS: dict[str, tuple[Any, dict[str, Any]]] = {
    "ddim": (DDIMScheduler, {}),  # Song et al. 2021
    "pndm": (PNDMScheduler, {"skip_prk_steps": True}),  # Liu et al. 2022, its linear multi-step part
    "euler": (EulerDiscreteScheduler, {}),  # Karras et al. 2022, algorithm 2 without churn
    "euler_a": (EulerAncestralDiscreteScheduler, {}),  # k-diffusion
    "dpm++2m": (
        DPMSolverMultistepScheduler,
        {"algorithm_type": "dpmsolver++", "solver_order": 2},
    ),  # Lu et al. 2022
    "dpm++2m_sde": (DPMSolverMultistepScheduler, {"algorithm_type": "sde-dpmsolver++", "solver_order": 2}),
    "unipc": (UniPCMultistepScheduler, {}),  # Zhao et al. 2023
}

_ON_FLOW = {"prediction_type": "flow_prediction", "use_flow_sigmas": True}
FLOW_SAMPLERS: dict[str, tuple[Any, dict[str, Any]]] = {
    # On a straight line a step of DDIM without added noise is a step of Euler's method (Liu et al. 2023).
    "ddim": (FlowMatchEulerDiscreteScheduler, {}),
    "euler": (FlowMatchEulerDiscreteScheduler, {}),
    "heun": (FlowMatchHeunDiscreteScheduler, {}),
    "dpm++2m": (
        DPMSolverMultistepScheduler,
        {"algorithm_type": "dpmsolver++", "solver_order": 2} | _ON_FLOW,
    ),
    "unipc": (UniPCMultistepScheduler, _ON_FLOW),
}
"""The same for models that are flows, whose noise levels are shifted as their config says."""


@dataclass(frozen=True)
class SamplerSettings:
    """How to denoise.

    sampler: one of SAMPLERS. steps: noise levels visited, from 1 to the schedule's T. guidance_scale: w of
    classifier-free guidance (Ho & Salimans 2021); up to 1 means none, and the negative prompt is not used.
    eta: noise added back by DDIM, 0 (deterministic) to 1 (as DDPM); other samplers have no such setting.

    Raises StudioloError for a value outside these ranges, naming the nearest right one.
    """

    sampler: str = "ddim"
    steps: int = 30
    guidance_scale: float = 5.0
    eta: float = 0.0

    def __post_init__(self) -> None:
        if self.sampler not in SAMPLERS:
            near = get_close_matches(self.sampler.lower().replace(" ", ""), SAMPLERS, n=1, cutoff=0.5)
            hint = f"Did you mean {near[0]}? " if near else ""
            raise StudioloError(
                f"there is no sampler {self.sampler!r}",
                where="sampler",
                remedy=f"{hint}Known: {', '.join(SAMPLERS)}.",
            )
        if self.steps < 1:
            raise StudioloError(f"{self.steps} steps draw nothing", where="steps", remedy="Use 1 or more.")
        if not math.isfinite(self.guidance_scale) or self.guidance_scale < 0:
            raise StudioloError(
                f"{self.guidance_scale} is not a guidance scale",
                where="guidance_scale",
                remedy="Use 0 or more.",
            )
        if not 0 <= self.eta <= 1:
            raise StudioloError(f"{self.eta} is outside 0..1", where="eta", remedy="Use a value from 0 to 1.")
        if self.eta and self.sampler != "ddim":
            raise StudioloError(
                f"{self.sampler} has no eta", where="eta", remedy="Leave it at 0, or use the sampler ddim."
            )

    @property
    def guided(self) -> bool:
        """Whether the negative prompt takes part."""
        return self.guidance_scale > 1

    def as_dict(self) -> dict[str, Any]:
        """The settings as JSON values; `SamplerSettings(**settings.as_dict())` is the same again."""
        return asdict(self)


def make_scheduler(scheduler_config: dict[str, Any], settings: SamplerSettings) -> Any:
    """The diffusers scheduler of `settings.sampler` on a model's noise levels, timesteps set.

    Raises StudioloError when there are fewer noise levels than steps, or a flow cannot be sampled so.
    """
    if is_flow(scheduler_config):
        return _flow_scheduler(scheduler_config, settings)
    scheduler_class, options = SAMPLERS[settings.sampler]
    scheduler = scheduler_class.from_config(scheduler_config, **options)
    levels = scheduler.config.num_train_timesteps
    # the offset of "leading" spacing may lift the first timestep beyond the last level
    within = settings.steps <= levels
    if within:
        scheduler.set_timesteps(settings.steps)
        within = bool(scheduler.timesteps.max() < levels)
    if not within:
        raise _too_many(settings.steps, levels)
    return scheduler


def _flow_scheduler(scheduler_config: dict[str, Any], settings: SamplerSettings) -> Any:
    if settings.sampler not in FLOW_SAMPLERS or settings.eta:
        wanted = "ddim with eta" if settings.eta else settings.sampler
        raise StudioloError(
            f"{wanted} cannot sample a flow model",
            where="sampler",
            remedy=f"Use one of {', '.join(FLOW_SAMPLERS)}.",
        )
    scheduler_class, options = FLOW_SAMPLERS[settings.sampler]
    if "use_flow_sigmas" in options:
        options = options | {"flow_shift": scheduler_config.get("shift", 1.0)}
    accepted = inspect.signature(scheduler_class.__init__).parameters
    config = {key: value for key, value in scheduler_config.items() if key in accepted}
    scheduler = scheduler_class.from_config(config | options)
    levels = scheduler.config.num_train_timesteps
    if settings.steps >= levels:
        raise _too_many(settings.steps, levels)
    scheduler.set_timesteps(settings.steps)
    return scheduler


def _too_many(steps: int, levels: int) -> StudioloError:
    return StudioloError(
        f"{steps} steps, but the model has {levels} noise levels",
        where="steps",
        remedy=f"Use fewer than {levels}.",
    )


def step_options(scheduler: Any, settings: SamplerSettings, generators: Any) -> dict[str, Any]:
    """What `scheduler.step` of this class takes beside prediction, timestep and sample."""
    accepted = inspect.signature(scheduler.step).parameters
    return {
        name: value for name, value in (("eta", settings.eta), ("generator", generators)) if name in accepted
    }

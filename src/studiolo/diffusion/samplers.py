"""Which way from noise to picture: samplers by name, the diffusers scheduler that each means."""

from __future__ import annotations

import inspect
from importlib.util import find_spec
from typing import Any

from diffusers import (
    DDIMScheduler,
    DPMSolverMultistepScheduler,
    DPMSolverSinglestepScheduler,
    EulerAncestralDiscreteScheduler,
    EulerDiscreteScheduler,
    FlowMatchEulerDiscreteScheduler,
    FlowMatchHeunDiscreteScheduler,
    HeunDiscreteScheduler,
    KDPM2AncestralDiscreteScheduler,
    KDPM2DiscreteScheduler,
    LCMScheduler,
    PNDMScheduler,
    UniPCMultistepScheduler,
)

from studiolo.diffusion.components import is_flow
from studiolo.diffusion.sampler_settings import SIGMAS, SamplerSettings
from studiolo.errors import StudioloError

SAMPLERS: dict[str, tuple[Any, dict[str, Any]]] = {
    "ddim": (DDIMScheduler, {}),  # Song et al. 2021
    "pndm": (PNDMScheduler, {"skip_prk_steps": True}),  # Liu et al. 2022, its linear multi-step part
    "euler": (EulerDiscreteScheduler, {}),  # Karras et al. 2022, algorithm 2 without churn
    "euler_a": (EulerAncestralDiscreteScheduler, {}),  # k-diffusion
    "heun": (HeunDiscreteScheduler, {}),  # Karras et al. 2022, algorithm 1: two calls a step
    "dpm2": (KDPM2DiscreteScheduler, {}),  # Karras et al. 2022, its midpoint rule: two calls a step
    "dpm2_a": (KDPM2AncestralDiscreteScheduler, {}),
    "dpm++2m": (
        DPMSolverMultistepScheduler,
        {"algorithm_type": "dpmsolver++", "solver_order": 2},
    ),  # Lu et al. 2022
    "dpm++2m_sde": (DPMSolverMultistepScheduler, {"algorithm_type": "sde-dpmsolver++", "solver_order": 2}),
    "dpm++sde": (
        DPMSolverSinglestepScheduler,
        {"algorithm_type": "sde-dpmsolver++", "solver_order": 2, "lower_order_final": True},
    ),
    "unipc": (UniPCMultistepScheduler, {}),  # Zhao et al. 2023
    "lcm": (LCMScheduler, {}),  # Luo et al. 2023; for models and adapters that were distilled for it
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


LONGEST_STEP = 100.0
"""How many times less noise the first step of Heun's method may leave."""


def make_scheduler(scheduler_config: dict[str, Any], settings: SamplerSettings) -> Any:
    """The diffusers scheduler of `settings.sampler` on a model's noise levels, timesteps set.

    Raises StudioloError when there are fewer noise levels than steps, a flow cannot be sampled so, or the
    sampler has no such spacing.
    """
    if is_flow(scheduler_config):
        return _flow_scheduler(scheduler_config, settings)
    scheduler_class, options = SAMPLERS[settings.sampler]
    accepted = inspect.signature(scheduler_class.__init__).parameters
    if scheduler_config.get("rescale_betas_zero_snr") and "rescale_betas_zero_snr" not in accepted:
        raise StudioloError(
            f"this model ends in pure noise (zero terminal SNR), and {settings.sampler} cannot begin there",
            where="sampler",
            remedy="Use ddim, euler, euler_a, dpm++2m, dpm++2m_sde or unipc.",
        )
    options = options | _spread(scheduler_class, settings, accepted)
    if "original_inference_steps" in accepted:  # LCM: the steps of its teacher, which are levels too
        most = scheduler_config.get("original_inference_steps", 50)
        levels = scheduler_config.get("num_train_timesteps", 1000)
        options["original_inference_steps"] = min(most, levels)
    scheduler = scheduler_class.from_config(scheduler_config, **options)
    levels = scheduler.config.num_train_timesteps
    most = scheduler.config.get("original_inference_steps", levels)
    # the offset of "leading" spacing may lift the first timestep beyond the last level
    within = settings.steps <= most
    if within:
        scheduler.set_timesteps(settings.steps)
        within = bool(scheduler.timesteps.max() < levels)
    if not within:
        raise _too_many(settings.steps, most)
    _check_first_step(scheduler, settings)
    return scheduler


def _check_first_step(scheduler: Any, settings: SamplerSettings) -> None:
    """Refuses a first step over which the sampler multiplies the model's errors.

    These two go the step by slopes (x - x0) / sigma at both its ends, so that an error of x0 at the lower one
    counts sigma_0 / sigma_1 times: a thousand times where a model was trained up to nearly pure noise.
    """
    if settings.sampler not in ("heun", "dpm2_a"):
        return
    first, second = (float(sigma) for sigma in scheduler.sigmas.unique().flip(0)[:2])
    if first > LONGEST_STEP * second > 0 and first > LONGEST_STEP:
        raise StudioloError(
            f"the first step of {settings.sampler} would go from noise of {first:.0f} to {second:.1f}",
            where="sampler",
            remedy="Use another, such as dpm2 or dpm++2m"
            + (", or sigmas exponential." if settings.sampler == "heun" else "."),
        )


def _spread(scheduler_class: Any, settings: SamplerSettings, accepted: Any) -> dict[str, Any]:
    """The options for `settings.spacing` and `settings.sigmas`; refuses what this sampler does not have."""
    chosen: dict[str, Any] = {}
    if settings.spacing is not None:
        # LCM takes the option and does not look at it
        if "timestep_spacing" not in accepted or scheduler_class is LCMScheduler:
            raise StudioloError(
                f"the steps of {settings.sampler} have one spacing here", where="spacing", remedy="Leave it."
            )
        chosen["timestep_spacing"] = settings.spacing
    if settings.sigmas is not None:
        if "use_karras_sigmas" not in accepted:
            raise StudioloError(
                f"{settings.sampler} visits levels, not sigmas",
                where="sigmas",
                remedy="Leave it, or use another sampler, such as euler or dpm++2m.",
            )
        if settings.sigmas == "beta" and find_spec("scipy") is None:
            raise StudioloError(
                "beta sigmas are computed by scipy, which is not installed",
                where="sigmas",
                remedy="pip install scipy, or use karras.",
            )
        chosen |= {f"use_{name}_sigmas": name == settings.sigmas for name in SIGMAS}
    return chosen


def _flow_scheduler(scheduler_config: dict[str, Any], settings: SamplerSettings) -> Any:
    if settings.sampler not in FLOW_SAMPLERS or settings.eta:
        wanted = "ddim with eta" if settings.eta else settings.sampler
        raise StudioloError(
            f"{wanted} cannot sample a flow model",
            where="sampler",
            remedy=f"Use one of {', '.join(FLOW_SAMPLERS)}.",
        )
    if settings.spacing or settings.sigmas:
        raise StudioloError(
            "the steps of a flow model are spread as its shift says",
            where="spacing" if settings.spacing else "sigmas",
            remedy="Leave it.",
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

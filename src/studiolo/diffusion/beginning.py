"""Where denoising begins: from pure noise, from a picture with noise on it, or within a mask of one.

The random draws are in the order of diffusers' pipelines, so that the same seed gives the same picture.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import torch
import torch.nn.functional as F

from studiolo.diffusion.autoencoding import encode_pixels
from studiolo.diffusion.components import Components
from studiolo.diffusion.noise import draw_noise
from studiolo.errors import StudioloError


@dataclass(frozen=True)
class Start:
    """A picture to begin from.

    pixels: [1, 3, H, W] in -1..1. strength: how much of it to give up, above 0, to 1; that part of the steps
    is taken (Meng et al. 2022, SDEdit). mask: [1, 1, H, W] of 0 and 1, where to paint anew; None: everywhere.
    """

    pixels: torch.Tensor
    strength: float = 0.6
    mask: torch.Tensor | None = None


@dataclass
class Beginning:
    """The latents [B, C, h, w] that the sampler starts from, and the calls that are left to it.

    With a mask the rest of the picture is put back after each call, with the noise that belongs to the next
    one (Lugmayr et al. 2022, eq. 8, without its repetitions): any text-to-image model paints within a mask.
    """

    latents: torch.Tensor
    timesteps: torch.Tensor
    noise: torch.Tensor
    kept: torch.Tensor | None = None
    mask: torch.Tensor | None = None

    def keep(self, latents: torch.Tensor, scheduler: Any, number: int) -> torch.Tensor:
        """`latents` after call `number` (from 1), with what lies outside the mask put back."""
        if self.mask is None or self.kept is None:
            return latents
        around = self.kept
        if number < len(self.timesteps):
            around = noised(scheduler, around, self.noise, self.timesteps[number])
        return (1 - self.mask) * around + self.mask * latents


def begin(
    components: Components,
    scheduler: Any,
    shape: tuple[int, ...],
    sources: Sequence[torch.Generator],
    start: Start | None,
) -> Beginning:
    """The beginning of one picture of `shape` [C, h, w] for each generator of `sources`.

    Raises StudioloError when `start.strength` leaves no step.
    """
    if start is None:
        _begin_at(scheduler, 0)
        noise = draw_noise(shape, sources).to(components.device, components.dtype)
        return Beginning(noise * _first_scale(scheduler), scheduler.timesteps, noise)
    timesteps = _last_part(scheduler, start.strength)
    picture = encode_pixels(components, start.pixels, sources).to(components.device, components.dtype)
    noise = draw_noise(shape, sources).to(components.device, components.dtype)
    if start.mask is None:
        return Beginning(noised(scheduler, picture, noise, timesteps[0]), timesteps, noise)
    draw_noise(shape, sources)  # the pipeline encodes the picture a second time, for U-Nets that read it
    mask = F.interpolate(start.mask, size=shape[-2:]).to(components.device, components.dtype)
    if start.strength == 1:
        return Beginning(noise * _first_scale(scheduler), timesteps, noise, picture, mask)
    return Beginning(noised(scheduler, picture, noise, timesteps[0]), timesteps, noise, picture, mask)


def noised(scheduler: Any, latents: torch.Tensor, noise: torch.Tensor, t: torch.Tensor) -> torch.Tensor:
    """`latents` with as much noise on them as they have at timestep t, in the scheduler's own measure."""
    times = t.reshape(1).expand(len(latents))
    if _is_flow(scheduler):
        return scheduler.scale_noise(latents, times, noise)
    return scheduler.add_noise(latents, noise, times)


def _last_part(scheduler: Any, strength: float) -> torch.Tensor:
    """The timesteps of the last `strength` of the steps; tells the scheduler that it begins there."""
    steps = scheduler.num_inference_steps
    # A started step is taken by the pipelines of flows, and left out by the others.
    left = math.ceil(steps * strength) if _is_flow(scheduler) else int(steps * strength)
    if left < 1:
        raise StudioloError(
            f"strength {strength} of {steps} steps leaves none",
            where="strength",
            remedy=f"Use {1 / steps:.2g} or more, or more steps.",
        )
    first = (steps - left) * scheduler.order
    _begin_at(scheduler, first)
    return scheduler.timesteps[first:]


def _begin_at(scheduler: Any, index: int) -> None:
    """Tells the scheduler its first call. Else it looks for the first timestep, and takes the second of two
    equal ones, which there are where sigmas are so close that they round to one level."""
    if hasattr(scheduler, "set_begin_index"):
        scheduler.set_begin_index(index)


def _is_flow(scheduler: Any) -> bool:
    return hasattr(scheduler, "scale_noise")


def _first_scale(scheduler: Any) -> Any:
    return getattr(scheduler, "init_noise_sigma", 1.0)

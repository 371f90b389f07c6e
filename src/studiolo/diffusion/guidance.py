"""Guidance: both predictions from one call of the denoiser, or its scale told to one that has learned it."""

from __future__ import annotations

import math
from dataclasses import dataclass, replace
from functools import cached_property

import torch

from studiolo.diffusion.components import Components
from studiolo.diffusion.conditioning import Conditioning
from studiolo.diffusion.sampler_settings import SamplerSettings


@dataclass(frozen=True)
class Guidance:
    """What the pictures of a batch are to be, and what not; `negative` is None where nothing is guided."""

    positive: Conditioning
    negative: Conditioning | None
    settings: SamplerSettings

    @cached_property
    def _both(self) -> Conditioning | None:
        return None if self.negative is None else Conditioning.joined([self.negative, self.positive])

    def predict(
        self, components: Components, noisy: torch.Tensor, t: torch.Tensor, number: int, total: int
    ) -> torch.Tensor:
        """The prediction [B, C, h, w] at timestep t, which is call `number` (from 1) of `total`.

        Guided it is uncond + w (cond - uncond) (Ho & Salimans 2021; Saharia et al. 2022, eq. 2), from one
        call on the doubled batch; else the conditional one, from one call on the batch itself. A denoiser
        that guidance was distilled into is told w, and has neither a negative prompt nor rescaling.
        """
        if width := components.guidance_width:
            scale = self.settings.guidance_scale if self.settings.within(number, total) else 1.0
            told = scale_embedding(scale, width).to(noisy).expand(len(noisy), -1)
            return components.predict(noisy, t, replace(self.positive, guidance=told))
        if self._both is None or not self.settings.guided_at(number, total):
            return components.predict(noisy, t, self.positive)
        both = components.predict(torch.cat([noisy, noisy]), t, self._both)
        unconditional, conditional = both.chunk(2)
        guided = unconditional + self.settings.guidance_scale * (conditional - unconditional)
        return _rescaled(guided, conditional, self.settings.guidance_rescale)


def scale_embedding(scale: float, width: int) -> torch.Tensor:
    """The guidance scale w as a latent consistency model reads it (Luo et al. 2023), float32 [width]: sines
    and cosines of 1000 (w - 1) at frequencies from 1 to 1/10000, as the pipelines of diffusers have it."""
    half = width // 2
    frequencies = torch.exp(-math.log(10000.0) / (half - 1) * torch.arange(half, dtype=torch.float32))
    angles = 1000.0 * (scale - 1) * frequencies
    return torch.nn.functional.pad(torch.cat([angles.sin(), angles.cos()]), (0, width % 2))


def _rescaled(guided: torch.Tensor, conditional: torch.Tensor, part: float) -> torch.Tensor:
    """`guided` with the standard deviation of `conditional`, each picture apart, to that `part` (Lin et al.
    2024, eq. 15 and 16)."""
    if not part:
        return guided
    dims = tuple(range(1, guided.ndim))
    spread = conditional.std(dims, keepdim=True) / guided.std(dims, keepdim=True)
    return part * (guided * spread) + (1 - part) * guided

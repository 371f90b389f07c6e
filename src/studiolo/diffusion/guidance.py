"""Guidance: both predictions from one call of the denoiser, or its scale told to one that has learned it."""

from __future__ import annotations

import math
from dataclasses import dataclass, replace
from functools import cached_property

import torch

from studiolo.diffusion.components import Components
from studiolo.diffusion.conditioning import Conditioning
from studiolo.diffusion.predictor import Predictor
from studiolo.diffusion.sampler_settings import SamplerSettings


@dataclass(frozen=True)
class Guidance:
    """What the pictures of a batch are to be, and what not; `negative` is None where nothing is guided."""

    components: Components
    positive: Conditioning
    negative: Conditioning | None
    settings: SamplerSettings

    @cached_property
    def _alone(self) -> Predictor:
        return Predictor(self.components, self.positive)

    @cached_property
    def _both(self) -> Predictor | None:
        if self.negative is None:
            return None
        return Predictor(self.components, Conditioning.joined([self.negative, self.positive]))

    @cached_property
    def _told(self) -> dict[float, Predictor]:
        """By the scale that the denoiser is told: within the part that is guided, and without."""
        width = self.components.guidance_width
        scales = {1.0, self.settings.guidance_scale}
        told = {w: scale_embedding(w, width).to(self.positive.tokens) for w in scales}
        rows = len(self.positive)
        return {
            w: Predictor(self.components, replace(self.positive, guidance=vector.expand(rows, -1)))
            for w, vector in told.items()
        }

    def predict(self, noisy: torch.Tensor, t: torch.Tensor, number: int, total: int) -> torch.Tensor:
        """The prediction [B, C, h, w] at timestep t, which is call `number` (from 1) of `total`.

        Guided it is uncond + w (cond - uncond) (Ho & Salimans 2021; Saharia et al. 2022, eq. 2), from one
        call on the doubled batch; else the conditional one, from one call on the batch itself. A denoiser
        that guidance was distilled into is told w, and has neither a negative prompt nor rescaling.
        """
        if self.components.guidance_width:
            scale = self.settings.guidance_scale if self.settings.within(number, total) else 1.0
            return self._told[scale](noisy, t)
        if self._both is None or not self.settings.guided_at(number, total):
            return self._alone(noisy, t)
        both = self._both(torch.cat([noisy, noisy]), t)
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

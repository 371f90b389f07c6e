"""Families of latent diffusion models: which parts there are, how text is read, how the denoiser is asked.

A family has no state and no weights: its functions take the networks, so that training may wrap them.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from typing import Any, Protocol

import torch

from studiolo.diffusion.conditioning import Conditioning


class Family(Protocol):
    """What differs between architectures."""

    name: str
    """As people write it: "sd", "sdxl", ..."""
    pipeline: str
    """The pipeline of diffusers that has this layout."""
    denoiser: str
    """The denoiser's name in that pipeline, and of its folder: "unet" or "transformer"."""
    text_encoders: int
    """How many text encoders, each with a tokenizer of its own."""

    def encode(self, text_encoders: Iterable[Any], ids: Sequence[torch.Tensor]) -> Conditioning:
        """Token ids, int64 [B, L] for each text encoder, to the conditioning of B prompts; differentiable."""
        ...

    def predict(
        self, denoiser: Any, noisy: torch.Tensor, times: torch.Tensor, conditioning: Conditioning
    ) -> torch.Tensor:
        """The denoiser's prediction [B, C, h, w] for `noisy` latents at `times` ([B] or a scalar, as the
        schedule's `times` has them)."""
        ...

    def sizes(self, height: int, width: int) -> torch.Tensor | None:
        """The sizes [6] that a picture of so many pixels is drawn with; None where none are told."""
        ...


class StableDiffusion:
    """Stable Diffusion 1.x and 2.x (Rombach et al. 2022): one CLIP text encoder, a U-Net."""

    name = "sd"
    pipeline = "StableDiffusionPipeline"
    denoiser = "unet"
    text_encoders = 1

    def encode(self, text_encoders: Iterable[Any], ids: Sequence[torch.Tensor]) -> Conditioning:
        (encoder,) = text_encoders
        return Conditioning(encoder(ids[0]).last_hidden_state)

    def predict(
        self, denoiser: Any, noisy: torch.Tensor, times: torch.Tensor, conditioning: Conditioning
    ) -> torch.Tensor:
        return denoiser(noisy, times, encoder_hidden_states=conditioning.tokens).sample

    def sizes(self, height: int, width: int) -> torch.Tensor | None:
        return None


STABLE_DIFFUSION = StableDiffusion()
FAMILIES: dict[str, Family] = {family.name: family for family in (STABLE_DIFFUSION,)}

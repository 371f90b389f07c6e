"""How a U-Net that is trained in bf16 on a CPU attends."""

from __future__ import annotations

from typing import Any

from diffusers import UNet2DConditionModel
from diffusers.models.attention_processor import AttnProcessor

SHORT = 16 * 16
"""Positions of the latents up to which products of matrices are quicker than PyTorch's fused attention."""


def attend_by_products(denoiser: Any, positions: int) -> None:
    """Lets a U-Net over latents of `positions` = h w attend by products of matrices, if they are few.

    For bf16 on CPUs alone, where the way back through the fused attention is slow: a step of the embedded
    base model takes a third less time (`benchmarks/training.py --precision bf16`). It is the same function,
    and keeps positions^2 numbers a head for the way back. Other networks are left as they are.
    """
    if isinstance(denoiser, UNet2DConditionModel) and positions <= SHORT:
        denoiser.set_attn_processor(AttnProcessor())

"""What of a model is trained besides whole networks: adapters."""

from __future__ import annotations

from typing import Annotated, Literal

from pydantic import BeforeValidator, Field

from studiolo.diffusion.adapters import Target
from studiolo.dreambooth.recipe_group import Group


class AdapterChoice(Group):
    """Adapters in place of whole networks: train_unet and train_text_encoder say where they go."""

    kind: Literal["lora", "dora"] | None = Field(
        None, description="lora (Hu et al. 2021), dora (Liu et al. 2024); null trains the networks whole."
    )
    rank: int = Field(8, ge=1, le=1024, description="Of the U-Net's adapters: size, and what they can hold.")
    text_encoder_rank: int | None = Field(
        None, ge=1, le=1024, description="Of the text encoders' adapters. null: as rank."
    )
    alpha: float | None = Field(
        None, gt=0, le=4096, description="The adapter's part is multiplied by alpha / rank. null: by 1."
    )
    targets: Annotated[
        tuple[Target, ...], BeforeValidator(lambda value: (value,) if isinstance(value, str) else value)
    ] = Field(("attention",), min_length=1, description="Layers that get one: attention, feed_forward, conv.")

"""The recipe's groups on the class: what keeps it as the base knows it."""

from __future__ import annotations

from pydantic import Field

from studiolo.dreambooth.recipe_group import Group, Precision, Sampler


class ClassImages(Group):
    """The pictures of the class that the base model makes: what it must still know when it is taught."""

    count: int = Field(48, ge=1, le=100_000, description="How many; more extend the cached set.")
    batch_size: int = Field(8, ge=1, le=256, description="Pictures made at once. Part of the cache key.")
    seed: int = Field(0, ge=0, lt=2**63, description="Picture i starts from the noise of seed + i.")
    negative_prompt: str = Field("", description="What to keep out of them.")
    sampler: Sampler = Field("ddim", description="The same samplers as for drawing.")
    steps: int = Field(20, ge=1, le=1000, description="Denoising steps.")
    guidance_scale: float = Field(4.0, ge=0, le=50, description="Classifier-free guidance; <= 1 is off.")
    eta: float = Field(0.0, ge=0, le=1, description="DDIM's stochasticity: 0 none, 1 as DDPM.")
    precision: Precision = Field(
        "auto",
        description="Float type of the products that they are drawn with. auto: that of the steps.",
    )


class ClassPredictions(Group):
    """What the base predicts on its ways from noise to the class; see `prior`."""

    count: int = Field(32, ge=1, le=100_000, description="Ways from noise; more extend the cached set.")
    steps: int = Field(
        20, ge=1, le=1000, description="Predictions on each, one at each noise level it passes."
    )
    batch_size: int = Field(8, ge=1, le=256, description="Ways walked at once. Part of the cache key.")
    seed: int = Field(0, ge=0, lt=2**63, description="Of the noise that they start from.")
    guidance_scale: float = Field(
        1.0,
        ge=0,
        le=50,
        description="Classifier-free guidance of the way, not of the predictions; <= 1 is off.",
    )

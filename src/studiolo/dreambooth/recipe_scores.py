"""The recipe's group `scores`: what is measured while training, what is best, and when to stop."""

from __future__ import annotations

from typing import Literal

from pydantic import Field, model_validator

from studiolo.dreambooth.recipe_group import Group, Sampler


class ScoreSettings(Group):
    """Scores while training, always on the same prompts and seeds; see [Score](score.md#while-training).

    The composite is the mean of fidelity, prompt and 1 - drift with the three weights below; more is better.
    """

    every: int = Field(0, ge=0, description="Optimizer steps between scores; 0 takes none.")
    n: int = Field(2, ge=1, le=64, description="Pictures a prompt, of seeds seed, seed + 1, ...")
    contexts: int = Field(
        4, ge=1, le=8, description="Prompts: the first so many of the eight contexts of `studiolo score`."
    )
    seed: int = Field(0, ge=0, lt=2**63, description="Seed of the first picture of each prompt.")
    sampler: Sampler = Field("dpm++2m", description="As for drawing.")
    steps: int = Field(12, ge=1, le=1000, description="Denoising steps.")
    guidance_scale: float = Field(5.0, ge=0, le=50, description="Classifier-free guidance; <= 1 is off.")
    embedder: Literal["eye", "dino", "clip"] | None = Field(
        None,
        description="What likeness is measured by. With dino and clip, prompts are judged by CLIP-T. null: "
        "eye for bases that draw at most 64 pixels, as it was made for, dino for larger ones.",
    )
    weights: str | None = Field(
        None, description="Folder of the embedder's weights. null: from the package, the hub or its cache."
    )
    text_weights: str | None = Field(
        None, description="Folder of CLIP's weights, which judge prompts with dino and clip. null: as above."
    )
    fidelity_weight: float = Field(
        1.0, ge=0, le=100, description="Weight in the composite of the likeness to the training images."
    )
    prompt_weight: float = Field(
        0.5, ge=0, le=100, description="Of agreement with the prompts, 1 where it is that of the base."
    )
    drift_weight: float = Field(
        0.25, ge=0, le=100, description="Of 1 - drift: how little the pictures of the class moved."
    )
    patience: int | None = Field(
        None, ge=1, description="Stop after so many scores in a row without a new best. null: never."
    )
    min_gain: float = Field(0.0, ge=0, le=1, description="What the composite must rise by to be a new best.")
    export: Literal["best", "last"] = Field(
        "best",
        description="The step that is exported. best: the highest composite; the last then lies in last/.",
    )

    @model_validator(mode="after")
    def _choices_fit(self) -> ScoreSettings:
        if not self.fidelity_weight + self.prompt_weight + self.drift_weight:
            raise ValueError(
                "the composite has no weight: set one of scores.fidelity_weight, prompt_weight, drift_weight"
            )
        if self.patience is not None and not self.every:
            raise ValueError("scores.patience counts scores, and there are none: set scores.every")
        return self

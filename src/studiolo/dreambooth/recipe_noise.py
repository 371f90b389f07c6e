"""The recipe's group on noise levels: how often each is met, and how much it counts."""

from __future__ import annotations

from typing import Literal

from pydantic import Field

from studiolo.dreambooth.recipe_group import Group


class NoiseLevels(Group):
    """At which noise levels the model is taught (Esser et al. 2024, section 3)."""

    density: Literal["uniform", "logit-normal"] | None = Field(
        None,
        description="How often each is met: uniform, or logit-normal, which prefers the middle. null: as the "
        "model was trained, flows logit-normal, others uniform.",
    )
    mean: float = Field(
        0.0, ge=-10, le=10, description="Of logit-normal; above 0 it prefers noise, below 0 clean images."
    )
    deviation: float = Field(1.0, gt=0, le=10, description="Of logit-normal.")
    weighting: Literal["none", "sigma_sqrt", "cosmap"] = Field(
        "none",
        description="Weight of a level in the loss of a flow: none, sigma_sqrt (1 / sigma^2), cosmap.",
    )

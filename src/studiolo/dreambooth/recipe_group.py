"""What the groups of a recipe share; each lies in a file `recipe_*.py` of its own, or in recipe.py."""

from __future__ import annotations

from typing import Literal

from pydantic import BaseModel, ConfigDict

Sampler = Literal["ddim", "pndm", "euler", "euler_a", "dpm++2m", "unipc"]


class Group(BaseModel):
    """Frozen, strict about keys: settings that belong together."""

    model_config = ConfigDict(frozen=True, extra="forbid", allow_inf_nan=False, coerce_numbers_to_str=True)

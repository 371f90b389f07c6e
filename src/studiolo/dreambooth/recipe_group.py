"""What the groups of a recipe share; each lies in a file `recipe_*.py` of its own, or in recipe.py."""

from __future__ import annotations

from typing import Annotated, Literal, TypeVar

from pydantic import BaseModel, BeforeValidator, ConfigDict

T = TypeVar("T")
Many = Annotated[tuple[T, ...], BeforeValidator(lambda value: (value,) if isinstance(value, str) else value)]
Sampler = Literal[
    "ddim", "pndm", "euler", "euler_a", "heun", "dpm2", "dpm2_a",
    "dpm++2m", "dpm++2m_sde", "dpm++sde", "unipc", "lcm",
]  # fmt: skip
"""Those of diffusion/sampler_settings.py; the model decides which it can be drawn with."""

Precision = Literal["auto", "32-true", "bf16-mixed", "16-mixed"]
"""By Lightning's names."""


class Group(BaseModel):
    """Frozen, strict about keys: settings that belong together."""

    model_config = ConfigDict(frozen=True, extra="forbid", allow_inf_nan=False, coerce_numbers_to_str=True)

    def changed(self, group: str) -> str:
        """The settings that are not as by default, as "group.one, group.two"."""
        fields = type(self).model_fields.items()
        return ", ".join(f"{group}.{key}" for key, field in fields if getattr(self, key) != field.default)

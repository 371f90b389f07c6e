"""The settings of a sampler, checked when they are made; every range is told here once."""

from __future__ import annotations

import math
from dataclasses import asdict, dataclass, fields
from difflib import get_close_matches
from typing import Any

from studiolo.errors import StudioloError

NAMES = (
    *("ddim", "pndm", "euler", "euler_a", "heun", "dpm2", "dpm2_a"),
    *("dpm++2m", "dpm++2m_sde", "dpm++sde", "unipc", "lcm"),
)
SPACINGS = ("leading", "trailing", "linspace")
SIGMAS = ("karras", "exponential", "beta")


@dataclass(frozen=True)
class SamplerSettings:
    """How to denoise.

    sampler: one of NAMES. steps: noise levels visited, from 1 to the schedule's T. guidance_scale: w of
    classifier-free guidance (Ho & Salimans 2021); up to 1 means none, and the negative prompt is not used.
    eta: noise added back by DDIM, 0 (deterministic) to 1 (as DDPM); other samplers have no such setting.
    spacing: how the steps are spread over the T levels (Lin et al. 2024, table 2), one of SPACINGS; sigmas:
    or over the noise's own measure, one of SIGMAS; None leaves both as the model's scheduler has them.
    guidance_rescale: 0 (off) to 1, how far the guided prediction gets the spread of the unguided one back
    (Lin et al. 2024, section 3.4). guidance_from, guidance_until: the part of the steps that is guided, 0 to
    1 (Kynkaanniemi et al. 2024); the other steps cost half. clip_skip: last layers of CLIP that are left out
    of the prompt's reading, as diffusers counts them; None is as the model was taught.

    Raises StudioloError for a value outside these ranges, naming the nearest right one.
    """

    sampler: str = "ddim"
    steps: int = 30
    guidance_scale: float = 5.0
    eta: float = 0.0
    spacing: str | None = None
    sigmas: str | None = None
    guidance_rescale: float = 0.0
    guidance_from: float = 0.0
    guidance_until: float = 1.0
    clip_skip: int | None = None

    def __post_init__(self) -> None:
        _check_choice("sampler", self.sampler, NAMES)
        if self.spacing is not None:
            _check_choice("spacing", self.spacing, SPACINGS)
        if self.sigmas is not None:
            _check_choice("sigmas", self.sigmas, SIGMAS)
        if self.steps < 1:
            raise StudioloError(f"{self.steps} steps draw nothing", where="steps", remedy="Use 1 or more.")
        if not math.isfinite(self.guidance_scale) or self.guidance_scale < 0:
            raise StudioloError(
                f"{self.guidance_scale} is not a guidance scale",
                where="guidance_scale",
                remedy="Use 0 or more.",
            )
        for name in ("eta", "guidance_rescale", "guidance_from", "guidance_until"):
            if not 0 <= getattr(self, name) <= 1:
                raise StudioloError(
                    f"{getattr(self, name)} is outside 0..1", where=name, remedy="Use a value from 0 to 1."
                )
        if self.guidance_from > self.guidance_until:
            raise StudioloError(
                f"guidance from {self.guidance_from} until {self.guidance_until}",
                where="guidance_from",
                remedy="Let it end after it begins.",
            )
        if self.eta and self.sampler != "ddim":
            raise StudioloError(
                f"{self.sampler} has no eta", where="eta", remedy="Leave it at 0, or use the sampler ddim."
            )

    @property
    def guided(self) -> bool:
        """Whether the negative prompt takes part."""
        return self.guidance_scale > 1 and self.guidance_from < self.guidance_until

    def guided_at(self, number: int, total: int) -> bool:
        """Whether it takes part in call `number` (from 1) of `total`."""
        return self.guided and self.within(number, total)

    def within(self, number: int, total: int) -> bool:
        """Whether call `number` (from 1) of `total` is in the part that is guided, as diffusers' guiders
        count it."""
        first, after = (int(part * total) for part in (self.guidance_from, self.guidance_until))
        return first < number <= after

    def as_dict(self) -> dict[str, Any]:
        """The settings as JSON values; `SamplerSettings(**settings.as_dict())` is the same again.

        What was added after the first four and is as by default is left out.
        """
        defaults = {field.name: field.default for field in fields(self)[4:]}
        return {k: v for k, v in asdict(self).items() if k not in defaults or v != defaults[k]}


def _check_choice(what: str, value: str, known: tuple[str, ...]) -> None:
    if value not in known:
        near = get_close_matches(value.lower().replace(" ", ""), known, n=1, cutoff=0.5)
        hint = f"Did you mean {near[0]}? " if near else ""
        raise StudioloError(
            f"there is no {what} {value!r}", where=what, remedy=f"{hint}Known: {', '.join(known)}."
        )

"""The parts of each family of models, by the names and classes that the pipelines of diffusers give them."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

from diffusers import AutoencoderKL, SD3Transformer2DModel, UNet2DConditionModel
from transformers import (
    CLIPTextModel,
    CLIPTextModelWithProjection,
    CLIPTokenizer,
    T5EncoderModel,
    T5TokenizerFast,
)

from studiolo.diffusion.components import numbered
from studiolo.diffusion.families import Family, StableDiffusion, StableDiffusion3, StableDiffusionXL


@dataclass(frozen=True)
class Layout:
    """Which classes a family's parts are of.

    `encoders` and `tokenizers` belong together one by one; of them the last `optional` may be missing.
    """

    family: type[Family]
    denoiser: Any
    encoders: tuple[Any, ...]
    tokenizers: tuple[Any, ...]
    optional: int = 0

    @property
    def networks(self) -> dict[str, Any]:
        """The classes of all networks by the names of their folders."""
        encoders = dict(zip(numbered("text_encoder", len(self.encoders)), self.encoders, strict=True))
        return encoders | {"vae": AutoencoderKL, self.family.denoiser: self.denoiser}

    @property
    def required(self) -> list[str]:
        """Names of the folders that a model of this family must have."""
        least = len(self.encoders) - self.optional
        texts = [*numbered("tokenizer", least), *numbered("text_encoder", least)]
        return ["scheduler", *texts, self.family.denoiser, "vae"]


LAYOUTS = {
    layout.family.name: layout
    for layout in (
        Layout(StableDiffusion, UNet2DConditionModel, (CLIPTextModel,), (CLIPTokenizer,)),
        Layout(
            StableDiffusionXL,
            UNet2DConditionModel,
            (CLIPTextModel, CLIPTextModelWithProjection),
            (CLIPTokenizer, CLIPTokenizer),
        ),
        Layout(
            StableDiffusion3,
            SD3Transformer2DModel,
            (CLIPTextModelWithProjection, CLIPTextModelWithProjection, T5EncoderModel),
            (CLIPTokenizer, CLIPTokenizer, T5TokenizerFast),
            optional=1,
        ),
    )
}
"""By the family's name."""


def family_named(pipeline: str) -> str | None:
    """The family of a pipeline of diffusers, by its class name; None for those of no family here.

    Pipelines for other tasks (img2img, inpainting ...) have the same parts: what the parts are decides then.
    """
    starts = {"StableDiffusionXL": "sdxl", "StableDiffusion3": "sd3", "StableDiffusion": "sd"}
    return next((family for start, family in starts.items() if pipeline.startswith(start)), None)

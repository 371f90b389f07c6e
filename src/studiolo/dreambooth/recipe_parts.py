"""What of a model is trained besides whole networks: adapters."""

from __future__ import annotations

from typing import TYPE_CHECKING, Annotated, Literal

from pydantic import BeforeValidator, Field

from studiolo.dreambooth.recipe_group import Group

if TYPE_CHECKING:
    from studiolo.dreambooth.recipe import Recipe


Target = Literal["attention", "feed_forward", "conv"]
"""As in diffusion/adapters.py, which needs torch to be read."""


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


def check_parts(recipe: Recipe) -> None:
    """ValueError when what `recipe` is to train does not go together."""
    networks = recipe.train_unet or recipe.train_text_encoder
    if recipe.adapter.kind and not networks:
        raise ValueError("adapter has no place to go: set train_unet or train_text_encoder")
    if not recipe.adapter.kind and (changed := recipe.adapter.changed("adapter")):
        raise ValueError(f"{changed}: there is no adapter without its kind, set adapter.kind")
    if recipe.train_text_encoder and recipe.train_token_embedding and not recipe.adapter.kind:
        raise ValueError(
            "train_text_encoder trains every embedding already: set one of it and train_token_embedding"
        )
    if recipe.token_vectors > 1 and not (recipe.train_token_embedding or recipe.train_text_encoder):
        raise ValueError("token_vectors are to be learned: set train_token_embedding")
    if recipe.text_encoder_stop_step and not (recipe.train_text_encoder or recipe.train_token_embedding):
        raise ValueError("text_encoder_stop_step stops what is not trained: set train_text_encoder")
    if recipe.unet_start_step:
        if not recipe.train_unet:
            raise ValueError("unet_start_step is of a denoiser that is not trained: set train_unet")
        if not (recipe.train_token_embedding or recipe.train_text_encoder):
            raise ValueError("nothing is trained before unet_start_step: set train_token_embedding")
        if recipe.unet_start_step >= (recipe.text_encoder_stop_step or recipe.steps) + 1:
            raise ValueError("nothing is trained between text_encoder_stop_step and unet_start_step")
    if recipe.strategy == "fsdp":
        _check_fsdp(recipe)


def _check_fsdp(recipe: Recipe) -> None:
    """With fsdp no process has the whole model before the end, and optimizers see parts of tensors."""
    if recipe.optimizer != "adamw":
        raise ValueError(f"optimizer {recipe.optimizer} does not work on parts of tensors: fsdp takes adamw")
    if recipe.previews.every or recipe.scores.every:
        raise ValueError("with fsdp no process can draw: set previews.every and scores.every to 0")
    if recipe.precision == "16-mixed":
        raise ValueError("fsdp takes bf16-mixed or 32-true")

"""Learning rates that suit a model, where a recipe names none."""

from __future__ import annotations

from studiolo.diffusion.components import Components
from studiolo.dreambooth.recipe import Recipe
from studiolo.errors import StudioloError

LARGE = 100e6
"""Numbers in a denoiser from which it is one of the published models, and not small as the embedded base."""
_DESTROYS = 1e-4
"""A rate at which the whole of a large denoiser falls apart within some hundred steps."""


def rates(recipe: Recipe, components: Components) -> tuple[float, float]:
    """The highest rates of the denoiser and of the text encoders (or the token).

    Those of the recipe; where it has null, the usual ones of a model of this size, times its
    `rate_multiplier`: for large models those of diffusers' DreamBooth scripts and of Gal et al. 2022.
    """
    usual = _usual(recipe, components.denoiser.num_parameters() > LARGE)
    given = recipe.learning_rate, recipe.text_learning_rate
    rate, text_rate = (
        min(1.0, own * recipe.rate_multiplier) if named is None else named
        for own, named in zip(usual, given, strict=True)
    )
    return rate, text_rate


def _usual(recipe: Recipe, large: bool) -> tuple[float, float]:
    if recipe.optimizer == "prodigy":
        return 1.0, 1.0  # a factor of what it finds
    token_alone = recipe.train_token_embedding and not recipe.train_text_encoder
    if not large:
        full = (2e-3, 2e-4) if recipe.adapter.kind else (4e-4, 4e-5)
        return (full[0], 5e-4) if token_alone else full
    rate = 1e-4 if recipe.adapter.kind else 2e-6
    if token_alone:
        return rate, 5e-4
    return rate, 1e-5 if recipe.adapter.kind else 2e-6


def check_rate(recipe: Recipe, parameters: int) -> None:
    """Refuses to train the whole of a denoiser of so many `parameters` at a rate that only small ones
    survive."""
    whole = recipe.train_unet and not recipe.adapter.kind and recipe.optimizer != "prodigy"
    if whole and parameters > LARGE and (recipe.learning_rate or 0) > _DESTROYS:
        raise StudioloError(
            f"{recipe.learning_rate:g} destroys a denoiser of {parameters / 1e6:.0f} million parameters",
            where="learning_rate",
            remedy="Give about 2e-6, or null for the rate that suits the model.",
        )

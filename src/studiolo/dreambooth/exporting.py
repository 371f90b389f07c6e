"""A taught model in files: a whole one, or what was learned beside its base."""

from __future__ import annotations

import json
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import torch

from studiolo.diffusion.adapters import adapter_state, merge, remove
from studiolo.diffusion.components import Components
from studiolo.dreambooth.material import Taught
from studiolo.dreambooth.parts import Parts
from studiolo.dreambooth.recipe import Recipe
from studiolo.errors import StudioloError
from studiolo.formats.adapter_folder import Adapter, embedded_words, save_adapter
from studiolo.formats.diffusers_folder import save_components
from studiolo.formats.opening import open_components
from studiolo.models.registry import CARD_FILE, ModelRef
from studiolo.store.files import atomic_dir
from studiolo.training.halves import is_halved, make_whole


def export_model(
    components: Components,
    parts: Parts,
    recipe: Recipe,
    taught: Sequence[Taught],
    base: ModelRef,
    card: dict[str, Any],
    folder: Path,
) -> None:
    """Writes the model as it is now to `folder`, with its card: whole, or not at all.

    Networks that were trained whole, and `export: merged`, make a whole model; adapters and tokens alone
    make a small one that is opened with its base. Weights are stored in the recipe's `weights_dtype`.
    """
    components.to("cpu")
    for tokens in parts.tokens:
        tokens.write()
    dtype = getattr(torch, recipe.weights_dtype)
    card = card | _place(recipe, base)
    read_as = torch.float32  # in which an adapter is put on its base
    with atomic_dir(folder) as temporary:
        if recipe.learns_beside and recipe.export == "adapter":
            card = card | {"kind": "adapter"}
            words = {
                one.word: len(one.identifier.split()) for one in taught if _is_new(components, recipe, one)
            }
            adapter = Adapter(adapter_state(components), embedded_words(components, words))
            save_adapter(adapter, temporary, dtype)
        else:
            save_components(_whole(components, recipe, base, card), temporary, dtype=dtype)
            read_as = dtype  # the values are the same, and take half the room
        ref = ModelRef(str(card["name"]), temporary, "subject", card)
        card = card | {"fingerprint": open_components(ref, read_as).fingerprint()}
        (temporary / CARD_FILE).write_text(json.dumps(card, indent=2) + "\n", encoding="utf-8")


def _place(recipe: Recipe, base: ModelRef) -> dict[str, str]:
    """Where the base lies, when it was not named but shown."""
    return {} if base.name == recipe.base else {"base_path": str(base.path)}


def _is_new(components: Components, recipe: Recipe, one: Taught) -> bool:
    """Whether the base does not read the subject's words as this model does."""
    added = components.tokenizer.get_added_vocab()
    return recipe.train_token_embedding or any(word in added for word in one.identifier.split())


def _whole(components: Components, recipe: Recipe, base: ModelRef, card: dict[str, Any]) -> Components:
    """The model with its adapters, if there are any, in its weights; `components` keeps them apart.

    What was halved for the training is the base's again, in `components`, too.
    """
    components.denoiser.to(memory_format=torch.contiguous_format)
    if any(map(is_halved, components.modules.values())):
        original = open_components(base)
        if original.fingerprint() != card["base"]["fingerprint"]:
            raise StudioloError(
                "the base model is not the one that the run began with",
                where=base.path,
                remedy="Put it back, and end the run: studiolo train --resume RUN.",
            )
        for name, network in components.modules.items():
            make_whole(network, original.modules[name])
    if not recipe.adapter.kind:
        return components
    whole = components.copy()
    remove(whole)
    merge(whole, adapter_state(components))
    return whole

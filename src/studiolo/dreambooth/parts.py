"""Which weights a recipe trains: whole networks, adapters in them, or the vectors of a token."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import torch

from studiolo.diffusion.adapters import AdapterSettings, inject
from studiolo.diffusion.components import Components
from studiolo.diffusion.token_vectors import TokenVectors
from studiolo.dreambooth.rates import rates
from studiolo.dreambooth.recipe import Recipe
from studiolo.training.optimizers import ParameterGroup

TokenIds = Sequence[int | None]
"""The row of one token in each text encoder's table, None where an encoder has none for it."""


@dataclass(frozen=True)
class Part:
    """What of some networks is trained at one rate; "unet", "text" (the text encoders) or "token"."""

    name: str
    networks: Sequence[torch.nn.Module]
    rate: float
    weight_decay: float

    @property
    def group(self) -> ParameterGroup:
        """Its parameters as they are now: sharing them out (fsdp) puts others in their places."""
        trained = [p for network in self.networks for p in network.parameters() if p.requires_grad]
        return ParameterGroup(self.name, trained, self.rate, self.weight_decay)


@dataclass(frozen=True)
class Parts:
    """What moves; all else stands still. `total` counts the numbers of all networks, adapters and vectors.

    `tokens` has one entry a trained text encoder when the token's vectors are trained, else none.
    """

    chosen: Sequence[Part]
    tokens: Sequence[TokenVectors]
    total: int

    @property
    def groups(self) -> list[ParameterGroup]:
        """For the optimizer: those that hold anything."""
        return [part.group for part in self.chosen if part.group.parameters]

    @property
    def report(self) -> dict[str, Any]:
        """Trained numbers by group and of how many, for run.json."""
        return {"trained": {group.name: group.count for group in self.groups}, "of": self.total}

    def __str__(self) -> str:
        trained = ", ".join(f"{_NAMES[group.name]} {group.count:,}" for group in self.groups)
        share = sum(group.count for group in self.groups) / self.total
        return f"trains {trained}: {share:.2%} of {self.total:,} numbers; all else is frozen"


_NAMES = {"unet": "denoiser", "text": "text encoder", "token": "token"}


def choose_parts(components: Components, recipe: Recipe, tokens: Sequence[TokenIds]) -> Parts:
    """Freezes what `recipe` does not train, in place, and puts in the adapters that it does.

    Trained networks are in train mode, frozen ones (the VAE always) in eval mode. `tokens` are those that
    stand for the subject. Parameters to train become float32, whatever the networks are.
    """
    encoders = components.text_encoders[: components.family.trained_encoders]
    for module in components.modules.values():
        module.requires_grad_(False).eval()
    components.denoiser.train(recipe.train_unet)
    for encoder in encoders:
        encoder.train(recipe.train_text_encoder)
    if recipe.adapter.kind:
        inject(components, adapter_settings(recipe))
    else:
        components.denoiser.requires_grad_(recipe.train_unet)
        for encoder in encoders:
            encoder.requires_grad_(recipe.train_text_encoder)
    for part in components.family.unread(components.text_encoders):
        part.requires_grad_(False)
    vectors = _token_vectors(encoders, tokens) if recipe.train_token_embedding else []
    rate, text_rate = rates(recipe, components)
    decay = recipe.weight_decay
    parts = [
        Part("unet", [components.denoiser], rate, decay),
        Part("text", encoders, text_rate, decay),
        # A vector that decays means less and less: Gal et al. do without.
        Part("token", vectors, text_rate, 0.0),
    ]
    modules = [*components.modules.values(), *vectors]
    total = sum(p.numel() for module in modules for p in module.parameters())
    return Parts(parts, vectors, total)


def left_alone(components: Components, recipe: Recipe) -> list[torch.nn.Parameter]:
    """Parameters of the networks that a training as `recipe` says never writes to, wherever it has them.

    Not among them: tables of embeddings, which new words are added to, what fsdp shares out, and what is laid
    out anew (channels_last).
    """
    count = components.family.trained_encoders
    networks = [components.vae, *components.text_encoders[count:]]
    whole = recipe.adapter.kind is None
    if recipe.strategy != "fsdp":
        moved = recipe.channels_last or (whole and recipe.train_unet)
        networks += [] if moved else [components.denoiser]
        networks += [] if whole and recipe.train_text_encoder else components.text_encoders[:count]
    tables = {id(encoder.get_input_embeddings().weight) for encoder in components.text_encoders}
    return [p for network in networks for p in network.parameters() if id(p) not in tables]


def adapter_settings(recipe: Recipe) -> AdapterSettings:
    """The adapters that a recipe asks for."""
    chosen = recipe.adapter
    assert chosen.kind is not None
    return AdapterSettings(
        kind=chosen.kind,
        rank=chosen.rank if recipe.train_unet else 0,
        text_rank=(chosen.text_encoder_rank or chosen.rank) if recipe.train_text_encoder else 0,
        alpha=chosen.alpha,
        targets=chosen.targets,
        seed=recipe.seed % 2**32,
    )


def _token_vectors(encoders: Sequence[Any], tokens: Sequence[TokenIds]) -> list[TokenVectors]:
    rows = [[ids[tower] for ids in tokens] for tower in range(len(encoders))]
    return [
        TokenVectors(encoder, [i for i in ids if i is not None])
        for encoder, ids in zip(encoders, rows, strict=True)
        if any(i is not None for i in ids)
    ]

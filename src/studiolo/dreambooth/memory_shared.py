"""What of a model fsdp shares out over the processes, and what each then holds for a moment."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import torch

from studiolo.dreambooth.personalize import Personalization
from studiolo.dreambooth.recipe import Recipe

_OF_A_BLOCK = 5
"""How often the largest block is there beside its gradient: it and the next, and buffers of all three."""


@dataclass(frozen=True)
class Shared:
    """The parameters of a module, by name, of which each of `processes` keeps a part.

    `gathered` are the bytes that a process has of the others' parts at the worst moment: what is no block
    stays gathered while a step is computed, blocks come and go (training/sharding.py).
    """

    processes: int
    names: frozenset[str]
    gathered: int

    def kept(self, named: Sequence[tuple[str, torch.nn.Parameter]], *, trained: bool = False) -> float:
        """Bytes that a process keeps of parameters; of the `trained` ones alone, if that is asked for."""
        chosen = [(name, p) for name, p in named if p.requires_grad or not trained]
        return sum(_bytes(p) / (self.processes if name in self.names else 1) for name, p in chosen)


def shared_by(module: Personalization, recipe: Recipe) -> Shared:
    """What training `module` as `recipe` says shares out; nothing without fsdp."""
    if recipe.strategy != "fsdp":
        return Shared(1, frozenset(), 0)
    encoders = [one for one in module.text_encoders if any(p.requires_grad for p in one.parameters())]
    networks: list[Any] = [module.denoiser, *encoders]
    inside = {id(p) for network in networks for p in network.parameters()}
    names = frozenset(name for name, p in module.named_parameters() if id(p) in inside)
    groups = [_groups(network) for network in networks]
    largest = max(max(sizes) for sizes in groups)
    return Shared(
        recipe.devices * recipe.num_nodes,
        names,
        sum(rest for rest, *_ in groups) + _OF_A_BLOCK * largest,
    )


def _groups(network: Any) -> list[int]:
    """Bytes of what a network gathers at once: first what is in none of its blocks, then each of these."""
    kinds = set(getattr(network, "_no_split_modules", None) or ())
    taken: set[int] = set()
    sizes = []
    # From the inside out, as they are shared out: an outer block has what no inner one took.
    for part in reversed(list(network.modules())):
        if part is network or type(part).__name__ in kinds:
            own = [p for p in part.parameters() if id(p) not in taken]
            taken |= {id(p) for p in own}
            sizes.append(sum(map(_bytes, own)))
    return sizes[::-1]


def _bytes(parameter: torch.Tensor) -> int:
    return parameter.numel() * parameter.element_size()

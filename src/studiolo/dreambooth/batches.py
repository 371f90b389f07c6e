"""Micro-batches in which everything random is already drawn, each draw a pure function of a counter.

Example k of the run is the same whoever draws it: rank r of W processes takes its share of each micro-
batch, so that more processes, or more accumulation, give exactly the bigger batch, and a resumed run goes
on where it was.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Protocol

import torch

from studiolo.diffusion.noise import counter_integers, counter_noise
from studiolo.dreambooth.examples import Draw
from studiolo.dreambooth.recipe import Recipe


class Examples(Protocol):
    """Where latents come from: an ExampleSet, or class images that are still being made."""

    def draw(self, seed: int, stream: str, counters: Sequence[int]) -> Draw: ...


@dataclass
class Batch:
    """One micro-batch of B = `instances` + class examples, the instance half first.

    `latents` and `noise` are float32 [B, C, h, w], `timesteps` int64 [B] in [0, T), `prompts` int64 [B]
    rows of the run's table of prompts, `masks` float32 [instances, 1, h, w] in [0, 1] or None.
    """

    latents: torch.Tensor
    noise: torch.Tensor
    timesteps: torch.Tensor
    prompts: torch.Tensor
    masks: torch.Tensor | None
    instances: int


@dataclass(frozen=True)
class Half:
    """One half of every micro-batch: `size` examples of `examples` a micro-batch and process.

    `prompts` int64 [M] gives the row of the table of prompts for example image i as `prompts[i % M]`.
    """

    stream: str
    examples: Examples
    size: int
    prompts: torch.Tensor

    def draw(
        self, micro: int, rank: int, world: int, recipe: Recipe, num_steps: int
    ) -> tuple[Draw, torch.Tensor, torch.Tensor, torch.Tensor]:
        """Latents, noise, timesteps and prompts of this rank's share of micro-batch `micro`."""
        first = (micro * world + rank) * self.size
        counters = list(range(first, first + self.size))
        drawn = self.examples.draw(recipe.seed, self.stream, counters)
        shape = tuple(drawn.latents.shape[1:])
        noise = counter_noise(shape, recipe.seed, f"{self.stream}/noise", counters)
        if recipe.offset_noise:
            offset = counter_noise((shape[0], 1, 1), recipe.seed, f"{self.stream}/offset", counters)
            noise = noise + recipe.offset_noise * offset
        timesteps = counter_integers(num_steps, recipe.seed, f"{self.stream}/timestep", counters)
        return drawn, noise, timesteps, self.prompts[drawn.image_index % len(self.prompts)]


class Batches:
    """The micro-batches of a run, from number `start` to the last; its length counts all of them.

    Args:
        instance, prior: the two halves; `prior` None leaves the class out.
        num_steps: T, the number of noise levels.
        rank, world: of this process among those that share each micro-batch.
    """

    def __init__(
        self,
        recipe: Recipe,
        instance: Half,
        prior: Half | None,
        num_steps: int,
        *,
        start: int = 0,
        rank: int = 0,
        world: int = 1,
    ) -> None:
        self._recipe, self._num_steps, self._start = recipe, num_steps, start
        self._halves = [instance] if prior is None else [instance, prior]
        self._rank, self._world = rank, world

    def __len__(self) -> int:
        return self._recipe.steps * self._recipe.accumulate

    def __iter__(self) -> Iterator[Batch]:
        return (self[micro] for micro in range(self._start, len(self)))

    def __getitem__(self, micro: int) -> Batch:
        drawn = [
            half.draw(micro, self._rank, self._world, self._recipe, self._num_steps) for half in self._halves
        ]
        draws, noise, timesteps, prompts = zip(*drawn, strict=True)
        return Batch(
            latents=torch.cat([draw.latents for draw in draws]),
            noise=torch.cat(noise),
            timesteps=torch.cat(timesteps),
            prompts=torch.cat(prompts),
            masks=draws[0].masks,
            instances=len(draws[0].latents),
        )

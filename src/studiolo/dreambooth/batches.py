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

from studiolo.diffusion.noise import counter_integers, counter_logit_normal, counter_noise
from studiolo.dreambooth.examples import Draw
from studiolo.dreambooth.recipe import Recipe


class Examples(Protocol):
    """Where latents come from: an ExampleSet, or class images that are still being made."""

    def draw(self, seed: int, stream: str, counters: Sequence[int]) -> Draw: ...


@dataclass
class HalfBatch:
    """B examples, all of one shape.

    `latents` and `noise` are float32 [B, C, h, w], `timesteps` int64 [B] in [0, T), `prompts` int64 [B]
    rows of the run's table of prompts, `masks` float32 [B, 1, h, w] in [0, 1] or None, `sizes` float32
    [B, 6] or None (see `Conditioning`).
    """

    latents: torch.Tensor
    noise: torch.Tensor
    timesteps: torch.Tensor
    prompts: torch.Tensor
    masks: torch.Tensor | None = None
    sizes: torch.Tensor | None = None

    def __len__(self) -> int:
        return len(self.latents)


@dataclass
class Batch:
    """One micro-batch: images of the subject, and what keeps the class as it is (None without a prior)."""

    instance: HalfBatch
    prior: HalfBatch | None = None

    @property
    def halves(self) -> list[HalfBatch]:
        return [self.instance] if self.prior is None else [self.instance, self.prior]


@dataclass(frozen=True)
class Half:
    """One half of every micro-batch: `size` examples of `examples` a micro-batch and process.

    `prompts` int64 [M] gives the row of the table of prompts for example image i as `prompts[i % M]`.
    """

    stream: str
    examples: Examples
    size: int
    prompts: torch.Tensor

    def draw(self, micro: int, rank: int, world: int, recipe: Recipe, num_steps: int) -> HalfBatch:
        """This rank's share of micro-batch `micro`."""
        first = (micro * world + rank) * self.size
        counters = list(range(first, first + self.size))
        drawn = self.examples.draw(recipe.seed, self.stream, counters)
        noise, timesteps = drawn.noise, drawn.timesteps
        if noise is None:
            noise = self._noise(tuple(drawn.latents.shape[1:]), recipe, counters)
        if timesteps is None:
            timesteps = _levels(recipe, num_steps, f"{self.stream}/timestep", counters)
        prompts = self.prompts[drawn.image_index % len(self.prompts)]
        return HalfBatch(drawn.latents, noise, timesteps, prompts, drawn.masks, drawn.sizes)

    def _noise(self, shape: tuple[int, ...], recipe: Recipe, counters: Sequence[int]) -> torch.Tensor:
        noise = counter_noise(shape, recipe.seed, f"{self.stream}/noise", counters)
        if recipe.offset_noise:
            offset = counter_noise((shape[0], 1, 1), recipe.seed, f"{self.stream}/offset", counters)
            noise = noise + recipe.offset_noise * offset
        return noise


def _levels(recipe: Recipe, num_steps: int, stream: str, counters: Sequence[int]) -> torch.Tensor:
    """The noise level of each example, int64 [B] in [0, num_steps)."""
    chosen = recipe.noise_levels
    if chosen.density != "logit-normal":
        return counter_integers(num_steps, recipe.seed, stream, counters)
    part = counter_logit_normal(chosen.mean, chosen.deviation, recipe.seed, stream, counters)
    return (part * num_steps).long().clamp(max=num_steps - 1)


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
        where = (micro, self._rank, self._world, self._recipe, self._num_steps)
        return Batch(*(half.draw(*where) for half in self._halves))

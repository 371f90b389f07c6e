"""Noise as a function of names and counters: batches, ranks and resumes cannot change it."""

from __future__ import annotations

import hashlib
from collections.abc import Sequence

import numpy as np
import torch


def generators(seeds: Sequence[int]) -> list[torch.Generator]:
    """One CPU generator per picture, seeded by its seed: the list that diffusers' pipelines take.

    PyTorch's CPU generator reads the low 32 bits of a seed.
    """
    return [torch.Generator("cpu").manual_seed(seed) for seed in seeds]


def draw_noise(shape: tuple[int, ...], sources: Sequence[torch.Generator]) -> torch.Tensor:
    """Unit Gaussian noise [B, *shape], float32 on the CPU: row i is the next draw of generator i."""
    return torch.stack([torch.randn(shape, generator=source) for source in sources])


def initial_noise(shape: tuple[int, ...], seeds: Sequence[int]) -> torch.Tensor:
    """The noise [B, *shape] that pictures start from: row i is the first draw of a generator seeded seeds[i].

    StableDiffusionPipeline draws the same from `generators(seeds)`.
    """
    return draw_noise(shape, generators(seeds))


def counter_noise(shape: tuple[int, ...], seed: int, stream: str, counters: Sequence[int]) -> torch.Tensor:
    """Unit Gaussian noise [B, *shape], float32 on the CPU: row i is a function of (seed, stream, counter i).

    `stream` names the use ("instance noise", "class noise" ...): streams and seeds are independent of each
    other, and counters (>= 0) never overlap, because each starts its own range of Philox's counter
    (Salmon et al. 2011, "Parallel random numbers: as easy as 1, 2, 3").
    """
    rows = [_philox(seed, stream, k).standard_normal(shape, dtype=np.float32) for k in counters]
    return torch.from_numpy(np.stack(rows)) if rows else torch.empty(0, *shape)


def counter_integers(high: int, seed: int, stream: str, counters: Sequence[int]) -> torch.Tensor:
    """Uniform integers over [0, high), int64 [B]: element i is a function of (seed, stream, counters[i])."""
    return torch.tensor([int(_philox(seed, stream, k).integers(high)) for k in counters], dtype=torch.int64)


def counter_logit_normal(
    mean: float, deviation: float, seed: int, stream: str, counters: Sequence[int]
) -> torch.Tensor:
    """Numbers in (0, 1) whose logits are N(mean, deviation^2) (Esser et al. 2024, eq. 19), float32 [B]:
    element i is a function of (seed, stream, counters[i])."""
    return torch.sigmoid(mean + deviation * counter_noise((1,), seed, stream, counters)[:, 0])


def _philox(seed: int, stream: str, counter: int) -> np.random.Generator:
    key = hashlib.sha256(f"{seed}\n{stream}".encode()).digest()[:16]
    # The low 128 bits count the draws within one counter, the high 128 bits are ours.
    position = int(counter) << 128
    return np.random.Generator(np.random.Philox(key=int.from_bytes(key, "little"), counter=position))

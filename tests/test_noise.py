"""Noise by names and counters: independent of batches, Gaussian, and different where it must differ."""

from __future__ import annotations

import torch
from diffusers.utils.torch_utils import randn_tensor
from hypothesis import given
from hypothesis import strategies as st

from studiolo.diffusion.noise import counter_integers, counter_noise, draw_noise, generators, initial_noise

counters = st.lists(st.integers(0, 2**40), min_size=1, max_size=12)


@given(counters, st.data(), st.integers(-(2**63), 2**63), st.text())
def test_any_split_of_a_batch_gives_the_same_rows(ks, data, seed, stream):
    cut = data.draw(st.integers(0, len(ks)))
    whole = counter_noise((3, 2), seed, stream, ks)
    parts = [counter_noise((3, 2), seed, stream, part) for part in (ks[:cut], ks[cut:])]
    assert torch.equal(whole, torch.cat(parts))
    numbers = counter_integers(1000, seed, stream, ks)
    assert torch.equal(
        numbers, torch.cat([counter_integers(1000, seed, stream, p) for p in (ks[:cut], ks[cut:])])
    )


@given(st.integers(0, 2**32), st.integers(0, 2**40))
def test_another_seed_stream_or_counter_is_other_noise(seed, k):
    base = counter_noise((8,), seed, "a", [k])
    for other in ((seed + 1, "a", k), (seed, "b", k), (seed, "a", k + 1)):
        assert not torch.equal(base, counter_noise((8,), other[0], other[1], [other[2]]))


def test_counter_noise_is_standard_normal_and_white():
    noise = counter_noise((4, 8, 8), 1, "moments", range(400)).flatten(1).double()
    n = noise.numel()
    assert abs(noise.mean()) < 5 / n**0.5
    assert abs(noise.square().mean() - 1) < 5 * (2 / n) ** 0.5
    assert abs(noise.pow(4).mean() - 3) < 5 * (96 / n) ** 0.5
    neighbours = (noise[1:] * noise[:-1]).mean()
    assert abs(neighbours) < 5 / n**0.5


def test_counter_integers_are_uniform():
    draws = counter_integers(10, 2, "dice", range(5000))
    counts = torch.bincount(draws, minlength=10).double()
    assert ((counts - 500).square() / 500).sum() < 33.7  # chi-squared, 9 degrees of freedom, p = 1e-4


def test_initial_noise_is_that_of_the_reference_library():
    seeds = [0, 7, 123456789]
    theirs = randn_tensor((3, 4, 8, 8), generator=[torch.Generator().manual_seed(s) for s in seeds])
    assert torch.equal(initial_noise((4, 8, 8), seeds), theirs)


def test_generators_go_on_where_they_were():
    sources = generators([5, 6])
    first, second = draw_noise((4, 4, 4), sources), draw_noise((4, 4, 4), sources)
    alone = torch.Generator().manual_seed(6)
    assert torch.equal(first[1], torch.randn(4, 4, 4, generator=alone))
    assert torch.equal(second[1], torch.randn(4, 4, 4, generator=alone))

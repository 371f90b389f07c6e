"""Aspect buckets: shapes within their bounds, each image in its nearest, each micro-batch of one shape."""

from __future__ import annotations

import math

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from studiolo.dreambooth.batches import Batches, Half
from studiolo.dreambooth.buckets import MOST, Buckets, bucket_shapes, nearest_shape
from studiolo.dreambooth.examples import ExampleSet
from studiolo.dreambooth.recipe import Recipe

SHAPES = [(3, 8, 8), (2, 12, 4), (1, 4, 12)]  # images, height and width of the latents


def buckets(batch: int) -> Buckets:
    """Six images of three shapes; every latent of image i is i."""
    sets, members, first = [], [], 0
    for count, height, width in SHAPES:
        numbers = torch.arange(first, first + count, dtype=torch.float32)
        mean = numbers.view(-1, 1, 1, 1, 1).expand(count, 1, 4, height, width).contiguous()
        sets.append(ExampleSet(mean, torch.full_like(mean, -1e9)))
        members.append(range(first, first + count))
        first += count
    return Buckets(sets, members, batch)


@given(st.integers(8, 2048), st.integers(8, 128))
def test_shapes_keep_area_step_and_proportions(size, step):
    shapes = bucket_shapes(size, step)
    assert (size, size) in shapes
    assert len(set(shapes)) == len(shapes)
    for width, height in shapes:
        assert width * height <= size * size
        assert 1 / MOST <= width / height <= MOST
        if (width, height) != (size, size):
            assert width % step == height % step == 0
            assert (height, width) in shapes


def test_shapes_of_stable_diffusion():
    assert set(bucket_shapes(512, 64)) == {(512, 512), (384, 640), (640, 384), (448, 576), (576, 448)}


@given(st.integers(1, 4000), st.integers(1, 4000))
def test_an_image_takes_the_nearest_proportions(width, height):
    shapes = bucket_shapes(512, 64)

    def away(shape: tuple[int, int]) -> float:
        return abs(math.log(shape[0] / shape[1]) - math.log(width / height))

    chosen = nearest_shape((width, height), shapes)
    assert away(chosen) == min(map(away, shapes))


@pytest.mark.parametrize("batch", [1, 2, 4])
def test_images_of_a_shape_are_met_equally_often_and_each_batch_is_of_one_shape(batch):
    examples = buckets(batch)
    turns = [-(-count // batch) for count, _, _ in SHAPES]
    met = torch.zeros(6, dtype=torch.long)
    for micro in range(6 * sum(turns)):  # six epochs: every number of images divides six times its turns
        drawn = examples.draw(3, "instance", range(micro * batch, (micro + 1) * batch))
        assert len(drawn.latents) == batch
        assert torch.equal(drawn.latents[:, 0, 0, 0].round().long(), drawn.image_index)
        met += drawn.image_index.bincount(minlength=6)
    expected = [
        6 * turn * batch // count
        for (count, _, _), turn in zip(SHAPES, turns, strict=True)
        for _ in range(count)
    ]
    assert met.tolist() == expected


def test_shapes_come_in_another_order_in_every_epoch():
    examples = buckets(1)
    orders = {
        tuple(examples.draw(0, "instance", [micro]).latents.shape[-1] for micro in range(start, start + 6))
        for start in range(0, 60, 6)
    }
    assert len(orders) > 1


def test_ranks_share_out_the_bigger_batch():
    """Two processes with batches of two have what one with batches of four has."""
    rows = torch.arange(6)
    whole = Batches(Recipe(batch_size=4, steps=12), Half("instance", buckets(4), 4, rows), None, 1000)
    for micro in range(12):
        shares = [
            Batches(
                Recipe(batch_size=2, steps=12), Half("instance", buckets(4), 2, rows), None, 1000,
                rank=rank, world=2,
            )[micro].instance
            for rank in (0, 1)
        ]  # fmt: skip
        for name in ("latents", "noise", "timesteps", "prompts"):
            joined = torch.cat([getattr(share, name) for share in shares])
            assert torch.equal(joined, getattr(whole[micro].instance, name))


def test_counters_of_two_micro_batches_are_refused():
    with pytest.raises(ValueError, match="several micro-batches"):
        buckets(2).draw(0, "instance", [1, 2])

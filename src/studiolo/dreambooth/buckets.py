"""Aspect buckets: images keep their proportions, and each micro-batch holds images of one shape.

After NovelAI's "aspect ratio bucketing" (2022), as the training scripts of the field have it: of all shapes
whose sides are multiples of a step and whose area is at most that of the square, an image takes the one whose
proportions are nearest to its own.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass

import torch

from studiolo.diffusion.noise import counter_noise
from studiolo.dreambooth.examples import Draw, ExampleSet

MOST = 2.0  # the longest side over the shortest


def bucket_shapes(size: int, step: int) -> list[tuple[int, int]]:
    """Shapes (width, height) with sides of multiples of `step` pixels, an area of at most `size` squared and
    proportions of at most MOST; of each width the highest. The square of `size` itself is one of them."""
    shapes = {(size, size)}
    for width in range(step, int(size * math.sqrt(MOST)) + step, step):
        height = size * size // width // step * step
        if height and max(width, height) <= MOST * min(width, height):
            shapes |= {(width, height), (height, width)}
    return sorted(shapes)


def nearest_shape(image: tuple[int, int], shapes: Sequence[tuple[int, int]]) -> tuple[int, int]:
    """The shape whose proportions are nearest to those of an image of (width, height), by their ratio; of
    equally near ones the largest."""
    wanted = math.log(image[0] / image[1])
    return min(shapes, key=lambda shape: (abs(math.log(shape[0] / shape[1]) - wanted), -shape[0] * shape[1]))


@dataclass(frozen=True)
class Buckets:
    """Images of several shapes as training examples.

    Args:
        sets: the examples of each shape.
        members: which images of the run those are: `members[b][i]` is image i of `sets[b]`.
        batch: examples of a micro-batch on all processes together, which are all of one shape.
    """

    sets: Sequence[ExampleSet]
    members: Sequence[Sequence[int]]
    batch: int

    def draw(self, seed: int, stream: str, counters: Sequence[int]) -> Draw:
        """As `ExampleSet.draw`, for counters of one micro-batch.

        Micro-batch m is of the shape that place m % E of the order of epoch m // E says, where an epoch of E
        micro-batches holds as many of each shape as it takes to meet all its images.
        """
        micro = counters[0] // self.batch
        if counters[-1] // self.batch != micro:
            raise ValueError("the counters are of several micro-batches")
        bucket, turn = self._turn(seed, stream, micro)
        within = [turn * self.batch + counter % self.batch for counter in counters]
        drawn = self.sets[bucket].draw(seed, f"{stream}/bucket {bucket}", within)
        numbers = torch.tensor(list(self.members[bucket]))
        return drawn._replace(image_index=numbers[drawn.image_index])

    def _turn(self, seed: int, stream: str, micro: int) -> tuple[int, int]:
        """Which bucket's turn micro-batch `micro` is, and that bucket's how manieth, from 0."""
        turns = [-(-len(examples) // self.batch) for examples in self.sets]
        epoch, place = divmod(micro, sum(turns))
        each = torch.tensor([bucket for bucket, count in enumerate(turns) for _ in range(count)])
        keys = counter_noise((len(each),), seed, f"{stream}/buckets", [epoch])[0]
        order = each[keys.argsort(stable=True)].tolist()
        bucket = order[place]
        return bucket, epoch * turns[bucket] + order[:place].count(bucket)

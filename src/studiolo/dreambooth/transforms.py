"""Which squares of an image are seen in training, and how they become tensors."""

from __future__ import annotations

import random
from dataclasses import dataclass
from typing import Literal

import numpy as np
import torch
from PIL import Image

Focus = tuple[int, int]


@dataclass(frozen=True)
class View:
    """One square of an image, `box` = (left, top, right, bottom) in whole pixels, mirrored when `flipped`."""

    box: tuple[int, int, int, int]
    flipped: bool

    def of(self, image: Image.Image, size: int, resample: Image.Resampling) -> Image.Image:
        """The square of `image`, scaled to `size` x `size`; neighbours outside the square do not bleed in."""
        # Cropping first (and not resize(box=...)) keeps the filter from reaching over the edge.
        square = image.crop(self.box).resize((size, size), resample)
        return square.transpose(Image.Transpose.FLIP_LEFT_RIGHT) if self.flipped else square


@dataclass(frozen=True)
class Transform:
    """How an image becomes one or more square views.

    Attributes:
        size: side of a view in pixels.
        crop: "center" takes the largest square in the middle, "random" `crop_variants` random squares.
        flip: whether each square is also seen mirrored.
        crop_variants: random squares of each image, >= 1; of no effect on "center".
        min_scale: side of the smallest random square as a part of the image's short side, in (0, 1].
        seed: of the random squares.
    """

    size: int
    crop: Literal["center", "random"] = "center"
    flip: bool = True
    crop_variants: int = 4
    min_scale: float = 0.8
    seed: int = 0

    def __post_init__(self) -> None:
        if self.size < 1 or self.crop_variants < 1 or not 0 < self.min_scale <= 1:
            raise ValueError(f"size and crop_variants must be >= 1, min_scale in (0, 1]: {self}")

    @property
    def count(self) -> int:
        """Views of each image."""
        return (self.crop_variants if self.crop == "random" else 1) * (2 if self.flip else 1)

    def views(self, size: tuple[int, int], key: str, focus: Focus | None = None) -> list[View]:
        """The views of an image of `size` (width, height): every square, each followed by its mirror image.

        Random squares are a function of (`seed`, `key`, number of the square): an image keeps its own
        whatever other images are there. Every square contains the pixel `focus` = (x, y), if one is
        given.
        """
        if self.crop == "center":
            boxes = [_square(size, min(size), focus, None)]
        else:
            boxes = [
                self._random_square(size, f"{self.seed}:{key}:{i}", focus) for i in range(self.crop_variants)
            ]
        flips = (False, True) if self.flip else (False,)
        return [View(box, flipped) for box in boxes for flipped in flips]

    def _random_square(
        self, size: tuple[int, int], key: str, focus: Focus | None
    ) -> tuple[int, int, int, int]:
        # Python promises that random() of a seeded generator stays the same in all its versions.
        draw = random.Random(key).random
        side = max(1, round(min(size) * (self.min_scale + (1 - self.min_scale) * draw())))
        return _square(size, side, focus, (draw(), draw()))


def _square(
    size: tuple[int, int], side: int, focus: Focus | None, at: tuple[float, float] | None
) -> tuple[int, int, int, int]:
    """A square of `side` inside `size`; `at` in [0, 1)² chooses among all places, None is the middle."""
    corner = []
    for axis, extent in enumerate(size):
        low, high = 0, extent - side
        middle = high // 2
        if focus is not None:
            low, high = max(low, focus[axis] - side + 1), min(high, focus[axis])
            middle = min(max(focus[axis] - side // 2, low), high)
        corner.append(middle if at is None else low + int(at[axis] * (high - low + 1)))
    left, top = corner
    return left, top, left + side, top + side


def mask_focus(mask: Image.Image) -> Focus:
    """A white pixel (x, y) in the midst of `mask` (mode L): a square that holds it never misses the subject.

    Raises ValueError for a mask without white pixels.
    """
    ys, xs = np.nonzero(np.asarray(mask) >= 128)
    if len(xs) == 0:
        raise ValueError("the mask has no white pixel")
    nearest = np.argmin((xs - xs.mean()) ** 2 + (ys - ys.mean()) ** 2)
    return int(xs[nearest]), int(ys[nearest])


def image_tensor(image: Image.Image) -> torch.Tensor:
    """An RGB image as float32 [3, H, W] in [-1, 1], as the VAE takes it."""
    pixels = torch.from_numpy(np.array(image, dtype=np.float32))
    return (pixels / 127.5 - 1).permute(2, 0, 1)


def mask_tensor(mask: Image.Image, view: View, size: int, factor: int) -> torch.Tensor:
    """The part of a mask (mode L) under `view`: the share in [0, 1] of each latent cell that belongs to the
    subject, float32 [1, size / factor, size / factor]."""
    seen = view.of(mask.convert("F"), size, Image.Resampling.BILINEAR)  # no negative lobes: stays in [0, 255]
    pixels = torch.from_numpy(np.array(seen, dtype=np.float32))[None] / 255
    return torch.nn.functional.avg_pool2d(pixels, factor)

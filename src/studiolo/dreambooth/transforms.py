"""Which parts of an image are seen in training, and how they become tensors."""

from __future__ import annotations

import random
from dataclasses import dataclass, replace
from typing import Literal

import numpy as np
import torch
from PIL import Image, ImageEnhance

Focus = tuple[int, int]
Box = tuple[int, int, int, int]
Size = int | tuple[int, int]
"""Pixels: the side of a square, or (width, height)."""

_TONES = (ImageEnhance.Brightness, ImageEnhance.Contrast, ImageEnhance.Color)


def pair(size: Size) -> tuple[int, int]:
    """(width, height)."""
    return (size, size) if isinstance(size, int) else size


@dataclass(frozen=True)
class View:
    """A part of an image: `box` = (left, top, right, bottom) in whole pixels, mirrored when `flipped`.

    `tone` are factors of brightness, contrast and saturation, of pictures but not of masks.
    """

    box: Box
    flipped: bool
    tone: tuple[float, float, float] = (1.0, 1.0, 1.0)

    @property
    def key(self) -> list[float]:
        """All that the view is, for the key of a cache."""
        return [*self.box, self.flipped, *(self.tone if self.toned else ())]

    @property
    def toned(self) -> bool:
        return self.tone != (1.0, 1.0, 1.0)

    def of(self, image: Image.Image, size: Size, resample: Image.Resampling) -> Image.Image:
        """The part of `image`, scaled to `size`; neighbours outside the box do not bleed in."""
        # Cropping first (and not resize(box=...)) keeps the filter from reaching over the edge.
        part = image.crop(self.box).resize(pair(size), resample)
        if self.toned and image.mode == "RGB":
            for kind, factor in zip(_TONES, self.tone, strict=True):
                part = kind(part).enhance(factor)
        return part.transpose(Image.Transpose.FLIP_LEFT_RIGHT) if self.flipped else part

    def sizes(
        self, image: tuple[int, int], size: Size, original: tuple[int, int] | None = None
    ) -> list[float]:
        """SDXL's sizes of the view of an image of (width, height) `image`; see `Conditioning`.

        `original` is how large the image was before anybody scaled it; None: as it is. The corner is that of
        the crop in the image as it is scaled, mirrored where the view is (as in diffusers' training scripts).
        """
        left, top, right, _ = self.box
        width, height = pair(size)
        scale = width / (right - left)
        corner = image[0] - right if self.flipped else left
        was = original or image
        return [was[1], was[0], round(top * scale), round(corner * scale), height, width]


@dataclass(frozen=True)
class Transform:
    """How an image becomes one or more views, all of one size.

    Attributes:
        size: of a view, in pixels.
        crop: "center" takes the largest part of that shape in the middle, "random" random parts.
        flip: whether each part is also seen mirrored.
        crop_variants: random variants of each image, >= 1; of no effect where nothing is random.
        min_scale: side of the smallest random part over that of the largest, in (0, 1].
        color_jitter: brightness, contrast and saturation of each variant lie within 1 -+ this, in [0, 1).
        seed: of what is random.
    """

    size: Size
    crop: Literal["center", "random"] = "center"
    flip: bool = True
    crop_variants: int = 4
    min_scale: float = 0.8
    seed: int = 0
    color_jitter: float = 0.0

    def __post_init__(self) -> None:
        if min(self.shape) < 1 or self.crop_variants < 1 or not 0 < self.min_scale <= 1:
            raise ValueError(f"size and crop_variants must be >= 1, min_scale in (0, 1]: {self}")
        if not 0 <= self.color_jitter < 1:
            raise ValueError(f"color_jitter must be in [0, 1): {self}")

    @property
    def shape(self) -> tuple[int, int]:
        """(width, height) of a view."""
        return pair(self.size)

    @property
    def random(self) -> bool:
        return self.crop == "random" or self.color_jitter > 0

    @property
    def count(self) -> int:
        """Views of each image."""
        return (self.crop_variants if self.random else 1) * (2 if self.flip else 1)

    def views(self, size: tuple[int, int], key: str, focus: Focus | None = None) -> list[View]:
        """The views of an image of `size` (width, height): every part, each followed by its mirror image.

        What is random is a function of (`seed`, `key`, number of the part): an image keeps its own whatever
        other images are there. Every part contains the pixel `focus` = (x, y), if one is given.
        """
        if self.random:
            parts = [self._variant(size, f"{self.seed}:{key}:{i}", focus) for i in range(self.crop_variants)]
        else:
            parts = [View(self._largest(size, focus), False)]
        flips = (False, True) if self.flip else (False,)
        return [replace(part, flipped=flipped) for part in parts for flipped in flips]

    def _variant(self, size: tuple[int, int], key: str, focus: Focus | None) -> View:
        # Python promises that random() of a seeded generator stays the same in all its versions.
        draw = random.Random(key).random
        if self.crop == "random":
            scale = self.min_scale + (1 - self.min_scale) * draw()
            box = _placed(size, _extent(size, self.shape, scale), focus, (draw(), draw()))
        else:
            box = self._largest(size, focus)
        if not self.color_jitter:
            return View(box, False)
        brightness, contrast, saturation = (1 + self.color_jitter * (2 * draw() - 1) for _ in range(3))
        return View(box, False, (brightness, contrast, saturation))

    def _largest(self, size: tuple[int, int], focus: Focus | None) -> Box:
        return _placed(size, _extent(size, self.shape), focus, None)


def _extent(size: tuple[int, int], shape: tuple[int, int], scale: float = 1) -> tuple[int, int]:
    """(width, height) of `scale` times the largest part of an image of `size` that has the proportions of
    `shape`, each rounded once: it is never off by more than half a pixel."""
    (width, height), (wide, high) = size, shape
    if width * high >= height * wide:
        exact = (height * wide / high, float(height))
    else:
        exact = (float(width), width * high / wide)
    return max(1, round(exact[0] * scale)), max(1, round(exact[1] * scale))


def _placed(
    size: tuple[int, int], extent: tuple[int, int], focus: Focus | None, at: tuple[float, float] | None
) -> Box:
    """A box of `extent` inside `size`; `at` in [0, 1)² chooses among all places, None is the middle."""
    corner = []
    for axis in range(2):
        side = extent[axis]
        low, high = 0, size[axis] - side
        middle = high // 2
        if focus is not None:
            low, high = max(low, focus[axis] - side + 1), min(high, focus[axis])
            middle = min(max(focus[axis] - side // 2, low), high)
        corner.append(middle if at is None else low + int(at[axis] * (high - low + 1)))
    left, top = corner
    return left, top, left + extent[0], top + extent[1]


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


def mask_tensor(mask: Image.Image, view: View, size: Size, factor: int) -> torch.Tensor:
    """The part of a mask (mode L) under `view`: the share in [0, 1] of each latent cell that belongs to the
    subject, float32 [1, height / factor, width / factor]."""
    seen = view.of(mask.convert("F"), size, Image.Resampling.BILINEAR)  # no negative lobes: stays in [0, 255]
    pixels = torch.from_numpy(np.array(seen, dtype=np.float32))[None] / 255
    return torch.nn.functional.avg_pool2d(pixels, factor)

"""The independent eye: a small network that says what a picture shows, and how alike two subjects are.

It was trained on composed scenes only (`base/train_eye.py`), never on a generated picture and never on a
held-out sprite. So it can judge the embedded base model and what is taught on it without having learned from
either.
"""

from __future__ import annotations

import json
from collections.abc import Sequence
from dataclasses import dataclass
from functools import cache
from pathlib import Path

import numpy as np
import torch
from PIL import Image
from safetensors.torch import load_file
from torch import Tensor, nn
from torch.nn import functional as F

from studiolo.errors import StudioloError

EYE_SIZE = 64
"""Side in pixels of what the eye sees; other pictures are resized to it."""
EYE_FOLDER = Path(__file__).resolve().parent.parent / "base" / "eye"
_BATCH = 128


@dataclass(frozen=True)
class EyeLabels:
    """What the eye can name, in the order of its outputs."""

    nouns: tuple[str, ...]
    backgrounds: tuple[str, ...]
    styles: tuple[str, ...]


@dataclass(frozen=True)
class Verdict:
    """Probabilities of each label: `noun` [N, nouns], `background` [N, backgrounds], `style` [N, styles].

    Of two things in a picture, each has about half of the nouns' probability.
    """

    noun: Tensor
    background: Tensor
    style: Tensor


class _Residual(nn.Module):
    def __init__(self, width: int) -> None:
        super().__init__()
        self.body = nn.Sequential(_convolution(width, width), nn.ReLU(), _convolution(width, width))

    def forward(self, x: Tensor) -> Tensor:
        return F.relu(x + self.body(x))


def _convolution(inputs: int, outputs: int, stride: int = 1) -> nn.Sequential:
    return nn.Sequential(nn.Conv2d(inputs, outputs, 3, stride, 1, bias=False), nn.BatchNorm2d(outputs))


class EyeNetwork(nn.Module):
    """Four halvings with residual blocks between them; linear heads on mean and maximum of the last map.

    Takes float [B, 3, 64, 64] in [-1, 1]; gives logits of nouns, backgrounds, styles and an embedding
    [B, 128] that is not yet of unit length.
    """

    widths = (24, 48, 96, 192)
    embedding = 128

    def __init__(self, nouns: int, backgrounds: int, styles: int) -> None:
        super().__init__()
        layers: list[nn.Module] = [_convolution(3, self.widths[0], 2), nn.ReLU()]
        for inputs, outputs in zip(self.widths, self.widths[1:], strict=False):
            layers += [_convolution(inputs, outputs, 2), nn.ReLU(), _Residual(outputs)]
        self.trunk = nn.Sequential(*layers)
        features = 2 * self.widths[-1]
        self.noun, self.background = nn.Linear(features, nouns), nn.Linear(features, backgrounds)
        self.style, self.identity = nn.Linear(features, styles), nn.Linear(features, self.embedding)

    def forward(self, pixels: Tensor) -> tuple[Tensor, Tensor, Tensor, Tensor]:
        x = self.trunk(pixels)
        x = torch.cat([x.mean((2, 3)), x.amax((2, 3))], 1)
        return self.noun(x), self.background(x), self.style(x), self.identity(x)


class Eye:
    """The judge, ready to look."""

    def __init__(self, network: EyeNetwork, labels: EyeLabels) -> None:
        self.network = network.eval().requires_grad_(False)
        self.labels = labels

    @classmethod
    def load(cls, folder: str | Path = EYE_FOLDER) -> Eye:
        """The eye in `folder` (eye.safetensors, labels.json); by default the one that ships with Studiolo."""
        folder = Path(folder)
        try:
            words = json.loads((folder / "labels.json").read_text(encoding="utf-8"))
            weights = load_file(folder / "eye.safetensors")
        except FileNotFoundError as error:
            raise StudioloError(
                "the weights of the eye are missing",
                where=error.filename or folder,
                remedy="Install Studiolo again, or train it: python -m studiolo.base.train_eye --help",
            ) from None
        labels = EyeLabels(*(tuple(words[kind]) for kind in ("nouns", "backgrounds", "styles")))
        network = EyeNetwork(len(labels.nouns), len(labels.backgrounds), len(labels.styles))
        network.load_state_dict({name: value.float() for name, value in weights.items()}, strict=False)
        return cls(network, labels)

    @property
    def nouns(self) -> tuple[str, ...]:
        return self.labels.nouns

    @property
    def backgrounds(self) -> tuple[str, ...]:
        return self.labels.backgrounds

    @property
    def styles(self) -> tuple[str, ...]:
        return self.labels.styles

    def classify(self, images: Sequence[Image.Image]) -> Verdict:
        """What each picture shows."""
        noun, background, style, _ = self._look(images)
        return Verdict(noun.softmax(1), background.softmax(1), style.softmax(1))

    def embed(self, images: Sequence[Image.Image]) -> Tensor:
        """Unit vectors [N, 128]: near for the same drawn thing, whatever its place, size and background."""
        return F.normalize(self._look(images)[3], dim=1)

    @torch.no_grad()
    def _look(self, images: Sequence[Image.Image]) -> list[Tensor]:
        pixels = as_pixels(images, EYE_SIZE)
        parts = [self.network(batch) for batch in pixels.split(_BATCH)]
        return [torch.cat(part) for part in zip(*parts, strict=True)]


@cache
def shipped_eye() -> Eye:
    """The eye that ships with Studiolo, loaded once."""
    return Eye.load()


def as_pixels(images: Sequence[Image.Image], size: int) -> Tensor:
    """Pictures as float [N, 3, size, size] in [-1, 1]; of those that are not square, the middle square."""
    if not images:
        raise StudioloError("there are no pictures to look at")
    arrays = [np.asarray(_square(image.convert("RGB"), size)) for image in images]
    return torch.from_numpy(np.stack(arrays)).permute(0, 3, 1, 2).float() / 127.5 - 1


def _square(image: Image.Image, size: int) -> Image.Image:
    side = min(image.size)
    left, top = (image.width - side) // 2, (image.height - side) // 2
    if image.size != (side, side):
        image = image.crop((left, top, left + side, top + side))
    return image if side == size else image.resize((size, size), Image.Resampling.BICUBIC)

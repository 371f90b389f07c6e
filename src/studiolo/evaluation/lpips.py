"""LPIPS, the perceptual distance of two pictures (Zhang et al. 2018, version 0.1), on AlexNet.

Its linear heads come with torchmetrics. The weights of AlexNet are in no package: they are read from the file
that torchvision publishes (alexnet-owt-7be5be79.pth), where somebody has it.
"""

from __future__ import annotations

from collections.abc import Sequence
from itertools import combinations
from pathlib import Path

import numpy as np
import torch
from PIL import Image
from safetensors.torch import load_file
from torch import Tensor, nn

from studiolo.errors import StudioloError

FILE = "alexnet-owt-7be5be79.pth"
_TAPS = (1, 4, 7, 9, 11)
"""Places in AlexNet's features, each after a ReLU, at which pictures are compared."""
_SHIFT, _SCALE = (-0.030, -0.088, -0.188), (0.458, 0.448, 0.450)
_SMALLEST = 31
"""Smaller pictures have no last feature map."""


def alexnet_features() -> nn.Sequential:
    """The convolutions of AlexNet (Krizhevsky 2014), named as torchvision names them."""
    return nn.Sequential(
        *(nn.Conv2d(3, 64, 11, stride=4, padding=2), nn.ReLU(), nn.MaxPool2d(3, 2)),
        *(nn.Conv2d(64, 192, 5, padding=2), nn.ReLU(), nn.MaxPool2d(3, 2)),
        *(nn.Conv2d(192, 384, 3, padding=1), nn.ReLU()),
        *(nn.Conv2d(384, 256, 3, padding=1), nn.ReLU()),
        *(nn.Conv2d(256, 256, 3, padding=1), nn.ReLU()),
    )


class Lpips:
    """The distance, with AlexNet's `features` and the five heads [C] that weigh its channels."""

    def __init__(self, features: nn.Sequential, heads: Sequence[Tensor]) -> None:
        self._features = features.eval().requires_grad_(False)
        self._heads = heads

    @torch.no_grad()
    def distance(self, one: Image.Image, other: Image.Image) -> float:
        """How far apart two pictures of one size look: 0 for copies, about 0.7 for strangers."""
        (first, second) = (self._maps(image) for image in (one, other))
        maps = zip(first, second, self._heads, strict=True)
        return float(sum((((a - b) ** 2).mean((2, 3)) @ head).sum() for a, b, head in maps))

    def _maps(self, image: Image.Image) -> list[Tensor]:
        """The five feature maps [1, C, h, w], each place of length 1 over the channels."""
        pixels = torch.from_numpy(np.array(image.convert("RGB"))).permute(2, 0, 1)[None].float() / 127.5 - 1
        if min(pixels.shape[2:]) < _SMALLEST:
            raise StudioloError(
                f"LPIPS needs pictures of at least {_SMALLEST} pixels a side, these have {image.size}"
            )
        shift, scale = (torch.tensor(values)[:, None, None] for values in (_SHIFT, _SCALE))
        x, maps = (pixels - shift) / scale, []
        for number, layer in enumerate(self._features):
            x = layer(x)
            if number in _TAPS:
                maps.append(x / (x.pow(2).sum(1, keepdim=True) + 1e-8).sqrt())
        return maps

    def diversity(self, images: Sequence[Image.Image]) -> float:
        """DIV of the paper: the mean distance of pictures of one prompt, pair by pair; NaN for one alone."""
        return float(np.mean([self.distance(*pair) for pair in combinations(images, 2)] or [float("nan")]))


def load_lpips(weights: str | Path) -> Lpips:
    """LPIPS with AlexNet's weights from a file, .pth or .safetensors, or from the folder that holds FILE.

    Raises:
        StudioloError: the file is not there, or holds something else.
    """
    path = Path(weights)
    path = path / FILE if path.is_dir() else path
    try:
        read = load_file(path) if path.suffix == ".safetensors" else _read_pickle(path)
        own = {
            name.removeprefix("features."): v for name, v in read.items() if not name.startswith("classifier")
        }
        features = alexnet_features()
        features.load_state_dict(own)
    except Exception as error:  # torch and safetensors raise many kinds for a file that is none of theirs
        raise StudioloError(
            f"these are not the weights of torchvision's AlexNet ({type(error).__name__})",
            where=path,
            remedy=f"Fetch {FILE} from download.pytorch.org/models and name its folder: --weights lpips=DIR.",
        ) from error
    return Lpips(features, _heads())


def _heads() -> list[Tensor]:
    import torchmetrics

    folder = Path(torchmetrics.__file__).parent / "functional" / "image" / "lpips_models"
    state = _read_pickle(folder / "alex.pth")
    return [state[f"lin{i}.model.1.weight"].flatten() for i in range(len(_TAPS))]


def _read_pickle(path: Path) -> dict[str, Tensor]:
    return torch.load(path, map_location="cpu", weights_only=True)

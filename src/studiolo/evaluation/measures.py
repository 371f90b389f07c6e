"""What the scores are: functions of unit vectors and labels, with no model in them.

`[N, D]` are embeddings of unit length, so that a product is a cosine. All results are floats.
"""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import torch
from PIL import Image
from torch import Tensor

_THUMBNAIL = 32


def fidelity(pictures: Tensor, training: Tensor) -> float:
    """Mean cosine of every picture [N, D] with every training image [M, D]: DINO and CLIP-I of the paper
    (Ruiz et al. 2023, section 4.1), in [-1, 1]."""
    return float((pictures @ training.T).mean())


def mutual_similarity(pictures: Tensor) -> float:
    """Mean cosine of different pictures [N, D] of one set; NaN for a single one."""
    cosines = pictures @ pictures.T
    return float(cosines[~torch.eye(len(pictures), dtype=torch.bool)].mean())


def diversity(pictures: Tensor) -> float:
    """Mean distance 1 - cosine of different pictures [N, D]: 0 for copies.

    DIV of the paper, in the embedder's distance instead of LPIPS.
    """
    return 1 - mutual_similarity(pictures)


def drift(before: Tensor, after: Tensor) -> float:
    """Mean distance 1 - cosine of pictures [N, D] of the same prompts and seeds: 0 for an unchanged model."""
    return float((1 - (before * after).sum(1)).mean())


def nearest(pictures: Tensor, training: Tensor) -> Tensor:
    """Of each picture, the cosine with the training image that is nearest to it: [N]."""
    return (pictures @ training.T).amax(1)


def nearest_pixels(pictures: Sequence[Image.Image], training: Sequence[Image.Image]) -> Tensor:
    """Of each picture, the highest correlation with the pixels of a training image or its mirror image.

    Pearson's r of 32x32 thumbnails, in [-1, 1]: [N]. 1 is a copy.
    """
    mirrored = [image.transpose(Image.Transpose.FLIP_LEFT_RIGHT) for image in training]
    return (_thumbnails(pictures) @ _thumbnails([*training, *mirrored]).T).amax(1)


def _thumbnails(images: Sequence[Image.Image]) -> Tensor:
    """Pixels [N, 3072] of mean 0 and length 1."""
    size = (_THUMBNAIL, _THUMBNAIL)
    arrays = [np.asarray(image.convert("RGB").resize(size, Image.Resampling.BOX)).ravel() for image in images]
    pixels = torch.from_numpy(np.stack(arrays)).float()
    return torch.nn.functional.normalize(pixels - pixels.mean(1, keepdim=True), dim=1)


def accuracy(probabilities: Tensor, asked: Sequence[int], among: int = 1) -> float:
    """Share of pictures whose asked label is one of the `among` most probable: [N, labels] and N labels."""
    best = probabilities.topk(min(among, probabilities.shape[1])).indices
    return float((best == torch.tensor(asked)[:, None]).any(1).float().mean())

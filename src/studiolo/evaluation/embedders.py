"""What two pictures are compared by: the independent eye, or DINO or CLIP where their weights can be had.

A score holds for its embedder alone: DINO's figures cannot be set beside the eye's.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Protocol

import numpy as np
import torch
from PIL import Image
from torch import Tensor
from torch.nn import functional as F

from studiolo.errors import StudioloError
from studiolo.evaluation.eye import Eye, shipped_eye


class Embedder(Protocol):
    """Pictures in, unit vectors out."""

    @property
    def name(self) -> str: ...

    def embed(self, images: Sequence[Image.Image]) -> Tensor:
        """Unit vectors [N, D]."""
        ...


@dataclass(frozen=True)
class EyeEmbedder:
    """The eye's embedding of the drawn thing."""

    eye: Eye
    name: str = "eye"

    def embed(self, images: Sequence[Image.Image]) -> Tensor:
        return self.eye.embed(images)


@dataclass(frozen=True)
class _Preparation:
    """How a network wants its pictures: the shorter side `resize` pixels long (bicubic), of that the middle
    `crop` x `crop`, normalised. As the published evaluations do it, with torchvision's rounding."""

    resize: int
    crop: int
    mean: tuple[float, float, float]
    deviation: tuple[float, float, float]

    def __call__(self, images: Sequence[Image.Image]) -> Tensor:
        if not images:
            raise StudioloError("there are no pictures to look at")
        arrays = np.stack([np.asarray(self._cut(image.convert("RGB"))) for image in images])
        pixels = torch.from_numpy(arrays).permute(0, 3, 1, 2).float() / 255
        mean, deviation = (torch.tensor(values)[:, None, None] for values in (self.mean, self.deviation))
        return (pixels - mean) / deviation

    def _cut(self, image: Image.Image) -> Image.Image:
        short = min(image.size)
        width, height = (int(self.resize * side / short) for side in image.size)
        if image.size != (width, height):
            image = image.resize((width, height), Image.Resampling.BICUBIC)
        left, top = round((width - self.crop) / 2), round((height - self.crop) / 2)
        return image.crop((left, top, left + self.crop, top + self.crop))


@dataclass(frozen=True)
class TransformerEmbedder:
    """A vision transformer of the transformers library; `read` takes the vectors [N, D] from its output."""

    name: str
    network: Any
    prepare: _Preparation
    read: Callable[[Any], Tensor]
    batch_size: int = 16

    @torch.no_grad()
    def embed(self, images: Sequence[Image.Image]) -> Tensor:
        parts = self.prepare(images).split(self.batch_size)
        found = [self.read(self.network(part.to(self.network.device))) for part in parts]
        return F.normalize(torch.cat(found), dim=1).cpu()


DINO_WEIGHTS = "facebook/dino-vits16"
DINO_PREPARATION = _Preparation(256, 224, (0.485, 0.456, 0.406), (0.229, 0.224, 0.225))
CLIP_WEIGHTS = "openai/clip-vit-base-patch32"
CLIP_PREPARATION = _Preparation(
    224, 224, (0.48145466, 0.4578275, 0.40821073), (0.26862954, 0.26130258, 0.27577711)
)


def load_embedder(
    name: str = "eye", folder: str | Path | None = None, device: str | torch.device = "cpu"
) -> Embedder:
    """The embedder of that name: eye, dino (ViT-S/16, the CLS token) or clip (ViT-B/32, image features).

    DINO and CLIP are prepared as in the paper's evaluation (resize 256 bicubic, crop 224; resize 224).

    Args:
        folder: of weights in the format of transformers; by default they come from the hub or its cache.

    Raises:
        StudioloError: no embedder of that name, or its weights cannot be had.
    """
    if name not in _EMBEDDERS:
        raise StudioloError(
            f"there is no embedder {name!r}", where="embedder", remedy=f"Use one of {', '.join(_EMBEDDERS)}."
        )
    return _EMBEDDERS[name](folder, device)


def _eye(folder: str | Path | None, device: str | torch.device) -> Embedder:
    return EyeEmbedder(Eye.load(folder) if folder else shipped_eye())  # small: it stays on the CPU


def _dino(folder: str | Path | None, device: str | torch.device) -> Embedder:
    from transformers import ViTModel

    network = pretrained(ViTModel, folder or DINO_WEIGHTS, device, add_pooling_layer=False)
    return TransformerEmbedder(
        "dino", network, DINO_PREPARATION, lambda output: output.last_hidden_state[:, 0]
    )


def _clip(folder: str | Path | None, device: str | torch.device) -> Embedder:
    from transformers import CLIPVisionModelWithProjection

    network = pretrained(CLIPVisionModelWithProjection, folder or CLIP_WEIGHTS, device)
    return TransformerEmbedder("clip", network, CLIP_PREPARATION, lambda output: output.image_embeds)


_EMBEDDERS: dict[str, Callable[[str | Path | None, str | torch.device], Embedder]] = {
    "eye": _eye,
    "dino": _dino,
    "clip": _clip,
}


def pretrained(
    kind: Any, source: str | Path, device: str | torch.device | None = None, **options: Any
) -> Any:
    """A network or tokenizer of the transformers library; networks frozen, on `device`.

    Raises:
        StudioloError: `source`, a folder or a name on the hub, does not lead to it.
    """
    try:
        if device is None:
            return kind.from_pretrained(source, **options)
        with _told_by_errors():
            network, report = kind.from_pretrained(
                source, use_safetensors=True, output_loading_info=True, **options
            )
        if absent := [*report["missing_keys"], *report["mismatched_keys"]]:
            raise ValueError(f"no {absent[0]}")  # it would be random
        return network.eval().requires_grad_(False).to(device)
    except Exception as error:  # the hub's clients raise errors of several libraries for "no network" alone
        raise StudioloError(
            f"the weights cannot be had ({type(error).__name__}: {str(error).splitlines()[0][:120]})",
            where=source,
            remedy="Connect to the hub, name a folder that holds them, or use --embedder eye.",
        ) from error


@contextmanager
def _told_by_errors() -> Iterator[None]:
    """Keeps transformers from bars, and from listing what one tower of CLIP does not need of the other."""
    from transformers.utils import logging

    level, shown = logging.get_verbosity(), logging.is_progress_bar_enabled()
    logging.set_verbosity_error()
    logging.disable_progress_bar()
    try:
        yield
    finally:
        logging.set_verbosity(level)
        if shown:
            logging.enable_progress_bar()

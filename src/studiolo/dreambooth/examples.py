"""Images as training examples: encoded once, cached by content, drawn anew at every step.

What is kept of an image is the VAE's whole posterior q(z|x) = N(mean, exp(logvar)) (Kingma & Welling 2014;
Rombach et al. 2022), never one frozen sample of it.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import NamedTuple

import torch
from diffusers import AutoencoderKL
from PIL import Image
from safetensors import SafetensorError
from safetensors.torch import load_file, save, save_file

from studiolo.diffusion.components import Components
from studiolo.diffusion.conditioning import join_present
from studiolo.diffusion.noise import counter_integers, counter_noise
from studiolo.dreambooth.transforms import Transform, View, image_tensor, mask_focus, mask_tensor
from studiolo.store.files import atomic_path, sha256_bytes, sha256_json

_FORMAT = 1  # of the cache: raise it when the same key would mean other tensors


class Draw(NamedTuple):
    """Training examples of one micro-batch."""

    latents: torch.Tensor
    """Scaled latents, float32 [B, C, h, w]."""
    image_index: torch.Tensor
    """Which image each came from, int64 [B]."""
    masks: torch.Tensor | None
    """Share of each latent cell that belongs to the subject, float32 [B, 1, h, w] in [0, 1]."""
    sizes: torch.Tensor | None = None
    """Of the original, of the crop's corner and of the picture, float32 [B, 6]; see `Conditioning`."""
    noise: torch.Tensor | None = None
    """The noise to see them in, float32 [B, C, h, w], where it is not free to choose."""
    timesteps: torch.Tensor | None = None
    """The noise levels to see them at, int64 [B], where these are not free to choose."""


@dataclass(frozen=True)
class ExampleSet:
    """Posteriors of N images in V views: `mean` and `logvar` float32 [N, V, C, h, w] (unscaled), `masks`
    [N, V, 1, h, w] or None, `sizes` [N, V, 6] or None, and the VAE's scaling and shift of latents."""

    mean: torch.Tensor
    logvar: torch.Tensor
    masks: torch.Tensor | None = None
    scaling_factor: float = 1.0
    shift_factor: float = 0.0
    sizes: torch.Tensor | None = None

    def __len__(self) -> int:
        return len(self.mean)

    def draw(self, seed: int, stream: str, counters: Sequence[int]) -> Draw:
        """Examples number `counters` of the endless sequence that (`seed`, `stream`) name.

        Every N counters in a row (an epoch) meet each image once, in an order of their own. An example
        depends on its counter alone: resuming, splitting batches and adding ranks change nothing.
        """
        return self.draw_at(visits(len(self), seed, stream, counters), seed, stream, counters)

    def draw_at(self, index: torch.Tensor, seed: int, stream: str, counters: Sequence[int]) -> Draw:
        """As `draw`, of given images: `index` int64 [B]; view and posterior noise come from the counters."""
        counters = list(counters)
        view = counter_integers(self.mean.shape[1], seed, f"{stream}/view", counters)
        noise = counter_noise(tuple(self.mean.shape[2:]), seed, f"{stream}/posterior", counters)
        # The clamp is that of diffusers' DiagonalGaussianDistribution.
        deviation = (self.logvar[index, view].clamp(-30, 20) / 2).exp()
        latents = (self.mean[index, view] + deviation * noise - self.shift_factor) * self.scaling_factor
        masks, sizes = (None if t is None else t[index, view] for t in (self.masks, self.sizes))
        return Draw(latents, index, masks, sizes)

    @staticmethod
    def joined(sets: Sequence[ExampleSet]) -> ExampleSet:
        """All images of `sets` in order; the sets must come from one encoder."""
        first = sets[0]
        return ExampleSet(
            mean=torch.cat([s.mean for s in sets]),
            logvar=torch.cat([s.logvar for s in sets]),
            masks=join_present([s.masks for s in sets]),
            sizes=join_present([s.sizes for s in sets]),
            scaling_factor=first.scaling_factor,
            shift_factor=first.shift_factor,
        )


def visits(count: int, seed: int, stream: str, counters: Sequence[int]) -> torch.Tensor:
    """Which of `count` examples each counter k meets, int64 [B]: place k % count of the permutation of epoch
    k // count."""
    epochs = sorted({counter // count for counter in counters})
    keys = counter_noise((count,), seed, f"{stream}/order", epochs)
    permutations = dict(zip(epochs, keys.argsort(dim=1, stable=True), strict=True))
    return torch.stack([permutations[c // count][c % count] for c in counters])


class LatentEncoder:
    """Encodes images with a model's VAE; what was encoded before comes from the cache.

    The key of an image is what the VAE would see (pixels, squares, mirrorings, size) and the VAE itself
    (weights, float type, config), so that nothing else can matter. Images are encoded apart from each
    other: the result for one does not depend, not even by float error, on which others were asked for.

    Args:
        components: the model; only its VAE is used.
        transform: the views to encode.
        cache_dir: one safetensors file an image goes here; None encodes every time.
    """

    def __init__(self, components: Components, transform: Transform, cache_dir: Path | None = None) -> None:
        self._vae = components.vae
        self._factor = components.vae_factor
        self._transform = transform
        self._cache_dir = cache_dir
        self._vae_key = _vae_fingerprint(self._vae) if cache_dir else ""

    def encode(
        self,
        images: Sequence[Image.Image],
        masks: Sequence[Image.Image | None] | None = None,
        originals: Sequence[tuple[int, int]] | None = None,
    ) -> ExampleSet:
        """The examples of RGB `images` [N], N >= 1, with `masks` (mode L, white = subject) of the same sizes.

        `originals` are the (width, height) that they had before they were scaled; None: those of now. An
        image whose mask is None counts in full. Every view of a masked image shows part of its subject.
        """
        chosen = masks if masks is not None else [None] * len(images)
        were = originals if originals is not None else [image.size for image in images]
        rows = [self._image(*given) for given in zip(images, chosen, were, strict=True)]
        mean, logvar, areas, sizes = (torch.stack(column) for column in zip(*rows, strict=True))
        return ExampleSet(
            mean=mean,
            logvar=logvar,
            masks=areas if any(mask is not None for mask in chosen) else None,
            scaling_factor=self._vae.config.scaling_factor,
            shift_factor=getattr(self._vae.config, "shift_factor", None) or 0.0,
            sizes=sizes,
        )

    def _image(
        self, image: Image.Image, mask: Image.Image | None, original: tuple[int, int]
    ) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor, torch.Tensor]:
        """Mean and log-variance [V, C, h, w], mask [V, 1, h, w] and sizes [V, 6] of one image."""
        pixels = sha256_bytes(image.tobytes() + repr(image.size).encode())
        focus = None if mask is None else mask_focus(mask)
        views = self._transform.views(image.size, pixels, focus)
        mean, logvar = self._posterior(image, pixels, views)
        size = self._transform.size
        sizes = torch.tensor([view.sizes(image.size, size, original) for view in views])
        if mask is None:
            return mean, logvar, torch.ones_like(mean[:, :1]), sizes
        masks = torch.stack([mask_tensor(mask, view, size, self._factor) for view in views])
        return mean, logvar, masks, sizes

    def _posterior(
        self, image: Image.Image, pixels: str, views: list[View]
    ) -> tuple[torch.Tensor, torch.Tensor]:
        if self._cache_dir is None:
            return self._run_vae(image, views)
        key = sha256_json([_FORMAT, self._vae_key, pixels, self._transform.size, [v.key for v in views]])
        file = Path(self._cache_dir) / f"{key}.safetensors"
        if (cached := _read(file, len(views))) is not None:
            return cached
        mean, logvar = self._run_vae(image, views)
        with atomic_path(file) as temporary:
            save_file({"mean": mean, "logvar": logvar}, temporary)
        return mean, logvar

    @torch.no_grad()
    def _run_vae(self, image: Image.Image, views: list[View]) -> tuple[torch.Tensor, torch.Tensor]:
        size = self._transform.size
        halves = []
        for some in _chunks(views, self._transform.shape):
            pixels = torch.stack(
                [image_tensor(view.of(image, size, Image.Resampling.LANCZOS)) for view in some]
            )
            # What goes into the cache must not depend on the precision of the training that asks.
            with torch.autocast(self._vae.device.type, enabled=False):
                posterior = self._vae.encode(pixels.to(self._vae.device, self._vae.dtype)).latent_dist
            halves.append((posterior.mean.float().cpu(), posterior.logvar.float().cpu()))
        mean, logvar = (torch.cat(half).contiguous() for half in zip(*halves, strict=True))
        return mean, logvar


def encode_examples(
    components: Components,
    images: Sequence[Image.Image],
    transform: Transform,
    cache_dir: Path | None,
    masks: Sequence[Image.Image | None] | None = None,
) -> ExampleSet:
    """The examples of images that are all there already; see `LatentEncoder`."""
    return LatentEncoder(components, transform, cache_dir).encode(images, masks)


def _vae_fingerprint(vae: AutoencoderKL) -> str:
    weights = {name: tensor.detach().cpu().contiguous() for name, tensor in vae.state_dict().items()}
    config = {name: value for name, value in vae.config.items() if not name.startswith("_")}
    return sha256_bytes(save(weights) + repr(sorted(config.items())).encode())


def _read(file: Path, views: int) -> tuple[torch.Tensor, torch.Tensor] | None:
    """The cached pair, or None when the file is absent or damaged (it is then written anew)."""
    try:
        tensors = load_file(file)
        mean, logvar = tensors["mean"], tensors["logvar"]
    except (OSError, SafetensorError, KeyError):
        return None
    return (mean, logvar) if mean.shape == logvar.shape and len(mean) == views else None


def _chunks(views: list[View], shape: tuple[int, int]) -> Iterator[list[View]]:
    """Batches of about a megapixel: what fits small machines at 512 pixels."""
    step = max(1, 1024**2 // (shape[0] * shape[1]))
    return (views[start : start + step] for start in range(0, len(views), step))

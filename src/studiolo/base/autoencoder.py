"""The base model's autoencoder: 64x64 pixels to 16x16x4 latents and back (AutoencoderKL, Rombach et al.
2022).

Trained on random crops, which holds all the local structure at a quarter of the cost of whole scenes. The
loss is L1 plus L1 of image gradients (edges matter more in drawings than in photographs) plus a light KL
term.
"""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

import torch
from diffusers import AutoencoderKL
from torch import Tensor
from torch.nn import functional as F

from studiolo.base.dataset import SceneSet
from studiolo.base.loop import Loop


@dataclass(frozen=True)
class AutoencoderRecipe:
    """Hyper-parameters; `minutes` bounds the run by the clock, `steps` sets the learning rate's decay."""

    steps: int = 6000
    batch_size: int = 32
    crop: int = 32
    learning_rate: float = 2e-3
    kl_weight: float = 1e-6
    gradient_weight: float = 1.0
    seed: int = 0


def new_autoencoder() -> AutoencoderKL:
    """About 0.9 M parameters; two halvings, four latent channels."""
    return AutoencoderKL(
        down_block_types=["DownEncoderBlock2D"] * 3,
        up_block_types=["UpDecoderBlock2D"] * 3,
        block_out_channels=[24, 48, 96],
        layers_per_block=1,
        norm_num_groups=8,
        latent_channels=4,
        sample_size=64,
        mid_block_add_attention=False,
    )


def to_tensor(images: Tensor) -> Tensor:
    """uint8 [B, H, W, 3] to float [B, 3, H, W] in [-1, 1]."""
    return images.permute(0, 3, 1, 2).float() / 127.5 - 1


def _gradients(x: Tensor) -> tuple[Tensor, Tensor]:
    return x[..., 1:] - x[..., :-1], x[..., 1:, :] - x[..., :-1, :]


def reconstruction_loss(x: Tensor, y: Tensor, gradient_weight: float) -> Tensor:
    """L1 of pixels plus `gradient_weight` times L1 of horizontal and vertical differences."""
    edges = sum(F.l1_loss(a, b) for a, b in zip(_gradients(x), _gradients(y), strict=True))
    return F.l1_loss(x, y) + gradient_weight * edges


def _crops(scenes: SceneSet, recipe: AutoencoderRecipe, generator: torch.Generator) -> Tensor:
    count, free = recipe.batch_size, scenes.images.shape[1] - recipe.crop + 1
    index = torch.randint(len(scenes), (count,), generator=generator).tolist()
    corners = torch.randint(free, (count, 2), generator=generator).tolist()
    crops = [
        scenes.images[i, y : y + recipe.crop, x : x + recipe.crop]
        for i, (y, x) in zip(index, corners, strict=True)
    ]
    return to_tensor(torch.stack([torch.from_numpy(crop.copy()) for crop in crops]))


def train_autoencoder(
    scenes: SceneSet, run: Path, recipe: AutoencoderRecipe, minutes: float
) -> AutoencoderKL:
    """Trains (or goes on training) in the folder `run`; the result is scaled to unit latent variance."""
    torch.manual_seed(recipe.seed)
    model = new_autoencoder()
    loop = Loop(run, {"model": model}, recipe.learning_rate, recipe.steps)
    for step in loop.steps(minutes):
        generator = torch.Generator().manual_seed(recipe.seed * 1_000_003 + step)
        x = _crops(scenes, recipe, generator)
        with torch.autocast("cpu", torch.bfloat16):
            posterior = model.encode(x).latent_dist
            y = model.decode(posterior.sample(generator)).sample
        loss = reconstruction_loss(x, y.float(), recipe.gradient_weight)
        loss = loss + recipe.kl_weight * posterior.kl().mean()
        loop.update(loss, psnr=-10 * torch.log10(F.mse_loss(x, y.float().clamp(-1, 1)) / 4))
    return scaled(model.eval(), scenes)


@torch.no_grad()
def scaled(model: AutoencoderKL, scenes: SceneSet) -> AutoencoderKL:
    """Sets `scaling_factor` so that the latents of real scenes have a standard deviation of one."""
    latents = encode_means(model, scenes, range(0, len(scenes), max(1, len(scenes) // 512)))
    model.register_to_config(scaling_factor=round(1 / float(latents.std()), 5))
    return model


@torch.no_grad()
def encode_means(model: AutoencoderKL, scenes: SceneSet, indices: range, batch: int = 64) -> Tensor:
    """Posterior means [N, 4, 16, 16], not yet scaled."""
    chunks = [indices[start : start + batch] for start in range(0, len(indices), batch)]
    pictures = (to_tensor(torch.from_numpy(scenes.images[list(chunk)])) for chunk in chunks)
    return torch.cat([model.encode(x).latent_dist.mean for x in pictures])

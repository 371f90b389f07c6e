"""The base model's autoencoder: 64x64 pixels to 16x16x4 latents and back (AutoencoderKL, Rombach et al.
2022).

Trained on random crops, which holds all the local structure at a quarter of the cost of whole scenes. The
loss is L1 plus L1 of image gradients (edges matter more in drawings than in photographs) plus a light KL
term.
"""

from __future__ import annotations

import copy
from dataclasses import dataclass
from pathlib import Path

import torch
from diffusers import AutoencoderKL
from torch import Tensor
from torch.nn import functional as F

from studiolo.base.dataset import SceneSet
from studiolo.base.loop import Machine, Part, trained


@dataclass(frozen=True)
class AutoencoderRecipe:
    """Hyper-parameters of both halves, and again of the decoder's further training."""

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


class AutoencoderPart(Part):
    """Both halves on random crops of composed scenes."""

    def __init__(self, model: AutoencoderKL, scenes: SceneSet, recipe: AutoencoderRecipe) -> None:
        super().__init__(recipe.learning_rate, recipe.steps, recipe.seed)
        self.model, self.scenes, self.recipe = model, scenes, recipe

    def batch(self, generator: torch.Generator) -> Tensor:
        """Crops, uint8 [B, crop, crop, 3]."""
        crop, images = self.recipe.crop, self.scenes.images
        index = torch.randint(len(images), (self.recipe.batch_size,), generator=generator).tolist()
        corners = torch.randint(images.shape[1] - crop + 1, (len(index), 2), generator=generator).tolist()
        crops = [images[i, y : y + crop, x : x + crop] for i, (y, x) in zip(index, corners, strict=True)]
        return torch.stack([torch.from_numpy(part.copy()) for part in crops])

    def losses(self, batch: Tensor) -> dict[str, Tensor]:
        x = to_tensor(batch)
        posterior = self.model.encode(x).latent_dist
        y = self.model.decode(posterior.sample()).sample.float()
        loss = reconstruction_loss(x, y, self.recipe.gradient_weight)
        return {"loss": loss + self.recipe.kl_weight * posterior.kl().float().mean(), "psnr": _psnr(x, y)}


class DecoderPart(AutoencoderPart):
    """The decoder alone: sharper pictures from the very same latents, also after a U-Net has learned them."""

    def __init__(self, model: AutoencoderKL, scenes: SceneSet, recipe: AutoencoderRecipe) -> None:
        super().__init__(model, scenes, recipe)
        model.encoder.requires_grad_(False)
        model.quant_conv.requires_grad_(False)
        self.learning_rate = recipe.learning_rate / 2

    def losses(self, batch: Tensor) -> dict[str, Tensor]:
        x = to_tensor(batch)
        with torch.no_grad():
            latents = self.model.encode(x).latent_dist.sample()
        y = self.model.decode(latents).sample.float()
        return {"loss": reconstruction_loss(x, y, self.recipe.gradient_weight), "psnr": _psnr(x, y)}


def train_autoencoder(
    scenes: SceneSet, run: Path, recipe: AutoencoderRecipe, machine: Machine
) -> AutoencoderKL:
    """Trains (or goes on training) in the folder `run`; the result is scaled to unit latent variance."""
    torch.manual_seed(recipe.seed)
    part = AutoencoderPart(new_autoencoder(), scenes, recipe)
    with trained(part, run, machine):
        return scaled(copy.deepcopy(part.model), scenes)


def sharpen_decoder(
    model: AutoencoderKL, scenes: SceneSet, run: Path, recipe: AutoencoderRecipe, machine: Machine
) -> AutoencoderKL:
    """Trains the decoder for another `recipe.steps` in the folder `run`; the encoder stays as it is."""
    part = DecoderPart(model, scenes, recipe)
    with trained(part, run, machine):
        return copy.deepcopy(part.model).requires_grad_(True)


def _psnr(x: Tensor, y: Tensor) -> Tensor:
    """Peak signal-to-noise ratio in dB of pictures in [-1, 1]."""
    return -10 * torch.log10(F.mse_loss(x, y.clamp(-1, 1)) / 4)


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

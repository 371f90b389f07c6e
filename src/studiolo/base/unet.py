"""The base model's U-Net: v-prediction on cached latents, conditioned on the frozen text encoder.

The text encoder has learned the captions before (see `text`), so the U-Net reads them from the first
minutes. Whether it does is measured as it trains: the loss on held-out scenes with the right and with
shuffled captions.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

import torch
from diffusers import AutoencoderKL, UNet2DConditionModel
from torch import Tensor
from torch.nn import functional as F
from transformers import CLIPTokenizer

from studiolo.base.autoencoder import encode_means
from studiolo.base.dataset import SceneSet
from studiolo.base.loop import Machine, Part, trained
from studiolo.base.muon import Muon
from studiolo.base.text import tokenize
from studiolo.diffusion.components import Components
from studiolo.diffusion.objective import add_noise, prediction_target
from studiolo.store.files import atomic_path
from studiolo.training.attention import attend_by_products

SCHEDULER = {
    "_class_name": "DDIMScheduler",
    "num_train_timesteps": 1000,
    "beta_schedule": "squaredcos_cap_v2",
    "prediction_type": "v_prediction",
    "clip_sample": False,
    "set_alpha_to_one": True,
    "steps_offset": 1,
    "timestep_spacing": "trailing",
}


_GAP_SCENES = 256


@dataclass(frozen=True)
class UnetRecipe:
    """Hyper-parameters: `learning_rate` is Muon's, for matrices and kernels, `others_rate` AdamW's for the
    rest; `uncond` is the share of captions left out, for classifier-free guidance (Ho & Salimans 2022)."""

    steps: int = 6000
    batch_size: int = 48
    learning_rate: float = 3e-3
    others_rate: float = 1e-3
    ema_decay: float = 0.999
    uncond: float = 0.1
    channels: tuple[int, ...] = (64, 160, 192)
    seed: int = 0


def new_unet(recipe: UnetRecipe, text_width: int) -> UNet2DConditionModel:
    """About 12.5 M parameters on 16x16x4 latents; cross-attention at 8x8 and 4x4."""
    unet = UNet2DConditionModel(
        sample_size=16,
        down_block_types=["DownBlock2D", "CrossAttnDownBlock2D", "CrossAttnDownBlock2D"],
        up_block_types=["CrossAttnUpBlock2D", "CrossAttnUpBlock2D", "UpBlock2D"],
        block_out_channels=list(recipe.channels),
        layers_per_block=1,
        norm_num_groups=16,
        attention_head_dim=32,
        cross_attention_dim=text_width,
    )
    if not torch.cuda.is_available():
        attend_by_products(unet, unet.config.sample_size**2)
    return unet


def cached_latents(vae: AutoencoderKL, scenes: SceneSet, path: Path) -> Tensor:
    """Scaled posterior means of all scenes, float16 [N, 4, 16, 16], kept in the file `path`."""
    if not path.exists():
        with atomic_path(path) as temporary, torch.autocast("cpu", torch.bfloat16):
            means = encode_means(vae, scenes, range(len(scenes))).float() * vae.config.scaling_factor
            torch.save(means.half(), temporary)
    latents: Tensor = torch.load(path, weights_only=True)
    return latents


def _stratified(count: int, high: int, generator: torch.Generator) -> Tensor:
    """Timesteps that cover [0, high) evenly in each batch: less noise in the gradient than drawing them
    freely."""
    places = (torch.arange(count) + torch.rand(count, generator=generator)) / count
    return (places * high).long().clamp(max=high - 1)


class UnetPart(Part):
    """The U-Net on cached latents; the text encoder goes along, frozen."""

    def __init__(
        self, components: Components, latents: Tensor, captions: list[str], recipe: UnetRecipe
    ) -> None:
        super().__init__(recipe.learning_rate, recipe.steps, recipe.seed)
        self.unet, self.text_encoder = components.denoiser, components.text_encoder.requires_grad_(False)
        self.schedule, self.latents, self.recipe = components.schedule, latents, recipe
        self.ids = tokenize(components.tokenizer, captions)
        self.empty = tokenize(components.tokenizer, [""])[0]

    def optimizer(self) -> torch.optim.Optimizer:
        ends = {self.unet.conv_in.weight, self.unet.conv_out.weight}
        matrices = [weight for weight in self.unet.parameters() if weight.ndim > 1 and weight not in ends]
        others = [weight for weight in self.unet.parameters() if weight.ndim == 1 or weight in ends]
        return Muon(matrices, others, self.learning_rate, self.recipe.others_rate)

    def batch(self, generator: torch.Generator) -> tuple[Tensor, Tensor, Tensor, Tensor]:
        """Latents [B, 4, 16, 16], token ids [B, 24] of which some are of no caption, timesteps [B], noise."""
        index = torch.randint(len(self.latents), (self.recipe.batch_size,), generator=generator)
        ids = self.ids[index]
        ids[torch.rand(len(index), generator=generator) < self.recipe.uncond] = self.empty
        x = self.latents[index].float()
        t = _stratified(len(index), self.schedule.num_steps, generator)
        return x, ids, t, torch.randn(x.shape, generator=generator)

    def losses(self, batch: tuple[Tensor, Tensor, Tensor, Tensor]) -> dict[str, Tensor]:
        x, ids, t, noise = batch
        with torch.no_grad():
            embeds = self.text_encoder(ids).last_hidden_state
        prediction = self.unet(add_noise(self.schedule, x, noise, t), t, embeds).sample
        return {"loss": F.mse_loss(prediction.float(), prediction_target(self.schedule, x, noise, t))}


@torch.no_grad()
def caption_gap(
    part: UnetPart, held_out: Tensor, captions: list[str], tokenizer: CLIPTokenizer
) -> tuple[float, float]:
    """v-loss on held-out latents at t = 800 with the right captions, and with each caption moved to its
    neighbour."""
    ids = tokenize(tokenizer, captions).to(part.device)
    x = held_out.float().to(part.device)
    t = torch.full((len(x),), 800, device=part.device)
    noise = torch.randn(x.shape, generator=torch.Generator().manual_seed(1)).to(part.device)
    right, shuffled = (float(part.losses((x, words, t, noise))["loss"]) for words in (ids, ids.roll(1, 0)))
    return right, shuffled


def train_unet(
    components: Components,
    scenes: SceneSet,
    held_out: SceneSet,
    run: Path,
    recipe: UnetRecipe,
    machine: Machine,
    on_save: Callable[[int], None],
    every: int = 500,
) -> Components:
    """Trains (or goes on training) `components.unet` in `run`; returns the components with the averaged
    U-Net.

    `on_save(step)` is called every `every` steps, the averaged weights in place, to save and to draw.
    """
    run.mkdir(parents=True, exist_ok=True)
    latents = cached_latents(components.vae, scenes, run / f"latents-{len(scenes)}.pt")
    test = cached_latents(components.vae, held_out, run / "latents-held-out.pt")[:_GAP_SCENES]
    part = UnetPart(components, latents, scenes.captions, recipe)

    def look(step: int) -> None:
        right, shuffled = caption_gap(part, test, held_out.captions[: len(test)], components.tokenizer)
        print(f"held-out v-loss at t=800: {right:.4f}, with shuffled captions {shuffled:.4f}", flush=True)
        on_save(step)

    with trained(part, run, machine, ema_decay=recipe.ema_decay, look=look, every=every):
        return components.copy()

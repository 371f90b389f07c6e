"""The peer of `training.py`: one step as diffusers' `examples/dreambooth/train_dreambooth.py` takes it.

Written anew, in the same order and with the same parts (accelerate, a DataLoader of images, the VAE and the
text encoder in every step, `torch.optim.AdamW`, `get_scheduler`), after the published script of November 2026
(github.com/huggingface/diffusers, Apache-2.0), which itself needs torchvision. What it does not have here:
trackers, checkpoints on the way, the Hub.
"""

from __future__ import annotations

import itertools
import time
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from accelerate import Accelerator
from accelerate.utils import set_seed
from diffusers import AutoencoderKL, DDPMScheduler, UNet2DConditionModel
from diffusers.optimization import get_scheduler
from PIL import Image, ImageOps
from torch.nn import functional as F
from torch.utils.data import DataLoader, Dataset
from transformers import CLIPTextModel, CLIPTokenizer


@dataclass(frozen=True)
class Settings:
    """The script's arguments that matter here, under its names."""

    model: Path
    instance_data_dir: Path
    class_data_dir: Path
    instance_prompt: str
    class_prompt: str
    resolution: int
    train_batch_size: int
    max_train_steps: int
    learning_rate: float
    lr_scheduler: str = "linear"
    lr_warmup_steps: int = 10
    mixed_precision: str = "no"
    train_text_encoder: bool = True
    gradient_checkpointing: bool = False
    seed: int = 0


class Images(Dataset):
    """An instance and a class image, read, resized, cropped and normalised each time they are asked for."""

    def __init__(self, settings: Settings, tokenizer: CLIPTokenizer) -> None:
        self.instance = sorted(p for p in settings.instance_data_dir.iterdir() if p.suffix != ".txt")
        self.of_class = sorted(settings.class_data_dir.glob("*.png"))
        self.settings, self.tokenizer = settings, tokenizer

    def __len__(self) -> int:
        return max(len(self.instance), len(self.of_class))

    def __getitem__(self, index: int) -> dict[str, torch.Tensor]:
        settings = self.settings
        return {
            "instance": self._pixels(self.instance[index % len(self.instance)]),
            "instance_ids": self._ids(settings.instance_prompt),
            "class": self._pixels(self.of_class[index % len(self.of_class)]),
            "class_ids": self._ids(settings.class_prompt),
        }

    def _pixels(self, path: Path) -> torch.Tensor:
        size = self.settings.resolution
        with Image.open(path) as file:
            image = ImageOps.exif_transpose(file).convert("RGB")
        scale = size / min(image.size)
        width, height = (max(size, round(side * scale)) for side in image.size)
        image = image.resize((width, height), Image.Resampling.BILINEAR)
        left = int(torch.randint(0, width - size + 1, ()))
        top = int(torch.randint(0, height - size + 1, ()))
        image = image.crop((left, top, left + size, top + size))
        pixels = torch.from_numpy(np.array(image)).permute(2, 0, 1).contiguous().float() / 255
        return (pixels - 0.5) / 0.5

    def _ids(self, prompt: str) -> torch.Tensor:
        limit = self.tokenizer.model_max_length
        return self.tokenizer(
            prompt, truncation=True, padding="max_length", max_length=limit, return_tensors="pt"
        ).input_ids


def together(examples: list[dict[str, torch.Tensor]]) -> dict[str, torch.Tensor]:
    """Instance images first, class images behind them, in one batch."""
    pixels = [e["instance"] for e in examples] + [e["class"] for e in examples]
    ids = [e["instance_ids"] for e in examples] + [e["class_ids"] for e in examples]
    return {"pixel_values": torch.stack(pixels), "input_ids": torch.cat(ids)}


def train(
    settings: Settings, on_step: Callable[[int, Any, Any], None] = lambda step, unet, text: None
) -> list[float]:
    """Trains, and returns the seconds of each step; `on_step` is given step, U-Net and text encoder after
    each, and its own time does not count."""
    accelerator = Accelerator(mixed_precision=settings.mixed_precision)
    set_seed(settings.seed)
    tokenizer = CLIPTokenizer.from_pretrained(settings.model / "tokenizer")
    noise_scheduler = DDPMScheduler.from_pretrained(settings.model, subfolder="scheduler")
    text_encoder = CLIPTextModel.from_pretrained(settings.model / "text_encoder", dtype=torch.float32)
    vae = AutoencoderKL.from_pretrained(settings.model / "vae", torch_dtype=torch.float32)
    unet = UNet2DConditionModel.from_pretrained(settings.model / "unet", torch_dtype=torch.float32)
    vae.requires_grad_(False)
    text_encoder.requires_grad_(settings.train_text_encoder)
    if settings.gradient_checkpointing:
        unet.enable_gradient_checkpointing()
    trained = [unet, text_encoder] if settings.train_text_encoder else [unet]
    optimizer = torch.optim.AdamW(
        itertools.chain(*(network.parameters() for network in trained)),
        lr=settings.learning_rate,
        weight_decay=1e-2,
    )
    loader = DataLoader(
        Images(settings, tokenizer), batch_size=settings.train_batch_size, shuffle=True, collate_fn=together
    )
    lr_scheduler = get_scheduler(
        settings.lr_scheduler,
        optimizer=optimizer,
        num_warmup_steps=settings.lr_warmup_steps,
        num_training_steps=settings.max_train_steps,
    )
    unet, optimizer, loader, lr_scheduler = accelerator.prepare(unet, optimizer, loader, lr_scheduler)
    if settings.train_text_encoder:
        text_encoder = accelerator.prepare(text_encoder)
    weight_dtype = {"no": torch.float32, "bf16": torch.bfloat16, "fp16": torch.float16}[
        settings.mixed_precision
    ]
    vae.to(accelerator.device, dtype=weight_dtype)
    if not settings.train_text_encoder:
        text_encoder.to(accelerator.device, dtype=weight_dtype)

    seconds: list[float] = []
    unet.train()
    text_encoder.train(settings.train_text_encoder)
    began = time.perf_counter()
    for batch in itertools.chain.from_iterable(itertools.repeat(loader)):
        with accelerator.accumulate(unet):
            pixels = batch["pixel_values"].to(dtype=weight_dtype)
            latents = vae.encode(pixels).latent_dist.sample() * vae.config.scaling_factor
            noise = torch.randn_like(latents)
            levels = noise_scheduler.config.num_train_timesteps
            timesteps = torch.randint(0, levels, (len(latents),), device=latents.device).long()
            noisy = noise_scheduler.add_noise(latents, noise, timesteps)
            hidden = text_encoder(batch["input_ids"].to(text_encoder.device))[0]
            prediction = unet(noisy, timesteps, hidden).sample
            target = noise
            if noise_scheduler.config.prediction_type == "v_prediction":
                target = noise_scheduler.get_velocity(latents, noise, timesteps)
            prediction, prior = prediction.chunk(2)
            target, prior_target = target.chunk(2)
            loss = F.mse_loss(prediction.float(), target.float())
            loss = loss + F.mse_loss(prior.float(), prior_target.float())
            accelerator.backward(loss)
            accelerator.clip_grad_norm_(itertools.chain(*(n.parameters() for n in trained)), 1.0)
            optimizer.step()
            lr_scheduler.step()
            optimizer.zero_grad()
        loss.detach().item()  # the script shows it at every step
        seconds.append(time.perf_counter() - began)
        on_step(len(seconds), unet, text_encoder)
        if len(seconds) == settings.max_train_steps:
            return seconds
        began = time.perf_counter()
    raise AssertionError("the loader has no end")

"""From noise to pictures: one guided denoising loop around the schedulers of diffusers."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace

import numpy as np
import torch
from PIL import Image

from studiolo.diffusion.components import Components
from studiolo.diffusion.conditioning import Conditioning, encode_negatives, encode_prompts
from studiolo.diffusion.noise import draw_noise, generators
from studiolo.diffusion.objective import clean_estimate
from studiolo.diffusion.samplers import SamplerSettings, make_scheduler, step_options
from studiolo.errors import StudioloError


@dataclass(frozen=True)
class Step:
    """One denoising step just done: call `number` (from 1) of `total` of the denoiser, for one batch.

    `clean` [B, C, h, w] is the model's present estimate of their final latents; `decode_latents` shows it.
    """

    pictures: range
    number: int
    total: int
    clean: torch.Tensor


OnStep = Callable[[Step], None]


@torch.no_grad()
def sample_latents(
    components: Components,
    positive: Conditioning,
    negative: Conditioning | None,
    noise: torch.Tensor,
    settings: SamplerSettings,
    sources: list[torch.Generator] | None = None,
    on_step: OnStep | None = None,
) -> torch.Tensor:
    """Denoises unit Gaussian `noise` [B, C, h, w] under the `positive` conditioning; returns scaled latents.

    With guidance w > 1 each step is one call of the denoiser on the doubled batch, and the prediction is
    uncond + w (cond - uncond) (Ho & Salimans 2021; Saharia et al. 2022, eq. 2); else one call on the batch
    itself. `sources` are the generators of the noise that stochastic samplers add, one per picture, so that
    a picture does not depend on its neighbours; without them that noise comes from the global generator.
    """
    scheduler = make_scheduler(components.scheduler_config, settings)
    options = step_options(scheduler, settings, sources)
    context = positive
    if settings.guided and negative is not None:
        context = Conditioning.joined([negative, positive])
    latents = noise.to(components.device, components.dtype) * getattr(scheduler, "init_noise_sigma", 1.0)
    for number, t in enumerate(scheduler.timesteps, start=1):
        noisy = latents if components.is_flow else scheduler.scale_model_input(latents, t)
        prediction = _predict(components, noisy, t, context, settings.guidance_scale)
        latents = scheduler.step(prediction, t, latents, **options).prev_sample
        if on_step:
            times = t.float().expand(len(noisy)).to(noisy.device)
            clean = clean_estimate(components.schedule, noisy, prediction, times)
            on_step(Step(range(len(noisy)), number, len(scheduler.timesteps), clean))
    return latents


def _predict(
    components: Components, noisy: torch.Tensor, t: torch.Tensor, context: Conditioning, guidance_scale: float
) -> torch.Tensor:
    """The denoiser's prediction at timestep t, guided when `context` holds negative and positive rows."""
    if len(context) == len(noisy):
        return components.predict(noisy, t, context)
    both = components.predict(torch.cat([noisy, noisy]), t, context)
    unconditional, conditional = both.chunk(2)
    return unconditional + guidance_scale * (conditional - unconditional)


@torch.no_grad()
def decode_latents(components: Components, latents: torch.Tensor) -> np.ndarray:
    """Scaled latents [B, C, h, w] to pixels, uint8 [B, H, W, 3] in numpy."""
    vae = components.vae
    images = vae.decode(components.unscaled(latents.to(vae.device, vae.dtype))).sample
    pixels = ((images.float() / 2 + 0.5).clamp(0, 1) * 255).round().to(torch.uint8)
    return pixels.permute(0, 2, 3, 1).cpu().numpy()


def generate(
    components: Components,
    prompts: Sequence[str],
    seeds: Sequence[int],
    settings: SamplerSettings,
    negative_prompts: Sequence[str] | None = None,
    height: int | None = None,
    width: int | None = None,
    batch_size: int = 8,
    on_step: OnStep | None = None,
    on_picture: Callable[[int, Image.Image], None] | None = None,
) -> list[Image.Image]:
    """Draws picture i from prompts[i] and seeds[i], in batches of `batch_size`; returns RGB images in order.

    A picture is the same, within float error, whatever batch it is made in. `negative_prompts` default to "".
    `on_picture(i, image)` is called as soon as picture i is done, `on_step` after every denoising step.
    """
    negatives = [""] * len(prompts) if negative_prompts is None else negative_prompts
    if not len(prompts) == len(seeds) == len(negatives):
        raise StudioloError(f"{len(prompts)} prompts, {len(seeds)} seeds, {len(negatives)} negative prompts")
    if batch_size < 1:
        raise StudioloError(f"a batch of {batch_size} pictures", where="batch_size", remedy="Use 1 or more.")
    shape = components.latent_shape(height, width)
    sizes = components.family.sizes(*(side * components.vae_factor for side in shape[1:]))
    images: list[Image.Image] = []
    for start in range(0, len(prompts), batch_size):
        batch = range(start, min(start + batch_size, len(prompts)))
        sources = generators([seeds[i] for i in batch])
        latents = sample_latents(
            components,
            _embed(components, [prompts[i] for i in batch], encode_prompts).sized(sizes),
            _embed(components, [negatives[i] for i in batch], encode_negatives).sized(sizes)
            if settings.guided
            else None,
            draw_noise(shape, sources),
            settings,
            sources,
            _shifted(on_step, batch),
        )
        for i, pixels in zip(batch, decode_latents(components, latents), strict=True):
            images.append(Image.fromarray(pixels))
            if on_picture:
                on_picture(i, images[-1])
    return images


@torch.no_grad()
def _embed(
    components: Components,
    prompts: list[str],
    encode: Callable[[Components, Sequence[str]], Conditioning],
) -> Conditioning:
    """`encode` of the prompts, each different one encoded once."""
    unique = list(dict.fromkeys(prompts))
    return encode(components, unique)[[unique.index(prompt) for prompt in prompts]]


def _shifted(on_step: OnStep | None, batch: range) -> OnStep | None:
    return None if on_step is None else lambda step: on_step(replace(step, pictures=batch))

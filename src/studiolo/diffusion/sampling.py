"""From noise to pictures: one guided denoising loop around the schedulers of diffusers."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace

import torch
from PIL import Image

from studiolo.diffusion.autoencoding import decode_latents
from studiolo.diffusion.beginning import Start, begin
from studiolo.diffusion.components import Components
from studiolo.diffusion.conditioning import Conditioning, encode_negatives, encode_prompts
from studiolo.diffusion.guidance import Guidance
from studiolo.diffusion.noise import generators
from studiolo.diffusion.objective import clean_estimate
from studiolo.diffusion.packing import fitting_batch
from studiolo.diffusion.sampler_settings import SamplerSettings
from studiolo.diffusion.samplers import make_scheduler, step_options
from studiolo.diffusion.text_keys import text_read_once
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
    sources: Sequence[torch.Generator],
    shape: tuple[int, ...],
    settings: SamplerSettings,
    start: Start | None = None,
    on_step: OnStep | None = None,
) -> torch.Tensor:
    """Draws latents of `shape` [C, h, w] under the `positive` conditioning; returns scaled ones [B, C, h, w].

    `sources` are the generators of all that is drawn at random, one for each picture, so that a picture does
    not depend on its neighbours. `start` is the picture to begin from; without it, it is noise.
    """
    scheduler = make_scheduler(components.scheduler_config, settings)
    options = step_options(scheduler, settings, list(sources))
    guidance = Guidance(components, positive, negative, settings)
    beginning = begin(components, scheduler, shape, sources, start)
    latents, total = beginning.latents, len(beginning.timesteps)
    with text_read_once(components.denoiser):
        for number, t in enumerate(beginning.timesteps, start=1):
            noisy = latents if components.is_flow else scheduler.scale_model_input(latents, t)
            prediction = guidance.predict(noisy, t, number, total)
            latents = scheduler.step(prediction, t, latents, **options).prev_sample
            latents = beginning.keep(latents, scheduler, number)
            if on_step:
                times = t.float().expand(len(noisy)).to(noisy.device)
                clean = clean_estimate(components.schedule, noisy, prediction, times)
                on_step(Step(range(len(noisy)), number, total, clean))
    return latents


def generate(
    components: Components,
    prompts: Sequence[str],
    seeds: Sequence[int],
    settings: SamplerSettings,
    negative_prompts: Sequence[str] | None = None,
    height: int | None = None,
    width: int | None = None,
    batch_size: int | None = None,
    start: Start | None = None,
    on_step: OnStep | None = None,
    on_picture: Callable[[int, Image.Image], None] | None = None,
) -> list[Image.Image]:
    """Draws picture i from prompts[i] and seeds[i], in batches of `batch_size`; returns RGB images in order.

    A picture is the same, within float error, whatever batch it is made in; by default the batches are what
    the device has room for (`fitting_batch`). `negative_prompts` default to "". All pictures begin from
    `start`, which is as large as they are, or from noise.
    `on_picture(i, image)` is called as soon as picture i is done, `on_step` after every denoising step.
    """
    negatives = [""] * len(prompts) if negative_prompts is None else negative_prompts
    if not len(prompts) == len(seeds) == len(negatives):
        raise StudioloError(f"{len(prompts)} prompts, {len(seeds)} seeds, {len(negatives)} negative prompts")
    if settings.clip_skip is not None:
        components = components.skipping(settings.clip_skip)
    shape = components.latent_shape(height, width)
    batch_size = fitting_batch(components, shape) if batch_size is None else batch_size
    if batch_size < 1:
        raise StudioloError(f"a batch of {batch_size} pictures", where="batch_size", remedy="Use 1 or more.")
    sizes = components.family.sizes(*(side * components.vae_factor for side in shape[1:]))
    images: list[Image.Image] = []
    for first in range(0, len(prompts), batch_size):
        batch = range(first, min(first + batch_size, len(prompts)))
        latents = sample_latents(
            components,
            _embed(components, [prompts[i] for i in batch], encode_prompts).sized(sizes),
            _embed(components, [negatives[i] for i in batch], encode_negatives).sized(sizes)
            if settings.guided and not components.guidance_width
            else None,
            generators([seeds[i] for i in batch]),
            shape,
            settings,
            start,
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

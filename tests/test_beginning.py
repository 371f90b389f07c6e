"""Pictures that begin from a picture, and painting within a mask, against the pipelines of diffusers."""

from __future__ import annotations

from itertools import product

import numpy as np
import pytest
import torch
from diffusers import (
    StableDiffusion3Img2ImgPipeline,
    StableDiffusionImg2ImgPipeline,
    StableDiffusionInpaintPipeline,
    StableDiffusionXLImg2ImgPipeline,
)
from PIL import Image

from studiolo.diffusion.autoencoding import encode_pixels
from studiolo.diffusion.beginning import Start
from studiolo.diffusion.conditioning import encode_negatives, encode_prompts
from studiolo.diffusion.noise import generators
from studiolo.diffusion.sampler_settings import SamplerSettings
from studiolo.diffusion.samplers import make_scheduler
from studiolo.diffusion.sampling import generate, sample_latents
from studiolo.errors import StudioloError
from tiny import tiny_components
from tiny_families import tiny_sd3, tiny_sdxl

PROMPTS = ["a photo of a fox on the moon", "a red dog"]
SEEDS = [7, 8]
STEPS = 6


@pytest.fixture(scope="module")
def components():
    return tiny_components(prediction_type="v_prediction")


@pytest.fixture(scope="module")
def photo() -> Image.Image:
    ramp = np.linspace(0, 255, 32)
    return Image.fromarray(np.stack([ramp[None].repeat(32, 0), ramp[:, None].repeat(32, 1)] * 2, 2)
                           .astype(np.uint8)[..., :3])  # fmt: skip


@pytest.fixture(scope="module")
def mask() -> Image.Image:
    """White, to paint anew, in the lower right: its border is on the latents' grid of 4 pixels."""
    white = np.zeros((32, 32), np.uint8)
    white[12:28, 16:32] = 255
    return Image.fromarray(white)


def start(photo, strength, mask=None) -> Start:
    pixels = torch.from_numpy(np.asarray(photo)).permute(2, 0, 1)[None].float() / 127.5 - 1
    white = None if mask is None else torch.from_numpy(np.asarray(mask) > 127)[None, None].float()
    return Start(pixels, strength, white)


def ours(components, settings, begin):
    with torch.no_grad():
        positive, negative = (
            encode(components, prompts).sized(components.family.sizes(32, 32))
            for encode, prompts in ((encode_prompts, PROMPTS), (encode_negatives, ["", ""]))
        )
    shape = components.latent_shape(32, 32)
    return sample_latents(components, positive, negative, generators(SEEDS), shape, settings, begin)


def pipeline(kind, components, settings):
    made = kind(
        vae=components.vae,
        text_encoder=components.text_encoder,
        tokenizer=components.tokenizer,
        unet=components.denoiser,
        scheduler=make_scheduler(components.scheduler_config, settings),
        safety_checker=None,
        feature_extractor=None,
        requires_safety_checker=False,
    )
    made.set_progress_bar_config(disable=True)
    return made


def theirs(made, settings, **inputs):
    """One picture at a time: together, the pipeline encodes the photo with the first generator only."""
    return torch.cat(
        [
            made(
                prompt,
                num_inference_steps=settings.steps,
                guidance_scale=settings.guidance_scale,
                generator=torch.Generator().manual_seed(seed),
                output_type="latent",
                **inputs,
            ).images
            for prompt, seed in zip(PROMPTS, SEEDS, strict=True)
        ]
    )


def same(ours, theirs):
    torch.testing.assert_close(ours, theirs, rtol=1e-4, atol=1e-4 * theirs.abs().max().item())


SAMPLERS = [
    "ddim",
    "pndm",
    "euler",
    "euler_a",
    "heun",
    "dpm2_a",
    "dpm++2m",
    "dpm++2m_sde",
    "dpm++sde",
    "unipc",
    "lcm",
]


@pytest.mark.parametrize(("sampler", "strength"), [*product(SAMPLERS, [0.55]), ("ddim", 1.0), ("euler", 0.2)])
def test_a_picture_from_a_picture_is_that_of_the_pipeline(components, photo, sampler, strength):
    settings = SamplerSettings(sampler, STEPS, 4.0)
    made = pipeline(StableDiffusionImg2ImgPipeline, components, settings)
    expected = theirs(made, settings, image=photo, strength=strength)
    same(ours(components, settings, start(photo, strength)), expected)


@pytest.mark.parametrize(
    ("sampler", "strength"), [*product(SAMPLERS, [0.55]), ("ddim", 1.0), ("euler_a", 1.0)]
)
def test_painting_within_a_mask_is_that_of_the_pipeline(components, photo, mask, sampler, strength):
    settings = SamplerSettings(sampler, STEPS, 4.0)
    made = pipeline(StableDiffusionInpaintPipeline, components, settings)
    expected = theirs(made, settings, image=photo, mask_image=mask, strength=strength, width=32, height=32)
    same(ours(components, settings, start(photo, strength, mask)), expected)


def test_sdxl_from_a_picture_is_that_of_the_pipeline(photo):
    components, settings = tiny_sdxl(), SamplerSettings("euler", STEPS, 4.0)
    made = StableDiffusionXLImg2ImgPipeline(
        **components.modules,
        tokenizer=components.tokenizers[0],
        tokenizer_2=components.tokenizers[1],
        scheduler=make_scheduler(components.scheduler_config, settings),
        add_watermarker=False,
    )
    made.set_progress_bar_config(disable=True)
    expected = theirs(made, settings, image=photo, strength=0.6)
    same(ours(components, settings, start(photo, 0.6)), expected)


@pytest.mark.parametrize("sampler", ["euler", "heun"])
def test_a_flow_from_a_picture_is_that_of_the_pipeline(photo, sampler):
    components, settings = tiny_sd3(), SamplerSettings(sampler, STEPS, 4.0)
    made = StableDiffusion3Img2ImgPipeline(
        **components.modules,
        tokenizer=components.tokenizers[0],
        tokenizer_2=components.tokenizers[1],
        tokenizer_3=components.tokenizers[2],
        scheduler=make_scheduler(components.scheduler_config, settings),
    )
    made.set_progress_bar_config(disable=True)
    expected = theirs(made, settings, image=photo, strength=0.6, width=32, height=32)
    same(ours(components, settings, start(photo, 0.6)), expected)


def test_around_the_mask_the_latents_are_the_pictures_own(components, photo, mask):
    begin = start(photo, 0.8, mask)
    latents = ours(components, SamplerSettings("ddim", STEPS), begin)
    black = ~np.asarray(mask, dtype=bool)[::4, ::4]
    encoded = encode_pixels(components, begin.pixels, generators(SEEDS))
    same(latents[:, :, black], encoded[:, :, black])
    assert not torch.allclose(latents[:, :, ~black], encoded[:, :, ~black], atol=0.1)


def test_less_strength_is_nearer_and_fewer_calls(components, photo):
    seen, pictures = [], []
    for strength in (0.34, 0.67, 1.0):
        steps = []
        image = generate(
            components,
            ["a fox"],
            [1],
            SamplerSettings("ddim", 6),
            start=start(photo, strength),
            on_step=steps.append,
        )[0]
        seen.append((len(steps), steps[-1].number, steps[-1].total))
        pictures.append(np.asarray(image, dtype=int))
    assert seen == [(2, 2, 2), (4, 4, 4), (6, 6, 6)]
    apart = [np.abs(picture - pictures[0]).mean() for picture in pictures]
    assert apart[0] < apart[1] < apart[2]


def test_a_strength_without_a_step_is_refused(components, photo):
    with pytest.raises(StudioloError, match=r"strength 0\.1 of 6 steps leaves none"):
        ours(components, SamplerSettings("ddim", 6), start(photo, 0.1))


def test_a_picture_from_a_picture_does_not_depend_on_its_batch(components, photo, mask):
    settings = SamplerSettings("euler_a", STEPS)
    together, alone = (
        np.stack(
            generate(components, PROMPTS, SEEDS, settings, batch_size=size, start=start(photo, 0.7, mask))
        ).astype(int)
        for size in (2, 1)
    )
    assert np.abs(together - alone).max() <= 1

"""Our denoising loop against StableDiffusionPipeline on the same weights, noise and scheduler."""

from __future__ import annotations

from contextlib import nullcontext
from dataclasses import replace
from itertools import product

import numpy as np
import pytest
import torch
from diffusers import (
    DDIMScheduler,
    DPMSolverMultistepScheduler,
    EulerAncestralDiscreteScheduler,
    EulerDiscreteScheduler,
    PNDMScheduler,
    StableDiffusionPipeline,
    UniPCMultistepScheduler,
)

from studiolo.diffusion.conditioning import encode_prompts
from studiolo.diffusion.noise import draw_noise, generators, initial_noise
from studiolo.diffusion.samplers import SAMPLERS, SamplerSettings, make_scheduler
from studiolo.diffusion.sampling import decode_latents, generate, sample_latents
from studiolo.errors import StudioloError
from tiny import tiny_components

# Written out again here, so that a wrong entry in SAMPLERS shows.
REFERENCE = {
    "ddim": lambda config: DDIMScheduler.from_config(config),
    "pndm": lambda config: PNDMScheduler.from_config(config, skip_prk_steps=True),
    "euler": lambda config: EulerDiscreteScheduler.from_config(config),
    "euler_a": lambda config: EulerAncestralDiscreteScheduler.from_config(config),
    "dpm++2m": lambda config: DPMSolverMultistepScheduler.from_config(config, algorithm_type="dpmsolver++"),
    "dpm++2m_sde": lambda config: DPMSolverMultistepScheduler.from_config(
        config, algorithm_type="sde-dpmsolver++"
    ),
    "unipc": lambda config: UniPCMultistepScheduler.from_config(config),
}
PROMPTS = ["a photo of a fox on the moon", "a red dog"]
NEGATIVES = ["snow", "a small blue cat at night"]
SEEDS = [7, 8]
STEPS = 5


@pytest.fixture(scope="module", params=["epsilon", "v_prediction"])
def components(request):
    return tiny_components(prediction_type=request.param)


def pipeline_latents(components, settings, negatives):
    pipeline = StableDiffusionPipeline(
        vae=components.vae,
        text_encoder=components.text_encoder,
        tokenizer=components.tokenizer,
        unet=components.denoiser,
        scheduler=REFERENCE[settings.sampler](components.scheduler_config),
        safety_checker=None,
        feature_extractor=None,
        requires_safety_checker=False,
    )
    pipeline.set_progress_bar_config(disable=True)
    return pipeline(
        PROMPTS,
        negative_prompt=negatives,
        num_inference_steps=settings.steps,
        guidance_scale=settings.guidance_scale,
        eta=settings.eta,
        generator=[torch.Generator().manual_seed(seed) for seed in SEEDS],
        output_type="latent",
    ).images


def our_latents(components, settings, negatives):
    sources = generators(SEEDS)
    with torch.no_grad():
        embeds = encode_prompts(components, PROMPTS)
        negative = encode_prompts(components, negatives or [""] * len(PROMPTS))
    noise = draw_noise(components.latent_shape(), sources)
    return sample_latents(components, embeds, negative, noise, settings, sources)


def same(ours, theirs):
    torch.testing.assert_close(ours, theirs, rtol=1e-4, atol=1e-4 * theirs.abs().max().item())


@pytest.mark.parametrize(
    ("sampler", "guidance_scale", "negatives"),
    [*product(REFERENCE, [1.0, 6.0], [None]), *product(REFERENCE, [6.0], [NEGATIVES])],
)
def test_latents_are_those_of_the_pipeline(components, sampler, guidance_scale, negatives):
    settings = SamplerSettings(sampler, STEPS, guidance_scale)
    same(our_latents(components, settings, negatives), pipeline_latents(components, settings, negatives))


def test_ddim_with_eta_is_that_of_the_pipeline(components):
    settings = SamplerSettings("ddim", STEPS, 4.0, eta=0.7)
    same(our_latents(components, settings, None), pipeline_latents(components, settings, None))


def test_every_sampler_is_compared():
    assert set(REFERENCE) == set(SAMPLERS)


def test_pictures_are_those_of_the_pipeline(components):
    settings = SamplerSettings("ddim", STEPS, 5.0)
    images = generate(components, PROMPTS, SEEDS, settings, NEGATIVES)
    latents = pipeline_latents(components, settings, NEGATIVES)
    with torch.no_grad():
        decoded = components.vae.decode(latents / components.vae.config.scaling_factor).sample
    expected = ((decoded / 2 + 0.5).clamp(0, 1) * 255).permute(0, 2, 3, 1).numpy()
    np.testing.assert_allclose(np.stack(images).astype(float), expected, atol=0.51)


def test_one_unet_call_a_step_on_the_doubled_batch(components, monkeypatch):
    rows = []
    forward = components.denoiser.forward
    monkeypatch.setattr(
        components.denoiser,
        "forward",
        lambda sample, *a, **k: rows.append(len(sample)) or forward(sample, *a, **k),
    )
    our_latents(components, SamplerSettings("ddim", STEPS, 5.0), None)
    assert rows == [2 * len(PROMPTS)] * STEPS
    rows.clear()
    our_latents(components, SamplerSettings("ddim", STEPS, 1.0), None)
    assert rows == [len(PROMPTS)] * STEPS


def test_guidance_in_one_call_is_two_separate_calls(components):
    """One DDIM step: u + w (c - u), with u and c from a forward each."""
    settings = SamplerSettings("ddim", 1, 3.5)
    noise = initial_noise(components.latent_shape(), SEEDS)
    scheduler = DDIMScheduler.from_config(components.scheduler_config)
    scheduler.set_timesteps(1)
    t = scheduler.timesteps[0]
    with torch.no_grad():
        cond, uncond = (
            components.denoiser(noise, t, encode_prompts(components, prompts).tokens).sample
            for prompts in (PROMPTS, NEGATIVES)
        )
    expected = scheduler.step(uncond + 3.5 * (cond - uncond), t, noise).prev_sample
    same(our_latents(components, settings, NEGATIVES), expected)


@pytest.mark.parametrize("sampler", ["ddim", "euler_a", "dpm++2m_sde"])
def test_a_picture_does_not_depend_on_its_batch(components, sampler):
    settings = SamplerSettings(sampler, STEPS, 5.0)
    prompts, seeds = [*PROMPTS, "a cat", PROMPTS[0]], [7, 8, 9, 10]
    together, alone = (
        np.stack(generate(components, prompts, seeds, settings, batch_size=size)).astype(int)
        for size in (4, 1)
    )
    assert np.abs(together - alone).max() <= 1
    assert np.abs(together[0] - together[3]).max() > 1


@pytest.mark.parametrize("sampler", SAMPLERS)
@pytest.mark.parametrize("steps", [1, 2, 3])
def test_few_steps_stay_finite(components, sampler, steps):
    assert our_latents(components, SamplerSettings(sampler, steps, 2.0), None).isfinite().all()


@pytest.mark.parametrize("sampler", SAMPLERS)
def test_steps_report_their_batch_and_the_clean_estimate(components, sampler):
    seen = []
    generate(
        components,
        ["a fox"] * 3,
        [0, 1, 2],
        SamplerSettings(sampler, STEPS, 1.0),
        batch_size=2,
        on_step=seen.append,
    )
    assert {step.pictures for step in seen} == {range(2), range(2, 3)}
    first = [step for step in seen if step.pictures == range(2, 3)]
    assert [step.number for step in first] == list(range(1, first[0].total + 1))
    assert first[-1].clean.shape == (1, *components.latent_shape())


def test_the_last_clean_estimate_of_ddim_is_the_result(components):
    seen = []
    embeds = encode_prompts(components, PROMPTS).map(torch.Tensor.detach)
    noise = initial_noise(components.latent_shape(), SEEDS)
    config = components.scheduler_config | {"set_alpha_to_one": True}
    components = replace(components, scheduler_config=config)
    latents = sample_latents(
        components, embeds, None, noise, SamplerSettings("ddim", STEPS, 1.0), on_step=seen.append
    )
    same(seen[-1].clean, latents)


def test_other_sizes(components):
    image = generate(components, ["a dog"], [0], SamplerSettings("ddim", 2), height=24, width=48)[0]
    assert image.size == (48, 24)
    with pytest.raises(StudioloError, match="width 30 is not a positive multiple of 4 pixels"):
        generate(components, ["a dog"], [0], SamplerSettings("ddim", 2), width=30)


def test_decoded_pixels_are_bytes(components):
    pixels = decode_latents(components, torch.full((1, *components.latent_shape()), 1e3))
    assert pixels.dtype == np.uint8
    assert pixels.shape == (1, 32, 32, 3)


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"sampler": "Euler A"}, "Did you mean euler_a"),
        ({"sampler": "DPM++ 2M"}, r"Did you mean dpm\+\+2m\?"),
        ({"sampler": "zzz"}, "Known: ddim, pndm"),
        ({"steps": 0}, "steps"),
        ({"guidance_scale": -1.0}, "guidance_scale"),
        ({"guidance_scale": float("nan")}, "guidance_scale"),
        ({"eta": 1.5}, "eta"),
        ({"sampler": "euler", "eta": 0.5}, "use the sampler ddim"),
    ],
)
def test_wrong_settings_name_themselves(settings, message):
    with pytest.raises(StudioloError, match=message):
        SamplerSettings(**settings)


def test_more_steps_than_noise_levels(components):
    with pytest.raises(StudioloError, match="1000 noise levels"):
        generate(components, ["a dog"], [0], SamplerSettings(steps=1001))


@pytest.mark.parametrize("sampler", SAMPLERS)
@pytest.mark.parametrize("steps", range(15, 21))
def test_no_step_is_beyond_the_last_level(sampler, steps):
    config = {"num_train_timesteps": 20, "timestep_spacing": "leading", "steps_offset": 1}
    settings = SamplerSettings(sampler, steps=steps)
    refused = steps >= 19 and not _within(config, settings)
    with pytest.raises(StudioloError, match="20 noise levels") if refused else nullcontext():
        timesteps = make_scheduler(config, settings).timesteps
        assert 0 <= timesteps.min() <= timesteps.max() < 20


def _within(config, settings) -> bool:
    """Whether the reference's own timesteps are levels of the model."""
    scheduler_class, options = SAMPLERS[settings.sampler]
    scheduler = scheduler_class.from_config(config, **options)
    scheduler.set_timesteps(settings.steps)
    return bool(scheduler.timesteps.max() < 20)

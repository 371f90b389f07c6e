"""Our denoising loop against StableDiffusionPipeline on the same weights, noise and scheduler."""

from __future__ import annotations

import json
from contextlib import nullcontext
from dataclasses import replace
from functools import partial
from itertools import product

import numpy as np
import pytest
import torch
from diffusers import (
    DDIMScheduler,
    DPMSolverMultistepScheduler,
    DPMSolverSinglestepScheduler,
    EulerAncestralDiscreteScheduler,
    EulerDiscreteScheduler,
    HeunDiscreteScheduler,
    KDPM2AncestralDiscreteScheduler,
    KDPM2DiscreteScheduler,
    LCMScheduler,
    PNDMScheduler,
    StableDiffusionPipeline,
    UniPCMultistepScheduler,
)
from diffusers.guiders import ClassifierFreeGuidance

from studiolo.diffusion.conditioning import encode_prompts
from studiolo.diffusion.noise import generators, initial_noise
from studiolo.diffusion.sampler_settings import NAMES, SIGMAS, SPACINGS, SamplerSettings
from studiolo.diffusion.samplers import SAMPLERS, make_scheduler
from studiolo.diffusion.sampling import decode_latents, generate, sample_latents
from studiolo.errors import StudioloError
from tiny import tiny_components

# Written out again here, so that a wrong entry in SAMPLERS shows.
REFERENCE = {
    "ddim": partial(DDIMScheduler.from_config),
    "pndm": partial(PNDMScheduler.from_config, skip_prk_steps=True),
    "euler": partial(EulerDiscreteScheduler.from_config),
    "euler_a": partial(EulerAncestralDiscreteScheduler.from_config),
    "heun": partial(HeunDiscreteScheduler.from_config),
    "dpm2": partial(KDPM2DiscreteScheduler.from_config),
    "dpm2_a": partial(KDPM2AncestralDiscreteScheduler.from_config),
    "dpm++2m": partial(DPMSolverMultistepScheduler.from_config, algorithm_type="dpmsolver++"),
    "dpm++2m_sde": partial(DPMSolverMultistepScheduler.from_config, algorithm_type="sde-dpmsolver++"),
    "dpm++sde": partial(
        DPMSolverSinglestepScheduler.from_config, algorithm_type="sde-dpmsolver++", lower_order_final=True
    ),
    "unipc": partial(UniPCMultistepScheduler.from_config),
    "lcm": partial(LCMScheduler.from_config),
}
# Samplers that visit sigmas, and those whose steps can be spaced, as the reference's configs say.
ON_SIGMAS = ["euler", "heun", "dpm2", "dpm2_a", "dpm++2m", "dpm++2m_sde", "dpm++sde", "unipc"]
SPACED = [name for name in REFERENCE if name not in ("lcm", "dpm++sde")]
PROMPTS = ["a photo of a fox on the moon", "a red dog"]
NEGATIVES = ["snow", "a small blue cat at night"]
SEEDS = [7, 8]
STEPS = 5


@pytest.fixture(scope="module", params=["epsilon", "v_prediction"])
def components(request):
    return tiny_components(prediction_type=request.param)


@pytest.fixture(scope="module")
def one():
    return tiny_components(prediction_type="v_prediction")


def pipeline_latents(components, settings, negatives, **options):
    pipeline = StableDiffusionPipeline(
        vae=components.vae,
        text_encoder=components.text_encoder,
        tokenizer=components.tokenizer,
        unet=components.denoiser,
        scheduler=REFERENCE[settings.sampler](components.scheduler_config, **options),
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
        guidance_rescale=settings.guidance_rescale,
        eta=settings.eta,
        generator=[torch.Generator().manual_seed(seed) for seed in SEEDS],
        output_type="latent",
    ).images


def our_latents(components, settings, negatives, **options):
    with torch.no_grad():
        embeds = encode_prompts(components, PROMPTS)
        negative = encode_prompts(components, negatives or [""] * len(PROMPTS))
    shape = components.latent_shape()
    return sample_latents(components, embeds, negative, generators(SEEDS), shape, settings, **options)


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


@pytest.mark.parametrize(
    ("sampler", "sigmas"), [*product(ON_SIGMAS, ["karras"]), *product(["euler", "dpm++2m"], SIGMAS[1:])]
)
def test_sigmas_are_those_of_the_pipeline(one, sampler, sigmas):
    settings = SamplerSettings(sampler, STEPS, 6.0, sigmas=sigmas)
    theirs = pipeline_latents(one, settings, None, **{f"use_{sigmas}_sigmas": True})
    same(our_latents(one, settings, None), theirs)
    assert not torch.allclose(theirs, pipeline_latents(one, settings, None), atol=1e-3)


@pytest.mark.parametrize("sampler", ON_SIGMAS)
def test_sigmas_that_round_to_one_level_are_all_visited(one, sampler):
    """The cosine schedule's last levels are far apart in sigma: Karras' first steps share a level, over which
    the reference stumbles when nobody tells it where it begins."""
    config = one.scheduler_config | {"beta_schedule": "squaredcos_cap_v2"}
    cosine, seen = replace(one, scheduler_config=config), []
    latents = our_latents(cosine, SamplerSettings(sampler, 16, sigmas="karras"), None, on_step=seen.append)
    assert latents.isfinite().all()
    assert len(seen) == seen[0].total >= 16


@pytest.mark.parametrize(("sampler", "spacing"), product(SPACED, SPACINGS))
def test_spacings_are_those_of_the_pipeline(one, sampler, spacing):
    settings = SamplerSettings(sampler, STEPS, 6.0, spacing=spacing)
    theirs = pipeline_latents(one, settings, None, timestep_spacing=spacing)
    same(our_latents(one, settings, None), theirs)


@pytest.mark.parametrize("sampler", [name for name in REFERENCE if name not in ON_SIGMAS])
def test_samplers_on_levels_refuse_sigmas(one, sampler):
    with pytest.raises(StudioloError, match="visits levels"):
        our_latents(one, SamplerSettings(sampler, STEPS, sigmas="karras"), None)


@pytest.mark.parametrize("sampler", [name for name in REFERENCE if name not in SPACED])
def test_samplers_with_one_spacing_refuse_others(one, sampler):
    with pytest.raises(StudioloError, match="one spacing"):
        our_latents(one, SamplerSettings(sampler, STEPS, spacing="trailing"), None)


def test_rescaled_guidance_is_that_of_the_pipeline(components):
    settings = SamplerSettings("ddim", STEPS, 8.0, guidance_rescale=0.7)
    theirs = pipeline_latents(components, settings, NEGATIVES)
    same(our_latents(components, settings, NEGATIVES), theirs)
    plain = pipeline_latents(components, replace(settings, guidance_rescale=0.0), NEGATIVES)
    assert not torch.allclose(theirs, plain, atol=1e-3)


@pytest.mark.parametrize(("first", "until"), [(0.0, 0.5), (0.4, 1.0), (0.3, 0.7)])
@pytest.mark.usefixtures("one_thread")
def test_the_interval_of_guidance_is_that_of_the_guider(one, monkeypatch, first, until):
    """A loop around diffusers' guider, which its modular pipelines call."""
    settings = SamplerSettings("ddim", 7, 6.0, guidance_from=first, guidance_until=until)
    guider = ClassifierFreeGuidance(6.0, start=first, stop=until)
    scheduler = DDIMScheduler.from_config(one.scheduler_config)
    scheduler.set_timesteps(settings.steps)
    latents = initial_noise(one.latent_shape(), SEEDS)
    with torch.no_grad():
        texts = [encode_prompts(one, prompts).tokens for prompts in (PROMPTS, [""] * len(PROMPTS))]
        for i, t in enumerate(scheduler.timesteps):
            guider.set_state(step=i, num_inference_steps=settings.steps, timestep=t)
            conditional, unconditional = (one.denoiser(latents, t, text).sample for text in texts)
            latents = scheduler.step(guider.forward(conditional, unconditional).pred, t, latents).prev_sample
    rows = []
    forward = one.denoiser.forward
    monkeypatch.setattr(
        one.denoiser,
        "forward",
        lambda sample, *a, **k: rows.append(len(sample)) or forward(sample, *a, **k),
    )
    same(our_latents(one, settings, None), latents)
    guided = range(int(first * 7), int(until * 7))
    assert rows == [len(PROMPTS) * (2 if i in guided else 1) for i in range(7)]


def test_every_sampler_is_compared():
    assert set(REFERENCE) == set(SAMPLERS) == set(NAMES)


@pytest.mark.parametrize(("sampler", "calls"), [("ddim", 5), ("heun", 9), ("dpm2", 9), ("dpm++sde", 5)])
@pytest.mark.usefixtures("one_thread")
def test_calls_of_the_denoiser_are_counted(one, monkeypatch, sampler, calls):
    seen, rows = [], []
    forward = one.denoiser.forward
    monkeypatch.setattr(one.denoiser, "forward", lambda *a, **k: rows.append(1) or forward(*a, **k))
    our_latents(one, SamplerSettings(sampler, STEPS), None, on_step=seen.append)
    assert [step.number for step in seen] == list(range(1, calls + 1))
    assert {step.total for step in seen} == {len(rows)} == {calls}


def test_pictures_are_those_of_the_pipeline(components):
    settings = SamplerSettings("ddim", STEPS, 5.0)
    images = generate(components, PROMPTS, SEEDS, settings, NEGATIVES)
    latents = pipeline_latents(components, settings, NEGATIVES)
    with torch.no_grad():
        decoded = components.vae.decode(latents / components.vae.config.scaling_factor).sample
    expected = ((decoded / 2 + 0.5).clamp(0, 1) * 255).permute(0, 2, 3, 1).numpy()
    np.testing.assert_allclose(np.stack(images).astype(float), expected, atol=0.51)


@pytest.mark.usefixtures("one_thread")
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


@pytest.mark.parametrize("sampler", ["ddim", "euler_a", "dpm2_a", "dpm++2m_sde", "dpm++sde", "lcm"])
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
    config = components.scheduler_config | {"set_alpha_to_one": True}
    components = replace(components, scheduler_config=config)
    latents = sample_latents(
        components,
        embeds,
        None,
        generators(SEEDS),
        components.latent_shape(),
        SamplerSettings("ddim", STEPS, 1.0),
        on_step=seen.append,
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
        ({"spacing": "trail"}, "Did you mean trailing"),
        ({"sigmas": "Karras"}, "Did you mean karras"),
        ({"guidance_rescale": 1.1}, "guidance_rescale"),
        ({"guidance_until": -0.1}, "guidance_until"),
        ({"guidance_from": 0.6, "guidance_until": 0.5}, "end after it begins"),
    ],
)
def test_wrong_settings_name_themselves(settings, message):
    with pytest.raises(StudioloError, match=message):
        SamplerSettings(**settings)


def test_settings_as_json_are_the_same_again():
    plain = SamplerSettings("euler", 7, 3.0)
    assert plain.as_dict() == {"sampler": "euler", "steps": 7, "guidance_scale": 3.0, "eta": 0.0}
    rich = SamplerSettings("euler", 7, sigmas="karras", guidance_rescale=0.5, guidance_until=0.8)
    assert SamplerSettings(**json.loads(json.dumps(rich.as_dict()))) == rich


def test_lcm_has_as_many_steps_as_its_teacher(one):
    with pytest.raises(StudioloError, match="60 steps, but the model has 50"):
        our_latents(one, SamplerSettings("lcm", 60), None)
    few = {"num_train_timesteps": 20}
    assert len(make_scheduler(few, SamplerSettings("lcm", 20)).timesteps) == 20


@pytest.mark.parametrize("sampler", ["heun", "dpm2_a"])
def test_a_first_step_that_would_blow_errors_up_is_refused(one, sampler):
    config = one.scheduler_config | {"beta_schedule": "squaredcos_cap_v2", "timestep_spacing": "trailing"}
    nearly_pure = replace(one, scheduler_config=config)
    with pytest.raises(StudioloError, match=r"from noise of 20291 to 10\.3"):
        our_latents(nearly_pure, SamplerSettings(sampler, 16), None)
    exponential = SamplerSettings(sampler, 16, sigmas="exponential")
    assert our_latents(nearly_pure, exponential, None).isfinite().all()


def test_a_model_that_ends_in_pure_noise_refuses_samplers_that_cannot_begin_there(one):
    config = one.scheduler_config | {"rescale_betas_zero_snr": True, "timestep_spacing": "trailing"}
    zero = replace(one, scheduler_config=config)
    assert our_latents(zero, SamplerSettings("euler", STEPS), None).isfinite().all()
    with pytest.raises(StudioloError, match="heun cannot begin there"):
        our_latents(zero, SamplerSettings("heun", STEPS), None)


def test_more_steps_than_noise_levels(components):
    with pytest.raises(StudioloError, match="1000 noise levels"):
        generate(components, ["a dog"], [0], SamplerSettings(steps=1001))


@pytest.mark.parametrize("sampler", [name for name in SAMPLERS if name != "lcm"])
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

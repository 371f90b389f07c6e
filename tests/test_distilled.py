"""Models that guidance was distilled into (latent consistency models), against the reference pipelines."""

from __future__ import annotations

from dataclasses import replace

import pytest
import torch
from diffusers import DiffusionPipeline, LCMScheduler, StableDiffusionXLPipeline, UNet2DConditionModel

from lessons import lesson, teach
from studiolo.diffusion.conditioning import encode_prompts
from studiolo.diffusion.guidance import scale_embedding
from studiolo.diffusion.noise import generators
from studiolo.diffusion.sampler_settings import SamplerSettings
from studiolo.diffusion.sampling import generate, sample_latents
from studiolo.drawing.model import load
from studiolo.errors import StudioloError
from studiolo.formats.diffusers_folder import load_components, save_components
from tiny_families import tiny_sd1, tiny_sdxl

PROMPTS = ["a photo of a fox on the moon", "a red dog"]
SEEDS = [7, 8]
TINY = {"sd": tiny_sd1, "sdxl": tiny_sdxl}


@pytest.fixture(scope="module", params=TINY)
def folder(request, tmp_path_factory):
    """A saved model whose U-Net reads the guidance scale, as SimianLuo/LCM_Dreamshaper_v7's does."""
    components = TINY[request.param]()
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(3)
        components.denoiser = UNet2DConditionModel.from_config(
            components.denoiser.config, time_cond_proj_dim=18
        ).eval()
    components.scheduler_config |= {"_class_name": "LCMScheduler"}
    return save_components(components, tmp_path_factory.mktemp("distilled") / request.param)


def ours(components, settings):
    with torch.no_grad():
        told = encode_prompts(components, PROMPTS).sized(components.family.sizes(32, 32))
    return sample_latents(components, told, None, generators(SEEDS), components.latent_shape(), settings)


@pytest.mark.parametrize("scale", [0.0, 1.0, 8.5])
def test_latents_are_those_of_the_pipeline(folder, scale):
    pipeline = DiffusionPipeline.from_pretrained(folder)
    pipeline.set_progress_bar_config(disable=True)
    assert isinstance(pipeline.scheduler, LCMScheduler)
    theirs = pipeline(
        PROMPTS,
        negative_prompt=["snow"] * 2,
        num_inference_steps=4,
        guidance_scale=scale,
        generator=[torch.Generator().manual_seed(seed) for seed in SEEDS],
        output_type="latent",
    ).images
    mine = ours(load_components(folder), SamplerSettings("lcm", 4, scale))
    torch.testing.assert_close(mine, theirs, rtol=1e-4, atol=1e-4 * theirs.abs().max().item())


def test_the_scale_matters_and_ends_with_its_part_of_the_steps(folder):
    components = load_components(folder)
    settings = SamplerSettings("lcm", 4, 8.5)
    guided, plain = (ours(components, replace(settings, guidance_scale=scale)) for scale in (8.5, 1.0))
    assert (guided - plain).abs().max() > 1e-3
    assert torch.equal(ours(components, replace(settings, guidance_until=0.0)), plain)


@pytest.mark.parametrize("width", [18, 19, 256])
def test_the_embedding_is_that_of_the_pipeline(width):
    for scale in (0.0, 1.0, 7.5):
        theirs = StableDiffusionXLPipeline.get_guidance_scale_embedding(
            None, torch.tensor([scale - 1]), embedding_dim=width
        )
        torch.testing.assert_close(scale_embedding(scale, width), theirs[0], rtol=0, atol=2e-4)


def test_pictures_are_drawn_and_negative_prompts_are_noted(folder):
    (image,) = generate(load_components(folder), ["a fox"], [0], SamplerSettings("lcm", 2, 8.0))
    assert image.size == (32, 32)
    with pytest.warns(UserWarning, match="negative prompts are not read"):
        load(folder).generate("a fox", negative_prompt="snow", sampler="lcm", steps=1)


def test_it_cannot_be_taught(folder, tmp_path):
    images = lesson(tmp_path / "lesson")["images"]
    with pytest.raises(StudioloError, match="drawn with, not taught"):
        teach({"images": images, "base": folder}, tmp_path / "run")
    assert not (tmp_path / "run").exists()
    components = load_components(folder)
    told = encode_prompts(components, ["a fox"]).sized(components.family.sizes(32, 32))
    with pytest.raises(StudioloError, match="distilled into this model, which can be drawn with, not taught"):
        components.predict(torch.zeros(1, 4, 8, 8), torch.tensor([400]), told)

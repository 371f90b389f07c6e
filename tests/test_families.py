"""Every family of models against the reference pipeline on the same weights: prompts, pictures, folders."""

from __future__ import annotations

import json
from dataclasses import replace
from itertools import product

import numpy as np
import pytest
import torch
from diffusers import (
    DDIMScheduler,
    DiffusionPipeline,
    DPMSolverMultistepScheduler,
    EulerDiscreteScheduler,
    FlowMatchEulerDiscreteScheduler,
    FlowMatchHeunDiscreteScheduler,
    UNet2DConditionModel,
    UniPCMultistepScheduler,
)
from safetensors.torch import load_file

from studiolo.diffusion.components import NoiseSchedule
from studiolo.diffusion.conditioning import encode_negatives, encode_prompts
from studiolo.diffusion.samplers import FLOW_SAMPLERS, SamplerSettings
from studiolo.diffusion.sampling import generate
from studiolo.errors import StudioloError
from studiolo.formats.diffusers_folder import load_components, save_components
from tiny_families import TINY, tiny_sd1, tiny_sd2, tiny_sd3, tiny_sdxl

PROMPTS = ["a photo of a fox on the moon", "a red dog, with a very very long hat " + "big " * 30]
NEGATIVE = "a small blue cat at night"
SEEDS = [7, 8]


@pytest.fixture(scope="module")
def folders(tmp_path_factory):
    """A saved folder of each model, by name."""
    root = tmp_path_factory.mktemp("families")
    return {name: save_components(make(), root / name) for name, make in TINY.items()}


def pipeline_of(folder):
    absent = {"text_encoder_3": None, "tokenizer_3": None} if "without" in folder.name else {}
    pipeline = DiffusionPipeline.from_pretrained(folder, **absent)
    pipeline.set_progress_bar_config(disable=True)
    return pipeline


def same(ours: torch.Tensor, theirs: torch.Tensor) -> None:
    torch.testing.assert_close(ours, theirs, rtol=1e-4, atol=1e-4 * theirs.abs().max().item())


def reference_latents(pipeline, negative, guidance_scale, steps=4, **settings):
    return pipeline(
        PROMPTS,
        negative_prompt=None if negative is None else [negative] * 2,
        num_inference_steps=steps,
        guidance_scale=guidance_scale,
        generator=[torch.Generator().manual_seed(seed) for seed in SEEDS],
        output_type="latent",
        **settings,
    ).images


def decoded(components, latents) -> np.ndarray:
    """Pixels in [0, 255] as the reference's own decoding makes them."""
    config = components.vae.config
    with torch.no_grad():
        image = components.vae.decode(latents / config.scaling_factor + (config.shift_factor or 0)).sample
    return ((image / 2 + 0.5).clamp(0, 1) * 255).permute(0, 2, 3, 1).numpy()


def pixels(images) -> np.ndarray:
    return np.stack(images).astype(float)


@pytest.mark.parametrize("name", TINY)
def test_prompts_are_encoded_as_the_pipeline_does(folders, name):
    components, pipeline = load_components(folders[name]), pipeline_of(folders[name])
    told = {"device": "cpu", "do_classifier_free_guidance": True, "num_images_per_prompt": 1}
    others = {"sdxl": ["prompt_2"], "sd3": ["prompt_2", "prompt_3"]}.get(name.split()[0], [])
    with torch.no_grad():
        theirs = pipeline.encode_prompt(PROMPTS, **told, **dict.fromkeys(others))
        ours, negatives = encode_prompts(components, PROMPTS), encode_negatives(components, ["", ""])
    ours_parts = [ours.tokens, negatives.tokens, ours.pooled, negatives.pooled]
    for mine, reference in zip(ours_parts, theirs, strict=False):
        assert torch.equal(mine, reference)


@pytest.mark.parametrize(("name", "guidance", "negative"), [*product(TINY, [1.0, 5.0], [None, NEGATIVE])])
def test_pictures_are_those_of_the_pipeline(folders, name, guidance, negative):
    components = load_components(folders[name])
    sampler = {"sdxl": "euler", "sd3": "euler"}.get(name.split()[0], "ddim")
    settings = SamplerSettings(sampler, 4, guidance)
    latents = reference_latents(pipeline_of(folders[name]), negative, guidance)
    ours = pixels(generate(components, PROMPTS, SEEDS, settings, [negative or ""] * 2))
    np.testing.assert_allclose(ours, decoded(components, latents), atol=0.51)
    assert ours.std() > 5


def test_a_wide_picture_of_sdxl_is_told_its_size(folders):
    components, pipeline = load_components(folders["sdxl"]), pipeline_of(folders["sdxl"])
    latents = reference_latents(pipeline, None, 5.0, height=24, width=48)
    ours = generate(components, PROMPTS, SEEDS, SamplerSettings("euler", 4, 5.0), height=24, width=48)
    np.testing.assert_allclose(pixels(ours), decoded(components, latents), atol=0.51)


@pytest.mark.parametrize("sampler", FLOW_SAMPLERS)
def test_flow_samplers_are_those_of_the_pipeline(folders, sampler):
    components, pipeline = load_components(folders["sd3"]), pipeline_of(folders["sd3"])
    config = pipeline.scheduler.config
    on_flow = {"prediction_type": "flow_prediction", "use_flow_sigmas": True, "flow_shift": config.shift}
    pipeline.scheduler = {
        "ddim": lambda: FlowMatchEulerDiscreteScheduler(shift=config.shift),
        "euler": lambda: FlowMatchEulerDiscreteScheduler(shift=config.shift),
        "heun": lambda: FlowMatchHeunDiscreteScheduler(shift=config.shift),
        "dpm++2m": lambda: DPMSolverMultistepScheduler(**on_flow),
        "unipc": lambda: UniPCMultistepScheduler(**on_flow),
    }[sampler]()
    latents = reference_latents(pipeline, None, 4.0, steps=5)
    ours = generate(components, PROMPTS, SEEDS, SamplerSettings(sampler, 5, 4.0))
    np.testing.assert_allclose(pixels(ours), decoded(components, latents), atol=0.51)


def test_a_flow_cannot_be_sampled_by_every_sampler():
    components = tiny_sd3()
    for settings in (SamplerSettings("euler_a", 2), SamplerSettings("ddim", 2, eta=0.5)):
        with pytest.raises(StudioloError, match="cannot sample a flow model"):
            generate(components, ["a fox"], [0], settings)


def test_the_last_clean_estimate_of_euler_is_the_result():
    for components in (tiny_sd3(), tiny_sdxl()):
        seen = []
        generate(components, ["a fox"], [0], SamplerSettings("euler", 3, 1.0), on_step=seen.append)
        settings = SamplerSettings("euler", 3, 1.0)
        images = generate(components, ["a fox"], [0], settings)
        np.testing.assert_allclose(pixels(images), decoded(components, seen[-1].clean), atol=0.6)


@pytest.mark.parametrize(("name", "skip"), [("sd1", 1), ("sd2", 1), ("sd2", 2), ("sdxl", 1), ("sd3", 1)])
def test_clip_skip_is_that_of_the_pipeline(folders, name, skip):
    components, pipeline = load_components(folders[name]), pipeline_of(folders[name])
    if not hasattr(pipeline.text_encoder, "text_model"):  # which this pipeline expects, and new encoders lack
        object.__setattr__(pipeline.text_encoder, "text_model", pipeline.text_encoder)
    taught = replace(components, family=replace(components.family, clip_skip=skip))
    sampler = "euler" if name in ("sdxl", "sd3") else "ddim"
    for guidance in (1.0, 5.0):
        expected = decoded(components, reference_latents(pipeline, NEGATIVE, guidance, clip_skip=skip))
        settings = SamplerSettings(sampler, 4, guidance)
        ours = generate(taught, PROMPTS, SEEDS, settings, [NEGATIVE] * 2)
        np.testing.assert_allclose(pixels(ours), expected, atol=0.51)
        asked = generate(components, PROMPTS, SEEDS, replace(settings, clip_skip=skip), [NEGATIVE] * 2)
        assert np.array_equal(pixels(asked), pixels(ours))
    with pytest.raises(StudioloError, match="cannot be left out"):
        generate(components, PROMPTS, SEEDS, SamplerSettings(clip_skip=9))


def test_clip_skip_changes_the_picture_the_fingerprint_and_the_folder(tmp_path):
    plain, skipped = tiny_sd1(), tiny_sd1()
    skipped.family = replace(skipped.family, clip_skip=1)
    assert plain.fingerprint() != skipped.fingerprint()
    folder = save_components(skipped, tmp_path / "skipped")
    back = load_components(folder)
    assert back.family.clip_skip == 1
    assert back.fingerprint() == skipped.fingerprint()
    one, two = (generate(c, ["a fox"], [0], SamplerSettings("ddim", 2))[0] for c in (plain, skipped))
    assert one.tobytes() != two.tobytes()
    assert type(DiffusionPipeline.from_pretrained(folder)).__name__ == "StableDiffusionPipeline"


@pytest.mark.parametrize("name", TINY)
def test_round_trip_is_bit_exact(folders, name):
    ours, back = TINY[name](), load_components(folders[name])
    assert back.modules.keys() == ours.modules.keys()
    for part, module in ours.modules.items():
        weights = back.modules[part].state_dict()
        assert weights.keys() == module.state_dict().keys()
        assert all(torch.equal(weights[key], tensor) for key, tensor in module.state_dict().items())
    assert back.family == ours.family
    assert back.fingerprint() == ours.fingerprint()
    assert [t.get_vocab() for t in back.tokenizers] == [t.get_vocab() for t in ours.tokenizers]


@pytest.mark.parametrize("name", TINY)
def test_a_folder_of_the_reference_pipeline_loads(folders, name, tmp_path):
    pipeline_of(folders[name]).save_pretrained(tmp_path / "theirs")
    assert load_components(tmp_path / "theirs").fingerprint() == load_components(folders[name]).fingerprint()


def test_fingerprints_see_what_a_family_is_told():
    told = tiny_sdxl()
    told.family = replace(told.family, zero_empty=False)
    assert told.fingerprint() != tiny_sdxl().fingerprint()
    shifted = tiny_sd3()
    shifted.scheduler_config["shift"] = 1.0
    assert shifted.fingerprint() != tiny_sd3().fingerprint()


def test_empty_negative_prompts_are_encoded_where_the_folder_says_so(folders, tmp_path):
    components = load_components(folders["sdxl"])
    components.family = replace(components.family, zero_empty=False)
    folder = save_components(components, tmp_path / "model")
    assert json.loads((folder / "model_index.json").read_text())["force_zeros_for_empty_prompt"] is False
    latents = reference_latents(pipeline_of(folder), None, 5.0)
    ours = generate(load_components(folder), PROMPTS, SEEDS, SamplerSettings("euler", 4, 5.0))
    np.testing.assert_allclose(pixels(ours), decoded(components, latents), atol=0.51)


def test_half_precision_keeps_what_would_overflow(folders):
    sdxl = load_components(folders["sdxl"], dtype=torch.float16)
    assert (sdxl.dtype, sdxl.vae.dtype) == (torch.float16, torch.float32)
    full = load_components(folders["sdxl"])
    assert all(map(torch.equal, sdxl.vae.parameters(), full.vae.parameters()))
    assert full.to(dtype=torch.float16).vae.dtype == torch.float32
    fixed = load_components(folders["sdxl"])
    fixed.vae.register_to_config(force_upcast=False)
    assert fixed.to(dtype=torch.float16).vae.dtype == torch.float16
    assert load_components(folders["sdxl"], dtype=torch.bfloat16).vae.dtype == torch.bfloat16

    sd3 = load_components(folders["sd3"]).to(dtype=torch.float16)
    reference = pipeline_of(folders["sd3"]).to(torch.float16)
    assert sd3.vae.dtype == torch.float16
    for tower in (sd3.text_encoders[2], load_components(folders["sd3"], torch.float16).text_encoders[2]):
        kept = {name for name, tensor in tower.named_parameters() if tensor.dtype == torch.float32}
        assert kept == {n for n, _ in reference.text_encoder_3.named_parameters() if ".wo." in n}


@pytest.mark.parametrize("name", ["sdxl", "sd3"])
def test_half_precision_is_stored_whole_and_drawn_from(folders, tmp_path, name):
    components = load_components(folders[name])
    folder = save_components(components, tmp_path / "half", dtype=torch.float16)
    for file in folder.rglob("*.safetensors"):
        assert {tensor.dtype for tensor in load_file(file).values()} == {torch.float16}, file
    assert {module.dtype for module in components.modules.values()} == {torch.float32}
    image = generate(load_components(folder), ["a fox"], [0], SamplerSettings("euler", 2))[0]
    assert np.asarray(image).std() > 1


@pytest.mark.parametrize("name", ["sdxl", "sd3"])
def test_sharded_weights_and_their_half_precision_variants_load(folders, tmp_path, name):
    expected = load_components(folders[name])
    pipeline = pipeline_of(folders[name])
    pipeline.save_pretrained(tmp_path / "shards", max_shard_size="20KB")
    assert len(list((tmp_path / "shards").rglob("*-of-*.safetensors"))) > 6
    assert load_components(tmp_path / "shards").fingerprint() == expected.fingerprint()
    half = save_components(expected, tmp_path / "half", dtype=torch.float16)
    pipeline_of(half).save_pretrained(tmp_path / "variants", variant="fp16", max_shard_size="20KB")
    assert list((tmp_path / "variants").rglob("*fp16*"))
    assert load_components(tmp_path / "variants").fingerprint() == load_components(half).fingerprint()


def test_zero_terminal_snr_is_that_of_the_scheduler():
    components = tiny_sd2()
    scheduler = DDIMScheduler.from_config(components.scheduler_config)
    schedule = components.schedule
    assert schedule.alphas[-1] == 0
    torch.testing.assert_close(schedule.alphas**2, scheduler.alphas_cumprod, atol=1e-6, rtol=1e-5)
    assert schedule.prediction_type == "v_prediction"


def test_the_flow_schedule_is_that_of_the_scheduler():
    components = tiny_sd3()
    scheduler = FlowMatchEulerDiscreteScheduler.from_config(components.scheduler_config)
    schedule = components.schedule
    torch.testing.assert_close(schedule.sigmas.flip(0), scheduler.sigmas)
    torch.testing.assert_close(schedule.times.flip(0), scheduler.timesteps)
    x, noise = torch.randn(2, 3, 16, 8, 8, generator=torch.Generator().manual_seed(0))
    levels = torch.tensor([0, 400, 999])
    alpha, sigma = schedule.alpha_sigma(levels, 4)
    theirs = scheduler.scale_noise(x, scheduler.timesteps.flip(0)[levels], noise)
    torch.testing.assert_close(alpha * x + sigma * noise, theirs)


def test_times_between_levels_are_read_between_them():
    components = tiny_sdxl()
    scheduler = EulerDiscreteScheduler.from_config(components.scheduler_config)
    scheduler.set_timesteps(7)
    schedule = components.schedule
    alpha, sigma = schedule.alpha_sigma(scheduler.timesteps)
    theirs = scheduler.sigmas[:-1]
    torch.testing.assert_close(sigma / alpha, theirs, rtol=1e-3, atol=1e-3)
    levels = torch.tensor([0, 5, 999])
    for ours, exact in zip(schedule.alpha_sigma(levels.float()), schedule.alpha_sigma(levels), strict=True):
        assert torch.equal(ours, exact)
    flow = NoiseSchedule.flow(torch.linspace(0.001, 1, 1000))
    assert flow.alpha_sigma(torch.tensor([123.4]))[1].item() == pytest.approx(0.1234, abs=1e-6)


def test_sides_are_those_that_a_transformer_can_take():
    components = tiny_sd3()
    assert components.image_size == 32
    assert components.latent_shape(24, 40) == (16, 6, 10)
    with pytest.raises(StudioloError, match="multiple of 8 pixels"):
        components.latent_shape(28, 40)
    with pytest.raises(StudioloError, match="more than this model can draw"):
        components.latent_shape(104, 40)


def test_sdxl_s_refiner_and_other_tasks_are_told(folders, tmp_path):
    components = load_components(folders["sdxl"])
    refiner = save_components(components, tmp_path / "refiner")
    for part in ("text_encoder", "tokenizer"):
        for file in (refiner / part).iterdir():
            file.unlink()
        (refiner / part).rmdir()
    with pytest.raises(StudioloError, match="refiner"):
        load_components(refiner)

    for channels, task in ((9, "inpainting"), (8, "editing"), (5, "depth")):
        components.denoiser = UNet2DConditionModel.from_config(
            components.denoiser.config, in_channels=channels
        )
        with pytest.raises(StudioloError, match=task):
            load_components(save_components(components, tmp_path / task))


def test_a_pipeline_of_no_family_is_named(folders, tmp_path):
    (tmp_path / "model_index.json").write_text('{"_class_name": "FluxPipeline"}')
    with pytest.raises(StudioloError, match="models for FluxPipeline cannot be loaded"):
        load_components(tmp_path)


def test_parts_that_do_not_fit_are_told(folders, tmp_path):
    components, other = load_components(folders["sdxl"]), load_components(folders["sd3"])
    components.text_encoders = (components.text_encoders[1], components.text_encoders[1])
    components.tokenizers = (components.tokenizers[1], components.tokenizers[1])
    with pytest.raises(StudioloError, match=r"width is 48, and 40 is wanted"):
        load_components(save_components(components, tmp_path / "sdxl"))
    other.text_encoders = (other.text_encoders[0], other.text_encoders[0], other.text_encoders[2])
    with pytest.raises(StudioloError, match=r"projection is 32, and 40 is wanted"):
        load_components(save_components(other, tmp_path / "sd3"))

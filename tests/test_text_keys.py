"""The text's keys and values are computed once for all steps, and never when they would be stale."""

from __future__ import annotations

import copy
from collections import Counter
from threading import Barrier, Thread

import numpy as np
import pytest
import torch
from diffusers import StableDiffusionPipeline
from peft import LoraConfig

from studiolo.diffusion.conditioning import encode_prompts
from studiolo.diffusion.noise import generators
from studiolo.diffusion.sampler_settings import SamplerSettings
from studiolo.diffusion.samplers import make_scheduler
from studiolo.diffusion.sampling import generate
from studiolo.diffusion.text_keys import kept_bytes, text_read_once
from tiny import tiny_components
from tiny_families import tiny_sd3, tiny_sdxl

pytestmark = pytest.mark.usefixtures("one_thread")
PROMPTS, SEEDS = ["a photo of a fox on the moon", "a red dog"], [7, 8]


@pytest.fixture
def counted(monkeypatch):
    """How often each linear layer has computed."""
    calls, compute = Counter(), torch.nn.Linear.forward

    def forward(layer, states):
        calls[layer] += 1
        return compute(layer, states)

    monkeypatch.setattr(torch.nn.Linear, "forward", forward)
    return calls


def text_layers(denoiser):
    named = dict(denoiser.named_modules())
    return [named[name] for name in named if name.endswith(("attn2.to_k", "attn2.to_v"))]


@pytest.mark.parametrize("make", [tiny_components, tiny_sdxl])
def test_a_drawing_projects_its_text_once(make, counted):
    components = make()
    generate(components, PROMPTS, SEEDS, SamplerSettings(steps=5), batch_size=2)
    layers = text_layers(components.denoiser)
    assert layers
    assert [counted[layer] for layer in layers] == [1] * len(layers)
    assert all("forward" not in vars(module) for module in components.denoiser.modules())
    generate(components, PROMPTS, SEEDS, SamplerSettings(steps=5), batch_size=1)
    assert [counted[layer] for layer in layers] == [3] * len(layers)  # once for each batch


def test_guidance_in_a_part_of_the_steps_reads_two_texts(counted):
    components = tiny_components()
    generate(components, PROMPTS, SEEDS, SamplerSettings(steps=6, guidance_until=0.5))
    assert {counted[layer] for layer in text_layers(components.denoiser)} == {2}


def test_pictures_are_those_of_the_pipeline():
    # which projects anew at each step; the rest of the settings: test_sampling.py
    components, settings = tiny_components(), SamplerSettings(steps=5)
    pipeline = StableDiffusionPipeline(
        vae=components.vae, text_encoder=components.text_encoder, tokenizer=components.tokenizer,
        unet=components.denoiser, scheduler=make_scheduler(components.scheduler_config, settings),
        safety_checker=None, feature_extractor=None, requires_safety_checker=False,
    )  # fmt: skip
    expected = pipeline(
        PROMPTS, num_inference_steps=5, guidance_scale=5.0, generator=generators(SEEDS), output_type="np"
    ).images
    drawn = np.stack(generate(components, PROMPTS, SEEDS, settings))
    assert np.abs(drawn / 255 - expected).max() < 1.01 / 255


@torch.no_grad()
def test_an_adapter_is_part_of_what_is_kept():
    components = tiny_components()
    unet = components.denoiser
    unet.add_adapter(LoraConfig(r=2, target_modules=["to_k", "to_v"], init_lora_weights=False))
    text = encode_prompts(components, PROMPTS).tokens
    noisy = torch.randn(2, *components.latent_shape())
    expected = unet(noisy, 400, text).sample
    with text_read_once(unet):
        for _ in range(2):
            assert torch.equal(unet(noisy, 400, text).sample, expected)
    unet.disable_adapters()
    assert not torch.equal(unet(noisy, 400, text).sample, expected)


@torch.no_grad()
def test_weights_that_change_between_drawings_are_seen():
    components = tiny_components()
    unet, text = components.denoiser, encode_prompts(components, PROMPTS).tokens
    noisy = torch.randn(2, *components.latent_shape())
    with text_read_once(unet):
        before = unet(noisy, 400, text).sample
    for layer in text_layers(unet):
        layer.weight.mul_(-3)
    expected = unet(noisy, 400, text).sample
    assert not torch.allclose(before, expected, atol=1e-4)
    with text_read_once(unet):
        assert torch.equal(unet(noisy, 400, text).sample, expected)


def test_gradients_go_through():
    components = tiny_components()
    unet, text = components.denoiser, torch.randn(1, 24, 32)
    noisy = torch.randn(1, *components.latent_shape())
    with text_read_once(unet):
        with torch.no_grad():
            unet(noisy, 400, text)
        unet(noisy, 400, text).sample.sum().backward()
    assert all(layer.weight.grad is not None for layer in text_layers(unet))


@torch.no_grad()
def test_what_is_kept_goes_with_its_text(counted):
    components = tiny_components()
    unet, noisy = components.denoiser, torch.randn(1, *components.latent_shape())
    with text_read_once(unet):
        kept = text_layers(unet)[0].forward._made
        for _ in range(3):
            unet(noisy, 400, torch.randn(1, 24, 32))  # each text dies after its call
            assert len(kept) == 0
    assert {counted[layer] for layer in text_layers(unet)} == {3}


def test_two_who_draw_at_once_leave_the_model_as_it_was():
    components = tiny_components()
    settings = SamplerSettings(steps=4)
    expected = [np.asarray(generate(components, [p], [7], settings)[0]) for p in PROMPTS]
    together, drawn = Barrier(2, timeout=60), {}

    def draw(prompt):
        together.wait()
        drawn[prompt] = [np.asarray(generate(components, [prompt], [7], settings)[0]) for _ in range(5)]

    threads = [Thread(target=draw, args=[prompt]) for prompt in PROMPTS]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    for prompt, picture in zip(PROMPTS, expected, strict=True):
        assert all(np.array_equal(one, picture) for one in drawn[prompt])
    assert all("forward" not in vars(module) for module in components.denoiser.modules())


@torch.no_grad()
def test_a_copy_made_meanwhile_is_on_its_own():
    unet, text = tiny_components().denoiser, torch.randn(1, 24, 32)
    noisy = torch.randn(1, 4, 8, 8)
    with text_read_once(unet):
        unet(noisy, 400, text)
        twin = copy.deepcopy(unet)
    for layer in text_layers(twin):
        layer.weight.mul_(-3)
    plain = tiny_components().denoiser
    plain.load_state_dict(twin.state_dict())
    assert torch.equal(twin(noisy, 400, text).sample, plain(noisy, 400, text).sample)


@torch.no_grad()
def test_what_is_kept_is_what_batches_are_reckoned_with():
    components, text = tiny_components(), torch.randn(2, 24, 32)
    unet = components.denoiser
    with text_read_once(unet):
        unet(torch.randn(2, 4, 8, 8), 400, text)
        kept = sum(layer.forward(text).nbytes for layer in text_layers(unet))
    assert kept == 2 * kept_bytes(components) > 0


def test_an_error_leaves_the_model_as_it_was():
    unet = tiny_components().denoiser
    with pytest.raises(KeyError), text_read_once(unet):
        raise KeyError
    assert all("forward" not in vars(module) for module in unet.modules())


def test_a_transformer_that_changes_the_text_is_left_alone():
    transformer = tiny_sd3().denoiser
    with text_read_once(transformer):
        assert all("forward" not in vars(module) for module in transformer.modules())

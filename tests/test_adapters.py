"""Adapters against peft's own forward and diffusers' loading and fusing of the same weights."""

from __future__ import annotations

import copy

import pytest
import torch
from diffusers import DDIMScheduler, StableDiffusionPipeline
from safetensors.torch import save_file

from studiolo.diffusion.adapters import AdapterSettings, adapter_state, inject, merge, remove
from studiolo.diffusion.components import Components
from studiolo.diffusion.conditioning import encode_prompts
from studiolo.errors import StudioloError
from tiny import tiny_components

ALL = ("attention", "feed_forward", "conv")


def adapted(kind: str = "lora", **settings) -> Components:
    """A tiny model with adapters whose every tensor is random."""
    components = tiny_components()
    inject(components, AdapterSettings(kind, **({"rank": 3, "text_rank": 2, "alpha": 5.0} | settings)))
    generator = torch.Generator().manual_seed(1)
    with torch.no_grad():
        for part in components.modules.values():
            for parameter in part.parameters():
                if parameter.requires_grad:
                    noise = torch.randn(parameter.shape, generator=generator)
                    parameter.add_(0.1 * noise * parameter.abs().mean().clamp_min(0.1))
    return components


def says(components: Components) -> torch.Tensor:
    """What the model predicts for one noisy picture and prompt."""
    noisy = torch.randn(1, 4, 8, 8, generator=torch.Generator().manual_seed(0))
    with torch.no_grad():
        conditioning = encode_prompts(components, ["a photo of a fox on the beach"])
        return components.predict(noisy, torch.tensor([400]), conditioning)


def pipeline(components: Components) -> StableDiffusionPipeline:
    return StableDiffusionPipeline(
        vae=components.vae,
        text_encoder=components.text_encoder,
        tokenizer=components.tokenizer,
        unet=components.denoiser,
        scheduler=DDIMScheduler.from_config(components.scheduler_config),
        safety_checker=None,
        feature_extractor=None,
        requires_safety_checker=False,
    )


@pytest.mark.parametrize("kind", ["lora", "dora"])
def test_a_new_adapter_changes_nothing_and_alone_is_trained(kind):
    components, plain = tiny_components(), tiny_components()
    inject(components, AdapterSettings(kind, rank=3, text_rank=2, targets=ALL))
    torch.testing.assert_close(says(components), says(plain), rtol=1e-4, atol=1e-6)
    trained = [
        name for part in components.modules.values() for name, p in part.named_parameters() if p.requires_grad
    ]
    assert trained
    assert all(".lora_" in name for name in trained)


@pytest.mark.parametrize("targets", [("attention",), ALL], ids=["attention", "all"])
@pytest.mark.parametrize("kind", ["lora", "dora"])
def test_merged_equals_unmerged(kind, targets):
    components = adapted(kind, targets=targets)
    merged = tiny_components()
    merge(merged, adapter_state(components))
    assert (says(merged) - says(tiny_components())).abs().max() > 0.01, "the adapter is to matter"
    torch.testing.assert_close(says(merged), says(components), rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize(("kind", "weight"), [("lora", 1.0), ("lora", 0.4), ("dora", 1.0)])
def test_merging_equals_what_diffusers_loads_and_fuses(kind, weight, tmp_path):
    state = adapter_state(adapted(kind, targets=ALL))
    save_file(state, tmp_path / "pytorch_lora_weights.safetensors")
    theirs = pipeline(tiny_components())
    theirs.load_lora_weights(tmp_path)
    theirs.fuse_lora(lora_scale=weight)
    theirs.unload_lora_weights()
    ours = tiny_components()
    merge(ours, state, weight)
    for mine, other in (
        (ours.denoiser.state_dict(), theirs.unet.state_dict()),
        (ours.text_encoder.state_dict(), theirs.text_encoder.state_dict()),
    ):
        assert mine.keys() == other.keys()
        for name in mine:
            torch.testing.assert_close(mine[name], other[name], rtol=1e-4, atol=1e-6)


def test_the_names_are_those_that_peft_writes():
    from peft import get_peft_model_state_dict

    components = adapted("dora", alpha=None)
    state = adapter_state(components)
    theirs = {
        f"{part}.{name.replace('_vector', '_vector.weight')}": tensor  # transformers wants the newer name
        for part in ("unet", "text_encoder")
        for name, tensor in get_peft_model_state_dict(components.modules[part]).items()
    }
    assert state.keys() == theirs.keys()
    assert all(torch.equal(state[name], theirs[name]) for name in state)


def test_the_base_comes_back_bit_for_bit():
    components = adapted("dora", targets=ALL)
    remove(components)
    assert components.fingerprint() == tiny_components().fingerprint()


def test_weight_zero_leaves_a_lora_out_and_two_add_up():
    state = adapter_state(adapted())
    plain, once, twice = (tiny_components() for _ in range(3))
    merge(plain, state, 0.0)
    assert plain.fingerprint() == tiny_components().fingerprint()
    merge(once, state, 2.0)
    merge(twice, state)
    merge(twice, state)
    torch.testing.assert_close(says(once), says(twice), rtol=1e-4, atol=1e-5)


def test_the_seed_decides_the_first_values():
    def first(seed: int) -> dict[str, torch.Tensor]:
        components = tiny_components()
        inject(components, AdapterSettings(seed=seed))
        return copy.deepcopy(adapter_state(components))

    one, same, other = first(1), first(1), first(2)
    assert all(torch.equal(one[name], same[name]) for name in one)
    assert any(not torch.equal(one[name], other[name]) for name in one)


@pytest.mark.parametrize(
    ("change", "told"),
    [
        ({"unet.nowhere.lora_A.weight": torch.zeros(2, 8)}, "no layer unet.nowhere"),
        ({"unet.conv_in.weight": torch.zeros(2, 8)}, "no part of a LoRA"),
        ({"unet.conv_in.lora_A.weight": torch.zeros(2, 8)}, "only one half"),
    ],
)
def test_what_does_not_fit_is_refused(change, told):
    with pytest.raises(StudioloError, match=told):
        merge(tiny_components(), change)


def test_a_model_of_another_width_is_refused():
    state = {name: torch.cat([t, t], dim=1) for name, t in adapter_state(adapted()).items()}
    with pytest.raises(StudioloError, match="does not fit the model"):
        merge(tiny_components(), state)


def test_nothing_to_adapt_is_refused():
    with pytest.raises(StudioloError, match="rank above 0"):
        inject(tiny_components(), AdapterSettings(rank=0))

"""Frozen layers in half precision: autocast's products bit for bit, in half the room; and back again."""

from __future__ import annotations

import copy
from pathlib import Path

import pytest
import torch

from lessons import lesson, same_weights, teach
from studiolo.diffusion.adapters import AdapterSettings, inject
from studiolo.dreambooth import exporting, personalize
from studiolo.dreambooth.recipe import Recipe
from studiolo.errors import StudioloError
from studiolo.training.halves import halve, is_halved, make_whole
from tiny import tiny_components
from tiny_families import TINY

BF16 = {"precision": "bf16-mixed"}
LORA = {"adapter": {"kind": "lora", "rank": 4, "alpha": 8}}


def asked(components, *, autocast: bool) -> list[torch.Tensor]:
    """A prediction, and where gradients are wanted those of its square."""
    generator = torch.Generator().manual_seed(0)
    noisy = torch.randn(2, *components.latent_shape(), generator=generator).requires_grad_()
    ids = [
        torch.randint(0, 40, (2, n), generator=generator)
        for n in components.family.lengths(components.tokenizers)
    ]
    with torch.autocast("cpu", torch.bfloat16, enabled=autocast):
        told = components.family.encode(components.text_encoders, ids).sized(sizes_of(components))
        prediction = components.predict(noisy, torch.tensor([400, 20]), told)
    prediction.float().pow(2).mean().backward()
    wanted = [
        p.grad for network in components.modules.values() for p in network.parameters() if p.requires_grad
    ]
    return [prediction, noisy.grad, *(gradient for gradient in wanted if gradient is not None)]


def sizes_of(components):
    sizes = components.family.sizes(32, 32)
    return None if sizes is None else sizes.expand(2, -1)


def adapted(name: str):
    components = TINY[name]()
    inject(components, AdapterSettings(rank=2, text_rank=2, targets=("attention", "conv")))
    for network in components.modules.values():
        for parameter in network.parameters():
            if parameter.requires_grad:
                torch.nn.init.normal_(parameter, std=0.1)
    return components


def halved(components):
    for network in (components.denoiser, *components.text_encoders):
        halve(network, torch.bfloat16)
    return components


@pytest.mark.parametrize("name", TINY)
def test_under_autocast_nothing_has_changed(name):
    components = adapted(name)
    before = asked(components.copy(), autocast=True)
    after = asked(halved(components), autocast=True)
    assert len(before) > 10
    assert all(one.equal(two) for one, two in zip(before, after, strict=True))


@pytest.mark.parametrize("name", TINY)
def test_elsewhere_it_computes_about_the_same_in_float32(name):
    components = adapted(name)
    before = asked(components.copy(), autocast=False)[0]
    after = asked(halved(components), autocast=False)[0]
    assert after.dtype == torch.float32
    assert components.dtype == torch.float32
    assert 0 < (after - before).norm() / before.norm() < 0.03


def test_what_is_trained_and_what_is_shared_keeps_its_numbers():
    components = adapted("sd1")
    twin = components.copy(sharing=components.denoiser.parameters())
    kept = copy.deepcopy(twin.denoiser.state_dict())
    halve(components.denoiser, torch.bfloat16)
    types = {p.requires_grad: p.dtype for p in components.denoiser.parameters() if p.ndim > 1}
    assert types == {True: torch.float32, False: torch.bfloat16}
    assert all(value.equal(kept[name]) for name, value in twin.denoiser.state_dict().items())


@pytest.mark.parametrize("name", TINY)
def test_it_can_be_made_whole_again(name):
    original = TINY[name]().denoiser
    components = adapted(name)
    before = copy.deepcopy(components.denoiser)
    halve(components.denoiser, torch.bfloat16)
    assert is_halved(components.denoiser)
    make_whole(components.denoiser, original)
    assert not is_halved(components.denoiser)
    assert str(components.denoiser) == str(before)
    after = components.denoiser.state_dict()
    assert all(value.equal(after[key]) for key, value in before.state_dict().items())


@pytest.mark.parametrize(
    "parts",
    [
        LORA,
        LORA | {"gradient_checkpointing": True},
        {"train_text_encoder": False, "train_token_embedding": True, "train_unet": False},
        {"train_unet": False, "train_text_encoder": True},
    ],
    ids=["lora", "checkpointing", "token", "text encoder"],
)
def test_trainings_and_their_models_are_those_of_float32(given, tmp_path, monkeypatch, parts):
    halvings = []
    monkeypatch.setattr(personalize, "halve", lambda *given: (halvings.append(given), halve(*given)))
    settings = BF16 | parts | {"steps": 3, "export": "merged", "weights_dtype": "float32"}
    teach(given, tmp_path / "halved", **settings)
    monkeypatch.setattr(Recipe, "halves_frozen", False)
    teach(given, tmp_path / "whole", **settings)
    assert len(halvings) == 2, "U-Net and text encoder, of the first run alone"
    assert same_weights(tmp_path / "halved" / "model", tmp_path / "whole" / "model")


def test_a_base_that_has_changed_meanwhile_is_told(given, tmp_path, monkeypatch):
    """What was halved would be made whole with another model's weights."""
    monkeypatch.setattr(exporting, "open_components", lambda *_: tiny_components(seed=9))
    with pytest.raises(StudioloError, match="not the one that the run began with"):
        teach(given, tmp_path / "run", **BF16, **LORA, steps=2, export="merged")
    assert not (tmp_path / "run" / "model").exists()


@pytest.fixture(scope="module")
def given(tmp_path_factory) -> dict[str, Path]:
    return lesson(tmp_path_factory.mktemp("lesson"))

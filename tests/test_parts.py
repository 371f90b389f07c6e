"""What is trained and what is not, for every choice; and that how it is computed changes nothing."""

from __future__ import annotations

import copy
from typing import Any

import pytest
import torch
from diffusers.models.attention_processor import AttnProcessor, AttnProcessor2_0
from peft import LoraConfig, inject_adapter_in_model

from studiolo.diffusion.adapters import DENOISER_TARGETS, TEXT_TARGETS, adapter_state, remove
from studiolo.dreambooth.parts import choose_parts, left_alone
from studiolo.dreambooth.personalize import Personalization
from studiolo.dreambooth.recipe import Recipe
from studiolo.errors import StudioloError
from studiolo.training.attention import SHORT, attend_by_products
from test_personalize import PROMPTS, fit, make_batches, quiet  # noqa: F401 (a fixture)
from tiny import tiny_components
from tiny_families import TINY

LORA = {"adapter": {"kind": "lora", "rank": 4}}
DORA = {"adapter": {"kind": "dora", "rank": 4}}
NO_TEXT = {"train_text_encoder": False}
TOKEN = {"train_text_encoder": False, "train_token_embedding": True}
CHOICES = {
    "full": {},
    "no text encoder": NO_TEXT,
    "text encoder alone": {"train_unet": False},
    "token": TOKEN | {"train_unet": False},
    "lora": LORA,
    "lora, no text encoder": LORA | NO_TEXT,
    "dora": DORA,
    "pivotal": LORA | TOKEN,
    "pivotal, token first": LORA | TOKEN | {"unet_start_step": 2},
}


def quick(**settings: Any) -> Recipe:
    return Recipe(**({"steps": 3, "batch_size": 1, "learning_rate": 1e-3, "warmup_steps": 0} | settings))


def module_of(recipe: Recipe, family: str | None = None) -> Personalization:
    components = TINY[family]() if family else tiny_components()
    tokens = [tuple(t.convert_tokens_to_ids("zwx</w>") for t in components.tokenizers)]
    module = Personalization(components, recipe, PROMPTS, tokens, lambda *place: make_batches(recipe, *place))
    module.components = components
    return module


def loss_and_gradients(module: Personalization, batch: int = 0) -> tuple[float, dict[str, torch.Tensor]]:
    loss = module.training_step(make_batches(module.recipe)[batch], 0)["loss"]
    loss.backward()
    return loss.item(), {n: p.grad for n, p in module.named_parameters() if p.grad is not None}


@pytest.mark.parametrize("name", CHOICES)
def test_what_is_left_alone_is_what_a_training_never_writes_to(name):
    recipe = quick(**CHOICES[name])
    components = tiny_components()
    alone = left_alone(components, recipe)
    before = [parameter.detach().clone() for parameter in alone]
    twin = components.copy(sharing=alone)
    module = Personalization(components, recipe, PROMPTS, [(5,)], lambda *place: make_batches(recipe, *place))
    fit(module)
    assert all(one.equal(two) for one, two in zip(before, alone, strict=True))
    assert not {id(p) for p in alone} & {id(p) for p in module.parameters() if p.requires_grad}
    untaught = tiny_components().fingerprint()
    assert twin.fingerprint() == untaught
    if "adapter" in CHOICES[name]:
        parameters = {id(p) for module in twin.modules.values() for p in module.parameters()}
        assert len(parameters - {id(p) for p in alone}) == 1, "the table, which a word may be added to"


@pytest.mark.parametrize("name", CHOICES)
def test_what_is_frozen_keeps_its_bits_and_what_is_trained_moves(name):
    recipe = quick(**CHOICES[name])
    module = module_of(recipe)
    before = copy.deepcopy(module.state_dict())
    trained = {name for name, p in module.named_parameters() if p.requires_grad}
    fit(module)
    moved = {name for name, value in module.state_dict().items() if not torch.equal(before[name], value)}
    assert moved <= trained
    assert {name.split(".")[0] for name in moved} == {name.split(".")[0] for name in trained}
    vae = tiny_components().vae.state_dict()
    assert all(torch.equal(value, vae[name]) for name, value in module.components.vae.state_dict().items())
    assert not module.components.vae.training
    if recipe.adapter.kind:
        remove(module.components)
        assert module.components.fingerprint() == tiny_components().fingerprint()


@pytest.mark.parametrize("name", CHOICES)
def test_checkpoints_hold_what_is_trained_and_no_more(name):
    module = module_of(quick(**CHOICES[name]))
    checkpoint = {"state_dict": module.state_dict()}
    module.on_save_checkpoint(checkpoint)
    assert checkpoint["state_dict"].keys() == {n for n, p in module.named_parameters() if p.requires_grad}
    assert sum(t.numel() for t in checkpoint["state_dict"].values()) == sum(
        module.parts.report["trained"].values()
    )


def test_the_report_counts():
    components = tiny_components()
    recipe = quick(**LORA | TOKEN)
    parts = choose_parts(components, recipe, [(600,), (601,)])
    lora = sum(t.numel() for t in adapter_state(components).values())
    assert parts.report["trained"] == {"unet": lora, "token": 2 * 32}
    networks = sum(p.numel() for m in tiny_components().modules.values() for p in m.parameters())
    assert parts.report["of"] == networks + lora + 64
    assert f"denoiser {lora:,}, token 64" in str(parts)


@pytest.mark.parametrize("kind", ["lora", "dora"])
def test_adapters_learn_what_those_of_peft_learn(kind):
    """Three steps of AdamW on layers that peft put in, as diffusers' script has it, from the same values."""
    recipe = quick(adapter={"kind": kind, "rank": 4, "alpha": 6}, prior_weight=0, weight_decay=0.0,
                   lr_schedule="constant", clip_norm=None, text_learning_rate=1e-3)  # fmt: skip
    module = module_of(recipe)
    theirs = tiny_components()
    for part, targets in ((theirs.denoiser, DENOISER_TARGETS), (theirs.text_encoder, TEXT_TARGETS)):
        config = LoraConfig(r=4, lora_alpha=6, target_modules=targets["attention"], use_dora=kind == "dora")
        inject_adapter_in_model(config, part)
        mine = module.denoiser if part is theirs.denoiser else module.text_encoders[0]
        part.load_state_dict(mine.state_dict())
    fit(module)
    named = [*theirs.denoiser.named_parameters(), *theirs.text_encoder.named_parameters()]
    trained = [parameter for name, parameter in named if ".lora_" in name]
    optimizer = torch.optim.AdamW(trained, lr=1e-3, weight_decay=0.0)
    reference = module_of(quick(prior_weight=0))
    reference.denoiser, reference.text_encoders = theirs.denoiser, torch.nn.ModuleList([theirs.text_encoder])
    for step in range(3):
        optimizer.zero_grad()
        reference.training_step(make_batches(recipe)[step], step)["loss"].backward()
        optimizer.step()
    ours, expected = adapter_state(module.components), adapter_state(theirs)
    assert ours.keys() == expected.keys()
    for name in ours:
        torch.testing.assert_close(ours[name], expected[name], rtol=1e-3, atol=1e-5)


@pytest.mark.parametrize("name", ["full", "lora", "dora", "pivotal"])
@pytest.mark.parametrize("how", [{"gradient_checkpointing": True}, {"channels_last": True}], ids=str)
def test_memory_is_saved_without_another_gradient(name, how):
    plain, other = module_of(quick(**CHOICES[name])), module_of(quick(**CHOICES[name], **how))
    (loss, expected), (same, gradients) = loss_and_gradients(plain), loss_and_gradients(other)
    assert same == pytest.approx(loss, rel=1e-5)
    assert gradients.keys() == expected.keys()
    for key in expected:
        torch.testing.assert_close(gradients[key], expected[key], rtol=1e-3, atol=1e-6)


def test_attention_by_products_is_the_same_function():
    plain, other = module_of(quick()), module_of(quick())
    attend_by_products(other.denoiser, SHORT + 1)
    assert attends(other) == attends(plain) == {AttnProcessor2_0}
    attend_by_products(other.denoiser, SHORT)
    assert attends(other) == {AttnProcessor}
    (loss, expected), (same, gradients) = loss_and_gradients(plain), loss_and_gradients(other)
    assert same == pytest.approx(loss, rel=1e-5)
    for key in expected:
        torch.testing.assert_close(gradients[key], expected[key], rtol=1e-3, atol=1e-6)


@pytest.mark.parametrize(
    ("precision", "kind"), [("bf16-mixed", AttnProcessor), ("32-true", AttnProcessor2_0)]
)
def test_a_training_in_bf16_on_a_cpu_attends_by_products(precision, kind):
    module = module_of(quick(precision=precision, accelerator="cpu"))
    fit(module)
    assert attends(module) == {kind}


def attends(module: Personalization) -> set[type]:
    return {type(processor) for processor in module.denoiser.attn_processors.values()}


def test_checkpointing_keeps_less_for_the_way_back():
    def kept(**how: bool) -> int:
        module = module_of(quick(batch_size=4, **how))
        sizes: list[int] = []
        with torch.autograd.graph.saved_tensors_hooks(
            lambda tensor: sizes.append(tensor.nbytes) or tensor, lambda tensor: tensor
        ):
            module.training_step(make_batches(module.recipe)[0], 0)
        return sum(sizes)

    assert kept(gradient_checkpointing=True) < 0.5 * kept()


@pytest.mark.parametrize("name", ["full", "lora"])
def test_a_compiled_denoiser_says_the_same(name, monkeypatch):
    # All but the last step of compiling, machine code, which takes minutes for the shapes of a U-Net.
    real = torch.nn.Module.compile
    monkeypatch.setattr(torch.nn.Module, "compile", lambda block: real(block, backend="aot_eager"))
    plain, other = module_of(quick(**CHOICES[name])), module_of(quick(**CHOICES[name], compile=True))
    assert any(block._compiled_call_impl for block in other.denoiser.modules())
    assert plain.state_dict().keys() == other.state_dict().keys()
    (loss, expected), (same, gradients) = loss_and_gradients(plain), loss_and_gradients(other)
    assert same == pytest.approx(loss, rel=1e-5)
    assert gradients.keys() == expected.keys()
    for key in expected:
        torch.testing.assert_close(gradients[key], expected[key], rtol=1e-3, atol=1e-6)


def test_the_token_is_trained_alone_before_the_denoiser_begins():
    module = module_of(quick(**LORA | TOKEN, steps=2, unet_start_step=1))
    before = copy.deepcopy(module.state_dict())
    first = module_of(quick(**LORA | TOKEN, steps=1, unet_start_step=1))
    fit(first)
    assert {n for n, v in first.state_dict().items() if not torch.equal(before[n], v)} == {"tokens.0.vectors"}
    fit(module)
    moved = {n.split(".")[0] for n, v in module.state_dict().items() if not torch.equal(before[n], v)}
    assert moved == {"tokens", "denoiser"}


@pytest.mark.parametrize("family", ["sdxl", "sd3"])
@pytest.mark.parametrize("name", ["lora", "token", "pivotal"])
def test_models_of_several_text_encoders_are_trained_in_each_of_clips(family, name):
    module = module_of(quick(**CHOICES[name]), family)
    trained = {tuple(n.split(".")[:2]) for n, p in module.named_parameters() if p.requires_grad}
    where = "text_encoders" if name == "lora" else "tokens"
    assert {place for part, place in trained if part == where} == {"0", "1"}
    assert not any(p.requires_grad for encoder in module.text_encoders[2:] for p in encoder.parameters())


@pytest.mark.parametrize(
    ("settings", "told"),
    [
        ({"adapter": {"kind": "lora"}, "train_unet": False} | TOKEN, "no place to go"),
        ({"train_token_embedding": True}, "trains every embedding"),
        ({"token_vectors": 2} | NO_TEXT, "set train_token_embedding"),
        ({"unet_start_step": 5} | NO_TEXT, "nothing is trained before"),
        ({"unet_start_step": 5, "train_unet": False}, "unet_start_step"),
        ({"text_encoder_stop_step": 5} | NO_TEXT, "text_encoder_stop_step"),
        ({"unet_start_step": 50, "text_encoder_stop_step": 20}, "nothing is trained between"),
        ({"strategy": "fsdp", "optimizer": "prodigy"}, "fsdp takes adamw"),
        ({"strategy": "fsdp", "previews": {"every": 5}}, "no process can draw"),
        ({"adapter": {"kind": "lora", "targets": "attn"}}, "adapter.targets"),
    ],
    ids=str,
)
def test_what_does_not_go_together_is_refused(settings, told):
    with pytest.raises(StudioloError, match=told):
        Recipe.build(settings)

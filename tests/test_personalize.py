"""The training step against the formulas of diffusers, and what it may and may not move."""

from __future__ import annotations

import copy
from typing import Any

import pytest
import pytorch_lightning as pl
import torch
from diffusers import DDPMScheduler
from diffusers.optimization import get_scheduler
from torch.nn import functional as F

from studiolo.diffusion.components import Components
from studiolo.diffusion.conditioning import encode_prompts
from studiolo.dreambooth.batches import Batch, Batches, Half, HalfBatch
from studiolo.dreambooth.examples import ExampleSet
from studiolo.dreambooth.personalize import Personalization
from studiolo.dreambooth.recipe import Recipe
from tiny import tiny_components

PROMPTS = ["a photo of zwx fox", "a photo of a fox"]


def examples(count: int, seed: int) -> ExampleSet:
    generator = torch.Generator().manual_seed(seed)
    mean, logvar = torch.randn(2, count, 2, 4, 8, 8, generator=generator)
    return ExampleSet(mean, logvar - 3, scaling_factor=0.5)


def make_batches(recipe: Recipe, start: int = 0, rank: int = 0, world: int = 1) -> Batches:
    instance = Half("instance", examples(3, 1), recipe.batch_size, torch.tensor([0, 0, 0]))
    prior = Half("class", examples(5, 2), recipe.class_batch_size or recipe.batch_size, torch.tensor([1]))
    return Batches(
        recipe, instance, prior if recipe.prior_weight else None, 1000, start=start, rank=rank, world=world
    )


def make_module(recipe: Recipe, prediction_type: str = "epsilon") -> Personalization:
    components = tiny_components(prediction_type=prediction_type)
    token_id = components.tokenizer.convert_tokens_to_ids("zwx</w>")
    return Personalization(
        components,
        recipe,
        PROMPTS,
        [(token_id,)],
        lambda start, rank, world: make_batches(recipe, start, rank, world),
    )


def fit(module: Personalization) -> Personalization:
    recipe = module.recipe
    trainer = pl.Trainer(
        accelerator="cpu",
        max_epochs=1,
        max_steps=recipe.steps,
        accumulate_grad_batches=recipe.accumulate,
        logger=False,
        enable_checkpointing=False,
        enable_progress_bar=False,
        enable_model_summary=False,
    )
    trainer.fit(module)
    return module


def state(module: torch.nn.Module) -> dict[str, torch.Tensor]:
    return copy.deepcopy(module.state_dict())


@pytest.fixture(autouse=True)
def quiet(caplog, recwarn):
    caplog.set_level("ERROR", "pytorch_lightning")


@pytest.mark.parametrize("prediction_type", ["epsilon", "v_prediction"])
def test_the_loss_of_a_step_is_that_of_diffusers_formulas(prediction_type):
    recipe = Recipe(batch_size=3, class_batch_size=2, prior_weight=0.7)
    module = make_module(recipe, prediction_type)
    batch = make_batches(recipe)[4]
    losses = module.training_step(batch, 0)

    components = tiny_components(prediction_type=prediction_type)
    scheduler = DDPMScheduler.from_config(components.scheduler_config)
    expected = []
    for half in batch.halves:
        noisy = scheduler.add_noise(half.latents, half.noise, half.timesteps)
        target = (
            half.noise
            if prediction_type == "epsilon"
            else scheduler.get_velocity(half.latents, half.noise, half.timesteps)
        )
        text = encode_prompts(components, [PROMPTS[i] for i in half.prompts]).tokens
        expected.append(((components.denoiser(noisy, half.timesteps, text).sample - target) ** 2).mean())
    instance, prior = expected
    assert losses["loss_instance"].item() == pytest.approx(instance.item(), rel=1e-5)
    assert losses["loss_prior"].item() == pytest.approx(prior.item(), rel=1e-5)
    assert losses["loss"].item() == pytest.approx((instance + 0.7 * prior).item(), rel=1e-5)


@pytest.mark.parametrize("prediction_type", ["epsilon", "v_prediction"])
def test_a_training_takes_the_steps_of_diffusers_script(prediction_type):
    rates = {"unet": 1e-4, "text": 5e-5}
    recipe = Recipe(batch_size=3, steps=8, warmup_steps=0, clip_norm=0.1).with_values(
        {"learning_rate": rates["unet"], "text_learning_rate": rates["text"]}
    )
    module = fit(make_module(recipe, prediction_type))
    trained = {"unet": module.denoiser, "text": module.text_encoders[0]}

    expected = steps_of_the_script(recipe, tiny_components(prediction_type=prediction_type), rates)
    for part, network in expected.items():
        weights = trained[part].state_dict()
        for name, weight in network.state_dict().items():
            # A step moves a weight by its rate, whatever the gradient: by 4.5 of them in 8 falling steps.
            # What has no gradient (softmax does not feel a key's bias) follows its rounding error.
            some = 0.01 * rates[part] if "k_proj.bias" not in name else 9 * rates[part]
            assert torch.allclose(weights[name], weight, rtol=0, atol=some), name


def steps_of_the_script(recipe: Recipe, components: Components, rates: dict[str, float]) -> dict[str, Any]:
    """The networks after the steps of `train_dreambooth.py --with_prior_preservation` of diffusers, with a
    rate for each: one batch of both halves, its text encoded anew, AdamW, clipping, a linear schedule."""
    unet, text = components.denoiser, components.text_encoders[0]
    groups = [{"params": list(n.requires_grad_().train().parameters())} for n in (unet, text)]
    groups = [group | {"lr": rate} for group, rate in zip(groups, rates.values(), strict=True)]
    optimizer = torch.optim.AdamW(groups, weight_decay=1e-2)
    schedule = get_scheduler("linear", optimizer, num_warmup_steps=0, num_training_steps=recipe.steps)
    scheduler = DDPMScheduler.from_config(components.scheduler_config)
    length = components.tokenizer.model_max_length
    ids = components.tokenizer(
        PROMPTS, padding="max_length", max_length=length, return_tensors="pt"
    ).input_ids
    for batch in make_batches(recipe):
        latents, noise, timesteps, prompts = (
            torch.cat([getattr(half, name) for half in batch.halves])
            for name in ("latents", "noise", "timesteps", "prompts")
        )
        noisy = scheduler.add_noise(latents, noise, timesteps)
        prediction = unet(noisy, timesteps, text(ids[prompts])[0]).sample
        target = noise
        if scheduler.config.prediction_type == "v_prediction":
            target = scheduler.get_velocity(latents, noise, timesteps)
        (prediction, prior), (target, prior_target) = prediction.chunk(2), target.chunk(2)
        (F.mse_loss(prediction, target) + recipe.prior_weight * F.mse_loss(prior, prior_target)).backward()
        torch.nn.utils.clip_grad_norm_([p for group in groups for p in group["params"]], recipe.clip_norm)
        optimizer.step()
        schedule.step()
        optimizer.zero_grad()
    return {"unet": unet, "text": text}


@pytest.mark.parametrize("prediction_type", ["epsilon", "v_prediction"])
def test_snr_weights_count_for_the_instance_half_alone(prediction_type):
    plain = make_module(Recipe(), prediction_type)
    weighted = make_module(Recipe(snr_gamma=5.0), prediction_type)
    batch = make_batches(Recipe(batch_size=1))[0]
    before, after = (module.training_step(batch, 0) for module in (plain, weighted))
    abar = DDPMScheduler.from_config(tiny_components().scheduler_config).alphas_cumprod[
        batch.instance.timesteps[0]
    ]
    snr = (abar / (1 - abar)).item()
    factor = min(snr, 5) / (snr if prediction_type == "epsilon" else snr + 1)
    assert after["loss_prior"] == before["loss_prior"]
    assert after["loss_instance"].item() == pytest.approx(before["loss_instance"].item() * factor, rel=1e-4)


def test_a_mask_leaves_its_black_part_out_of_the_loss():
    module = make_module(Recipe(prior_weight=0))
    batch = make_batches(Recipe(batch_size=1, prior_weight=0))[0]
    half = batch.instance
    half.masks = torch.zeros(1, 1, 8, 8)
    half.masks[..., :4] = 1
    prediction = module.denoiser(
        module.schedule.alpha_sigma(half.timesteps, 4)[0] * half.latents
        + module.schedule.alpha_sigma(half.timesteps, 4)[1] * half.noise,
        half.timesteps,
        module._text(half.prompts).tokens,
    ).sample
    left = ((prediction - half.noise) ** 2)[..., :4].mean()
    assert module.training_step(batch, 0)["loss"].item() == pytest.approx(left.item(), rel=1e-5)


@pytest.mark.parametrize(
    ("choice", "moved"),
    [
        ({}, {"denoiser", "text_encoders"}),
        ({"train_text_encoder": False}, {"denoiser"}),
        ({"train_unet": False}, {"text_encoders"}),
        (
            {"train_unet": False, "train_text_encoder": False, "train_token_embedding": True},
            {"tokens"},
        ),
        ({"train_text_encoder": False, "train_token_embedding": True}, {"denoiser", "tokens"}),
    ],
)
def test_frozen_parts_stay_bit_identical(choice, moved):
    recipe = Recipe(steps=2, batch_size=1, learning_rate=1e-3, text_learning_rate=1e-3, **choice)
    module = make_module(recipe)
    before = state(module)
    fit(module)
    after = state(module)
    assert {name.split(".")[0] for name in before if not torch.equal(before[name], after[name])} == moved
    assert module.denoiser.training == recipe.train_unet
    assert module.text_encoders[0].training == recipe.train_text_encoder


def test_token_training_moves_the_identifiers_row_and_nothing_else():
    recipe = Recipe(
        steps=3, batch_size=1, train_unet=False, train_text_encoder=False, train_token_embedding=True,
        text_learning_rate=1e-2, weight_decay=0.1,
    )  # fmt: skip
    module = make_module(recipe)
    before = state(module)
    fit(module)
    module.tokens[0].write()
    changed = {name for name, value in module.state_dict().items() if not torch.equal(before[name], value)}
    (table,) = changed - {"tokens.0.vectors"}
    rows = (before[table] != module.state_dict()[table]).any(1).nonzero().flatten().tolist()
    assert rows == [tiny_components().tokenizer.convert_tokens_to_ids("zwx</w>")]


def test_the_text_encoder_stands_still_from_its_stop_step():
    settings = {"batch_size": 1, "lr_schedule": "constant", "warmup_steps": 0}
    stopped = fit(make_module(Recipe(steps=4, text_encoder_stop_step=2, **settings)))
    short = fit(make_module(Recipe(steps=2, **settings)))
    for one, two in zip(stopped.text_encoders.parameters(), short.text_encoders.parameters(), strict=True):
        assert torch.equal(one, two)
    assert any(
        not torch.equal(one, two)
        for one, two in zip(stopped.denoiser.parameters(), short.denoiser.parameters(), strict=True)
    )


def test_accumulation_equals_the_bigger_batch():
    settings = {"steps": 3, "learning_rate": 1e-4, "text_learning_rate": 1e-4}
    whole = fit(make_module(Recipe(batch_size=4, **settings)))
    parts = fit(make_module(Recipe(batch_size=2, accumulate=2, **settings)))
    for one, two in zip(whole.parameters(), parts.parameters(), strict=True):
        torch.testing.assert_close(one, two, rtol=1e-4, atol=2e-6)


@pytest.mark.parametrize(("world", "accumulate"), [(2, 1), (1, 2), (2, 2), (4, 1)])
def test_ranks_and_accumulation_share_out_the_bigger_batch(world, accumulate):
    parts = world * accumulate
    whole = make_batches(Recipe(batch_size=8, class_batch_size=4, offset_noise=0.1))
    share = Recipe(
        batch_size=8 // parts, class_batch_size=4 // parts, accumulate=accumulate, offset_noise=0.1
    )
    step = 5
    shares = [
        make_batches(share, rank=rank, world=world)[step * accumulate + micro]
        for micro in range(accumulate)
        for rank in range(world)
    ]
    expected = whole[step]
    for number, half in enumerate(expected.halves):
        for name in ("latents", "noise", "timesteps", "prompts"):
            joined = torch.cat([getattr(batch.halves[number], name) for batch in shares])
            assert torch.equal(joined, getattr(half, name))


def test_timesteps_of_the_halves_are_drawn_apart_and_cover_all_levels():
    recipe = Recipe(batch_size=16, steps=200)
    batches = list(make_batches(recipe))
    instance = torch.cat([batch.instance.timesteps for batch in batches]).float()
    prior = torch.cat([batch.prior.timesteps for batch in batches]).float()
    for drawn in (instance, prior):
        assert 0 <= drawn.min() < 10
        assert 990 <= drawn.max() < 1000
        assert drawn.mean().item() == pytest.approx(499.5, abs=20)
    assert torch.corrcoef(torch.stack([instance, prior]))[0, 1].abs() < 0.06


def test_a_run_can_begin_anywhere():
    recipe = Recipe(steps=6)
    from_start, later = list(make_batches(recipe)), list(make_batches(recipe, start=4))
    assert len(make_batches(recipe, start=4)) == len(from_start) == 6
    for one, two in zip(from_start[4:], later, strict=True):
        assert torch.equal(one.prior.latents, two.prior.latents)
        assert torch.equal(one.instance.noise, two.instance.noise)


def test_offset_noise_is_one_number_a_channel_and_part_of_the_target():
    plain, offset = (make_batches(Recipe(offset_noise=strength))[0].instance for strength in (0, 0.5))
    added = offset.noise - plain.noise
    torch.testing.assert_close(added, added[..., :1, :1].expand_as(added))
    assert added.std() > 0.1
    assert isinstance(offset, HalfBatch)


@pytest.mark.parametrize(
    ("schedule", "expected"),
    [
        ("constant", [1 / 3, 2 / 3, 1, 1, 1, 1]),
        ("linear", [1 / 3, 2 / 3, 1, 0.75, 0.5, 0.25]),
        ("cosine", [1 / 3, 2 / 3, 1, 0.853553, 0.5, 0.146447]),
    ],
)
def test_rate_schedules(schedule, expected):
    recipe = Recipe(steps=6, warmup_steps=2, lr_schedule=schedule)
    assert [recipe.rate_factor(step) for step in range(6)] == pytest.approx(expected, abs=1e-6)


def test_halves_of_different_shapes_are_asked_apart_and_give_the_same_losses():
    """Wide instance images beside square class images: each half's loss is that of a batch of its own."""
    recipe = Recipe(batch_size=2)
    module = make_module(recipe)
    batch = make_batches(recipe)[0]
    wide = torch.cat([batch.instance.latents, batch.instance.latents.flip(3)], 3)
    batch.instance.latents, batch.instance.noise = wide, torch.cat([batch.instance.noise] * 2, 3)
    losses = module.training_step(batch, 0)
    alone = module.training_step(Batch(batch.instance), 0)
    assert losses["loss_instance"].item() == pytest.approx(alone["loss_instance"].item(), rel=1e-5)
    prior = module.training_step(Batch(batch.prior), 0)
    assert losses["loss_prior"].item() == pytest.approx(prior["loss_instance"].item(), rel=1e-5)

"""The training objective against closed forms and against the schedulers' own formulas."""

from __future__ import annotations

import pytest
import torch
from diffusers import DDPMScheduler
from hypothesis import given
from hypothesis import strategies as st

from studiolo.diffusion.components import NoiseSchedule
from studiolo.diffusion.objective import (
    add_noise,
    clean_estimate,
    dreambooth_loss,
    per_sample_loss,
    prediction_target,
    snr_weights,
)
from studiolo.errors import StudioloError
from tiny import tiny_components

TYPES = ["epsilon", "v_prediction", "sample"]


def schedule_of(prediction_type: str) -> NoiseSchedule:
    return tiny_components(prediction_type=prediction_type).schedule


@pytest.fixture(scope="module")
def batch():
    draws = torch.Generator().manual_seed(3)
    latents, noise = torch.randn(2, 5, 4, 8, 8, generator=draws)
    return latents, noise, torch.tensor([0, 1, 250, 700, 999])


@pytest.mark.parametrize("prediction_type", TYPES)
def test_noise_and_target_are_those_of_the_scheduler(batch, prediction_type):
    latents, noise, t = batch
    scheduler = DDPMScheduler.from_config(tiny_components(prediction_type=prediction_type).scheduler_config)
    theirs = {
        "epsilon": noise,
        "v_prediction": scheduler.get_velocity(latents, noise, t),
        "sample": latents,
    }
    schedule = schedule_of(prediction_type)
    torch.testing.assert_close(add_noise(schedule, latents, noise, t), scheduler.add_noise(latents, noise, t))
    torch.testing.assert_close(prediction_target(schedule, latents, noise, t), theirs[prediction_type])


@pytest.mark.parametrize("prediction_type", TYPES)
def test_the_clean_estimate_undoes_noise_and_target(batch, prediction_type):
    latents, noise, t = batch
    schedule = schedule_of(prediction_type)
    noisy = add_noise(schedule, latents, noise, t)
    target = prediction_target(schedule, latents, noise, t)
    torch.testing.assert_close(clean_estimate(schedule, noisy, target, t), latents, rtol=1e-3, atol=1e-3)


@pytest.mark.parametrize("prediction_type", TYPES)
def test_min_snr_weighs_the_clean_loss(batch, prediction_type):
    """The weighted loss is min(snr, gamma) times the loss of the x0 that a prediction implies."""
    latents, noise, t = batch
    t = t.clamp(min=200)  # at tiny sigma float32 cannot tell x0 from x_t
    schedule, gamma = schedule_of(prediction_type), 5.0
    target = prediction_target(schedule, latents, noise, t)
    prediction = target + 0.1 * torch.randn(target.shape, generator=torch.Generator().manual_seed(4))
    noisy = add_noise(schedule, latents, noise, t)
    abar = schedule.alphas[t] ** 2
    clean_loss = (clean_estimate(schedule, noisy, prediction, t) - latents).square().flatten(1).mean(1)
    weighted = per_sample_loss(prediction, target, snr_weights(schedule, t, gamma))
    torch.testing.assert_close(
        weighted, (abar / (1 - abar)).clamp(max=gamma) * clean_loss, rtol=1e-3, atol=1e-5
    )


def test_min_snr_in_numbers():
    """snr = 4 at abar = 0.8 and 0.25 at abar = 0.2; gamma = 1."""
    t = torch.tensor([0, 1])
    abar = torch.tensor([0.8, 0.2])
    for prediction_type, expected in [
        ("epsilon", [1 / 4, 1.0]),
        ("v_prediction", [1 / 5, 0.25 / 1.25]),
        ("sample", [1.0, 0.25]),
    ]:
        weights = snr_weights(NoiseSchedule.diffusion(abar, prediction_type), t, 1.0)
        torch.testing.assert_close(weights, torch.tensor(expected))


def test_min_snr_at_zero_terminal_snr_is_finite():
    schedule = NoiseSchedule.diffusion(torch.tensor([0.5, 0.0]), "epsilon")
    assert snr_weights(schedule, torch.tensor([1]), 5.0).tolist() == [1.0]


def test_unknown_prediction_type():
    schedule = NoiseSchedule.diffusion(torch.tensor([0.5]), "score")
    x, t = torch.zeros(1, 1, 1, 1), torch.zeros(1, dtype=torch.long)
    for call in (
        lambda: prediction_target(schedule, x, x, t),
        lambda: clean_estimate(schedule, x, x, t),
        lambda: snr_weights(schedule, t, 5.0),
    ):
        with pytest.raises(StudioloError, match="flow"):
            call()


def test_loss_is_the_mean_squared_error_of_each_sample(batch):
    prediction, target, _ = batch
    expected = torch.stack(
        [torch.nn.functional.mse_loss(p, q) for p, q in zip(prediction, target, strict=True)]
    )
    torch.testing.assert_close(per_sample_loss(prediction, target), expected)
    half = per_sample_loss(prediction.to(torch.bfloat16), target.to(torch.bfloat16))
    assert half.dtype == torch.float32


def test_masked_loss_is_the_mean_over_the_mask(batch):
    prediction, target, _ = batch
    mask = torch.zeros(5, 1, 8, 8)
    mask[:, :, 2:5, 1:4] = 1
    inside = (prediction - target)[:, :, 2:5, 1:4].square().flatten(1).mean(1)
    torch.testing.assert_close(per_sample_loss(prediction, target, mask=mask), inside)
    torch.testing.assert_close(per_sample_loss(prediction, target, mask=0.5 * mask), inside)
    assert per_sample_loss(prediction, target, mask=torch.zeros_like(mask)).tolist() == [0] * 5


@given(st.lists(st.floats(0, 4), min_size=1), st.lists(st.floats(0, 4), min_size=1), st.floats(0, 3))
def test_dreambooth_loss_averages_each_half_apart(instance, prior, weight):
    total, loss_instance, loss_prior = dreambooth_loss(torch.tensor(instance), torch.tensor(prior), weight)
    mean = [sum(half) / len(half) for half in (instance, prior)]
    assert loss_instance.item() == pytest.approx(mean[0], abs=1e-5)
    assert loss_prior.item() == pytest.approx(mean[1], abs=1e-5)
    assert total.item() == pytest.approx(mean[0] + weight * mean[1], abs=1e-4)


def test_without_class_images_only_the_instance_counts():
    total, instance, prior = dreambooth_loss(torch.tensor([1.0, 3.0]), None, 1.0)
    assert (total.item(), instance.item(), prior.item()) == (2.0, 2.0, 0.0)


def test_the_schedule_can_be_trained_on_after_drawing():
    components = tiny_components()
    with torch.inference_mode():
        schedule = components.schedule
    latents = torch.ones(1, 4, 2, 2, requires_grad=True)
    noisy = add_noise(schedule, latents, torch.zeros_like(latents), torch.tensor([500]))
    noisy.sum().backward()
    torch.testing.assert_close(latents.grad.mean(), schedule.alphas[500])

"""The training objective: noising, what the U-Net should say, how much each noise level counts, the prior.

Notation: x0 clean latents, eps unit Gaussian noise, t a timestep, alpha and sigma the
schedule's, snr = alpha^2 / sigma^2. Latents and noise are [B, C, h, w], timesteps int64 [B].
"""

from __future__ import annotations

import math

import torch

from studiolo.diffusion.components import NoiseSchedule
from studiolo.errors import StudioloError


def add_noise(
    schedule: NoiseSchedule, latents: torch.Tensor, noise: torch.Tensor, timesteps: torch.Tensor
) -> torch.Tensor:
    """x_t = alpha x0 + sigma eps (Ho et al. 2020, eq. 4), in the dtype of `latents`."""
    alpha, sigma = schedule.alpha_sigma(timesteps, latents.ndim)
    return (alpha * latents + sigma * noise).to(latents.dtype)


def prediction_target(
    schedule: NoiseSchedule, latents: torch.Tensor, noise: torch.Tensor, timesteps: torch.Tensor
) -> torch.Tensor:
    """What the U-Net should predict: eps, v = alpha eps - sigma x0 (Salimans & Ho 2022, app. D), x0, or
    the flow eps - x0 (Esser et al. 2024, eq. 2)."""
    if schedule.prediction_type == "epsilon":
        return noise
    if schedule.prediction_type == "sample":
        return latents
    if schedule.prediction_type == "v_prediction":
        alpha, sigma = schedule.alpha_sigma(timesteps, latents.ndim)
        return (alpha * noise - sigma * latents).to(latents.dtype)
    if schedule.prediction_type == "flow":
        return noise - latents
    raise _unknown(schedule)


def clean_estimate(
    schedule: NoiseSchedule, noisy: torch.Tensor, prediction: torch.Tensor, timesteps: torch.Tensor
) -> torch.Tensor:
    """The x0 that a prediction at x_t = `noisy` implies: the two functions above solved for x0."""
    alpha, sigma = schedule.alpha_sigma(timesteps, noisy.ndim)
    if schedule.prediction_type == "epsilon":
        return ((noisy - sigma * prediction) / alpha).to(noisy.dtype)
    if schedule.prediction_type == "sample":
        return prediction
    if schedule.prediction_type == "v_prediction":
        return (alpha * noisy - sigma * prediction).to(noisy.dtype)
    if schedule.prediction_type == "flow":  # alpha = 1 - sigma
        return (noisy - sigma * prediction).to(noisy.dtype)
    raise _unknown(schedule)


def snr_weights(schedule: NoiseSchedule, timesteps: torch.Tensor, gamma: float) -> torch.Tensor:
    """Min-SNR loss weights, float32 [B]: min(snr, gamma) of the x0 loss (Hang et al. 2023, eq. 8 and 9).

    Told as a weight of the loss at hand: min(snr, gamma) / snr for epsilon, min(snr, gamma) / (snr + 1)
    for v, min(snr, gamma) for x0, min(snr, gamma) sigma^2 for the flow. At zero terminal snr the epsilon
    weight is its limit, 1.
    """
    alpha, sigma = schedule.alpha_sigma(timesteps)
    snr = (alpha / sigma) ** 2
    if schedule.prediction_type == "epsilon":
        return (gamma / snr).clamp(max=1)
    if schedule.prediction_type == "v_prediction":
        return snr.clamp(max=gamma) / (snr + 1)
    if schedule.prediction_type == "sample":
        return snr.clamp(max=gamma)
    if schedule.prediction_type == "flow":
        return snr.clamp(max=gamma) * sigma**2
    raise _unknown(schedule)


def flow_weights(schedule: NoiseSchedule, timesteps: torch.Tensor, weighting: str) -> torch.Tensor | None:
    """Weights of a flow's loss, float32 [B]: "sigma_sqrt" 1 / sigma^2, "cosmap" 2 / (pi (1 - 2 sigma + 2
    sigma^2)) (Esser et al. 2024, section 3.1 and eq. 21), as diffusers has them; "none" is None.

    Raises StudioloError for a model that is no flow.
    """
    if weighting == "none":
        return None
    if schedule.prediction_type != "flow":
        raise StudioloError(
            f"{weighting} weighs the loss of flow models, and this model is none",
            where="noise_levels.weighting",
            remedy="Use none; min-SNR weights (snr_gamma) are for all models.",
        )
    _, sigma = schedule.alpha_sigma(timesteps)
    return sigma**-2 if weighting == "sigma_sqrt" else 2 / (math.pi * (1 - 2 * sigma + 2 * sigma**2))


def per_sample_loss(
    prediction: torch.Tensor,
    target: torch.Tensor,
    weights: torch.Tensor | None = None,
    mask: torch.Tensor | None = None,
) -> torch.Tensor:
    """Squared error of each sample, float32 [B], averaged over its cells and times `weights` [B].

    `mask` [B, 1, h, w] in [0, 1] says where the error counts: the sum is divided by the mask's area, so
    that a small subject weighs as much as a large one; an empty mask gives 0.
    """
    error = (prediction.float() - target.float()) ** 2
    if mask is None:
        loss = error.flatten(1).mean(1)
    else:
        area = mask.expand_as(error).flatten(1).sum(1)
        loss = (error * mask).flatten(1).sum(1) / area.clamp(min=1e-6)
    return loss if weights is None else loss * weights


def dreambooth_loss(
    instance: torch.Tensor, prior: torch.Tensor | None, prior_weight: float
) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
    """(total, instance, prior): total = mean(instance) + weight * mean(prior) (Ruiz et al. 2022, eq. 2).

    `instance` [Bi] and `prior` [Bp] are per-sample losses, each averaged apart, so that the weight means the
    same whatever the sizes of the two halves. Without class images the prior's loss is 0.
    """
    loss_instance = instance.mean()
    loss_prior = torch.zeros_like(loss_instance) if prior is None else prior.mean()
    return loss_instance + prior_weight * loss_prior, loss_instance, loss_prior


def _unknown(schedule: NoiseSchedule) -> StudioloError:
    return StudioloError(
        f"unknown prediction type {schedule.prediction_type!r}",
        where="scheduler_config.json: prediction_type",
        remedy="Use epsilon, v_prediction, sample or flow.",
    )

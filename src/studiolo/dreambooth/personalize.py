"""The LightningModule of DreamBooth: which weights move, by what loss, at what rate."""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from functools import partial
from typing import Any

import pytorch_lightning as pl
import torch
from pytorch_lightning.utilities.types import OptimizerLRScheduler

from studiolo.diffusion.compiling import compile_blocks
from studiolo.diffusion.components import Components
from studiolo.diffusion.conditioning import Conditioning, join_present, tokenize
from studiolo.diffusion.objective import (
    add_noise,
    dreambooth_loss,
    flow_weights,
    per_sample_loss,
    prediction_target,
    snr_weights,
)
from studiolo.dreambooth.batches import Batch, Batches, HalfBatch
from studiolo.dreambooth.parts import TokenIds, choose_parts
from studiolo.dreambooth.recipe import Recipe
from studiolo.training.attention import attend_by_products
from studiolo.training.halves import HALVES, halve
from studiolo.training.optimizers import make_optimizer
from studiolo.training.rows import predict_on_threads, threads_for
from studiolo.training.sharding import average_gradients, clip_gradients, shard, whole

MakeBatches = Callable[[int, int, int], Batches]
"""(start, rank, world) -> the micro-batches of a process from number `start`."""


class Personalization(pl.LightningModule):
    """Fine-tunes the denoiser, text encoders or tokens of `components` in place (Ruiz et al. 2023).

    Both networks are parts of this one module, so that DDP wraps them together; the VAE is no part of it.
    What the recipe does not train is in eval mode, without gradients, and out of the checkpoints.

    Args:
        components: the model, its vocabulary already holding the identifier.
        prompts: the table of prompts that the batches point into.
        tokens: what stands for the subjects: rows of the embedding tables.
        batches: makes the micro-batches of this process.
    """

    def __init__(
        self,
        components: Components,
        recipe: Recipe,
        prompts: list[str],
        tokens: Sequence[TokenIds],
        batches: MakeBatches,
    ) -> None:
        super().__init__()
        self.recipe = recipe
        self.schedule = components.schedule
        self.family = components.family
        self.denoiser: Any = components.denoiser
        self.text_encoders = torch.nn.ModuleList(components.text_encoders)
        self._batches = batches
        self._positions = math.prod(components.latent_shape(recipe.resolution, recipe.resolution)[1:])
        self.grad_norm = torch.zeros(())
        """Of the last optimizer step, before clipping."""
        self._prompt_ids: Sequence[torch.Tensor] = tokenize(components, prompts)
        self._conditioning: Conditioning | None = None
        """Of the whole table of prompts, where no text encoder is trained."""
        self.strict_loading = False  # checkpoints hold what is trained
        self.parts = choose_parts(components, recipe, tokens)
        self.tokens = torch.nn.ModuleList(self.parts.tokens)
        self._arrange()

    def _arrange(self) -> None:
        """How the networks compute, as the recipe wants it: nothing of it changes what they compute."""
        denoiser, encoders = self.denoiser, list[Any](self.text_encoders)
        if self.recipe.halves_frozen:
            for network in [denoiser, *(encoders if self.text_is_trained else [])]:
                halve(network, HALVES[self.recipe.precision])
        if self.recipe.gradient_checkpointing:
            denoiser.enable_gradient_checkpointing()
            for encoder in encoders:
                encoder.activation_checkpointing_enable({"use_reentrant": False})
        if self.recipe.channels_last:
            denoiser.to(memory_format=torch.channels_last)
        if self.recipe.compile:
            compile_blocks(denoiser)

    def configure_model(self) -> None:
        """Shares the networks that are trained out over the processes, where the recipe says fsdp."""
        if self.recipe.strategy != "fsdp":
            return
        assert self.device_mesh is not None
        mesh, bf16 = self.device_mesh["data_parallel"], self.recipe.precision == "bf16-mixed"
        for network in (self.denoiser, *self.text_encoders):
            if network is self.denoiser or any(p.requires_grad for p in network.parameters()):
                shard(network, mesh, bf16=bf16)
        average_gradients(self.tokens.parameters())

    def gathered(self) -> dict[str, torch.Tensor]:
        """What is trained, by name, whole and on the CPU; under fsdp every process has to ask."""
        named = self.named_parameters()
        return {name: whole(p.detach()).cpu() for name, p in named if p.requires_grad}

    @property
    def text_is_trained(self) -> bool:
        """Whether the recipe lets the text encoder, or a token of it, move at all."""
        return self.recipe.train_text_encoder or self.recipe.train_token_embedding

    def on_fit_start(self) -> None:
        if self.device.type == "cpu" and self.recipe.precision == "bf16-mixed":
            attend_by_products(self.denoiser, self._positions)
        self._prompt_ids = tuple(ids.to(self.device) for ids in self._prompt_ids)
        if not self.text_is_trained:
            with torch.no_grad():
                self._conditioning = self.family.encode(self.text_encoders, self._prompt_ids)

    def train_dataloader(self) -> Batches:
        trainer = self.trainer
        start = trainer.global_step * self.recipe.accumulate
        return self._batches(start, trainer.global_rank, trainer.world_size)

    def training_step(self, batch: Batch, batch_idx: int) -> dict[str, torch.Tensor]:
        """The loss of one micro-batch, both halves in one call of the denoiser, and each half's own loss."""
        gamma = self.recipe.snr_gamma
        weights = None if gamma is None else snr_weights(self.schedule, batch.instance.timesteps, gamma)
        predictions = self._predict(batch.halves)
        instance = self._loss(batch.instance, predictions[0], weights)
        prior = None if batch.prior is None else self._loss(batch.prior, predictions[1])
        loss, loss_instance, loss_prior = dreambooth_loss(instance, prior, self.recipe.prior_weight)
        return {"loss": loss, "loss_instance": loss_instance.detach(), "loss_prior": loss_prior.detach()}

    def _predict(self, halves: list[HalfBatch]) -> list[torch.Tensor]:
        """The denoiser's predictions for each half: in one call, if their shapes allow it."""
        noisy = [add_noise(self.schedule, half.latents, half.noise, half.timesteps) for half in halves]
        if len({latents.shape[1:] for latents in noisy}) > 1:
            return [prediction for half in halves for prediction in self._predict([half])]
        timesteps = torch.cat([half.timesteps for half in halves])
        text = self._text(torch.cat([half.prompts for half in halves]))
        sizes = join_present([half.sizes for half in halves])
        times = self.schedule.times.to(timesteps.device)[timesteps]
        prediction = predict_on_threads(
            partial(self.family.predict, self.denoiser),
            torch.cat(noisy),
            times,
            text.sized(sizes),
            [parameter for parameter in self.denoiser.parameters() if parameter.requires_grad],
            threads_for(self.denoiser, len(timesteps)),
        )
        return list(prediction.split([len(half) for half in halves]))

    def _loss(
        self, half: HalfBatch, prediction: torch.Tensor, weights: torch.Tensor | None = None
    ) -> torch.Tensor:
        """The loss of each example of a half, float32 [B]."""
        target = prediction_target(self.schedule, half.latents, half.noise, half.timesteps)
        levels = flow_weights(self.schedule, half.timesteps, self.recipe.noise_levels.weighting)
        if levels is not None:
            weights = levels if weights is None else levels * weights
        return per_sample_loss(prediction, target, weights, half.masks)

    def _text(self, prompts: torch.Tensor) -> Conditioning:
        """The conditioning of rows `prompts` of the table, each different prompt encoded once."""
        if self._conditioning is not None:
            return self._conditioning[prompts]
        used, place = prompts.unique(return_inverse=True)
        with torch.set_grad_enabled(self.recipe.text_trains_at(self.global_step)):
            return self.family.encode(self.text_encoders, [ids[used] for ids in self._prompt_ids])[place]

    def configure_optimizers(self) -> OptimizerLRScheduler:
        recipe = self.recipe
        # GradScaler cannot unscale for clipping what a fused optimizer would unscale itself.
        fused = recipe.precision != "16-mixed"
        optimizer = make_optimizer(recipe.optimizer, self.parts.groups, fused=fused)
        schedule = torch.optim.lr_scheduler.LambdaLR(optimizer, lambda step: recipe.rate_factor(step))
        return {"optimizer": optimizer, "lr_scheduler": {"scheduler": schedule, "interval": "step"}}

    def configure_gradient_clipping(self, optimizer: torch.optim.Optimizer, *_: object, **__: object) -> None:
        if self.global_step < self.recipe.unet_start_step:
            for parameter in self.denoiser.parameters():
                parameter.grad = None  # which an optimizer leaves alone
        parameters = [p for group in optimizer.param_groups for p in group["params"] if p.grad is not None]
        self.grad_norm = clip_gradients(parameters, self.recipe.clip_norm or math.inf)

    def on_train_batch_start(self, batch: Batch, batch_idx: int) -> None:
        # Dropout, where a model has some, is the same after a resume and differs between ranks.
        torch.manual_seed(_mixed(self.recipe.seed, batch_idx, self.global_rank))

    def on_save_checkpoint(self, checkpoint: dict[str, Any]) -> None:
        trained = {name for name, parameter in self.named_parameters() if parameter.requires_grad}
        checkpoint["state_dict"] = {k: v for k, v in checkpoint["state_dict"].items() if k in trained}


def _mixed(*numbers: int) -> int:
    """A seed in [0, 2^63) for a tuple of integers."""
    return hash(numbers) & (2**63 - 1)

"""What a training runs on: accelerator, precision, and how several processes share the work."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytorch_lightning as pl
import torch
from pytorch_lightning.strategies import DDPStrategy, ModelParallelStrategy
from pytorch_lightning.utilities.exceptions import MisconfigurationException

from studiolo.dreambooth.recipe import Recipe
from studiolo.errors import StudioloError
from studiolo.training.quiet import quiet
from studiolo.training.trainer import plain_trainer


def make_trainer(recipe: Recipe, folder: Path, callbacks: list[pl.Callback]) -> pl.Trainer:
    """The Lightning trainer of a recipe: one epoch of `steps` optimizer steps.

    Raises StudioloError for an accelerator, precision or number of devices that this machine does not have.
    """
    precisions = {"precision": recipe.precision, "class_images.precision": recipe.class_images.precision}
    for where, precision in precisions.items():
        if precision == "16-mixed" and not torch.cuda.is_available():
            raise StudioloError(
                "16-mixed arithmetic needs a GPU", where=where, remedy="Use bf16-mixed or 32-true."
            )
    try:
        with quiet():
            return plain_trainer(
                folder,
                recipe.steps,
                callbacks,
                accelerator=recipe.accelerator,
                devices=recipe.devices,
                num_nodes=recipe.num_nodes,
                strategy=_strategy(recipe),
                # Under fsdp the networks cast their own weights and inputs: training/sharding.py.
                precision="32-true" if recipe.strategy == "fsdp" else recipe.precision,
                accumulate_grad_batches=recipe.accumulate,
            )
    except (MisconfigurationException, ValueError, RuntimeError) as error:
        raise StudioloError(
            f"this machine cannot train so: {error}", where="accelerator, devices, strategy or precision"
        ) from error


def suitable_precision(recipe: Recipe) -> str:
    """The recipe's precision; what suits this machine, where the recipe leaves it open."""
    if recipe.precision != "auto":
        return recipe.precision
    kind = recipe.accelerator
    if kind in ("auto", "gpu") and torch.cuda.is_available():
        fast = torch.cuda.is_bf16_supported(including_emulation=False)
    else:
        on_processor = kind == "cpu" or (kind == "auto" and not torch.backends.mps.is_available())
        fast = on_processor and _processor_has_bf16()
    return "bf16-mixed" if fast else "32-true"


def _processor_has_bf16() -> bool:
    """Whether its products of matrices take bfloat16: where they do not, PyTorch converts, and is slower."""
    names = "_is_avx512_bf16_supported", "_is_amx_tile_supported"  # PyTorch tells it nowhere in public
    return any(getattr(torch.cpu, name, lambda: False)() for name in names)


def _strategy(recipe: Recipe) -> Any:
    """How the processes work together; alone, a process needs none."""
    processes = recipe.devices * recipe.num_nodes
    if processes == 1:
        if recipe.strategy == "fsdp":
            raise ValueError("fsdp needs several devices: set devices, or leave strategy at auto")
        return "auto"
    if recipe.strategy == "fsdp":
        # Lightning's FSDPStrategy is FSDP1, for GPUs alone; this one leaves the sharing to the module.
        return ModelParallelStrategy(
            data_parallel_size=processes, tensor_parallel_size=1, save_distributed_checkpoint=False
        )
    # After its stop step the text encoder takes no part in the backward pass.
    return DDPStrategy(find_unused_parameters=recipe.text_encoder_stop_step is not None)

"""The one kind of Lightning trainer used here: steps, our callbacks, and nothing of its own besides."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytorch_lightning as pl

from studiolo.training.checkpoint import WholeFiles


def plain_trainer(folder: Path, steps: int, callbacks: list[pl.Callback], **machine: Any) -> pl.Trainer:
    """One epoch of `steps` optimizer steps; records, checkpoints and progress are what `callbacks` do.

    `machine` goes to `pl.Trainer`: accelerator, devices, strategy, precision, ...
    """
    return pl.Trainer(
        max_epochs=1,
        max_steps=steps,
        callbacks=callbacks,
        plugins=[WholeFiles()],
        default_root_dir=folder,
        use_distributed_sampler=False,
        logger=False,
        enable_checkpointing=False,
        enable_progress_bar=False,
        enable_model_summary=False,
        **machine,
    )

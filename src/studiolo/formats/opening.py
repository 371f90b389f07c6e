"""A model that draws, opened wherever it lies: the one door for drawing, teaching and scoring."""

from __future__ import annotations

from pathlib import Path

import torch

from studiolo.diffusion.components import Components
from studiolo.formats.diffusers_folder import load_components
from studiolo.formats.single_file import read_single_file
from studiolo.models.registry import ModelRef, resolve


def open_components(
    model: str | Path | ModelRef,
    dtype: torch.dtype = torch.float32,
    device: str | torch.device = "cpu",
) -> Components:
    """The networks of a model by name, path or hub id (see `models.registry.resolve`), in eval mode.

    It may be a Diffusers folder or a single file.

    Raises:
        StudioloError: there is no such model, or it cannot be read.
    """
    ref = model if isinstance(model, ModelRef) else resolve(model)
    if not ref.path.is_file():
        return load_components(ref.path, dtype, device)
    return read_single_file(ref.path, dtype).to(device=device)

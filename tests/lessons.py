"""Tiny subjects and quick settings for tests that train."""

from __future__ import annotations

import csv
from pathlib import Path
from typing import Any

import numpy as np
import torch
from PIL import Image
from safetensors.torch import load_file

from studiolo.diffusion.components import Components
from studiolo.drawing.model import ImageModel
from studiolo.dreambooth.progress import Display
from studiolo.dreambooth.trainer import train
from studiolo.formats.diffusers_folder import save_components
from tiny import tiny_folder

QUICK: dict[str, Any] = {
    "steps": 6,
    "batch_size": 2,
    "learning_rate": 1e-3,
    "warmup_steps": 0,
    "text_learning_rate": 1e-3,
    "checkpoint_every": 100,
    "weights_dtype": "float32",
    "precision": "32-true",  # the same on every machine
    "class_images": {"count": 6, "batch_size": 4, "steps": 2},
    "trackers": [],
}


def lesson(folder: Path, base: Components | None = None) -> dict[str, Path]:
    """A tiny base model (another one with `base`) and three images of noise, as arguments of `train`."""
    folder.mkdir(parents=True, exist_ok=True)
    images = folder / "images"
    images.mkdir()
    rng = np.random.default_rng(0)
    for i in range(3):
        Image.fromarray(rng.integers(0, 256, (40, 40, 3), dtype=np.uint8)).save(images / f"{i}.png")
    path = tiny_folder(folder) if base is None else save_components(base, folder / "model")
    return {"images": images, "base": path}


def teach(given: dict[str, Path], out: Path, **settings: Any) -> ImageModel:
    """`train` with QUICK settings, under a name made from `out`."""
    merged = QUICK | settings
    return train(**given, class_noun="fox", name=out.name, out=out, display=Display.silent(), **merged)


def rows(run: Path, *columns: str) -> list[tuple[str, ...]]:
    """The columns of metrics.csv as they are written; by default those that no clock decides."""
    columns = columns or ("step", "loss_instance", "loss_prior", "loss", "lr", "lr_text", "grad_norm")
    with open(run / "metrics.csv", encoding="utf-8", newline="") as file:
        return [tuple(row[column] for column in columns) for row in csv.DictReader(file)]


def losses(run: Path) -> np.ndarray:
    return np.array([[float(v) for v in row] for row in rows(run, "loss_instance", "loss_prior")])


def weights(model: Path) -> dict[str, torch.Tensor]:
    """All tensors of a Diffusers folder, by file and name."""
    found = {}
    for file in sorted(model.rglob("*.safetensors")):
        found |= {f"{file.parent.name}.{name}": tensor for name, tensor in load_file(file).items()}
    return found


def same_weights(one: Path, two: Path) -> bool:
    """Whether two Diffusers folders hold the same tensors, bit for bit."""
    first, second = weights(one), weights(two)
    return first.keys() == second.keys() and all(torch.equal(first[name], second[name]) for name in first)

"""A model that draws, opened wherever it lies: the one door for drawing, teaching and scoring."""

from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path

import torch

from studiolo.diffusion.components import Components
from studiolo.errors import StudioloError
from studiolo.formats.adapter_folder import load_adapter
from studiolo.formats.diffusers_folder import load_components
from studiolo.formats.single_file import describe, read_single_file
from studiolo.models.registry import INDEX_FILE, ModelRef, resolve

_DEEPEST = 4  # adapters on adapters on ...


def open_components(
    model: str | Path | ModelRef,
    dtype: torch.dtype | None = torch.float32,
    device: str | torch.device = "cpu",
) -> Components:
    """The networks of a model by name, path or hub id (see `models.registry.resolve`), in eval mode.

    It may be a Diffusers folder, a single file, or the folder of an adapter, which is put on its base.
    `dtype` None leaves weights in the half precision that they are stored in, if they are; what comes out of
    an adapter and its base is float32 then.

    Raises:
        StudioloError: there is no such model, it cannot be read, or an adapter's base has changed.
    """
    ref = model if isinstance(model, ModelRef) else resolve(model)
    return _open(ref, dtype, _DEEPEST).to(device=device)


def native_size(model: str | Path | ModelRef) -> tuple[int, int]:
    """The side of the pictures that a model was taught with, and what every side is a multiple of, in pixels
    (`diffusion.components.Components`), without reading its weights."""
    ref = model if isinstance(model, ModelRef) else resolve(model)
    for _ in range(_DEEPEST):
        if not is_adapter(ref):
            break
        ref = base_of(ref)
    if ref.path.is_file():
        configs = describe(ref.path).configs
    else:
        configs = {
            part: json.loads((ref.path / part / "config.json").read_text("utf-8"))
            for part in ("unet", "transformer", "vae")
            if (ref.path / part).is_dir()
        }
    denoiser = configs.get("unet") or configs["transformer"]
    cell = 2 ** (len(configs["vae"]["block_out_channels"]) - 1)
    return denoiser["sample_size"] * cell, cell * denoiser.get("patch_size", 1)


def is_adapter(ref: ModelRef) -> bool:
    """Whether the model is a folder that holds no networks, only what is put on those of a base."""
    return not ref.path.is_file() and not (ref.path / INDEX_FILE).is_file()


def _open(ref: ModelRef, dtype: torch.dtype | None, deepest: int) -> Components:
    if ref.path.is_file():
        return read_single_file(ref.path, dtype)
    if not is_adapter(ref):
        return load_components(ref.path, dtype)
    if not deepest:
        raise StudioloError(
            "adapters stand on adapters too often", where=ref.path, remedy="Merge some of them."
        )
    return _on_its_base(ref, dtype, deepest - 1)


def _on_its_base(ref: ModelRef, dtype: torch.dtype | None, deepest: int) -> Components:
    """The base of an adapter with the adapter merged into its weights."""
    adapter = load_adapter(ref.path)
    # Merged in float32, and rounded once: as a merged model would be that was exported.
    base = base_of(ref)
    components = _open(base, torch.float32, deepest)
    told = (ref.card.get("base") or {}).get("fingerprint")
    if told and components.fingerprint() != told:
        raise StudioloError(
            f"its base model, {base.name}, is not the one that it was taught on",
            where=ref.path,
            remedy=f"Put that one back, or put the adapter on this one: "
            f"studiolo merge {base.name} {ref.path} --out MODEL",
        )
    adapter.put_on(components)
    skipped = (ref.card.get("recipe") or {}).get("clip_skip")
    if skipped is not None:  # 0, too: the base may leave layers out
        components.family = replace(components.family, clip_skip=skipped)  # type: ignore[type-var]
    return components.to(dtype=dtype)


def base_of(ref: ModelRef) -> ModelRef:
    """The model that an adapter is put on; see `base_place`."""
    return resolve(base_place(ref))


def base_place(ref: ModelRef) -> str | Path:
    """The model that `ref` was taught on, as its card names it; by its path where it has no name here."""
    name, path = (ref.card.get("base") or {}).get("name"), ref.card.get("base_path")
    if isinstance(path, str) and Path(path).exists():
        return Path(path)
    if not isinstance(name, str):
        raise StudioloError("its card names no base", where=ref.path, remedy="Export it again.")
    return name

"""One network of a Diffusers folder: which files hold its weights, and how they are read.

diffusion_pytorch_model.safetensors, model.safetensors         or in shards, or as a half-precision variant
diffusion_pytorch_model.bin, pytorch_model.bin                 pickles of old, in which no code is run
"""

from __future__ import annotations

import re
from collections.abc import Collection, Sequence
from pathlib import Path
from typing import Any

import torch
from accelerate import init_empty_weights

from studiolo.errors import StudioloError
from studiolo.formats.pickles import read_pickle
from studiolo.models.header import read_header

_PICKLE = re.compile(r"(diffusion_)?pytorch_model(\.(fp16|bf16))?(-\d+-of-\d+)?(\.(fp16|bf16))?\.bin")
_VARIANT = re.compile(r"\.(fp16|bf16)[.-]")
_HALVES = {"F16": torch.float16, "BF16": torch.bfloat16}
# The VAE's attention until diffusers 0.12: `ModelMixin._fix_state_dict_keys_on_load`.
_OLDER = {"query": "to_q", "key": "to_k", "value": "to_v", "proj_attn": "to_out.0"}


def read_network(network: Any, folder: Path, dtype: torch.dtype | None) -> Any:
    """A network with all its weights, in eval mode; a half-precision variant when nothing else is there.

    Weights are cast to `dtype`; None: as they are stored, float32 where there are several types.

    Raises:
        StudioloError: there are no weights, or a pickle wants to run code.
        KeyError: some are missing.
    """
    files = weight_files(folder)
    if not files:
        raise StudioloError(
            "no weights", where=str(folder), remedy="Fetch its .safetensors, or .bin, into that folder."
        )
    if files[0].suffix == ".bin":
        module, missing = _unpickled(network, folder, files, dtype)
    else:
        variant = _VARIANT.search(files[0].name)
        module, info = network.from_pretrained(
            folder,
            dtype=dtype or _stored(files),
            variant=variant[1] if variant else None,
            use_safetensors=True,
            local_files_only=True,
            output_loading_info=True,
        )
        missing = sorted(info["missing_keys"])
    if missing:
        raise KeyError(f"{folder.name} lacks {len(missing)} weights, such as {missing[0]}")
    return module.eval()


def weight_files(folder: Path) -> list[Path]:
    """The files with a network's weights: safetensors before pickles, full precision before half."""
    files = sorted(folder.glob("*.safetensors"))
    files = files or sorted(file for file in folder.glob("*.bin") if _PICKLE.fullmatch(file.name))
    variants = [found[1] if (found := _VARIANT.search(file.name)) else None for file in files]
    chosen = None if None in variants else next(iter(variants), None)
    return [file for file, variant in zip(files, variants, strict=True) if variant == chosen]


def _stored(files: Sequence[Path]) -> torch.dtype:
    """The half-precision type of all weights in safetensors files, else float32."""
    types = {tensor.dtype for file in files for tensor in read_header(file).tensors.values()}
    floats = {name for name in types if name.startswith(("F", "BF"))}
    return _HALVES.get(floats.pop(), torch.float32) if len(floats) == 1 else torch.float32


def _unpickled(
    network: Any, folder: Path, files: Sequence[Path], dtype: torch.dtype | None
) -> tuple[Any, list[str]]:
    """A network from pickles, and the names of the weights that they lack."""
    tensors = {name: tensor for file in files for name, tensor in read_pickle(file).items()}
    if dtype is None:
        floats = {tensor.dtype for tensor in tensors.values() if tensor.is_floating_point()}
        dtype = floats.pop() if len(floats) == 1 and floats <= set(_HALVES.values()) else torch.float32
    if hasattr(network, "config_class"):  # of transformers
        config = network.config_class.from_pretrained(folder, local_files_only=True)
        module, info = network.from_pretrained(
            None, config=config, state_dict=tensors, dtype=dtype, output_loading_info=True
        )
        return module, sorted(info["missing_keys"])
    with init_empty_weights(include_buffers=False):
        module = network.from_config(network.load_config(folder, local_files_only=True))
    names = module.state_dict().keys()
    found = {
        new: tensor.to(dtype) for name, tensor in tensors.items() if (new := _newer(name, names)) in names
    }
    module.load_state_dict(found, strict=False, assign=True)
    return module, sorted(names - found.keys())


def _newer(name: str, names: Collection[str]) -> str:
    """What a weight is called today."""
    if name in names:
        return name
    *path, kind, suffix = f".{name}".split(".")
    return ".".join([*path, _OLDER.get(kind, kind), suffix]).removeprefix(".")

"""The names of weights in single files of Stable Diffusion 3: those of its authors' own code.

As in `compvis.py`, every name is a function of diffusers' own, so one table serves both directions. The
originals: https://github.com/Stability-AI/sd3.5 (mmditx.py).
"""

from __future__ import annotations

import re
from collections.abc import Iterable, Mapping
from typing import Any

import torch

from studiolo.errors import StudioloError

Tensors = Mapping[str, torch.Tensor]

_ENDS = {
    "pos_embed.proj.": "x_embedder.proj.",
    "pos_embed.pos_embed": "pos_embed",
    "time_text_embed.timestep_embedder.linear_1.": "t_embedder.mlp.0.",
    "time_text_embed.timestep_embedder.linear_2.": "t_embedder.mlp.2.",
    "time_text_embed.text_embedder.linear_1.": "y_embedder.mlp.0.",
    "time_text_embed.text_embedder.linear_2.": "y_embedder.mlp.2.",
    "context_embedder.": "context_embedder.",
    "norm_out.linear.": "final_layer.adaLN_modulation.1.",
    "proj_out.": "final_layer.linear.",
}
_BLOCK = {
    "norm1.linear.": "x_block.adaLN_modulation.1.",
    "norm1_context.linear.": "context_block.adaLN_modulation.1.",
    "attn.to_out.0.": "x_block.attn.proj.",
    "attn.to_add_out.": "context_block.attn.proj.",
    "attn.norm_q.": "x_block.attn.ln_q.",
    "attn.norm_k.": "x_block.attn.ln_k.",
    "attn.norm_added_q.": "context_block.attn.ln_q.",
    "attn.norm_added_k.": "context_block.attn.ln_k.",
    "attn2.to_out.0.": "x_block.attn2.proj.",
    "attn2.norm_q.": "x_block.attn2.ln_q.",
    "attn2.norm_k.": "x_block.attn2.ln_k.",
    "ff.net.0.proj.": "x_block.mlp.fc1.",
    "ff.net.2.": "x_block.mlp.fc2.",
    "ff_context.net.0.proj.": "context_block.mlp.fc1.",
    "ff_context.net.2.": "context_block.mlp.fc2.",
}
_FUSED = {
    **{f"attn.to_{letter}.": "x_block.attn.qkv." for letter in "qkv"},
    **{f"attn.add_{letter}_proj.": "context_block.attn.qkv." for letter in "qkv"},
    **{f"attn2.to_{letter}.": "x_block.attn2.qkv." for letter in "qkv"},
}
"""Queries, keys and values are one matrix there, one below the other."""
_PLACE = re.compile(r"transformer_blocks\.(\d+)\.(.+)")


def file_name(name: str) -> str:
    """What single files call the tensor that holds the weight `name` of an SD3Transformer2DModel.

    Raises:
        StudioloError: it has no name there.
    """
    if place := _PLACE.fullmatch(name):
        for ours, theirs in (_BLOCK | _FUSED).items():
            if place[2].startswith(ours):
                return f"joint_blocks.{place[1]}.{theirs}{place[2].removeprefix(ours)}"
    for ours, theirs in _ENDS.items():
        if name.startswith(ours):
            return theirs + name.removeprefix(ours)
    raise StudioloError(
        f"single files have no name for the weight {name}", remedy="Write a Diffusers folder instead."
    )


def to_file(weights: Tensors) -> dict[str, torch.Tensor]:
    """The weights of a transformer by the names of single files, without the prefix of the part."""
    found: dict[str, torch.Tensor] = {}
    fused: dict[str, dict[str, torch.Tensor]] = {}
    swapped = _swapped(weights)
    for name, tensor in weights.items():
        if letter := _letter(name):
            fused.setdefault(file_name(name), {})[letter] = tensor
        else:
            found[file_name(name)] = _swap(tensor) if name in swapped else tensor
    return found | {name: torch.cat([parts[letter] for letter in "qkv"]) for name, parts in fused.items()}


def from_file(weights: Tensors, names: Iterable[str]) -> dict[str, torch.Tensor]:
    """Back, for the `names` that a transformer has; those that are not in `weights` are left out."""
    names = list(names)
    found, swapped = {}, _swapped(names)
    for name in names:
        if (tensor := weights.get(file_name(name))) is None:
            continue
        if letter := _letter(name):
            tensor = tensor.chunk(3)["qkv".index(letter)]
        found[name] = _swap(tensor) if name in swapped else tensor
    return found


def transformer_config(weights: Tensors) -> dict[str, Any]:
    """The config of the SD3Transformer2DModel that these weights, by the names of files, belong to.

    What shapes cannot tell (heads of 64 channels, latents of 128) is as in the published models.
    """
    width, text = weights["context_embedder.weight"].shape
    channels, patch = weights["x_embedder.proj.weight"].shape[1:3]
    places = {int(name.split(".")[1]) for name in weights if name.startswith("joint_blocks.")}
    dual = {int(name.split(".")[1]) for name in weights if ".x_block.attn2." in name}
    return {
        "_class_name": "SD3Transformer2DModel",
        "sample_size": 128,
        "patch_size": patch,
        "in_channels": channels,
        "out_channels": weights["final_layer.linear.weight"].shape[0] // patch**2,
        "num_layers": len(places),
        "attention_head_dim": 64,
        "num_attention_heads": width // 64,
        "joint_attention_dim": text,
        "caption_projection_dim": width,
        "pooled_projection_dim": weights["y_embedder.mlp.0.weight"].shape[1],
        "pos_embed_max_size": round(weights["pos_embed"].shape[1] ** 0.5),
        "dual_attention_layers": sorted(dual),
        "qk_norm": "rms_norm" if any(".ln_q." in name for name in weights) else None,
    }


def _letter(name: str) -> str | None:
    """Whether it is the part for queries, keys or values of a matrix that is one in files."""
    place = _PLACE.fullmatch(name)
    known = place and next((ours for ours in _FUSED if place[2].startswith(ours)), None)
    return re.sub(r".*_([qkv])(_proj)?\.$", r"\1", known) if known else None


def _swapped(names: Iterable[str]) -> set[str]:
    """The weights that give scale and shift in diffusers, and shift and scale in files: those of the last
    layer, and of the last block's text, which nothing reads after it."""
    numbers = [int(place[1]) for name in names if (place := _PLACE.fullmatch(name))]
    last = f"transformer_blocks.{max(numbers, default=0)}.norm1_context.linear."
    return {name for name in names if name.startswith(("norm_out.linear.", last))}


def _swap(tensor: torch.Tensor) -> torch.Tensor:
    return torch.cat(tensor.chunk(2)[::-1])

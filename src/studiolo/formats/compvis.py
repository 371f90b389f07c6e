"""The names of weights in single files: those of CompVis' latent diffusion and of OpenCLIP.

Every name here is a function of diffusers' or transformers' own name and of the network's config, so one
table serves both directions. The originals: https://github.com/CompVis/latent-diffusion (openaimodel.py,
model.py), https://github.com/mlfoundations/open_clip (transformer.py).
"""

from __future__ import annotations

import re
from collections.abc import Mapping
from typing import Any

import torch

from studiolo.errors import StudioloError

UNET, VAE = "model.diffusion_model.", "first_stage_model."

_UNET_ENDS = {
    "time_embedding.linear_1.": "time_embed.0.",
    "time_embedding.linear_2.": "time_embed.2.",
    "add_embedding.linear_1.": "label_emb.0.0.",
    "add_embedding.linear_2.": "label_emb.0.2.",
    "conv_in.": "input_blocks.0.0.",
    "conv_norm_out.": "out.0.",
    "conv_out.": "out.2.",
}
_RESNET = {
    "norm1.": "in_layers.0.",
    "conv1.": "in_layers.2.",
    "time_emb_proj.": "emb_layers.1.",
    "norm2.": "out_layers.0.",
    "conv2.": "out_layers.3.",
    "conv_shortcut.": "skip_connection.",
}
_BLOCKS = {"DownBlock2D", "CrossAttnDownBlock2D", "UpBlock2D", "CrossAttnUpBlock2D"}
_VAE_RESNET = {"conv_shortcut.": "nin_shortcut."}
_VAE_ATTENTION = {
    "group_norm.": "norm.",
    "to_q.": "q.",
    "to_k.": "k.",
    "to_v.": "v.",
    "to_out.0.": "proj_out.",
}
_OPEN_CLIP = {
    "embeddings.token_embedding.": "token_embedding.",
    "embeddings.position_embedding.weight": "positional_embedding",
    "final_layer_norm.": "ln_final.",
    "text_projection.weight": "text_projection",
}
_OPEN_CLIP_LAYER = {
    "layer_norm1.": "ln_1.",
    "layer_norm2.": "ln_2.",
    "mlp.fc1.": "mlp.c_fc.",
    "mlp.fc2.": "mlp.c_proj.",
    "self_attn.out_proj.": "attn.out_proj.",
}
_QKV = re.compile(r"encoder\.layers\.(\d+)\.self_attn\.([qkv])_proj\.(weight|bias)")


def unet_name(name: str, config: Mapping[str, Any]) -> str:
    """What CompVis calls the weight `name` of a UNet2DConditionModel of that config.

    Raises:
        StudioloError: it has no name there.
    """
    per_block = _layers_per_block(config)
    for ours, theirs in _UNET_ENDS.items():
        if name.startswith(ours):
            return theirs + name.removeprefix(ours)
    if found := re.fullmatch(r"(down|up)_blocks\.(\d+)\.(resnets|attentions)\.(\d+)\.(.+)", name):
        side, kind, rest = found[1], found[3], found[5]
        place = int(found[2]) * (per_block + 1) + int(found[4])
        block = f"input_blocks.{place + 1}" if side == "down" else f"output_blocks.{place}"
        return f"{block}.0.{_begin(rest, _RESNET)}" if kind == "resnets" else f"{block}.1.{rest}"
    if found := re.fullmatch(r"down_blocks\.(\d+)\.downsamplers\.0\.conv\.(.+)", name):
        return f"input_blocks.{(int(found[1]) + 1) * (per_block + 1)}.0.op.{found[2]}"
    if found := re.fullmatch(r"up_blocks\.(\d+)\.upsamplers\.0\.conv\.(.+)", name):
        level = int(found[1])
        after = 2 if config["up_block_types"][level].startswith("CrossAttn") else 1
        return f"output_blocks.{level * (per_block + 1) + per_block}.{after}.conv.{found[2]}"
    if found := re.fullmatch(r"mid_block\.(resnets|attentions)\.(\d+)\.(.+)", name):
        kind, place, rest = found[1], int(found[2]), found[3]
        if kind == "resnets":
            return f"middle_block.{2 * place}.{_begin(rest, _RESNET)}"
        return f"middle_block.{2 * place + 1}.{rest}"
    raise _nameless(name)


def vae_name(name: str, config: Mapping[str, Any]) -> str:
    """What CompVis calls the weight `name` of an AutoencoderKL of that config."""
    side, _, rest = name.partition(".")
    if side in ("quant_conv", "post_quant_conv"):
        return name
    last = len(config["block_out_channels"]) - 1
    if found := re.fullmatch(r"(down|up)_blocks\.(\d+)\.resnets\.(\d+)\.(.+)", rest):
        level = int(found[2]) if found[1] == "down" else last - int(found[2])
        return f"{side}.{found[1]}.{level}.block.{found[3]}.{_begin(found[4], _VAE_RESNET)}"
    if found := re.fullmatch(r"(down|up)_blocks\.(\d+)\.(downsample|upsample)rs\.0\.conv\.(.+)", rest):
        level = int(found[2]) if found[1] == "down" else last - int(found[2])
        return f"{side}.{found[1]}.{level}.{found[3]}.conv.{found[4]}"
    if found := re.fullmatch(r"mid_block\.resnets\.(\d+)\.(.+)", rest):
        return f"{side}.mid.block_{int(found[1]) + 1}.{found[2]}"
    if found := re.fullmatch(r"mid_block\.attentions\.(\d+)\.(.+)", rest):
        return f"{side}.mid.attn_{int(found[1]) + 1}.{_begin(found[2], _VAE_ATTENTION)}"
    if rest.startswith(("conv_in.", "conv_out.")):
        return name
    if rest.startswith("conv_norm_out."):
        return f"{side}.{rest.removeprefix('conv_')}"
    raise _nameless(name)


def to_compvis(
    weights: Mapping[str, torch.Tensor], part: str, config: Mapping[str, Any]
) -> dict[str, torch.Tensor]:
    """The weights of a "unet" or a "vae" by CompVis' names, without the prefix of the part."""
    name_of = unet_name if part == "unet" else vae_name
    return {
        name_of(name, config): _as_convolution(name, tensor) if part == "vae" else tensor
        for name, tensor in weights.items()
    }


def from_compvis(
    weights: Mapping[str, torch.Tensor], names: Mapping[str, torch.Size], part: str, config: Mapping[str, Any]
) -> dict[str, torch.Tensor]:
    """Back: the weights that a network wants, whose own `names` have these shapes.

    Those that are not in `weights` are left out. Linear layers and convolutions of one pixel are the same
    numbers in another shape: files have either.
    """
    name_of = unet_name if part == "unet" else vae_name
    found = {}
    for name, shape in names.items():
        if (tensor := weights.get(name_of(name, config))) is not None:
            found[name] = _as_wanted(tensor, shape)
    return found


def to_open_clip(weights: Mapping[str, torch.Tensor]) -> dict[str, torch.Tensor]:
    """The weights of a CLIP text model by OpenCLIP's names: queries, keys and values in one matrix."""
    found: dict[str, torch.Tensor] = {}
    fused: dict[str, dict[str, torch.Tensor]] = {}
    for full, tensor in weights.items():
        name = full.removeprefix("text_model.")
        if match := _QKV.fullmatch(name):
            fused.setdefault(f"transformer.resblocks.{match[1]}.attn.in_proj_{match[3]}", {})[match[2]] = (
                tensor
            )
        else:
            found[_open_clip_name(name)] = tensor.T if name == "text_projection.weight" else tensor
    return found | {name: torch.cat([parts[letter] for letter in "qkv"]) for name, parts in fused.items()}


def from_open_clip(
    weights: Mapping[str, torch.Tensor], names: Mapping[str, torch.Size]
) -> dict[str, torch.Tensor]:
    """Back, for the `names` that a CLIP text model has; layers that it does not have are left out."""
    found = {}
    for full, shape in names.items():
        name = full.removeprefix("text_model.")
        if match := _QKV.fullmatch(name):
            fused = weights.get(f"transformer.resblocks.{match[1]}.attn.in_proj_{match[3]}")
            tensor = None if fused is None else fused.chunk(3)["qkv".index(match[2])]
        else:
            tensor = weights.get(_open_clip_name(name))
            if tensor is not None and name == "text_projection.weight":
                tensor = tensor.T
        if tensor is not None and tensor.shape == shape:
            found[full] = tensor
    return found


def _open_clip_name(name: str) -> str:
    if found := re.fullmatch(r"encoder\.layers\.(\d+)\.(.+)", name):
        return f"transformer.resblocks.{found[1]}.{_begin(found[2], _OPEN_CLIP_LAYER)}"
    for ours, theirs in _OPEN_CLIP.items():
        if name.startswith(ours):
            return theirs + name.removeprefix(ours)
    raise _nameless(name)


def _layers_per_block(config: Mapping[str, Any]) -> int:
    blocks = {*config["down_block_types"], *config["up_block_types"]}
    if blocks - _BLOCKS or not isinstance(config["layers_per_block"], int):
        strange = ", ".join(sorted(blocks - _BLOCKS)) or "several numbers of layers"
        raise StudioloError(
            f"single files cannot hold a U-Net with {strange}",
            remedy="Write a Diffusers folder.",
        )
    return config["layers_per_block"]


def _begin(rest: str, renames: Mapping[str, str]) -> str:
    for ours, theirs in renames.items():
        if rest.startswith(ours):
            return theirs + rest.removeprefix(ours)
    return rest


def _as_convolution(name: str, tensor: torch.Tensor) -> torch.Tensor:
    """Attention of the VAE is made of convolutions of one pixel there, [out, in, 1, 1]."""
    return tensor[:, :, None, None] if "attentions" in name and tensor.ndim == 2 else tensor


def _as_wanted(tensor: torch.Tensor, shape: torch.Size) -> torch.Tensor:
    bare, wanted = ([side for side in sides if side != 1] for sides in (tensor.shape, shape))
    return tensor.reshape(shape) if bare == wanted else tensor


def _nameless(name: str) -> StudioloError:
    return StudioloError(
        f"single files have no name for the weight {name}", remedy="Write a Diffusers folder instead."
    )

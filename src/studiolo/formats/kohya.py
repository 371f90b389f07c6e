"""kohya's names of adapters (https://github.com/kohya-ss/sd-scripts, networks/lora.py), there and back.

A layer's name is its path with "_" for ".": which underscores were points is told by the words that have
one in them. Files for SDXL name the U-Net's blocks as its first implementation does (input_blocks ...).
"""

from __future__ import annotations

import re
from collections.abc import Mapping

import torch

from studiolo.errors import StudioloError

_PREFIXES = {
    "unet": "lora_unet_",
    "text_encoder": "lora_te_",
    "text_encoder_2": "lora_te2_",
}
_READ = {
    "lora_unet_": "unet",
    "lora_te_": "text_encoder",
    "lora_te1_": "text_encoder",
    "lora_te2_": "text_encoder_2",
}
_SUFFIXES = {
    "lora_down.weight": ".lora_A.weight",
    "lora_up.weight": ".lora_B.weight",
    "dora_scale": ".lora_magnitude_vector.weight",
}
_COMPOUND = re.compile(
    r"down_blocks|up_blocks|mid_block|input_blocks|output_blocks|middle_block|transformer_blocks|"
    r"time_emb_proj|time_embedding|time_embed|add_embedding|label_emb|linear_[12]|conv_shortcut|conv_in|conv_out|"
    r"proj_in|proj_out|to_(?:q|k|v|out)|skip_connection|in_layers|out_layers|emb_layers|"
    r"text_model|self_attn|[qkv]_proj|out_proj|text_projection|layer_norm[12]|final_layer_norm"
)
_RESNET = {
    "in_layers.2": "conv1",
    "out_layers.3": "conv2",
    "emb_layers.1": "time_emb_proj",
    "skip_connection": "conv_shortcut",
}
_ENDS = {
    "input_blocks.0.0": "conv_in",
    "out.2": "conv_out",
    "time_embed.0": "time_embedding.linear_1",
    "time_embed.2": "time_embedding.linear_2",
    "label_emb.0.0": "add_embedding.linear_1",
    "label_emb.0.2": "add_embedding.linear_2",
}
_PER_BLOCK = 3  # layers of a block and what changes the size after them, in all published models


def to_kohya(state: Mapping[str, torch.Tensor]) -> tuple[dict[str, torch.Tensor], dict[str, str]]:
    """Tensors and metadata of kohya's naming; the alpha of each layer is its rank, as B contains it.

    Raises:
        StudioloError: an adapter of a part that has no name there.
    """
    suffixes = {ours: theirs for theirs, ours in _SUFFIXES.items()}
    is_xl = any(name.startswith("text_encoder_2.") for name in state)
    found: dict[str, torch.Tensor] = {}
    ranks = set()
    for name, tensor in state.items():
        ours = next(suffix for suffix in suffixes if name.endswith(suffix))
        layer = name.removesuffix(ours)
        theirs = _flat(layer, is_xl)
        if suffixes[ours] == "dora_scale":  # a column, so that readers see which side the lengths are of
            tensor = tensor.reshape(-1, *[1] * (state[f"{layer}.lora_A.weight"].ndim - 1))
        if suffixes[ours] == "lora_down.weight":
            ranks.add(tensor.shape[0])
            found[f"{theirs}.alpha"] = torch.tensor(float(tensor.shape[0]))
        found[f"{theirs}.{suffixes[ours]}"] = tensor
    told = {"ss_network_module": "networks.lora"}
    if len(ranks) == 1:
        told |= {"ss_network_dim": str(min(ranks)), "ss_network_alpha": str(float(min(ranks)))}
    return found, told


def from_kohya(tensors: Mapping[str, torch.Tensor]) -> dict[str, torch.Tensor]:
    """The state that the tensors of a file stand for, each alpha multiplied into its B.

    Raises:
        StudioloError: names that are none of kohya's, or lengths of a DoRA along the other side.
    """
    state: dict[str, torch.Tensor] = {}
    alphas: dict[str, float] = {}
    for name, tensor in tensors.items():
        flat, _, end = name.partition(".")
        prefix = next((prefix for prefix in _READ if flat.startswith(prefix)), None)
        if prefix is None or (end != "alpha" and end not in _SUFFIXES):
            raise StudioloError(
                f"{name} is no part of a LoRA or DoRA that can be read", remedy="Give another."
            )
        layer = f"{_READ[prefix]}.{_dotted(flat.removeprefix(prefix))}"
        if end == "alpha":
            alphas[layer] = float(tensor)
        elif end == "dora_scale":
            if tensor.numel() != tensor.shape[0]:
                raise StudioloError(
                    f"the DoRA in {name} measures columns, not rows, as LyCORIS has it",
                    remedy="Only lengths of rows, as in the paper, can be read.",
                )
            # PEFT keeps those of convolutions as [1, out, 1, 1].
            state[layer + _SUFFIXES[end]] = (
                tensor.reshape(1, -1, 1, 1) if tensor.ndim == 4 else tensor.reshape(-1)
            )
        else:
            state[layer + _SUFFIXES[end]] = tensor
    for layer, alpha in alphas.items():
        down, up = (state.get(f"{layer}.lora_{half}.weight") for half in "AB")
        if down is None or up is None:
            raise StudioloError(f"{layer} has only a part of its LoRA", remedy="Fetch the file again.")
        scale = alpha / down.shape[0]
        state[f"{layer}.lora_B.weight"] = up if scale == 1 else (up.float() * scale).to(up.dtype)
    return state


def _flat(layer: str, is_xl: bool) -> str:
    """ "unet.down_blocks.0" -> "lora_unet_down_blocks_0"."""
    part, _, inner = layer.partition(".")
    if part not in _PREFIXES:
        raise StudioloError(
            f"kohya's naming has no name for the {part}", remedy="Write PEFT's naming: --format peft"
        )
    prefix = "lora_te1_" if part == "text_encoder" and is_xl else _PREFIXES[part]
    return prefix + inner.replace(".", "_")


def _dotted(flat: str) -> str:
    """ "down_blocks_0_attentions_1" -> "down_blocks.0.attentions.1"."""
    words = _COMPOUND.sub(lambda found: found[0].replace("_", "\0"), flat)
    dotted = words.replace("_", ".").replace("\0", "_")
    if not dotted.startswith(("input_", "output_", "middle_", *_ENDS)):
        return dotted
    try:
        return _diffusers(dotted)
    except (KeyError, ValueError) as error:
        raise StudioloError(f"a U-Net has no layer {flat}", remedy="Give another.") from error


def _diffusers(name: str) -> str:
    """The U-Net's layer as diffusers calls it, from the name that the first implementation has for it."""
    for theirs, ours in _ENDS.items():
        if name == theirs:
            return ours
    side, place, kind, *rest = name.split(".")
    inner = ".".join(rest)
    if side == "middle_block":
        middle = {"0": "resnets.0", "1": "attentions.0", "2": "resnets.1"}[place]
        inner = f"{kind}.{inner}" if inner else kind
        return f"mid_block.{middle}.{_RESNET.get(inner, inner)}"
    down = side == "input_blocks"
    block, layer = divmod(int(place) - down, _PER_BLOCK)
    stem = f"{'down' if down else 'up'}_blocks.{block}"
    if inner in ("op", "conv"):
        return f"{stem}.{'down' if down else 'up'}samplers.0.conv"
    if kind == "0":
        return f"{stem}.resnets.{layer}.{_RESNET.get(inner, inner)}"
    return f"{stem}.attentions.{layer}.{inner}"

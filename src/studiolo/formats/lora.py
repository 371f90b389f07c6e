"""Files of adapters (LoRA, DoRA) in PEFT's naming and in kohya's.

In memory an adapter is a state as `diffusion.adapters` has it: "unet.down_blocks...to_q.lora_A.weight", with
alpha multiplied into B. PEFT's naming writes these names; kohya's (sd-scripts, read by AUTOMATIC1111, ComfyUI
and everybody) "lora_unet_down_blocks_..._to_q.lora_down.weight" with an alpha for each layer.
"""

from __future__ import annotations

import json
import math
import re
from collections import Counter
from collections.abc import Mapping
from pathlib import Path
from typing import Any, Literal

import torch

from studiolo.diffusion.components import Components
from studiolo.errors import StudioloError
from studiolo.formats import kohya
from studiolo.formats.tensors import OnProgress, read_metadata, read_tensors, write_tensors
from studiolo.models.registry import CARD_KEY

Naming = Literal["peft", "kohya"]
State = Mapping[str, torch.Tensor]

PARTS = ("unet", "transformer", "text_encoder", "text_encoder_2", "text_encoder_3")
A, B, LENGTHS = ".lora_A.weight", ".lora_B.weight", ".lora_magnitude_vector.weight"
_PEFT_METADATA = "lora_adapter_metadata"

# What older versions of diffusers called the two halves: src/diffusers/utils/state_dict_utils.py.
_OLDER = [
    (re.compile(r"\.processor\.to_out_lora\.(down|up)\.weight$"), r".to_out.0.lora.\1.weight"),
    (re.compile(r"\.processor\.(to_[qkv])_lora\.(down|up)\.weight$"), r".\1.lora.\2.weight"),
    (re.compile(r"\.to_out_lora\.(down|up)\.weight$"), r".out_proj.lora.\1.weight"),
    (re.compile(r"\.to_([qkv])_lora\.(down|up)\.weight$"), r".\1_proj.lora.\2.weight"),
    (re.compile(r"\.lora_linear_layer\.(down|up)\.weight$"), r".lora.\1.weight"),
    (re.compile(r"\.lora\.down\.weight$"), A),
    (re.compile(r"\.lora\.up\.weight$"), B),
    (re.compile(r"\.lora_magnitude_vector$"), LENGTHS),
]
# Other kinds of adapters, by a piece of the names in their files.
_OTHERS = {
    "hada_": "LoHa", "lokr_": "LoKr", "lora_mid": "LoCon with a Tucker decomposition", "ia3": "IA3",
    "oft_": "OFT", "boft": "BOFT", "glora": "GLoRA", "bundle_emb": "LoRA with embeddings in the same file",
    "lora_unet_joint_blocks": "LoRA of Stable Diffusion 3 in kohya's names", "lora_te3": "LoRA of T5",
    ".diff.": "full differences of weights", "base_model.model": "PEFT's own files",
    "lora_embedding": "LoRA of embeddings", ".reset_": "controls of LyCORIS", "vera_": "VeRA",
}  # fmt: skip


def read_adapter(file: str | Path) -> dict[str, torch.Tensor]:
    """The state in a file of LoRA or DoRA, in either naming; tensors as they are stored, alpha within B.

    Raises:
        StudioloError: the file is damaged, or no adapter of a kind that can be read: LoHa, LoKr and others
            are refused by name.
    """
    file = Path(file)
    tensors = read_tensors(file)
    try:
        _refuse_others(tensors)
        if any(name.startswith("lora_") for name in tensors):
            state = kohya.from_kohya(tensors)
        else:
            state = _from_peft(tensors, read_metadata(file))
        _check(state)
    except StudioloError as error:
        raise StudioloError(error.message, where=file, remedy=error.remedy) from error
    return state


def write_adapter(
    state: State,
    file: str | Path,
    naming: Naming = "peft",
    dtype: torch.dtype | None = None,
    card: Mapping[str, Any] | None = None,
    on_progress: OnProgress | None = None,
) -> Path:
    """Writes a state to a .safetensors file; returns its path.

    PEFT's naming is what `load_lora_weights` of diffusers' pipelines reads, as
    `pytorch_lora_weights.safetensors`; see `published` for the one name in it that is not the layer's own.

    Raises:
        StudioloError: the state is none, or holds what kohya's naming has no name for.
    """
    _check(state)
    state = {name: tensor.to(dtype or tensor.dtype) for name, tensor in published(state).items()}
    metadata = {"format": "pt"}
    if naming == "kohya":
        tensors, more = kohya.to_kohya(state)
        metadata |= more
    else:
        tensors = dict(state)
        metadata |= _uneven(state)
    if card:
        metadata[CARD_KEY] = json.dumps(card, ensure_ascii=False)
    return write_tensors(file, tensors, metadata, on_progress=on_progress)  # a kohya alpha keeps its type


def fitted(state: State, components: Components) -> dict[str, torch.Tensor]:
    """The state by the names that the layers of this model have.

    transformers 5 has taken "text_model." out of some text encoders' names: files have it or not.
    """
    layers = {
        f"{part}.{name}" for part, module in components.modules.items() for name, _ in module.named_modules()
    }
    found = {}
    for name, tensor in state.items():
        layer, suffix = split(name)
        part, _, inner = layer.partition(".")
        bare = inner.removeprefix("text_model.")
        names = (layer, f"{part}.{bare}", f"{part}.text_model.{bare}")
        found[next((name for name in names if name in layers), layer) + suffix] = tensor
    return found


def published(state: State) -> dict[str, torch.Tensor]:
    """The state with "text_model." in the names of CLIP's layers, as all files had it before transformers 5:
    diffusers reads both, and older versions, ComfyUI and others that one alone."""
    found = {}
    for name, tensor in state.items():
        part, _, inner = name.partition(".")
        if part in ("text_encoder", "text_encoder_2") and inner.startswith("encoder."):
            name = f"{part}.text_model.{inner}"
        found[name] = tensor
    return found


def split(name: str) -> tuple[str, str]:
    """The layer and the suffix of a name of a state."""
    for suffix in (A, B, LENGTHS):
        if name.endswith(suffix):
            return name.removesuffix(suffix), suffix
    raise StudioloError(f"{name} is no part of a LoRA or DoRA", remedy="Give a file of LoRA or DoRA.")


def is_adapter(names: Mapping[str, Any]) -> bool:
    """Whether tensors of these names are an adapter, of whatever kind."""
    marks = (".lora_", ".lora.", "_lora.", "hada_", "lokr_", "lora_unet_", "lora_te", "dora_scale")
    return any(mark in name for name in names for mark in marks)


def _from_peft(tensors: State, metadata: Mapping[str, str]) -> dict[str, torch.Tensor]:
    alphas = {name.removesuffix(".alpha"): tensors[name] for name in tensors if name.endswith(".alpha")}
    state = {_newest(name): tensor for name, tensor in tensors.items() if not name.endswith(".alpha")}
    state = {name if name.startswith(PARTS) else f"unet.{name}": tensor for name, tensor in state.items()}
    scales = {layer: float(alpha) / _rank(state, layer) for layer, alpha in alphas.items()}
    scales |= _told_scales(state, metadata)
    return scaled(state, scales)


def scaled(state: State, scales: Mapping[str, float]) -> dict[str, torch.Tensor]:
    """The state with B of each layer multiplied by its scale; where that is 1, it is left as it is."""
    found = dict(state)
    for layer, scale in scales.items():
        if scale != 1.0 and layer + B in found:
            half = found[layer + B]
            found[layer + B] = (half.float() * scale).to(half.dtype)
    return found


def _newest(name: str) -> str:
    for pattern, replacement in _OLDER:
        name = pattern.sub(replacement, name)
    return name


def _rank(state: State, layer: str) -> int:
    if layer + A not in state:
        raise StudioloError(f"{layer} has only a part of its LoRA", remedy="Fetch the file again.")
    return state[layer + A].shape[0]


def _told_scales(state: State, metadata: Mapping[str, str]) -> dict[str, float]:
    """Scales from the settings that PEFT keeps in the metadata, part by part."""
    if not (text := metadata.get(_PEFT_METADATA)):
        return {}
    try:
        told = json.loads(text)
        return {
            layer: _scale(layer, told, _rank(state, layer))
            for layer in {split(name)[0] for name in state}
            if f"{layer.partition('.')[0]}.lora_alpha" in told
        }
    except (ValueError, TypeError, KeyError, AttributeError, re.error) as error:
        raise StudioloError(
            f"its settings cannot be read ({error})", remedy="Fetch the file again."
        ) from error


def _scale(layer: str, told: Mapping[str, Any], rank: int) -> float:
    part, _, inner = layer.partition(".")
    alpha = float(told[f"{part}.lora_alpha"])
    for pattern, value in (told.get(f"{part}.alpha_pattern") or {}).items():
        if re.match(rf"(.*\.)?({pattern})$", inner):
            alpha = float(value)
            break
    return alpha / (math.sqrt(rank) if told.get(f"{part}.use_rslora") else rank)


def _uneven(state: State) -> dict[str, str]:
    """PEFT's settings where ranks differ within a part: without them diffusers takes one alpha for all."""
    ranks: dict[str, dict[str, int]] = {}
    for name, tensor in state.items():
        layer, suffix = split(name)
        if suffix == A:
            part, _, inner = layer.partition(".")
            ranks.setdefault(part, {})[inner] = tensor.shape[0]
    if all(len(set(layers.values())) == 1 for layers in ranks.values()):
        return {}
    told: dict[str, Any] = {}
    for part, layers in ranks.items():
        common = Counter(layers.values()).most_common(1)[0][0]
        others = {re.escape(layer): rank for layer, rank in layers.items() if rank != common}
        settings = {
            "r": common,
            "lora_alpha": common,
            "rank_pattern": others,
            "alpha_pattern": others,
            "target_modules": sorted(layers),
            "use_dora": any(name.startswith(f"{part}.") and name.endswith(LENGTHS) for name in state),
        }
        told |= {f"{part}.{key}": value for key, value in settings.items()}
    return {_PEFT_METADATA: json.dumps(told, sort_keys=True)}


def _refuse_others(tensors: State) -> None:
    for mark, kind in _OTHERS.items():
        if strange := next((name for name in tensors if mark in f"{name}."), None):
            raise StudioloError(
                f"adapters of the kind {kind} cannot be read ({strange})",
                remedy="Give one of plain LoRA or DoRA.",
            )
    if not is_adapter(tensors):
        some = next(iter(tensors), "nothing")
        raise StudioloError(f"no adapter: its weights are named like {some}", remedy="Give a file of LoRA.")


def _check(state: State) -> None:
    """Both halves of each layer, of one rank; parts that there are."""
    if not state:
        raise StudioloError("an adapter without layers")
    for name in state:
        layer, _ = split(name)
        if layer.partition(".")[0] not in PARTS:
            raise StudioloError(f"no part of a model has a layer {layer}", remedy="Give a file of LoRA.")
        if layer + B not in state or _rank(state, layer) != state[layer + B].shape[1]:
            raise StudioloError(f"the halves of {layer} do not fit together", remedy="Fetch the file again.")

"""Text encoders and tokenizers in single files: where they are, and by what names."""

from __future__ import annotations

import json
import tempfile
import warnings
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch
from transformers import CLIPTokenizer, T5TokenizerFast

from studiolo.errors import StudioloError
from studiolo.formats import compvis
from studiolo.formats.clip_vocabulary import clip_tokenizer, is_clip
from studiolo.formats.inferring import CLIP, CLIP_XL, OPEN_CLIP, OPEN_CLIP_XL, TEXTS_3, Description
from studiolo.formats.tensors import Tensors

_TOKENIZER_JSON, _CLASS = "tokenizer.json", "tokenizer_class"
_CLASSES: dict[str, Any] = {"CLIPTokenizer": CLIPTokenizer, "T5TokenizerFast": T5TokenizerFast}
_PROJECTION = "text_projection.weight"
_TIED = "encoder.embed_tokens.weight"
"""T5's table of tokens under a second name, which files have once."""


def text_to_file(part: str, module: Any, family: str) -> dict[str, torch.Tensor]:
    """The weights of a text encoder as they are in the file; warns of what other programs do not read."""
    weights = module.state_dict()
    if (part, family) == ("text_encoder", "sd3") and not _is_identity(weights[_PROJECTION]):
        warnings.warn(
            "the first text encoder's projection was trained: other programs take it for the identity",
            stacklevel=2,
        )
    prefix = _prefix(part, module.config.to_dict(), family)
    if prefix in (OPEN_CLIP, OPEN_CLIP_XL):
        return {prefix + name: tensor for name, tensor in compvis.to_open_clip(weights).items()}
    return {prefix + _transformers_name(name): t for name, t in weights.items() if name != _TIED}


def text_from_file(
    part: str, told: Description, tensors: Tensors, names: Mapping[str, torch.Size]
) -> dict[str, torch.Tensor]:
    """Back, for the `names` of a text encoder; those that are not in the file are left out."""
    prefix = _prefix(part, told.configs[part], told.family)
    held = {name.removeprefix(prefix): tensors[name] for name in tensors if name.startswith(prefix)}
    if prefix in (OPEN_CLIP, OPEN_CLIP_XL):
        return compvis.from_open_clip(held, names)
    bare = {name.removeprefix("text_model."): tensor for name, tensor in held.items()}
    if "shared.weight" in bare:
        bare[_TIED] = bare["shared.weight"]
    if part in told.unprojected:
        bare[_PROJECTION] = torch.eye(*names[_PROJECTION])
    return {name: bare[key] for name in names if (key := name.removeprefix("text_model.")) in bare}


def _is_identity(matrix: torch.Tensor) -> bool:
    return torch.equal(matrix.float(), torch.eye(*matrix.shape, device=matrix.device))


def _transformers_name(name: str) -> str:
    """With the prefix that CLIP's weights have in files, whatever the version of transformers calls them."""
    of_clip = name.startswith(("embeddings.", "encoder.layers.", "final_layer_norm."))
    return f"text_model.{name}" if of_clip else name


def _prefix(part: str, config: Mapping[str, Any], family: str) -> str:
    """Where a text encoder is: SD 1 has CLIP, SD 2 OpenCLIP (another activation); XL has both."""
    if family == "sd3":
        return TEXTS_3[part]
    if family == "sdxl":
        return CLIP_XL if part == "text_encoder" else OPEN_CLIP_XL
    if family != "sd":
        raise StudioloError(
            f"models of the family {family} are not written as single files",
            remedy="Write a Diffusers folder.",
        )
    return CLIP if config["hidden_act"] == "quick_gelu" else OPEN_CLIP


def tokenizer_settings(tokenizer: Any) -> dict[str, Any]:
    """What makes it anew: the tokenizer itself only where it is not CLIP's, which comes with Studiolo."""
    settings: dict[str, Any] = {
        "pad_token": tokenizer.pad_token,
        "model_max_length": tokenizer.model_max_length,
    }
    if not isinstance(tokenizer, CLIPTokenizer):
        extra = tokenizer.init_kwargs.get("extra_ids", 100)  # the default of its class, too
        settings |= {_CLASS: "T5TokenizerFast", "extra_ids": extra}
    elif is_clip(tokenizer):
        return settings
    return settings | {_TOKENIZER_JSON: tokenizer.backend_tokenizer.to_str()}


def make_tokenizer(settings: Mapping[str, Any]) -> Any:
    """Of what `tokenizer_settings` returned."""
    config = {key: value for key, value in settings.items() if key != _TOKENIZER_JSON}
    if _TOKENIZER_JSON not in settings:
        return clip_tokenizer(**config)
    config = {_CLASS: "CLIPTokenizer"} | config
    with tempfile.TemporaryDirectory() as folder:  # the library reads tokenizers from folders alone
        (Path(folder) / _TOKENIZER_JSON).write_text(settings[_TOKENIZER_JSON], encoding="utf-8")
        (Path(folder) / "tokenizer_config.json").write_text(json.dumps(config), encoding="utf-8")
        return _CLASSES[config[_CLASS]].from_pretrained(folder, local_files_only=True)

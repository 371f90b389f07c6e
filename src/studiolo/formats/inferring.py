"""Configs of the published Stable Diffusion architectures, read off the shapes of their weights.

A single file says nothing of the network that its weights belong to; what shapes cannot tell (heads, scaling
of latents, activation) is as the published models of that shape have it.
"""

from __future__ import annotations

import re
import warnings
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

import torch

from studiolo.errors import StudioloError
from studiolo.formats.compvis import UNET, VAE
from studiolo.formats.mmdit import transformer_config

Tensors = Mapping[str, torch.Tensor]

CLIP, CLIP_XL = "cond_stage_model.transformer.", "conditioner.embedders.0.transformer."
OPEN_CLIP, OPEN_CLIP_XL = "cond_stage_model.model.", "conditioner.embedders.1.model."
TEXTS_3 = {
    "text_encoder": "text_encoders.clip_l.transformer.",
    "text_encoder_2": "text_encoders.clip_g.transformer.",
    "text_encoder_3": "text_encoders.t5xxl.transformer.",
}
"""Stable Diffusion 3's, which all have the names of transformers."""

_SCHEDULE = {
    "num_train_timesteps": 1000,
    "beta_schedule": "scaled_linear",
    "beta_start": 0.00085,
    "beta_end": 0.012,
    "clip_sample": False,
    "set_alpha_to_one": False,
    "steps_offset": 1,
    "skip_prk_steps": True,
}


@dataclass
class Description:
    """What a model is, beside its weights: as it stands in the metadata of our files.

    configs: by part ("unet", "vae", "text_encoder", ...). tokenizers: the content of tokenizer_config.json
    for each, with that of tokenizer.json under "tokenizer.json" where it is not CLIP's. unprojected: text
    encoders whose projection is the identity, whatever the file says.
    """

    family: str
    configs: dict[str, dict[str, Any]]
    scheduler: dict[str, Any]
    tokenizers: list[dict[str, Any]]
    settings: dict[str, Any] = field(default_factory=dict)
    unprojected: list[str] = field(default_factory=list)


def infer(tensors: Tensors, parameterization: str | None = None) -> Description:
    """The published architecture that these weights belong to.

    `parameterization` is "epsilon" or "v_prediction" where somebody says it; it cannot be read off weights,
    and is guessed otherwise.

    Raises:
        StudioloError: they are no Stable Diffusion 1.x, 2.x, XL or 3.
    """
    unet = _below(UNET, tensors)
    if any(name.startswith("joint_blocks.") for name in unet):
        return _version_3(unet, tensors)
    config = _unet(unet)
    prediction = parameterization or _prediction_type(tensors, unet)
    scheduler = _SCHEDULE | {"prediction_type": prediction}
    if "ztsnr" in tensors:
        scheduler |= {"rescale_betas_zero_snr": True, "timestep_spacing": "trailing"}
    if _has(OPEN_CLIP_XL, tensors):
        if not _has(CLIP_XL, tensors):
            raise _other("SDXL's first text encoder is missing")
        scheduler |= {"_class_name": "EulerDiscreteScheduler", "timestep_spacing": "leading"}
        configs = {
            "unet": config | {"sample_size": 128},
            "vae": _vae(tensors) | {"scaling_factor": 0.13025, "sample_size": 1024, "force_upcast": True},
            "text_encoder": _clip(_text(CLIP_XL, tensors)),
            "text_encoder_2": _open_clip(_below(OPEN_CLIP_XL, tensors)),
        }
        return Description("sdxl", configs, scheduler, [{}, {"pad_token": "!"}])
    if _has(OPEN_CLIP, tensors):
        text, pad, class_name = _open_clip(_below(OPEN_CLIP, tensors), penultimate=True), "!", "DDIMScheduler"
    elif _has(CLIP, tensors):
        text, pad, class_name = _clip(_text(CLIP, tensors)), "<|endoftext|>", "PNDMScheduler"
    else:
        raise _other("the text encoder is missing")
    cells = 96 if prediction == "v_prediction" and pad == "!" else 64
    configs = {
        "unet": config | {"sample_size": cells},
        "vae": _vae(tensors) | {"scaling_factor": 0.18215, "sample_size": 8 * cells},
        "text_encoder": text,
    }
    return Description("sd", configs, scheduler | {"_class_name": class_name}, [{"pad_token": pad}])


def _version_3(transformer: Tensors, tensors: Tensors) -> Description:
    """Without T5, as its authors allow (Esser et al. 2024, section 5.3): such files have no tokenizer."""
    texts = [_text(prefix, tensors) for prefix in list(TEXTS_3.values())[:2]]
    if not all(texts):
        raise _other("a text encoder is missing: files that hold the transformer alone are not read")
    if _has(TEXTS_3["text_encoder_3"], tensors):
        warnings.warn("T5 is left out: the file has no tokenizer for it; a folder would", stacklevel=2)
    width = transformer["context_embedder.weight"].shape[1]
    configs = {
        "transformer": transformer_config(transformer),
        "vae": _vae(tensors) | {"scaling_factor": 1.5305, "shift_factor": 0.0609, "sample_size": 1024},
        "text_encoder": _clip(texts[0]),
        "text_encoder_2": _clip(texts[1], act="gelu"),
    }
    scheduler = {"_class_name": "FlowMatchEulerDiscreteScheduler", "num_train_timesteps": 1000, "shift": 3.0}
    # Its authors' code reads the first encoder's pooled states as they are.
    return Description(
        "sd3", configs, scheduler, [{}, {"pad_token": "!"}], {"width": width}, unprojected=["text_encoder"]
    )


def _prediction_type(tensors: Tensors, unet: Tensors) -> str:
    """SDXL says it by a weight of its own; of SD 2 a norm tells it, whose biases are large for v alone: a
    rule of thumb, from ComfyUI's supported_models.py."""
    if "v_pred" in tensors:
        return "v_prediction"
    bias = unet.get("output_blocks.11.1.transformer_blocks.0.norm1.bias")
    is_v = _has(OPEN_CLIP, tensors) and bias is not None and bias.float().std(unbiased=False) > 0.09
    return "v_prediction" if is_v else "epsilon"


def _unet(unet: Tensors) -> dict[str, Any]:
    if "input_blocks.0.0.weight" not in unet:
        raise _other("there is no U-Net in it")
    levels = _levels(unet)
    widths = [level["width"] for level in levels]
    attends = [bool(level["depth"]) for level in levels]
    depths = [level["depth"] or 1 for level in levels]
    crosses = [unet[name].shape[1] for name in unet if name.endswith("attn2.to_k.weight")]
    if not crosses:
        raise _other("its U-Net reads no text")
    linear = any(name.endswith("proj_in.weight") and unet[name].ndim == 2 for name in unet)
    config: dict[str, Any] = {
        "_class_name": "UNet2DConditionModel",
        "in_channels": unet["input_blocks.0.0.weight"].shape[1],
        "out_channels": unet["out.2.weight"].shape[0],
        "block_out_channels": widths,
        "layers_per_block": levels[0]["layers"],
        "down_block_types": ["CrossAttnDownBlock2D" if yes else "DownBlock2D" for yes in attends],
        "up_block_types": ["CrossAttnUpBlock2D" if yes else "UpBlock2D" for yes in reversed(attends)],
        "cross_attention_dim": crosses[0],
        # Version 1 has eight heads at any width; later ones have heads of 64 channels.
        "attention_head_dim": [width // 64 for width in widths] if linear else 8,
        "use_linear_projection": linear,
        "transformer_layers_per_block": depths if set(depths) != {1} else 1,
    }
    if (label := unet.get("label_emb.0.0.weight")) is not None:
        config |= {
            "addition_embed_type": "text_time",
            "addition_time_embed_dim": 256,
            "projection_class_embeddings_input_dim": label.shape[1],
        }
    return config


def _levels(unet: Tensors) -> list[dict[str, int]]:
    """Width, number of layers, and depth of the transformers (0: none) at each resolution."""
    levels: list[dict[str, int]] = [{"width": 0, "layers": 0, "depth": 0}]
    place = 1
    while any(name.startswith(f"input_blocks.{place}.") for name in unet):
        if f"input_blocks.{place}.0.op.weight" in unet:
            levels.append({"width": 0, "layers": 0, "depth": 0})
        else:
            level = levels[-1]
            level["width"] = unet[f"input_blocks.{place}.0.in_layers.2.weight"].shape[0]
            level["layers"] += 1
            level["depth"] = _count(rf"input_blocks\.{place}\.1\.transformer_blocks\.(\d+)\.", unet)
        place += 1
    return levels


def _vae(tensors: Tensors) -> dict[str, Any]:
    vae = _below(VAE, tensors)
    if "decoder.conv_in.weight" not in vae or "encoder.conv_out.weight" not in vae:
        raise _other("the VAE is missing")
    levels = _count(r"encoder\.down\.(\d+)\.", vae)
    return {
        "_class_name": "AutoencoderKL",
        "block_out_channels": [vae[f"encoder.down.{n}.block.0.conv1.weight"].shape[0] for n in range(levels)],
        "layers_per_block": _count(r"encoder\.down\.0\.block\.(\d+)\.", vae),
        "down_block_types": ["DownEncoderBlock2D"] * levels,
        "up_block_types": ["UpDecoderBlock2D"] * levels,
        "latent_channels": vae["encoder.conv_out.weight"].shape[0] // 2,
        "mid_block_add_attention": "encoder.mid.attn_1.q.weight" in vae,
        "use_quant_conv": "quant_conv.weight" in vae,
        "use_post_quant_conv": "post_quant_conv.weight" in vae,
    }


def _clip(text: Tensors, act: str = "quick_gelu") -> dict[str, Any]:
    tokens = text["embeddings.token_embedding.weight"]
    projection = text.get("text_projection.weight", tokens.T)
    return _text_config(
        tokens,
        positions=text["embeddings.position_embedding.weight"].shape[0],
        layers=_count(r"encoder\.layers\.(\d+)\.", text),
        inner=text["encoder.layers.0.mlp.fc1.weight"].shape[0],
        projection=projection.shape[0],
        act=act,
    )


def _open_clip(text: Tensors, penultimate: bool = False) -> dict[str, Any]:
    """`penultimate`: SD 2 never uses the last layer, and its text encoder is published without it."""
    tokens = text["token_embedding.weight"]
    layers = _count(r"transformer\.resblocks\.(\d+)\.", text)
    projection = 512 if penultimate else text["text_projection"].shape[1]
    return _text_config(
        tokens,
        positions=text["positional_embedding"].shape[0],
        layers=23 if penultimate and layers == 24 else layers,
        inner=text["transformer.resblocks.0.mlp.c_fc.weight"].shape[0],
        projection=projection,
        act="gelu",
    )


def _text_config(
    tokens: torch.Tensor, positions: int, layers: int, inner: int, projection: int, act: str
) -> dict[str, Any]:
    vocabulary, width = tokens.shape
    return {
        "model_type": "clip_text_model",
        "vocab_size": vocabulary,
        "hidden_size": width,
        "intermediate_size": inner,
        "num_hidden_layers": layers,
        "num_attention_heads": max(1, width // 64),
        "max_position_embeddings": positions,
        "projection_dim": projection,
        "hidden_act": act,
        "bos_token_id": 0,
        "eos_token_id": 2,  # as published; transformers then takes the largest id of a text for its end
        "pad_token_id": 1,
    }


def _text(prefix: str, tensors: Tensors) -> dict[str, torch.Tensor]:
    return {name.removeprefix("text_model."): tensor for name, tensor in _below(prefix, tensors).items()}


def _below(prefix: str, tensors: Tensors) -> dict[str, torch.Tensor]:
    return {name.removeprefix(prefix): tensors[name] for name in tensors if name.startswith(prefix)}


def _has(prefix: str, tensors: Tensors) -> bool:
    return any(name.startswith(prefix) for name in tensors)


def _count(pattern: str, names: Tensors) -> int:
    """How many numbers stand in the place of the group, from 0 on."""
    return 1 + max((int(found[1]) for name in names if (found := re.match(pattern, name))), default=-1)


def _other(why: str) -> StudioloError:
    return StudioloError(
        f"not a whole Stable Diffusion 1, 2, XL or 3 model: {why}",
        remedy="Give a checkpoint with U-Net, text encoder and VAE in it, or a Diffusers folder.",
    )

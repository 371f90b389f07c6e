"""Tiny models in the layouts of the published ones, with CLIP's own vocabulary, for tests of file formats."""

from __future__ import annotations

from typing import Any

import torch
from diffusers import AutoencoderKL, SD3Transformer2DModel, UNet2DConditionModel
from transformers import CLIPTextConfig, CLIPTextModel, CLIPTextModelWithProjection

from studiolo.diffusion.components import Components
from studiolo.diffusion.families import FAMILIES
from studiolo.formats.clip_vocabulary import clip_tokenizer

SCHEDULE = {
    "num_train_timesteps": 1000,
    "beta_schedule": "scaled_linear",
    "beta_start": 0.00085,
    "beta_end": 0.012,
    "clip_sample": False,
    "set_alpha_to_one": False,
    "steps_offset": 1,
    "skip_prk_steps": True,
}


def text_config(width: int, layers: int, act: str, projection: int) -> CLIPTextConfig:
    return CLIPTextConfig(
        hidden_size=width,
        intermediate_size=2 * width,
        num_hidden_layers=layers,
        num_attention_heads=max(1, width // 64),
        projection_dim=projection,
        hidden_act=act,
        bos_token_id=0,
        eos_token_id=2,
        pad_token_id=1,
    )


def vae(scaling: float, sample_size: int, channels: int = 4, **settings: Any) -> AutoencoderKL:
    return AutoencoderKL(
        down_block_types=["DownEncoderBlock2D"] * 4,
        up_block_types=["UpDecoderBlock2D"] * 4,
        block_out_channels=[32, 32, 64, 64],
        layers_per_block=2,
        latent_channels=channels,
        scaling_factor=scaling,
        sample_size=sample_size,
        **settings,
    )


def stable_diffusion_1(seed: int = 0) -> Components:
    """Version 1's blocks, narrow: CLIP, convolutions around the attention, eight heads."""
    torch.manual_seed(seed)
    return Components(
        tokenizers=(clip_tokenizer(),),
        text_encoders=(CLIPTextModel(text_config(64, 2, "quick_gelu", 64)).eval(),),
        vae=vae(0.18215, 512).eval(),
        denoiser=UNet2DConditionModel(
            sample_size=64, block_out_channels=[32, 64, 64, 64], cross_attention_dim=64, attention_head_dim=8
        ).eval(),
        scheduler_config=SCHEDULE | {"_class_name": "PNDMScheduler", "prediction_type": "epsilon"},
    )


def stable_diffusion_2(seed: int = 0, prediction_type: str = "v_prediction") -> Components:
    """Version 2's: OpenCLIP, linear layers around the attention, heads of 64 channels."""
    torch.manual_seed(seed)
    return Components(
        tokenizers=(clip_tokenizer(pad_token="!"),),
        text_encoders=(CLIPTextModel(text_config(64, 2, "gelu", 512)).eval(),),
        vae=vae(0.18215, 768 if prediction_type == "v_prediction" else 512).eval(),
        denoiser=UNet2DConditionModel(
            sample_size=96 if prediction_type == "v_prediction" else 64,
            block_out_channels=[64, 64, 128, 128],
            cross_attention_dim=64,
            attention_head_dim=[1, 1, 2, 2],
            use_linear_projection=True,
        ).eval(),
        scheduler_config=SCHEDULE | {"_class_name": "DDIMScheduler", "prediction_type": prediction_type},
    )


def stable_diffusion_xl(seed: int = 0, prediction_type: str = "epsilon") -> Components:
    """XL's: two text encoders, deeper transformers lower down, none at the top, sizes told."""
    torch.manual_seed(seed)
    return Components(
        tokenizers=(clip_tokenizer(), clip_tokenizer(pad_token="!")),
        text_encoders=(
            CLIPTextModel(text_config(64, 2, "quick_gelu", 64)).eval(),
            CLIPTextModelWithProjection(text_config(128, 3, "gelu", 128)).eval(),
        ),
        vae=vae(0.13025, 1024).eval(),
        denoiser=UNet2DConditionModel(
            sample_size=128,
            down_block_types=["DownBlock2D", "CrossAttnDownBlock2D", "CrossAttnDownBlock2D"],
            up_block_types=["CrossAttnUpBlock2D", "CrossAttnUpBlock2D", "UpBlock2D"],
            block_out_channels=[64, 64, 128],
            transformer_layers_per_block=[1, 2, 3],
            cross_attention_dim=192,
            attention_head_dim=[1, 1, 2],
            use_linear_projection=True,
            addition_embed_type="text_time",
            addition_time_embed_dim=256,
            projection_class_embeddings_input_dim=6 * 256 + 128,
        ).eval(),
        scheduler_config=SCHEDULE
        | {
            "_class_name": "EulerDiscreteScheduler",
            "prediction_type": prediction_type,
            "timestep_spacing": "leading",
        },
        family=FAMILIES["sdxl"](),
    )


def stable_diffusion_3(seed: int = 0, **transformer: Any) -> Components:
    """Version 3.5's, without T5: some blocks attend twice, queries and keys are normalised."""
    torch.manual_seed(seed)
    blocks = {"num_layers": 3, "dual_attention_layers": (0, 1), "qk_norm": "rms_norm"} | transformer
    first = CLIPTextModelWithProjection(text_config(64, 2, "quick_gelu", 64)).eval()
    torch.nn.init.eye_(first.text_projection.weight)  # as published
    return Components(
        tokenizers=(clip_tokenizer(), clip_tokenizer(pad_token="!")),
        text_encoders=(
            first,
            CLIPTextModelWithProjection(text_config(128, 3, "gelu", 128)).eval(),
        ),
        vae=vae(
            1.5305, 1024, channels=16, shift_factor=0.0609, use_quant_conv=False, use_post_quant_conv=False
        ).eval(),
        denoiser=SD3Transformer2DModel(
            sample_size=128,
            patch_size=2,
            in_channels=16,
            out_channels=16,
            attention_head_dim=64,
            num_attention_heads=2,
            joint_attention_dim=192,
            caption_projection_dim=128,
            pooled_projection_dim=192,
            pos_embed_max_size=16,
            **blocks,
        ).eval(),
        scheduler_config={
            "_class_name": "FlowMatchEulerDiscreteScheduler", "num_train_timesteps": 1000, "shift": 3.0,
        },
        family=FAMILIES["sd3"](width=192),
    )  # fmt: skip


MAKERS = {
    "sd1": stable_diffusion_1,
    "sd2": stable_diffusion_2,
    "sdxl": stable_diffusion_xl,
    "sd3": stable_diffusion_3,
}

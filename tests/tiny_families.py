"""Tiny models of every family with random weights: the block types of the published configs, few channels."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
from diffusers import AutoencoderKL, SD3Transformer2DModel, UNet2DConditionModel
from transformers import (
    CLIPTextConfig,
    CLIPTextModel,
    CLIPTextModelWithProjection,
    CLIPTokenizer,
    T5Config,
    T5EncoderModel,
    T5TokenizerFast,
)

from studiolo.diffusion.components import Components
from studiolo.diffusion.families import StableDiffusion, StableDiffusion3, StableDiffusionXL
from tiny import WORDS, tiny_components, tiny_tokenizer

LATENT = 8
"""Side of the latents of these models; their pictures have 32 pixels."""


def tiny_sd1(seed: int = 0) -> Components:
    return tiny_components(seed)


def tiny_sd2(seed: int = 0) -> Components:
    """As stabilityai/stable-diffusion-2-1: v-prediction, OpenCLIP's text encoder, zero terminal SNR."""
    with _seeded(seed):
        tokenizer = _tokenizer(pad="!")
        return Components(
            tokenizers=(tokenizer,),
            text_encoders=(CLIPTextModel(_clip(tokenizer, 32, layers=3, activation="gelu")).eval(),),
            vae=_vae(4).eval(),
            denoiser=UNet2DConditionModel(
                sample_size=LATENT,
                down_block_types=["CrossAttnDownBlock2D"] * 2 + ["DownBlock2D"],
                up_block_types=["UpBlock2D"] + ["CrossAttnUpBlock2D"] * 2,
                block_out_channels=[16, 32, 32],
                attention_head_dim=[2, 4, 4],
                layers_per_block=1,
                norm_num_groups=8,
                cross_attention_dim=32,
                use_linear_projection=True,
                upcast_attention=True,
            ).eval(),
            scheduler_config=_betas(
                prediction_type="v_prediction", rescale_betas_zero_snr=True, timestep_spacing="trailing"
            ),
            family=StableDiffusion(),
        )


def tiny_sdxl(seed: int = 0) -> Components:
    """As stabilityai/stable-diffusion-xl-base-1.0."""
    with _seeded(seed):
        tokenizers = _tokenizer(), _tokenizer(pad="!")
        return Components(
            tokenizers=tokenizers,
            text_encoders=(
                CLIPTextModel(_clip(tokenizers[0], 16, layers=3)).eval(),
                CLIPTextModelWithProjection(_clip(tokenizers[1], 24, layers=3, activation="gelu")).eval(),
            ),
            vae=_vae(4, scaling_factor=0.13025).eval(),
            denoiser=UNet2DConditionModel(
                sample_size=LATENT,
                down_block_types=["DownBlock2D", "CrossAttnDownBlock2D", "CrossAttnDownBlock2D"],
                up_block_types=["CrossAttnUpBlock2D", "CrossAttnUpBlock2D", "UpBlock2D"],
                block_out_channels=[16, 32, 32],
                attention_head_dim=[2, 4, 4],
                transformer_layers_per_block=[1, 1, 2],
                layers_per_block=1,
                norm_num_groups=8,
                cross_attention_dim=40,
                use_linear_projection=True,
                addition_embed_type="text_time",
                addition_time_embed_dim=8,
                projection_class_embeddings_input_dim=24 + 6 * 8,
            ).eval(),
            scheduler_config=_betas(_class_name="EulerDiscreteScheduler", timestep_spacing="leading"),
            family=StableDiffusionXL(),
        )


def tiny_sd3(seed: int = 0, t5: bool = True) -> Components:
    """As stabilityai/stable-diffusion-3.5-medium, with or without T5."""
    with _seeded(seed):
        tokenizers: tuple[Any, ...] = (_tokenizer(), _tokenizer(pad="!"))
        encoders: tuple[Any, ...] = (
            CLIPTextModelWithProjection(_clip(tokenizers[0], 16, layers=3)).eval(),
            CLIPTextModelWithProjection(_clip(tokenizers[1], 24, layers=3, activation="gelu")).eval(),
        )
        if t5:
            tokenizers += (tiny_t5_tokenizer(),)
            encoders += (_t5(tokenizers[2]).eval(),)
        return Components(
            tokenizers=tokenizers,
            text_encoders=encoders,
            vae=_vae(
                16,
                scaling_factor=1.5305,
                shift_factor=0.0609,
                use_quant_conv=False,
                use_post_quant_conv=False,
            ).eval(),
            denoiser=_sd3_transformer().eval(),
            scheduler_config={
                "_class_name": "FlowMatchEulerDiscreteScheduler",
                "num_train_timesteps": 1000,
                "shift": 3.0,
            },
            family=StableDiffusion3(width=48),
        )


TINY: dict[str, Callable[[], Components]] = {
    "sd1": tiny_sd1,
    "sd2": tiny_sd2,
    "sdxl": tiny_sdxl,
    "sd3": tiny_sd3,
    "sd3 without t5": lambda: tiny_sd3(t5=False),
}


def tiny_t5_tokenizer() -> T5TokenizerFast:
    """Each of WORDS is one piece, everything else falls apart into letters."""
    pieces = [("<pad>", 0.0), ("</s>", 0.0), ("<unk>", 0.0), ("▁", -4.0)]
    pieces += [(f"▁{word}", -2.0) for word in WORDS if word not in ("zwx", "sks")]
    pieces += [(letter, -6.0) for letter in "abcdefghijklmnopqrstuvwxyz0123456789,.!"]
    return T5TokenizerFast(vocab=pieces, extra_ids=0, model_max_length=512)


def _sd3_transformer() -> SD3Transformer2DModel:
    return SD3Transformer2DModel(
        sample_size=LATENT,
        patch_size=2,
        in_channels=16,
        num_layers=3,
        attention_head_dim=8,
        num_attention_heads=4,
        joint_attention_dim=48,
        caption_projection_dim=32,
        pooled_projection_dim=40,
        out_channels=16,
        pos_embed_max_size=12,
        dual_attention_layers=(0, 1),
        qk_norm="rms_norm",
    )


class _seeded:  # noqa: N801 (reads as a statement)
    """Random weights inside are a function of the seed; the global generator stays as it was."""

    def __init__(self, seed: int) -> None:
        self._fork, self._seed = torch.random.fork_rng(devices=[]), seed

    def __enter__(self) -> None:
        self._fork.__enter__()
        torch.manual_seed(self._seed)

    def __exit__(self, *error: Any) -> None:
        self._fork.__exit__(*error)


def _tokenizer(pad: str | None = None) -> CLIPTokenizer:
    tokenizer = tiny_tokenizer()
    if pad is not None:
        tokenizer.pad_token = pad
    return tokenizer


def _clip(
    tokenizer: CLIPTokenizer, width: int, layers: int, activation: str = "quick_gelu"
) -> CLIPTextConfig:
    return CLIPTextConfig(
        vocab_size=len(tokenizer),
        hidden_size=width,
        intermediate_size=2 * width,
        projection_dim=width,
        num_hidden_layers=layers,
        num_attention_heads=2,
        hidden_act=activation,
        max_position_embeddings=tokenizer.model_max_length,
        bos_token_id=tokenizer.bos_token_id,
        eos_token_id=tokenizer.eos_token_id,
        pad_token_id=tokenizer.pad_token_id,
    )


def _t5(tokenizer: T5TokenizerFast) -> T5EncoderModel:
    return T5EncoderModel(
        T5Config(
            vocab_size=len(tokenizer) + 4,  # published tables too have more rows than there are tokens
            d_model=48,
            d_kv=8,
            d_ff=64,
            num_layers=2,
            num_heads=4,
            feed_forward_proj="gated-gelu",
        )
    )


def _vae(channels: int, **settings: Any) -> AutoencoderKL:
    return AutoencoderKL(
        down_block_types=["DownEncoderBlock2D"] * 3,
        up_block_types=["UpDecoderBlock2D"] * 3,
        block_out_channels=[8, 8, 16],
        layers_per_block=1,
        norm_num_groups=4,
        latent_channels=channels,
        sample_size=4 * LATENT,
        **settings,
    )


def _betas(**settings: Any) -> dict[str, Any]:
    return {
        "_class_name": "DDIMScheduler",
        "num_train_timesteps": 1000,
        "beta_schedule": "scaled_linear",
        "beta_start": 0.00085,
        "beta_end": 0.012,
        "clip_sample": False,
        "set_alpha_to_one": False,
        "steps_offset": 1,
        "prediction_type": "epsilon",
    } | settings

"""A tiny Stable Diffusion with random weights: the real classes, made and run in a blink."""

from __future__ import annotations

from pathlib import Path

import torch
from diffusers import AutoencoderKL, UNet2DConditionModel
from transformers import CLIPTextConfig, CLIPTextModel, CLIPTokenizer

from studiolo.base.text import new_tokenizer
from studiolo.diffusion.components import Components
from studiolo.formats.diffusers_folder import save_components

TEXT = """
a an the photo picture of on in at with and wearing hat red blue green white black style 3d flat emoji
fox dog cat moon snow grass beach forest city night background small big zwx sks
"""
WORDS = TEXT.split()


def tiny_tokenizer(max_length: int = 24) -> CLIPTokenizer:
    """A CLIPTokenizer in which each of WORDS is one token; everything else falls apart into bytes."""
    return new_tokenizer(WORDS, max_length)


def _tiny_text_encoder(tokenizer: CLIPTokenizer) -> CLIPTextModel:
    return CLIPTextModel(
        CLIPTextConfig(
            vocab_size=len(tokenizer),
            hidden_size=32,
            intermediate_size=64,
            projection_dim=32,
            num_hidden_layers=2,
            num_attention_heads=4,
            max_position_embeddings=tokenizer.model_max_length,
            bos_token_id=tokenizer.bos_token_id,
            eos_token_id=tokenizer.eos_token_id,
            pad_token_id=tokenizer.pad_token_id,
        )
    )


def _tiny_vae() -> AutoencoderKL:
    return AutoencoderKL(
        down_block_types=["DownEncoderBlock2D"] * 3,
        up_block_types=["UpDecoderBlock2D"] * 3,
        block_out_channels=[8, 8, 16],
        layers_per_block=1,
        norm_num_groups=4,
        latent_channels=4,
        scaling_factor=0.5,
        sample_size=32,
    )


def _tiny_unet(sample_size: int) -> UNet2DConditionModel:
    return UNet2DConditionModel(
        sample_size=sample_size,
        down_block_types=["CrossAttnDownBlock2D", "DownBlock2D"],
        up_block_types=["UpBlock2D", "CrossAttnUpBlock2D"],
        block_out_channels=[32, 64],
        layers_per_block=1,
        norm_num_groups=8,
        attention_head_dim=8,
        cross_attention_dim=32,
    )


def tiny_components(seed: int = 0, prediction_type: str = "epsilon", image_size: int = 32) -> Components:
    """Random weights, a function of the arguments alone; images of `image_size` pixels, latents a quarter."""
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        tokenizer = tiny_tokenizer()
        return Components(
            tokenizers=(tokenizer,),
            text_encoders=(_tiny_text_encoder(tokenizer).eval(),),
            vae=_tiny_vae().eval(),
            denoiser=_tiny_unet(image_size // 4).eval(),
            scheduler_config={
                "_class_name": "DDIMScheduler",
                "num_train_timesteps": 1000,
                "beta_schedule": "scaled_linear",
                "beta_start": 0.00085,
                "beta_end": 0.012,
                "clip_sample": False,
                "set_alpha_to_one": False,
                "steps_offset": 1,
                "prediction_type": prediction_type,
            },
        )


def tiny_folder(folder: Path, seed: int = 0, prediction_type: str = "epsilon", image_size: int = 32) -> Path:
    """The tiny model saved as a Diffusers folder at `folder`/model; returns that path."""
    path = Path(folder) / "model"
    save_components(tiny_components(seed, prediction_type, image_size), path)
    return path

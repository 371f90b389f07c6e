"""Models of the published sizes with random weights: speed and memory do not depend on the values.

`full_size("sdxl", device="cuda", dtype=torch.float16)` is a model to draw with and to teach; on the device
"meta" it takes no memory and can only be counted. The configs are those of the published folders
(stable-diffusion-v1-5, stable-diffusion-2-1, stable-diffusion-xl-base-1.0, stable-diffusion-3-medium,
stable-diffusion-3.5-medium); CLIP's tokenizer is the real one, T5's knows letters alone.

    python benchmarks/fullsize.py
"""

from __future__ import annotations

import argparse
import string
from typing import Any

import torch
from diffusers import AutoencoderKL, SD3Transformer2DModel, UNet2DConditionModel
from transformers import (
    CLIPTextConfig,
    CLIPTextModel,
    CLIPTextModelWithProjection,
    T5Config,
    T5EncoderModel,
    T5TokenizerFast,
)

from studiolo.diffusion.components import Components
from studiolo.diffusion.families import StableDiffusion, StableDiffusion3, StableDiffusionXL
from studiolo.formats.clip_vocabulary import clip_tokenizer

NAMES = ("sd1", "sd2", "sdxl", "sd3", "sd3.5")


def full_size(
    name: str,
    device: str | torch.device = "meta",
    dtype: torch.dtype = torch.float32,
    seed: int = 0,
    t5: bool = True,
) -> Components:
    """One of NAMES, made on `device`; `t5=False` leaves SD3's largest text encoder (4.8 billion) out."""
    make = {"sd1": _sd1, "sd2": _sd2, "sdxl": _sdxl, "sd3": _sd3, "sd3.5": _sd35}[name]
    before = torch.get_default_dtype()
    torch.set_default_dtype(dtype)
    try:
        with torch.device(device), torch.random.fork_rng():
            torch.manual_seed(seed)
            components = make(t5)
    finally:
        torch.set_default_dtype(before)
    for module in components.modules.values():
        module.eval()
    return components if str(device) == "meta" else components.to(dtype=dtype)


def _sd1(t5: bool) -> Components:
    unet = _unet(attention_head_dim=8, cross_attention_dim=768, sample_size=64)
    return Components(
        (clip_tokenizer(),), (CLIPTextModel(_clip_l()),), _vae(0.18215), unet, _diffusion("epsilon")
    )


def _sd2(t5: bool) -> Components:
    unet = _unet(
        attention_head_dim=[5, 10, 20, 20],
        cross_attention_dim=1024,
        sample_size=96,
        use_linear_projection=True,
        upcast_attention=True,
    )
    text = CLIPTextModel(_clip(width=1024, layers=23, heads=16, projection=512, activation="gelu"))
    tokenizer = clip_tokenizer(pad_token="!")
    return Components(
        (tokenizer,), (text,), _vae(0.18215), unet, _diffusion("v_prediction"), StableDiffusion()
    )


def _sdxl(t5: bool) -> Components:
    unet = _unet(
        block_out_channels=[320, 640, 1280],
        down_block_types=["DownBlock2D", "CrossAttnDownBlock2D", "CrossAttnDownBlock2D"],
        up_block_types=["CrossAttnUpBlock2D", "CrossAttnUpBlock2D", "UpBlock2D"],
        attention_head_dim=[5, 10, 20],
        transformer_layers_per_block=[1, 2, 10],
        cross_attention_dim=2048,
        use_linear_projection=True,
        addition_embed_type="text_time",
        addition_time_embed_dim=256,
        projection_class_embeddings_input_dim=2816,
        sample_size=128,
    )
    texts = (CLIPTextModel(_clip_l()), CLIPTextModelWithProjection(_clip_g()))
    scheduler = _diffusion("epsilon") | {"_class_name": "EulerDiscreteScheduler"}
    return Components(_clips(), texts, _vae(0.13025), unet, scheduler, StableDiffusionXL())


def _sd3(t5: bool) -> Components:
    return _sd3_family(t5, pos_embed_max_size=192)


def _sd35(t5: bool) -> Components:
    return _sd3_family(t5, pos_embed_max_size=384, qk_norm="rms_norm", dual_attention_layers=tuple(range(13)))


def _sd3_family(t5: bool, **settings: Any) -> Components:
    transformer = SD3Transformer2DModel(
        sample_size=128,
        patch_size=2,
        in_channels=16,
        num_layers=24,
        attention_head_dim=64,
        num_attention_heads=24,
        joint_attention_dim=4096,
        caption_projection_dim=1536,
        pooled_projection_dim=2048,
        out_channels=16,
        **settings,
    )
    texts: tuple[Any, ...] = (
        CLIPTextModelWithProjection(_clip_l(projection=768)),
        CLIPTextModelWithProjection(_clip_g()),
    )
    tokenizers: tuple[Any, ...] = _clips()
    if t5:
        pieces = [("<pad>", 0.0), ("</s>", 0.0), ("<unk>", 0.0), ("▁", -1.0)]
        letters = [(letter, -2.0) for letter in string.ascii_lowercase + string.digits + ",.'"]
        tokenizers += (T5TokenizerFast(vocab=pieces + letters, model_max_length=512),)
        texts += (T5EncoderModel(_t5_xxl()),)
    vae = _vae(
        1.5305, latent_channels=16, shift_factor=0.0609, use_quant_conv=False, use_post_quant_conv=False
    )
    scheduler = {"_class_name": "FlowMatchEulerDiscreteScheduler", "num_train_timesteps": 1000, "shift": 3.0}
    return Components(tokenizers, texts, vae, transformer, scheduler, StableDiffusion3())


def _unet(**settings: Any) -> UNet2DConditionModel:
    usual: dict[str, Any] = {
        "block_out_channels": [320, 640, 1280, 1280],
        "down_block_types": ["CrossAttnDownBlock2D"] * 3 + ["DownBlock2D"],
        "up_block_types": ["UpBlock2D"] + ["CrossAttnUpBlock2D"] * 3,
        "layers_per_block": 2,
    }
    return UNet2DConditionModel(**usual | settings)


def _vae(scaling_factor: float, **settings: Any) -> AutoencoderKL:
    return AutoencoderKL(
        down_block_types=["DownEncoderBlock2D"] * 4,
        up_block_types=["UpDecoderBlock2D"] * 4,
        block_out_channels=[128, 256, 512, 512],
        layers_per_block=2,
        scaling_factor=scaling_factor,
        **{"latent_channels": 4} | settings,
    )


def _clips() -> tuple[Any, Any]:
    return clip_tokenizer(), clip_tokenizer(pad_token="!")


def _clip_l(projection: int = 768) -> CLIPTextConfig:
    return _clip(width=768, layers=12, heads=12, projection=projection, activation="quick_gelu")


def _clip_g() -> CLIPTextConfig:
    return _clip(width=1280, layers=32, heads=20, projection=1280, activation="gelu")


def _clip(width: int, layers: int, heads: int, projection: int, activation: str) -> CLIPTextConfig:
    return CLIPTextConfig(
        vocab_size=49408,
        hidden_size=width,
        intermediate_size=4 * width,
        projection_dim=projection,
        num_hidden_layers=layers,
        num_attention_heads=heads,
        hidden_act=activation,
        max_position_embeddings=77,
        bos_token_id=49406,
        eos_token_id=49407,
    )


def _t5_xxl() -> T5Config:
    return T5Config(
        vocab_size=32128,
        d_model=4096,
        d_kv=64,
        d_ff=10240,
        num_layers=24,
        num_heads=64,
        feed_forward_proj="gated-gelu",
    )


def _diffusion(prediction_type: str) -> dict[str, Any]:
    return {
        "_class_name": "DDIMScheduler",
        "num_train_timesteps": 1000,
        "beta_schedule": "scaled_linear",
        "beta_start": 0.00085,
        "beta_end": 0.012,
        "clip_sample": False,
        "set_alpha_to_one": False,
        "steps_offset": 1,
        "prediction_type": prediction_type,
    }


def parameters(components: Components) -> dict[str, int]:
    """How many numbers each network has."""
    return {name: sum(p.numel() for p in m.parameters()) for name, m in components.modules.items()}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawTextHelpFormatter)
    parser.add_argument("names", nargs="*", default=NAMES, metavar="NAME", help=", ".join(NAMES))
    print("| model | network | million numbers | GiB in half precision |\n|---|---|---:|---:|")
    for name in parser.parse_args().names:
        counts = parameters(full_size(name))
        for part, count in [*counts.items(), ("all", sum(counts.values()))]:
            print(f"| {name} | {part} | {count / 1e6:,.1f} | {count * 2 / 2**30:.2f} |")


if __name__ == "__main__":
    main()

"""One Stable-Diffusion-family model: tokenizer, text encoder, VAE, U-Net and its noise schedule."""

from __future__ import annotations

import copy
import hashlib
import json
from dataclasses import dataclass, field
from functools import cached_property
from typing import Any

import torch
from diffusers import AutoencoderKL, DDIMScheduler, UNet2DConditionModel
from transformers import CLIPTextModel, CLIPTokenizer

from studiolo.errors import StudioloError

# Keys that say who wrote a config, not what it computes; names with a leading underscore are such too.
_BOOKKEEPING = {"transformers_version", "torch_dtype", "dtype", "architectures"}


@dataclass(frozen=True)
class NoiseSchedule:
    """The forward process q(x_t | x_0) = N(sqrt(abar_t) x_0, (1 - abar_t) I) (Ho et al. 2020, eq. 4).

    `alphas_cumprod` is abar, float32 [T], falling from about 1; `prediction_type` says what the
    U-Net predicts: "epsilon", "v_prediction" or "sample".
    """

    alphas_cumprod: torch.Tensor
    prediction_type: str

    @property
    def num_steps(self) -> int:
        """T, the number of noise levels; timesteps run over [0, T)."""
        return len(self.alphas_cumprod)

    def alpha_sigma(self, timesteps: torch.Tensor, ndim: int = 1) -> tuple[torch.Tensor, torch.Tensor]:
        """sqrt(abar_t) and sqrt(1 - abar_t) of `timesteps` [B], each [B, 1, ...] with `ndim` dimensions."""
        abar = self.alphas_cumprod.to(timesteps.device)[timesteps].view(-1, *[1] * (ndim - 1))
        return abar.sqrt(), (1 - abar).sqrt()


@dataclass
class Components:
    """The parts of a latent diffusion model (Rombach et al. 2022), as diffusers and transformers define them.

    `scheduler_config` is the content of `scheduler/scheduler_config.json`: the betas and the prediction type
    belong to the trained model, while the sampler that walks them is chosen at each generation.
    """

    tokenizer: CLIPTokenizer
    text_encoder: CLIPTextModel
    vae: AutoencoderKL
    unet: UNet2DConditionModel
    scheduler_config: dict[str, Any] = field(default_factory=dict)

    @cached_property
    def schedule(self) -> NoiseSchedule:
        """The noise schedule that `scheduler_config` describes."""
        with torch.inference_mode(False):  # kept for training too, wherever it is first asked for
            scheduler = DDIMScheduler.from_config(self.scheduler_config)
        return NoiseSchedule(scheduler.alphas_cumprod, scheduler.config.prediction_type)

    @property
    def modules(self) -> dict[str, Any]:
        """The three networks by name: text_encoder, vae, unet."""
        return {"text_encoder": self.text_encoder, "vae": self.vae, "unet": self.unet}

    @property
    def vae_factor(self) -> int:
        """Pixels per latent cell along one side."""
        return 2 ** (len(self.vae.config.block_out_channels) - 1)

    @property
    def image_size(self) -> int:
        """The side, in pixels, of the square images that the U-Net was trained on."""
        return self.unet.config.sample_size * self.vae_factor

    @property
    def device(self) -> torch.device:
        return self.unet.device

    @property
    def dtype(self) -> torch.dtype:
        return self.unet.dtype

    def latent_shape(self, height: int | None = None, width: int | None = None) -> tuple[int, int, int]:
        """(C, h, w) of the latents of an image of `height` x `width` pixels (default: `image_size`).

        Raises StudioloError when a side is not a positive multiple of `vae_factor`.
        """
        sides = [self.image_size if side is None else side for side in (height, width)]
        for name, side in zip(("height", "width"), sides, strict=True):
            if side <= 0 or side % self.vae_factor:
                nearest = max(1, round(side / self.vae_factor)) * self.vae_factor
                raise StudioloError(
                    f"{name} {side} is not a positive multiple of {self.vae_factor} pixels",
                    remedy=f"Use {nearest}.",
                )
        return self.unet.config.in_channels, sides[0] // self.vae_factor, sides[1] // self.vae_factor

    def to(self, device: torch.device | str | None = None, dtype: torch.dtype | None = None) -> Components:
        """Moves and casts the three networks in place; returns itself."""
        chosen: dict[str, Any] = {
            name: value for name, value in (("device", device), ("dtype", dtype)) if value is not None
        }
        for module in self.modules.values():
            # Not diffusers' own `to`, which warns of layers to be kept in float32 even where there are none.
            torch.nn.Module.to(module, **chosen)
        return self

    def copy(self) -> Components:
        """A deep copy: training it leaves the original untouched."""
        return Components(
            tokenizer=copy.deepcopy(self.tokenizer),
            text_encoder=copy.deepcopy(self.text_encoder),
            vae=copy.deepcopy(self.vae),
            unet=copy.deepcopy(self.unet),
            scheduler_config=copy.deepcopy(self.scheduler_config),
        )

    def fingerprint(self) -> str:
        """SHA-256 (hex) of weights, configs and vocabulary: equal exactly for models that draw the same.

        Weights are hashed as float32 values: a model has one fingerprint, whatever float type holds it.
        """
        digest = hashlib.sha256()
        for part, module in self.modules.items():
            for name, tensor in sorted(module.state_dict().items()):
                value = tensor.detach().cpu()
                value = (value.float() if value.is_floating_point() else value).contiguous()
                digest.update(f"{part}.{name} {tuple(value.shape)} {value.dtype}".encode())
                digest.update(value.numpy())
        digest.update(json.dumps(self._configs(), sort_keys=True, default=str).encode())
        return digest.hexdigest()

    def _configs(self) -> dict[str, Any]:
        configs = {
            "text_encoder": self.text_encoder.config.to_dict(),
            "vae": dict(self.vae.config),
            "unet": dict(self.unet.config),
            "scheduler": dict(DDIMScheduler.from_config(self.scheduler_config).config),  # defaults filled in
        }
        kept = {
            part: {k: v for k, v in config.items() if k not in _BOOKKEEPING and not k.startswith("_")}
            for part, config in configs.items()
        }
        return kept | {
            "vocabulary": self.tokenizer.get_vocab(),
            "max_length": self.tokenizer.model_max_length,
        }

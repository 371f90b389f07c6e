"""One latent diffusion model: tokenizers, text encoders, VAE, denoiser and its noise schedule."""

from __future__ import annotations

import copy
import hashlib
import json
from collections.abc import Iterable
from dataclasses import asdict, dataclass, field, replace
from functools import cached_property
from typing import Any

import diffusers
import torch
from diffusers import AutoencoderKL, DDIMScheduler, FlowMatchEulerDiscreteScheduler, SchedulerMixin

from studiolo.diffusion.conditioning import Conditioning
from studiolo.diffusion.families import STABLE_DIFFUSION, Family, guidance_width
from studiolo.errors import StudioloError

# Keys that say who wrote a config, not what it computes; names with a leading underscore are such too.
_BOOKKEEPING = {"transformers_version", "torch_dtype", "dtype", "architectures"}


@dataclass(frozen=True)
class NoiseSchedule:
    """The forward process x_t = alpha_t x_0 + sigma_t eps at T noise levels, t in [0, T), clean ones first.

    `alphas` and `sigmas` are float32 [T], `times` [T] what the denoiser is told at each level (t itself, or
    1000 sigma for flow models); `prediction_type` says what it predicts: "epsilon", "v_prediction", "sample"
    or "flow" (eps - x_0; Lipman et al. 2023, Esser et al. 2024).
    """

    alphas: torch.Tensor
    sigmas: torch.Tensor
    times: torch.Tensor
    prediction_type: str

    @classmethod
    def diffusion(cls, alphas_cumprod: torch.Tensor, prediction_type: str) -> NoiseSchedule:
        """q(x_t | x_0) = N(sqrt(abar_t) x_0, (1 - abar_t) I) (Ho et al. 2020, eq. 4); abar float32 [T]."""
        times = torch.arange(len(alphas_cumprod))
        return cls(alphas_cumprod.sqrt(), (1 - alphas_cumprod).sqrt(), times, prediction_type)

    @classmethod
    def flow(cls, sigmas: torch.Tensor) -> NoiseSchedule:
        """The straight line x_t = (1 - sigma) x_0 + sigma eps (Esser et al. 2024, eq. 13); sigmas rise to 1,
        float32 [T]."""
        return cls(1 - sigmas, sigmas, sigmas * len(sigmas), "flow")

    @property
    def num_steps(self) -> int:
        """T, the number of noise levels; timesteps run over [0, T)."""
        return len(self.alphas)

    def alpha_sigma(self, timesteps: torch.Tensor, ndim: int = 1) -> tuple[torch.Tensor, torch.Tensor]:
        """alpha and sigma of `timesteps` [B], each [B, 1, ...] with `ndim` dimensions.

        Integers are levels; other numbers are times as the denoiser is told, which samplers also choose
        between the levels.
        """
        shape = (-1, *[1] * (ndim - 1))
        tables = [table.to(timesteps.device) for table in (self.alphas, self.sigmas)]
        if timesteps.is_floating_point():
            alpha, sigma = (self._between(table, timesteps) for table in tables)
        else:
            alpha, sigma = (table[timesteps] for table in tables)
        return alpha.view(shape), sigma.view(shape)

    def _between(self, table: torch.Tensor, times: torch.Tensor) -> torch.Tensor:
        """`table` at `times`, linear between levels: exact for flows, whose tables are lines in the time."""
        known = self.times.to(table)
        times = times.to(table).clamp(known[0], known[-1])
        upper = torch.searchsorted(known, times.contiguous()).clamp(1, len(known) - 1)
        part = (times - known[upper - 1]) / (known[upper] - known[upper - 1])
        return torch.lerp(table[upper - 1], table[upper], part)


@dataclass
class Components:
    """The parts of a latent diffusion model (Rombach et al. 2022), as diffusers and transformers define them.

    `tokenizers` and `text_encoders` belong together one by one. `family` says how they work together, with
    the settings that the model was made with. `scheduler_config` is the content of
    `scheduler/scheduler_config.json`: the betas and the prediction type belong to the trained model, while
    the sampler that walks them is chosen at each generation.
    """

    tokenizers: tuple[Any, ...]
    text_encoders: tuple[Any, ...]
    vae: AutoencoderKL
    denoiser: Any
    scheduler_config: dict[str, Any] = field(default_factory=dict)
    family: Family = STABLE_DIFFUSION

    @cached_property
    def schedule(self) -> NoiseSchedule:
        """The noise schedule that `scheduler_config` describes."""
        with torch.inference_mode(False):  # kept for training too, wherever it is first asked for
            scheduler = self._reference_scheduler()
            if self.is_flow:
                return NoiseSchedule.flow(scheduler.sigmas.flip(0))
            return NoiseSchedule.diffusion(scheduler.alphas_cumprod, scheduler.config.prediction_type)

    @property
    def is_flow(self) -> bool:
        """Whether the model moves along straight lines (flow matching) and not along a diffusion."""
        return is_flow(self.scheduler_config)

    def _reference_scheduler(self) -> Any:
        """A scheduler with all of `scheduler_config` that concerns the noise levels, defaults filled in."""
        config = self.scheduler_config
        own: Any = getattr(diffusers, str(config.get("_class_name")), object)
        if issubclass(own, SchedulerMixin):  # its defaults count too, whether they are written out or not
            config = {k: v for k, v in own.from_config(config).config.items() if k != "_use_default_values"}
        return (FlowMatchEulerDiscreteScheduler if self.is_flow else DDIMScheduler).from_config(config)

    @property
    def tokenizer(self) -> Any:
        """The first tokenizer."""
        return self.tokenizers[0]

    @property
    def text_encoder(self) -> Any:
        """The first text encoder."""
        return self.text_encoders[0]

    @property
    def modules(self) -> dict[str, Any]:
        """The networks by the names of their folders: text_encoder (text_encoder_2, ...), vae, unet."""
        encoders = dict(zip(numbered("text_encoder"), self.text_encoders, strict=False))
        return encoders | {"vae": self.vae, self.family.denoiser: self.denoiser}

    @property
    def parameters(self) -> list[torch.nn.Parameter]:
        """Of all networks, each once."""
        return list(dict.fromkeys(p for module in self.modules.values() for p in module.parameters()))

    def predict(self, noisy: torch.Tensor, times: torch.Tensor, conditioning: Conditioning) -> torch.Tensor:
        """The denoiser's prediction [B, C, h, w]; see `Family.predict`."""
        return self.family.predict(self.denoiser, noisy, times, conditioning)

    @property
    def guidance_width(self) -> int:
        """Above 0 where guidance was distilled into the denoiser; see `families.guidance_width`."""
        return guidance_width(self.denoiser)

    @property
    def vae_factor(self) -> int:
        """Pixels per latent cell along one side."""
        return 2 ** (len(self.vae.config.block_out_channels) - 1)

    @property
    def image_size(self) -> int:
        """The side, in pixels, of the square images that the U-Net was trained on."""
        return self.denoiser.config.sample_size * self.vae_factor

    @property
    def device(self) -> torch.device:
        return self.denoiser.device

    @property
    def dtype(self) -> torch.dtype:
        """The float type of latents: float32 where any of the denoiser's weights are."""
        whole = any(p.dtype == torch.float32 for p in self.denoiser.parameters())
        return torch.float32 if whole else self.denoiser.dtype

    @property
    def size_unit(self) -> int:
        """The sides of a picture are multiples of so many pixels."""
        return self.vae_factor * self.denoiser.config.get("patch_size", 1)

    def latent_shape(self, height: int | None = None, width: int | None = None) -> tuple[int, int, int]:
        """(C, h, w) of the latents of an image of `height` x `width` pixels (default: `image_size`).

        Raises StudioloError when the denoiser takes no picture of such a side.
        """
        config = self.denoiser.config
        unit = self.size_unit
        largest = unit * config.get("pos_embed_max_size", 1 << 20)
        sides = [self.image_size if side is None else side for side in (height, width)]
        for name, side in zip(("height", "width"), sides, strict=True):
            if side <= 0 or side % unit:
                raise StudioloError(
                    f"{name} {side} is not a positive multiple of {unit} pixels",
                    remedy=f"Use {max(1, round(side / unit)) * unit}.",
                )
            if side > largest:
                raise StudioloError(
                    f"{name} {side} is more than this model can draw", remedy=f"Use {largest} at most."
                )
        return config.in_channels, sides[0] // self.vae_factor, sides[1] // self.vae_factor

    @property
    def size_step(self) -> int:
        """Pixels whose multiples suit training images best: every level of the denoiser halves them."""
        config = self.denoiser.config
        levels = len(config.get("block_out_channels", ()))
        return self.vae_factor * (2 ** (levels - 1) if levels else config.get("patch_size", 1))

    def unscaled(self, latents: torch.Tensor) -> torch.Tensor:
        """Latents as the denoiser has them, to what the VAE decodes."""
        config = self.vae.config
        return latents / config.scaling_factor + (config.get("shift_factor") or 0.0)

    def to(self, device: torch.device | str | None = None, dtype: torch.dtype | None = None) -> Components:
        """Moves and casts the networks in place; returns itself.

        What overflows in float16 becomes float32 instead: SDXL's VAE as it was published, some layers of T5.
        """
        for name, module in self.modules.items():
            if (
                dtype == torch.float16
                and name == "vae"
                and self.family.careful_vae
                and module.config.force_upcast
            ):
                _move(module, device, torch.float32)
            else:
                _move(module, device, dtype)
        return self

    def copy(self, sharing: Iterable[torch.nn.Parameter] = ()) -> Components:
        """A deep copy: training it leaves the original untouched. Parameters for `sharing` are in both."""
        memo = {id(parameter): parameter for parameter in sharing}
        return Components(
            tokenizers=copy.deepcopy(self.tokenizers),
            text_encoders=copy.deepcopy(self.text_encoders, memo),
            vae=copy.deepcopy(self.vae, memo),
            denoiser=copy.deepcopy(self.denoiser, memo),
            scheduler_config=copy.deepcopy(self.scheduler_config),
            family=self.family,
        )

    def skipping(self, layers: int) -> Components:
        """The same networks, with so many of CLIP's last layers left out (see `Family.clip_skip`).

        Raises StudioloError when there are not so many.
        """
        there = self.text_encoder.config.num_hidden_layers
        if not 0 <= layers < there:
            raise StudioloError(
                f"{layers} of {there} layers cannot be left out",
                where="clip_skip",
                remedy=f"Use 0 to {there - 1}; 1 or 2 are usual.",
            )
        return replace(self, family=replace(self.family, clip_skip=layers))  # type: ignore[type-var]

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
        configs = {name: module.config for name, module in self.modules.items()}
        configs = {
            name: config.to_dict() if hasattr(config, "to_dict") else dict(config)
            for name, config in configs.items()
        }
        configs["scheduler"] = dict(self._reference_scheduler().config)
        kept = {
            part: {k: v for k, v in config.items() if k not in _BOOKKEEPING and not k.startswith("_")}
            for part, config in configs.items()
        }
        vocabularies = [tokenizer.get_vocab() for tokenizer in self.tokenizers]
        lengths = [tokenizer.model_max_length for tokenizer in self.tokenizers]
        if self.family == STABLE_DIFFUSION:  # as fingerprints were before there were other families
            return kept | {"vocabulary": vocabularies[0], "max_length": lengths[0]}
        family = asdict(self.family) | {"name": self.family.name}  # type: ignore[call-overload]
        return kept | {"family": family, "vocabularies": vocabularies, "max_lengths": lengths}


def _move(module: Any, device: torch.device | str | None, dtype: torch.dtype | None) -> None:
    """As `torch.nn.Module.to`, with the parts that transformers keeps in float32 kept so in float16."""
    keep = set(getattr(module, "_keep_in_fp32_modules", None) or ()) if dtype == torch.float16 else set()
    for name, part in module.named_modules():
        chosen = torch.float32 if keep & set(name.split(".")) else dtype
        for tensor in (*part.parameters(recurse=False), *part.buffers(recurse=False)):
            tensor.data = tensor.data.to(device, chosen if tensor.is_floating_point() else None)


def is_flow(scheduler_config: dict[str, Any]) -> bool:
    """Whether a model with this scheduler is a flow: its schedulers are those of flow matching."""
    return str(scheduler_config.get("_class_name", "")).startswith("FlowMatch")


def numbered(part: str, count: int = 3) -> list[str]:
    """The names of a part that there may be several of: text_encoder, text_encoder_2, text_encoder_3."""
    return [part, *(f"{part}_{n}" for n in range(2, count + 1))]

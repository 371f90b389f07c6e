"""Families of latent diffusion models: which parts there are, how text is read, how the denoiser is asked.

A family has no weights and no state, only the settings that a model's folder tells of it; its functions
take the networks, so that training may wrap them.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from threading import get_ident
from typing import Any, ClassVar, Protocol

import torch

from studiolo.diffusion.conditioning import Conditioning
from studiolo.errors import StudioloError


class Family(Protocol):
    """What differs between architectures. Families are frozen dataclasses: `replace` gives other settings."""

    name: ClassVar[str]
    """As people write it: "sd", "sdxl", "sd3"."""
    pipeline: ClassVar[str]
    """The pipeline of diffusers that has this layout."""
    denoiser: ClassVar[str]
    """The denoiser's name in that pipeline, and of its folder: "unet" or "transformer"."""
    trained_encoders: ClassVar[int]
    """How many of the text encoders, from the first, can be trained; the others are only read."""
    careful_vae: ClassVar[bool]
    """Whether the VAE may overflow in float16; then its config says so: `force_upcast`."""

    @property
    def clip_skip(self) -> int:
        """Layers of CLIP that are left out at the end, as diffusers' pipelines count them: 0 is none."""
        ...

    @property
    def zero_empty(self) -> bool:
        """Whether an empty negative prompt is all zeros, and not the encoding of ""."""
        ...

    def lengths(self, tokenizers: Sequence[Any]) -> tuple[int, ...]:
        """How many tokens each text encoder reads."""
        ...

    def encode(self, text_encoders: Iterable[Any], ids: Sequence[torch.Tensor]) -> Conditioning:
        """Token ids, int64 [B, L] for each text encoder, to the conditioning of B prompts; differentiable."""
        ...

    def unread(self, text_encoders: Sequence[Any]) -> list[Any]:
        """Parts of the text encoders that come after the last states that `encode` reads: no gradient
        reaches them."""
        ...

    def predict(
        self, denoiser: Any, noisy: torch.Tensor, times: torch.Tensor, conditioning: Conditioning
    ) -> torch.Tensor:
        """The denoiser's prediction [B, C, h, w] for `noisy` latents at `times` ([B] or a scalar, as the
        schedule's `times` has them, on any device).

        Raises StudioloError when the denoiser wants to be told a guidance scale, and is not."""
        ...

    def sizes(self, height: int, width: int) -> torch.Tensor | None:
        """The sizes [6] that a picture of so many pixels is drawn with; None where none are told."""
        ...


class _OfClip:
    """What the families have in common whose text encoders are all CLIP's."""

    def lengths(self, tokenizers: Sequence[Any]) -> tuple[int, ...]:
        return tuple(tokenizer.model_max_length for tokenizer in tokenizers)


@dataclass(frozen=True)
class StableDiffusion(_OfClip):
    """Stable Diffusion 1.x and 2.x (Rombach et al. 2022): one CLIP text encoder, a U-Net.

    2.x reads the last but one layer of OpenCLIP: its published text encoder has lost its last layer already.
    """

    name: ClassVar[str] = "sd"
    pipeline: ClassVar[str] = "StableDiffusionPipeline"
    denoiser: ClassVar[str] = "unet"
    trained_encoders: ClassVar[int] = 1
    careful_vae: ClassVar[bool] = False

    clip_skip: int = 0
    zero_empty: bool = False

    def encode(self, text_encoders: Iterable[Any], ids: Sequence[torch.Tensor]) -> Conditioning:
        (encoder,) = text_encoders
        if not self.clip_skip:
            return Conditioning(encoder(ids[0]).last_hidden_state)
        _, states = _read(encoder, ids[0], self.clip_skip)
        # The U-Net was trained on normalised states: an earlier layer goes through the last layer's norm.
        return Conditioning(encoder.final_layer_norm(states))

    def unread(self, text_encoders: Sequence[Any]) -> list[Any]:
        return _last_layers(text_encoders[0], self.clip_skip)

    def predict(
        self, denoiser: Any, noisy: torch.Tensor, times: torch.Tensor, conditioning: Conditioning
    ) -> torch.Tensor:
        return denoiser(
            noisy,
            times.to(noisy.device),
            encoder_hidden_states=conditioning.tokens,
            timestep_cond=_told_scale(denoiser, conditioning),
        ).sample

    def sizes(self, height: int, width: int) -> torch.Tensor | None:
        return None


@dataclass(frozen=True)
class StableDiffusionXL(_OfClip):
    """Stable Diffusion XL (Podell et al. 2023): two CLIP text encoders, a U-Net that is told of sizes.

    The last but one states of both encoders stand beside each other without a norm; the pooled vector is
    the second one's projection.
    """

    name: ClassVar[str] = "sdxl"
    pipeline: ClassVar[str] = "StableDiffusionXLPipeline"
    denoiser: ClassVar[str] = "unet"
    trained_encoders: ClassVar[int] = 2
    careful_vae: ClassVar[bool] = True

    clip_skip: int = 0
    zero_empty: bool = True

    def encode(self, text_encoders: Iterable[Any], ids: Sequence[torch.Tensor]) -> Conditioning:
        tokens, pooled = _penultimate(text_encoders, ids, self.clip_skip)
        return Conditioning(tokens, pooled[-1])

    def unread(self, text_encoders: Sequence[Any]) -> list[Any]:
        first = text_encoders[0]  # the second one's last layer is what its projection reads
        return [*_last_layers(first, 1 + self.clip_skip), first.final_layer_norm]

    def predict(
        self, denoiser: Any, noisy: torch.Tensor, times: torch.Tensor, conditioning: Conditioning
    ) -> torch.Tensor:
        told = {"text_embeds": conditioning.pooled, "time_ids": conditioning.sizes}
        return denoiser(
            noisy,
            times.to(noisy.device),
            encoder_hidden_states=conditioning.tokens,
            timestep_cond=_told_scale(denoiser, conditioning),
            added_cond_kwargs=told,
        ).sample

    def sizes(self, height: int, width: int) -> torch.Tensor | None:
        return torch.tensor([height, width, 0, 0, height, width], dtype=torch.float32)


@dataclass(frozen=True)
class StableDiffusion3:
    """Stable Diffusion 3 and 3.5 (Esser et al. 2024): two CLIP text encoders, T5 or none, a flow transformer.

    CLIP's last but one states, beside each other and filled up with zeros to the width of T5's, come before
    T5's; the pooled vector is both projections. Without T5 zeros stand for its states.

    width: of the tokens that the transformer reads. length: of T5's text, in tokens.
    """

    name: ClassVar[str] = "sd3"
    pipeline: ClassVar[str] = "StableDiffusion3Pipeline"
    denoiser: ClassVar[str] = "transformer"
    trained_encoders: ClassVar[int] = 2
    careful_vae: ClassVar[bool] = False

    clip_skip: int = 0
    zero_empty: bool = False
    width: int = 4096
    length: int = 256

    def lengths(self, tokenizers: Sequence[Any]) -> tuple[int, ...]:
        clip = tokenizers[0].model_max_length
        return (clip, clip, self.length)[: len(tokenizers)]

    def encode(self, text_encoders: Iterable[Any], ids: Sequence[torch.Tensor]) -> Conditioning:
        encoders = list(text_encoders)
        clip, pooled = _penultimate(encoders[:2], ids[:2], self.clip_skip)
        clip = torch.nn.functional.pad(clip, (0, self.width - clip.shape[-1]))
        if len(encoders) > 2:
            long = encoders[2](ids[2]).last_hidden_state.to(clip)
        else:
            long = clip.new_zeros(len(clip), self.length, self.width)
        return Conditioning(torch.cat([clip, long], dim=1), torch.cat(pooled, dim=1))

    def unread(self, text_encoders: Sequence[Any]) -> list[Any]:
        return []  # both projections read the last layer

    def predict(
        self, denoiser: Any, noisy: torch.Tensor, times: torch.Tensor, conditioning: Conditioning
    ) -> torch.Tensor:
        return denoiser(
            hidden_states=noisy,
            timestep=times.to(noisy.device).expand(len(noisy)),  # samplers keep theirs on the CPU
            encoder_hidden_states=conditioning.tokens,
            pooled_projections=conditioning.pooled,
        ).sample

    def sizes(self, height: int, width: int) -> torch.Tensor | None:
        return None


def guidance_width(denoiser: Any) -> int:
    """How many numbers a denoiser that guidance was distilled into reads of its scale (Meng et al. 2023; Luo
    et al. 2023, latent consistency models); 0 for all others."""
    return getattr(denoiser, "config", {}).get("time_cond_proj_dim") or 0


def check_teachable(denoiser: Any) -> None:
    """Raises StudioloError for a denoiser that guidance was distilled into: it is no longer one of noise."""
    if guidance_width(denoiser):
        raise StudioloError(
            "guidance was distilled into this model, which can be drawn with, not taught",
            where="time_cond_proj_dim of the U-Net",
            remedy="Teach the model that it was distilled from; its adapter is drawn with this one, too: "
            "studiolo generate --adapter.",
        )


def _told_scale(denoiser: Any, conditioning: Conditioning) -> torch.Tensor | None:
    if conditioning.guidance is None:
        check_teachable(denoiser)
    return conditioning.guidance


def _last_layers(encoder: Any, count: int) -> list[Any]:
    layers = list(encoder.encoder.layers)
    return layers[len(layers) - count :]


def _read(encoder: Any, ids: torch.Tensor, skipped: int) -> tuple[Any, torch.Tensor]:
    """What a CLIP text encoder returns, and its states [B, L, D] before the last `skipped` layers.

    Read by a hook: an encoder whose weights are shared out (FSDP) returns no hidden states.
    """
    text = getattr(encoder, "text_model", encoder)  # where there is a projection
    stages = [text.embeddings, *text.encoder.layers]
    caller, found = get_ident(), list[Any]()

    def keep(module: Any, inputs: Any, output: Any) -> None:
        if get_ident() == caller:  # others may draw with the same model at the same time
            found.append(output[0] if isinstance(output, tuple) else output)

    hook = stages[len(stages) - 1 - skipped].register_forward_hook(keep)
    try:
        return encoder(ids), found[0]
    finally:
        hook.remove()


def _penultimate(
    text_encoders: Iterable[Any], ids: Sequence[torch.Tensor], clip_skip: int
) -> tuple[torch.Tensor, list[torch.Tensor]]:
    """The last but one states of CLIP encoders beside each other, [B, L, D1 + D2], and what each pools.

    The first output of an encoder with a projection is the projected vector; SDXL's first encoder has none,
    and what stands in its place here is not used.
    """
    read = [_read(encoder, i, 1 + clip_skip) for encoder, i in zip(text_encoders, ids, strict=True)]
    return torch.cat([states for _, states in read], dim=-1), [output[0] for output, _ in read]


STABLE_DIFFUSION = StableDiffusion()
FAMILIES: dict[str, type[Family]] = {
    family.name: family for family in (StableDiffusion, StableDiffusionXL, StableDiffusion3)
}

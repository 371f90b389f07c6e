"""Prompts to what the denoiser is told, exactly as the reference pipelines make it: padded, cut, no mask."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING

import torch

if TYPE_CHECKING:
    from studiolo.diffusion.components import Components
    from studiolo.diffusion.families import Family


@dataclass(frozen=True)
class Conditioning:
    """What the denoiser is told of each of B pictures, beside the noisy latents and the time.

    `tokens` [B, L, D] is read by cross-attention (SD3: joined with the picture's own). `pooled` [B, P] is one
    vector a prompt (SDXL, SD3). `sizes` [B, 6] are SDXL's (height, width, top, left, height, width) of
    the original, of the crop's corner and of the picture (Podell et al. 2023, section 2.2), in pixels.
    `guidance` [B, E] is the embedding of the guidance scale, for U-Nets that guidance was distilled into.
    """

    tokens: torch.Tensor
    pooled: torch.Tensor | None = None
    sizes: torch.Tensor | None = None
    guidance: torch.Tensor | None = None

    def __len__(self) -> int:
        return len(self.tokens)

    def __getitem__(self, rows: torch.Tensor | slice | list[int]) -> Conditioning:
        """Those rows, in that order."""
        return self.map(lambda tensor: tensor[rows])

    def sized(self, sizes: torch.Tensor | None) -> Conditioning:
        """The same with `sizes` [B, 6], or [6] for all alike."""
        if sizes is not None:
            sizes = sizes.to(self.tokens).expand(len(self), -1)
        return replace(self, sizes=sizes)

    @staticmethod
    def joined(parts: Sequence[Conditioning]) -> Conditioning:
        """All rows of `parts` in order; the parts come from one model."""
        return Conditioning(
            torch.cat([part.tokens for part in parts]),
            join_present([part.pooled for part in parts]),
            join_present([part.sizes for part in parts]),
            join_present([part.guidance for part in parts]),
        )

    def map(self, change: Callable[[torch.Tensor], torch.Tensor]) -> Conditioning:
        """`change` of each tensor that is there."""
        others = (None if t is None else change(t) for t in (self.pooled, self.sizes, self.guidance))
        return Conditioning(change(self.tokens), *others)


def join_present(tensors: Sequence[torch.Tensor | None]) -> torch.Tensor | None:
    """The rows of all tensors that are there, in order; None where none is."""
    there = [tensor for tensor in tensors if tensor is not None]
    return torch.cat(there) if there else None


def tokenize(components: Components, prompts: Sequence[str]) -> tuple[torch.Tensor, ...]:
    """Token ids for each text encoder, int64 [B, L] on the CPU, L as the family has it; longer prompts are
    cut."""
    lengths = components.family.lengths(components.tokenizers)
    return tuple(
        tokenizer(
            list(prompts),
            padding="max_length",
            max_length=length,
            truncation=True,
            return_tensors="pt",
        ).input_ids
        for tokenizer, length in zip(components.tokenizers, lengths, strict=True)
    )


def lost_text(components: Components, prompt: str) -> str:
    """The end of `prompt` that does not fit into the (first) text encoder, "" when all of it does."""
    tokenizer = components.tokenizer
    ids = tokenizer(prompt).input_ids
    return tokenizer.decode(ids[tokenizer.model_max_length - 1 : -1])


def encode_prompts(components: Components, prompts: Sequence[str]) -> Conditioning:
    """What the text encoders say of each prompt, on their device and in their dtype; `sizes` is not set.

    Differentiable: the same function serves training and drawing.
    """
    return _encode(components, components.family, prompts)


def encode_negatives(components: Components, prompts: Sequence[str]) -> Conditioning:
    """The same of negative prompts, where the pipelines of diffusers go another way for these: they read
    the layer that the model was trained with, whatever `clip_skip` is, and SDXL has zeros for "" (which here
    means that there is no negative prompt)."""
    conditioning = _encode(components, replace(components.family, clip_skip=0), prompts)  # type: ignore[type-var]
    if not components.family.zero_empty:
        return conditioning
    said = torch.tensor([bool(prompt) for prompt in prompts], device=conditioning.tokens.device)
    return conditioning.map(lambda rows: rows * said.view(-1, *[1] * (rows.ndim - 1)).to(rows))


def _encode(components: Components, family: Family, prompts: Sequence[str]) -> Conditioning:
    ids = [ids.to(components.text_encoder.device) for ids in tokenize(components, prompts)]
    return family.encode(components.text_encoders, ids)

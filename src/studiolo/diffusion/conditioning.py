"""Prompts to embeddings, exactly as the reference pipeline makes them: padded, cut, and without a mask."""

from __future__ import annotations

from collections.abc import Sequence

import torch

from studiolo.diffusion.components import Components


def tokenize(components: Components, prompts: Sequence[str]) -> torch.Tensor:
    """Token ids, int64 [B, L] on the CPU with L = `tokenizer.model_max_length`; longer prompts are cut."""
    return components.tokenizer(
        list(prompts),
        padding="max_length",
        max_length=components.tokenizer.model_max_length,
        truncation=True,
        return_tensors="pt",
    ).input_ids


def lost_text(components: Components, prompt: str) -> str:
    """The end of `prompt` that does not fit into the text encoder, "" when all of it does."""
    tokenizer = components.tokenizer
    ids = tokenizer(prompt).input_ids
    return tokenizer.decode(ids[tokenizer.model_max_length - 1 : -1])


def encode_prompts(components: Components, prompts: Sequence[str]) -> torch.Tensor:
    """The text encoder's last hidden states [B, L, D], normalised, on its device and in its dtype.

    Differentiable: the same function serves training and drawing.
    """
    text_encoder = components.text_encoder
    return text_encoder(tokenize(components, prompts).to(text_encoder.device)).last_hidden_state

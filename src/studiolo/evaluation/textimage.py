"""CLIP-T of the paper: how well pictures fit words, by CLIP ViT-B/32 (Radford et al. 2021)."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from PIL import Image
from torch import Tensor
from torch.nn import functional as F

from studiolo.evaluation.embedders import CLIP_PREPARATION, CLIP_WEIGHTS, TransformerEmbedder, pretrained


@dataclass(frozen=True)
class TextImage:
    """Both towers of one CLIP, and its tokenizer."""

    pictures: TransformerEmbedder
    text: Any
    tokenizer: Any

    @torch.no_grad()
    def embed_text(self, prompts: Sequence[str]) -> Tensor:
        """Unit vectors [N, D] of prompts, cut off where CLIP stops reading (77 tokens)."""
        longest = min(self.tokenizer.model_max_length, self.text.config.max_position_embeddings)
        given = self.tokenizer(
            list(prompts), padding="max_length", truncation=True, max_length=longest, return_tensors="pt"
        ).to(self.text.device)
        return F.normalize(self.text(**given).text_embeds, dim=1).cpu()

    def agreement(self, images: Sequence[Image.Image], prompts: Sequence[str]) -> float:
        """Mean cosine of each picture with the prompt of the same number, in [-1, 1]."""
        different = list(dict.fromkeys(prompts))
        text = self.embed_text(different)[[different.index(prompt) for prompt in prompts]]
        return float((self.pictures.embed(images) * text).sum(1).mean())


def load_text_image(folder: str | Path | None = None, device: str | torch.device = "cpu") -> TextImage:
    """CLIP with its text tower, from `folder` in the format of transformers, or from the hub.

    Raises:
        StudioloError: its weights cannot be had.
    """
    from transformers import CLIPTextModelWithProjection, CLIPTokenizer, CLIPVisionModelWithProjection

    source = folder or CLIP_WEIGHTS
    vision = pretrained(CLIPVisionModelWithProjection, source, device)
    text = pretrained(CLIPTextModelWithProjection, source, device)
    pictures = TransformerEmbedder("clip", vision, CLIP_PREPARATION, lambda output: output.image_embeds)
    return TextImage(pictures, text, pretrained(CLIPTokenizer, source))

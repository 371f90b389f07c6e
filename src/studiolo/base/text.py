"""The base model's text side: a tokenizer of its own words and a text encoder that means something.

A U-Net that starts with a random text encoder learns for hours before it reads the caption at all. So the
text encoder is first trained as one half of a small CLIP (Radford et al. 2021, InfoNCE over caption-picture
pairs of composed scenes); the picture half is thrown away afterwards.
"""

from __future__ import annotations

import copy
from collections import Counter
from dataclasses import dataclass
from itertools import pairwise
from pathlib import Path

import torch
from tokenizers.pre_tokenizers import ByteLevel
from torch import Tensor, nn
from torch.nn import functional as F
from transformers import CLIPTextConfig, CLIPTextModel, CLIPTokenizer

from studiolo.base.autoencoder import to_tensor
from studiolo.base.dataset import SceneSet
from studiolo.base.loop import Machine, Part, trained
from studiolo.base.vocabulary import BACKGROUNDS, NOUNS, STYLES

MAX_LENGTH = 24
_EXTRA = (
    "a an the photo picture image of style and next to wearing on in at with under two three small big "
    "beside near sks zwx ohwx vqk bnw jrx pxq tzn"
)
"""Further words of the captions, and rare ones that no caption has: the identifiers that are there to be
found."""


@dataclass(frozen=True)
class TextRecipe:
    """Hyper-parameters of the small CLIP."""

    steps: int = 1500
    batch_size: int = 256
    learning_rate: float = 1e-3
    width: int = 192
    layers: int = 3
    seed: int = 0


def caption_words() -> list[str]:
    """Every word that a caption can hold, and a few more; sorted, each once."""
    phrases = [_EXTRA, *NOUNS, *STYLES]
    phrases += [synonym for _, synonyms in NOUNS.values() for synonym in synonyms]
    phrases += [phrase for variants in BACKGROUNDS.values() for phrase in variants]
    # CLIP's tokenizer parts words at hyphens and digits before any merge.
    words = {part for phrase in phrases for part in phrase.replace("-", " ").replace("3d", "d").split()}
    return sorted(words)


def _merged(word: list[str], pair: tuple[str, str]) -> list[str]:
    out: list[str] = []
    for symbol in word:
        if out and (out[-1], symbol) == pair:
            out[-1] += symbol
        else:
            out.append(symbol)
    return out


def new_tokenizer(vocabulary: list[str], max_length: int = MAX_LENGTH) -> CLIPTokenizer:
    """A CLIPTokenizer in which each word of `vocabulary` is one token and all else falls apart into bytes.

    Byte-pair encoding (Sennrich et al. 2016), merged until every word is whole.
    """
    words = [[*word[:-1], word[-1] + "</w>"] for word in vocabulary]
    merges: list[tuple[str, str]] = []
    while pairs := Counter(pair for word in words for pair in pairwise(word)):
        best = max(sorted(pairs), key=pairs.__getitem__)
        merges.append(best)
        words = [_merged(word, best) for word in words]
    symbols = sorted(ByteLevel.alphabet())
    tokens = [*symbols, *(symbol + "</w>" for symbol in symbols), *dict.fromkeys(a + b for a, b in merges)]
    tokens += ["<|startoftext|>", "<|endoftext|>"]
    ids = {token: index for index, token in enumerate(tokens)}
    return CLIPTokenizer(vocab=ids, merges=merges, model_max_length=max_length)


def new_text_encoder(tokenizer: CLIPTokenizer, recipe: TextRecipe) -> CLIPTextModel:
    """About 1.6 M parameters at the default width and depth."""
    return CLIPTextModel(
        CLIPTextConfig(
            vocab_size=len(tokenizer),
            hidden_size=recipe.width,
            intermediate_size=4 * recipe.width,
            projection_dim=recipe.width,
            num_hidden_layers=recipe.layers,
            num_attention_heads=recipe.width // 48,
            max_position_embeddings=MAX_LENGTH,
            bos_token_id=tokenizer.bos_token_id,
            eos_token_id=tokenizer.eos_token_id,
            pad_token_id=tokenizer.pad_token_id,
        )
    )


def new_picture_tower(width: int) -> nn.Sequential:
    """Five strided convolutions on 64x64 pixels; only there to teach the text encoder."""
    layers: list[nn.Module] = []
    channels = (3, 32, 64, 128, 192, 256)
    for before, after in pairwise(channels):
        layers += [nn.Conv2d(before, after, 4, 2, 1), nn.GroupNorm(8, after), nn.SiLU()]
    return nn.Sequential(*layers, nn.Flatten(), nn.Linear(256 * 4, width))


def tokenize(tokenizer: CLIPTokenizer, captions: list[str]) -> Tensor:
    """Token ids [B, 24], padded and cut as the pipeline does."""
    batch = tokenizer(
        captions, padding="max_length", truncation=True, max_length=MAX_LENGTH, return_tensors="pt"
    )
    return batch.input_ids


def info_nce(text: Tensor, picture: Tensor, log_scale: Tensor) -> Tensor:
    """Symmetric cross-entropy over all pairs of the batch; both [B, D], not yet normalised."""
    logits = log_scale.exp().clamp(max=100) * F.normalize(text, dim=-1) @ F.normalize(picture, dim=-1).T
    target = torch.arange(len(logits), device=logits.device)
    return (F.cross_entropy(logits, target) + F.cross_entropy(logits.T, target)) / 2


class ClipPart(Part):
    """Both towers, told which caption belongs to which picture."""

    def __init__(
        self, tokenizer: CLIPTokenizer, encoder: CLIPTextModel, scenes: SceneSet, recipe: TextRecipe
    ) -> None:
        super().__init__(recipe.learning_rate, recipe.steps, recipe.seed)
        self.encoder, self.tower = encoder, new_picture_tower(recipe.width)
        self.log_scale = nn.Parameter(torch.tensor(2.7))
        self.scenes, self.count = scenes, recipe.batch_size
        self.ids = tokenize(tokenizer, scenes.captions)

    def batch(self, generator: torch.Generator) -> tuple[Tensor, Tensor]:
        """Token ids [B, 24] and pictures, uint8 [B, 64, 64, 3]."""
        index = torch.randint(len(self.ids), (self.count,), generator=generator)
        return self.ids[index], torch.from_numpy(self.scenes.images[index.numpy()])

    def losses(self, batch: tuple[Tensor, Tensor]) -> dict[str, Tensor]:
        text, picture = self.encoder(batch[0]).pooler_output, self.tower(to_tensor(batch[1]))
        return {"loss": info_nce(text.float(), picture.float(), self.log_scale)}


def train_text_encoder(
    scenes: SceneSet, held_out: SceneSet, run: Path, recipe: TextRecipe, machine: Machine
) -> tuple[CLIPTokenizer, CLIPTextModel]:
    """Trains (or goes on training) the small CLIP in `run`; returns its text half."""
    torch.manual_seed(recipe.seed)
    tokenizer = new_tokenizer(caption_words())
    part = ClipPart(tokenizer, new_text_encoder(tokenizer, recipe), scenes, recipe)
    with trained(part, run, machine):
        found = retrieval_accuracy(tokenizer, part.encoder, part.tower, held_out)
        print(f"right caption among 500 for {found:.1%} of held-out scenes", flush=True)
        return tokenizer, copy.deepcopy(part.encoder)


@torch.no_grad()
def retrieval_accuracy(
    tokenizer: CLIPTokenizer, encoder: CLIPTextModel, tower: nn.Module, scenes: SceneSet, among: int = 500
) -> float:
    """How often the right caption is the nearest among `among` held-out ones."""
    text = F.normalize(encoder(tokenize(tokenizer, scenes.captions[:among])).pooler_output, dim=-1)
    picture = F.normalize(tower(to_tensor(torch.from_numpy(scenes.images[:among].copy()))), dim=-1)
    return float(((picture @ text.T).argmax(1) == torch.arange(among)).float().mean())

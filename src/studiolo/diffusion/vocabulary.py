"""Words of a model: which are one token, and how a new one comes into tokenizers and embedding tables."""

from __future__ import annotations

from typing import Any

import torch
from tokenizers import AddedToken
from transformers import CLIPTokenizer

from studiolo.diffusion.components import Components


def token_ids(tokenizer: Any, text: str) -> list[int]:
    """The tokens of `text` without those of its beginning and end."""
    return tokenizer(text, add_special_tokens=False).input_ids


def row_of(tokenizer: Any, word: str) -> int | None:
    """The id of a word that is one token, else None."""
    ids = token_ids(tokenizer, word)
    return ids[0] if len(ids) == 1 and ids[0] != tokenizer.unk_token_id else None


def rows_of(components: Components, word: str) -> tuple[int | None, ...]:
    """The row of `word` in the table of each text encoder, None for one that reads it in pieces."""
    return tuple(row_of(tokenizer, word) for tokenizer in components.tokenizers)


@torch.no_grad()
def add_word(tokenizer: Any, text_encoder: Any, word: str, vector: torch.Tensor) -> int:
    """Adds `word` as one token with the embedding `vector` [D], in place; returns its id.

    A word that is one token already gets the vector.
    """
    token_id = row_of(tokenizer, word)
    if token_id is None:
        token_id = _add(tokenizer, text_encoder, word)
    table = text_encoder.get_input_embeddings().weight
    table[token_id] = vector.to(table)
    return token_id


def _add(tokenizer: Any, text_encoder: Any, word: str) -> int:
    """The id of the new token; its row is whatever was there, or random."""
    # single_word: not to be cut out of longer words; normalized: prompts are lower-cased before the search.
    # SentencePiece (T5) would make a token of its own of the space before it: lstrip takes it along.
    clip = isinstance(tokenizer, CLIPTokenizer)
    tokenizer.add_tokens([AddedToken(word, single_word=True, normalized=True, lstrip=not clip)])
    token_id = tokenizer.convert_tokens_to_ids(word)
    if token_id >= text_encoder.get_input_embeddings().num_embeddings:
        text_encoder.resize_token_embeddings(token_id + 1, mean_resizing=False)
    if clip:
        # Configs of old (eos_token_id 2) make CLIP pool at the largest id: EOS, until this token came.
        for part in (text_encoder, getattr(text_encoder, "text_model", text_encoder)):
            part.config.eos_token_id = part.eos_token_id = tokenizer.eos_token_id
    return token_id

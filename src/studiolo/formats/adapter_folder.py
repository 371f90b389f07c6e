"""What a run learned beside its base, in files: adapters, and the embeddings of words.

    pytorch_lora_weights.safetensors   the adapters, as diffusers reads them
    learned_embeds.safetensors         {word: [n, D]} for the first text encoder, as textual inversion has it
    learned_embeds_2.safetensors       ... for the second, and so on

A word of n vectors is n tokens in a row: zwx, zwx1, zwx2, ... (diffusion/words.py).
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path

import torch
from safetensors import SafetensorError
from safetensors.torch import load_file, save_file

from studiolo.diffusion.adapters import Share, merge_all
from studiolo.diffusion.components import Components
from studiolo.diffusion.vocabulary import add_word, row_of
from studiolo.diffusion.words import words_of
from studiolo.errors import StudioloError
from studiolo.formats.lora import fitted, published
from studiolo.store.files import atomic_path

LORA_FILE = "pytorch_lora_weights.safetensors"


@dataclass(frozen=True)
class Adapter:
    """What is put on a base: the state of adapters (diffusion/adapters.py), and for each text encoder, by
    its place, the vectors [n, D] of words."""

    state: Mapping[str, torch.Tensor] = field(default_factory=dict)
    words: Mapping[int, Mapping[str, torch.Tensor]] = field(default_factory=dict)

    def put_on(self, components: Components, weight: float = 1.0) -> None:
        """`put_all_on` of this one alone."""
        put_all_on(components, [Wanted(self, weight)])


@dataclass(frozen=True)
class Wanted:
    """An adapter that is put on a model, how much of it, and what it is called in errors."""

    adapter: Adapter
    weight: float = 1.0
    where: object = "adapter"


def put_all_on(components: Components, wanted: Sequence[Wanted]) -> None:
    """Adds the words of adapters to `components`, in place, then the adapters themselves, each `weight`
    times; see `merge_all`.

    Raises StudioloError when one does not fit, or is to be weighed and has words alone.
    """
    for one in wanted:
        if one.weight != 1 and not one.adapter.state:
            raise StudioloError(
                f"a word has no weight, and this one is to have {one.weight:g}",
                where=one.where,
                remedy="Leave the weight out; how strongly it is meant, the prompt says.",
            )
    shares = [Share(one.adapter.state, one.weight, one.where) for one in wanted]
    for one, share in zip(wanted, shares, strict=True):
        _add_words(components, one.adapter, share)
    merge_all(components, [replace(share, state=fitted(share.state, components)) for share in shares])


def _add_words(components: Components, adapter: Adapter, share: Share) -> None:
    for place, words in adapter.words.items():
        if place >= len(components.text_encoders):
            raise share.misfit(f"it has words for {place + 1} text encoders")
        tokenizer, encoder = components.tokenizers[place], components.text_encoders[place]
        width = encoder.get_input_embeddings().embedding_dim
        for word, vectors in words.items():
            if vectors.shape[-1] != width:
                raise share.misfit(f"'{word}' has {vectors.shape[-1]} numbers, and {width} are read")
            for name, vector in zip(words_of(word, len(vectors)), vectors, strict=True):
                add_word(tokenizer, encoder, name, vector)


def embedded_words(components: Components, words: Mapping[str, int]) -> dict[int, dict[str, torch.Tensor]]:
    """Of each text encoder the present vectors [n, D] of `words` (word -> n); see `Adapter.words`."""
    found: dict[int, dict[str, torch.Tensor]] = {}
    towers = zip(components.tokenizers, components.text_encoders, strict=True)
    for place, (tokenizer, encoder) in enumerate(towers):
        table = encoder.get_input_embeddings().weight.detach()
        for word, count in words.items():
            rows = [row_of(tokenizer, name) for name in words_of(word, count)]
            if all(row is not None for row in rows):  # else it is read in pieces, and nothing was learned
                found.setdefault(place, {})[word] = table[rows].cpu().clone()
    return found


def save_adapter(adapter: Adapter, folder: str | Path, dtype: torch.dtype | None = None) -> None:
    """Writes the files into `folder`, each whole or not at all, in `dtype` where one is given."""
    files: dict[str, Mapping[str, torch.Tensor]] = {}
    if adapter.state:
        files[LORA_FILE] = published(adapter.state)
    files |= {_embeddings(place): words for place, words in adapter.words.items()}
    for name, tensors in files.items():
        stored = {key: value.to(dtype or value.dtype).contiguous() for key, value in tensors.items()}
        with atomic_path(Path(folder) / name) as temporary:
            save_file(stored, temporary, metadata={"format": "pt"})


def load_adapter(folder: str | Path) -> Adapter:
    """Reads what `save_adapter` wrote, in float32.

    Raises StudioloError when there is nothing, or what is there cannot be read.
    """
    folder = Path(folder)
    lora = folder / LORA_FILE
    state = _read(lora) if lora.exists() else {}
    words = {
        place: {
            word: torch.atleast_2d(vectors) for word, vectors in _read(folder / _embeddings(place)).items()
        }
        for place in _places(folder)
    }
    if not state and not words:
        raise StudioloError(
            f"no adapter: neither {LORA_FILE} nor {_embeddings(0)} is there",
            where=folder,
            remedy="Export it again.",
        )
    return Adapter(state, words)


def _places(folder: Path) -> Sequence[int]:
    return [place for place in range(3) if (folder / _embeddings(place)).exists()]


def _embeddings(place: int) -> str:
    return f"learned_embeds{f'_{place + 1}' if place else ''}.safetensors"


def _read(file: Path) -> dict[str, torch.Tensor]:
    try:
        return {name: tensor.float() for name, tensor in load_file(file).items()}
    except (OSError, SafetensorError) as error:
        raise StudioloError(f"cannot be read: {error}", where=file, remedy="Export it again.") from error

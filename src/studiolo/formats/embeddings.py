"""Files of textual inversion (Gal et al. 2022): the embedding of a new word, as other programs have it.

learned_embeds.safetensors, learned_embeds.bin   {word: [D] or [n, D]}, as diffusers reads it
NAME.pt                                          AUTOMATIC1111: {"string_to_param": {"*": [n, D]}}
NAME.safetensors                                 AUTOMATIC1111: {"emb_params": [n, D]}
NAME_emb.safetensors                             SDXL, SD3: {"clip_l": [n, D1], "clip_g": [n, D2]}
"""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch

from studiolo.errors import StudioloError
from studiolo.formats.adapter_folder import Adapter
from studiolo.formats.pickles import Inert, read_object
from studiolo.formats.tensors import SAFETENSORS, read_tensors, write_tensors

_ENCODERS = ("clip_l", "clip_g", "t5xxl")
_LIMIT = 1024  # vectors of a word


def read_embedding(file: str | Path, word: str | None = None) -> Adapter:
    """The word in a file of textual inversion, ready to be put on a model.

    `word` is what stands for it in prompts; by default what the file calls it, or the file's own name.

    Raises:
        StudioloError: the file is damaged, wants to run code, or is none of these kinds.
    """
    file = Path(file)
    if not file.is_file():
        raise StudioloError("no such file", where=file, remedy="Check the path.")
    told = read_tensors(file) if file.suffix.lower() == SAFETENSORS else read_object(file)
    named, vectors = _found(told, file)
    chosen = word or named or file.stem
    words = {}
    for place, tensor in vectors.items():
        table = torch.atleast_2d(tensor.detach())
        if table.ndim != 2 or not 1 <= len(table) <= _LIMIT or not table.is_floating_point():
            raise StudioloError(f"no embedding of a word: a tensor of {list(tensor.shape)}", where=file)
        words[place] = {chosen: table}
    return Adapter({}, words)


def write_embedding(adapter: Adapter, file: str | Path, dtype: torch.dtype | None = None) -> Path:
    """Writes the one word of an adapter as diffusers, AUTOMATIC1111 and ComfyUI read it; returns the path.

    Models with one text encoder have it under the word, those with several under the encoders' names.

    Raises:
        StudioloError: the adapter has no word, or several, which take a file each.
    """
    words = {word for tables in adapter.words.values() for word in tables}
    if len(words) != 1:
        count = len(words) or "no"
        raise StudioloError(
            f"a file of textual inversion holds one word, and there are {count}", remedy="Write one each."
        )
    (word,) = words
    tables = {place: tables[word] for place, tables in adapter.words.items()}
    if set(tables) == {0}:
        tensors = {word: tables[0]}
    else:
        tensors = {_ENCODERS[place]: table for place, table in tables.items()}
    return write_tensors(file, tensors, dtype=dtype)


def single_words(adapter: Adapter) -> dict[str, Adapter]:
    """For each word of an adapter one that has nothing else."""
    words = dict.fromkeys(word for tables in adapter.words.values() for word in tables)
    return {
        word: Adapter(
            {}, {place: {word: tables[word]} for place, tables in adapter.words.items() if word in tables}
        )
        for word in words
    }


def is_embedding(told: Any) -> bool:
    """Whether the content of a file is of one of these kinds."""
    if not isinstance(told, Mapping):
        return False
    tensors = {key: value for key, value in told.items() if isinstance(value, torch.Tensor)}
    few = len(told) == len(tensors) == 1 and next(iter(tensors.values())).ndim in (1, 2)
    return few or "string_to_param" in told or set(told) <= set(_ENCODERS)


def _found(told: Any, file: Path) -> tuple[str | None, dict[int, torch.Tensor]]:
    """What the word is called, and its vectors by the place of the text encoder."""
    if isinstance(told, Mapping) and is_embedding(told):
        if "string_to_param" in told:
            return _automatic(told, file)
        if set(told) <= set(_ENCODERS):
            return None, {_ENCODERS.index(name): tensor for name, tensor in told.items()}
        ((name, tensor),) = told.items()
        return (None if name == "emb_params" else str(name)), {0: tensor}
    raise StudioloError(
        "no embedding of a word",
        where=file,
        remedy="Give a file of textual inversion, such as learned_embeds.safetensors.",
    )


def _automatic(told: Mapping[str, Any], file: Path) -> tuple[str | None, dict[int, torch.Tensor]]:
    """AUTOMATIC1111's: old files keep the vectors in a ParameterDict, which comes as a stand-in."""
    held = told["string_to_param"]
    if isinstance(held, Inert):
        held = held.state.get("_parameters") if isinstance(held.state, dict) else None
    tensors = list(held.values()) if isinstance(held, Mapping) else []
    if len(tensors) != 1 or not isinstance(tensors[0], torch.Tensor):
        raise StudioloError("no embedding of one word", where=file, remedy="Fetch the file again.")
    name = told.get("name")
    return (name if isinstance(name, str) and name else None), {0: tensors[0]}

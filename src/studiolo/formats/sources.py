"""What a name, folder or file holds: a whole model, an adapter, or the embedding of a word."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

import torch

from studiolo.errors import StudioloError
from studiolo.formats.adapter_folder import Adapter, load_adapter
from studiolo.formats.compvis import UNET
from studiolo.formats.embeddings import is_embedding, read_embedding
from studiolo.formats.lora import is_adapter as has_adapter_names
from studiolo.formats.lora import read_adapter
from studiolo.formats.networks import weight_files
from studiolo.formats.opening import base_of, is_adapter
from studiolo.formats.pickles import read_object
from studiolo.formats.tensors import SAFETENSORS, float_types, read_tensors
from studiolo.models.registry import SINGLE_FILES, ModelRef, resolve
from studiolo.store.files import sha256_file

Kind = Literal["model", "adapter", "embedding"]


@dataclass(frozen=True)
class Source:
    """Something that was found under a name or path, and what it holds."""

    ref: ModelRef
    kind: Kind

    @property
    def is_file(self) -> bool:
        return self.ref.path.is_file()

    def adapter(self) -> Adapter:
        """What it puts on a base; for sources that are no model."""
        if self.kind == "embedding":
            return read_embedding(self.ref.path)
        return Adapter(read_adapter(self.ref.path)) if self.is_file else load_adapter(self.ref.path)

    def trace(self) -> dict[str, Any]:
        """Where something was made from, for a card: name, kind, and what the weights are known by."""
        told: dict[str, Any] = {"name": self.ref.name, "kind": self.kind}
        if self.is_file:
            return told | {"sha256": sha256_file(self.ref.path)}
        files = _files_below(self.ref.path)
        return told | {"sha256": {str(file.relative_to(self.ref.path)): sha256_file(file) for file in files}}

    def subjects(self) -> list[dict[str, Any]]:
        """Whom it was taught: name, class noun and identifier of each; one without a name of its own
        ("V") goes by the source's, as in drawing."""
        card = self.ref.card
        subjects = [
            {key: one.get(key) for key in ("name", "class_noun", "identifier")}
            for one in card.get("subjects") or [card]
            if one.get("class_noun")
        ]
        return [one | {"name": self.ref.name} if one["name"] in (None, "V") else one for one in subjects]


def find(name_or_path: str | Path) -> Source:
    """What lies there.

    Raises:
        StudioloError: nothing does, or it cannot be read.
    """
    path = Path(name_or_path).expanduser()
    is_weights = path.is_file() and path.suffix.lower() in SINGLE_FILES
    ref = resolve(path if is_weights else name_or_path)
    if ref.path.is_file():
        return Source(ref, _kind_of_file(ref.path))
    return Source(ref, "adapter" if is_adapter(ref) else "model")


def stored_dtype(ref: ModelRef) -> torch.dtype:
    """The float type that holds all weights of a model as they are stored; of an adapter, its base's."""
    while is_adapter(ref):
        ref = base_of(ref)
    files = [ref.path] if ref.path.is_file() else _files_below(ref.path)
    found = set().union(*(float_types(_weights(file)) for file in files))
    return found.pop() if len(found) == 1 and found <= {torch.float16, torch.bfloat16} else torch.float32


def _files_below(folder: Path) -> list[Path]:
    """The files with the weights of a folder and of the folders in it."""
    folders = [folder, *sorted(inner for inner in folder.rglob("*") if inner.is_dir())]
    return [file for inner in folders for file in weight_files(inner)]


def _weights(file: Path) -> dict[str, torch.Tensor]:
    """The tensors of a file that are of the model; empty ones are flags."""
    tensors = read_tensors(file)
    return {name: t for name, t in tensors.items() if t.numel() and not name.startswith("model_ema.")}


def _kind_of_file(file: Path) -> Kind:
    told = read_tensors(file) if file.suffix.lower() == SAFETENSORS else read_object(file)
    inner = told.get("state_dict", told) if isinstance(told, dict) else {}
    names = {name: None for name in inner if isinstance(name, str)} if isinstance(inner, dict) else {}
    if any(name.startswith(UNET) for name in names):
        return "model"
    if has_adapter_names(names):
        return "adapter"
    if is_embedding(told):
        return "embedding"
    some = next(iter(names), "?")
    raise StudioloError(
        f"neither a model nor an adapter nor an embedding: its weights are named like {some}",
        where=file,
        remedy="Give a checkpoint in CompVis' names, a LoRA, or a file of textual inversion.",
    )

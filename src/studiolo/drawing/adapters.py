"""Adapters on top of a model: several subjects, each as strongly as wanted, in one drawing."""

from __future__ import annotations

import hashlib
import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from studiolo.diffusion.components import Components
from studiolo.diffusion.words import words_of
from studiolo.errors import StudioloError
from studiolo.formats.adapter_folder import Wanted, put_all_on
from studiolo.formats.sources import find
from studiolo.store.files import sha256_file

MOST_WEIGHT = 10.0


@dataclass(frozen=True)
class Mounted:
    """An adapter that was merged into a model `weight` times; `sha256` is that of its file or files.

    identifiers: the words for its subjects, by name. base: the fingerprint of the model that it was taught
    on, if it says. words: of a file of textual inversion, the word, and how it is spelled out.
    """

    name: str
    weight: float
    sha256: str
    identifiers: Mapping[str, str] = field(default_factory=dict, hash=False)
    base: str | None = None
    words: Mapping[str, str] = field(default_factory=dict, hash=False)


def parse_adapter(text: str) -> tuple[str, float]:
    """ "my-fox:0.8" to its name (or path) and weight; without a number it is 1.

    Raises StudioloError for a weight that is none.
    """
    name, colon, number = text.rpartition(":")
    if not colon:
        return text, 1.0
    try:
        weight = float(number)
    except ValueError:
        return text, 1.0  # the colon belongs to the name
    if not math.isfinite(weight) or abs(weight) > MOST_WEIGHT:
        raise StudioloError(
            f"{number} is no weight",
            where=f"adapter {name}",
            remedy="Use about 0 to 1, at most 10 either way.",
        )
    return name, weight


def mount_all(components: Components, adapters: Sequence[tuple[str | Path, float]]) -> list[Mounted]:
    """Merges adapters into `components`, in place, each as often as its weight says; their order does not
    matter. Each is one that was taught here, by name or folder, a single file of LoRA or DoRA in PEFT's or
    kohya's naming, or a file of textual inversion, whose word is added.

    Raises:
        StudioloError: nothing has that name, it is a whole model, or it does not fit.
    """
    found = [_find(components, *adapter) for adapter in adapters]
    put_all_on(components, [wanted for wanted, _ in found])
    return [mounted for _, mounted in found]


def _find(components: Components, name_or_path: str | Path, weight: float) -> tuple[Wanted, Mounted]:
    source = find(name_or_path)
    ref = source.ref
    if source.kind == "model":
        raise StudioloError(
            "a whole model, not an adapter",
            where=name_or_path,
            remedy="Draw with it: --model. Adapters are taught with a recipe that says adapter.",
        )
    wanted = Wanted(source.adapter(), weight, name_or_path)
    if not source.is_file:
        base = (ref.card.get("base") or {}).get("fingerprint")
        return wanted, Mounted(ref.name, weight, _hash(ref.path), identifiers_of(ref.name, ref.card), base)
    name, sha256 = ref.path.stem, sha256_file(ref.path)
    if source.kind == "adapter":
        return wanted, Mounted(name, weight, sha256)
    spelled = _check_embedding(components, wanted)
    return wanted, Mounted(name, weight, sha256, {name: next(iter(spelled.values()))}, words=spelled)


def _check_embedding(components: Components, wanted: Wanted) -> dict[str, str]:
    """The word of an embedding, and how it is spelled out: all of its words, one a vector."""
    if wanted.weight != 1:
        raise StudioloError(
            f"the embedding of a word is there or not, and cannot count {wanted.weight:g} times",
            where=wanted.where,
            remedy="Leave the weight out.",
        )
    tables, needed = wanted.adapter.words, components.family.trained_encoders
    if not set(range(needed)) <= set(tables):
        raise StudioloError(
            f"this embedding is for {len(tables)} text encoder{'s' * (len(tables) > 1)}, "
            f"and the model reads words by {needed}",
            where=wanted.where,
            remedy="Use it with a model of the family that it was made for.",
        )
    return {word: " ".join(words_of(word, len(vectors))) for word, vectors in tables[0].items()}


def identifiers_of(name: str, card: Mapping[str, Any]) -> dict[str, str]:
    """The words for the subjects of a model, by the subjects' names; one without a name of its own ("V") goes
    by the model's."""
    subjects = [one for one in card.get("subjects") or [] if one.get("identifier")]
    if not subjects:
        return {name: str(card["identifier"])} if card.get("identifier") else {}
    alone = len(subjects) == 1 and subjects[0].get("name") in (None, "V")
    return {name if alone else str(one["name"]): str(one["identifier"]) for one in subjects}


def _hash(folder: Path) -> str:
    """Of all its weights, in the order of their names."""
    digest = hashlib.sha256()
    for file in sorted(folder.glob("*.safetensors")):
        digest.update(f"{file.name} {sha256_file(file)}\n".encode())
    return digest.hexdigest()

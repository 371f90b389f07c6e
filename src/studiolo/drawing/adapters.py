"""Adapters on top of a model: several subjects, each as strongly as wanted, in one drawing."""

from __future__ import annotations

import hashlib
import math
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from studiolo.diffusion.components import Components
from studiolo.errors import StudioloError
from studiolo.formats.adapter_folder import Adapter, load_adapter
from studiolo.formats.lora import fitted, read_adapter
from studiolo.formats.opening import is_adapter
from studiolo.models.registry import resolve
from studiolo.store.files import sha256_file

MOST_WEIGHT = 10.0


@dataclass(frozen=True)
class Mounted:
    """An adapter that was merged into a model `weight` times; `sha256` is that of its file or files.

    identifiers: the words for its subjects, by name. base: the fingerprint of the model that it was taught
    on, if it says.
    """

    name: str
    weight: float
    sha256: str
    identifiers: Mapping[str, str] = field(default_factory=dict, hash=False)
    base: str | None = None


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


def mount(components: Components, name_or_path: str | Path, weight: float = 1.0) -> Mounted:
    """Merges an adapter into `components`, in place: one that was taught here, by name or folder, or a single
    file of LoRA or DoRA in PEFT's or kohya's naming.

    Raises:
        StudioloError: nothing has that name, it is a whole model, or it does not fit.
    """
    path = Path(name_or_path).expanduser()
    if path.suffix == ".safetensors" and path.is_file():
        Adapter(fitted(read_adapter(path), components)).put_on(components, weight)
        return Mounted(path.stem, weight, sha256_file(path))
    ref = resolve(name_or_path)
    if not is_adapter(ref):
        raise StudioloError(
            "a whole model, not an adapter",
            where=name_or_path,
            remedy="Draw with it: --model. Adapters are taught with a recipe that says adapter.",
        )
    load_adapter(ref.path).put_on(components, weight)
    base = (ref.card.get("base") or {}).get("fingerprint")
    return Mounted(ref.name, weight, _hash(ref.path), identifiers_of(ref.name, ref.card), base)


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

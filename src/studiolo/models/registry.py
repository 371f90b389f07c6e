"""Names for models: the one that ships with the package, those you taught, folders, and the hub.

A registered name is a small JSON record that points at a Diffusers folder, at the folder of an adapter or
at a single file of weights; nothing is copied, so a name stands as long as what it points at does.
"""

from __future__ import annotations

import difflib
import json
import re
from dataclasses import dataclass, field
from datetime import UTC, datetime
from pathlib import Path
from typing import Any, Literal

from studiolo.errors import StudioloError
from studiolo.models.diffusers_hub import fetch_diffusers
from studiolo.models.header import read_header
from studiolo.store.files import atomic_path
from studiolo.store.paths import models_dir, weights_dir

BASE_NAME = "studiolo-base"
CARD_FILE = "studiolo.json"
INDEX_FILE = "model_index.json"
ADAPTER_FILES = ("pytorch_lora_weights.safetensors", "learned_embeds.safetensors")
SINGLE_FILES = frozenset({".safetensors", ".ckpt", ".pt", ".pth", ".bin"})
"""How files end that may hold a whole model; those that pickle are read without running any code."""
CARD_KEY = "studiolo.card"
"""Where the card is in the metadata of a safetensors file."""

Kind = Literal["base", "subject", "folder", "file"]

# A zip file, or before torch 1.6 the pickle of a number: torch/serialization.py, MAGIC_NUMBER.
_TORCH_SAVES = (b"PK\x03\x04", b"\x80\x02\x8a\nl\xfc\x9cF\xf9 j\xa8P\x19.")
_NAME = re.compile(r"[A-Za-z0-9][A-Za-z0-9._-]{0,63}")
_HUB_ID = re.compile(r"[A-Za-z0-9][\w.-]*/[\w.-]+")


class NoSuchModelError(StudioloError):
    """Nothing to draw with has that name."""


@dataclass(frozen=True)
class ModelRef:
    """A model that was found: `path` is a Diffusers folder, the folder of an adapter, or a single file;
    `card` what its `studiolo.json`, or the file's metadata, says (or {})."""

    name: str
    path: Path
    kind: Kind
    card: dict[str, Any] = field(default_factory=dict, hash=False)

    @property
    def marker(self) -> Path:
        """The file whose presence says that the model is there, and whose time when it was written."""
        return _marker(self.path) or self.path / INDEX_FILE


def resolve(name_or_path: str | Path) -> ModelRef:
    """The model of that name: the embedded base, a registered name, a folder, a single file, or a hub id.

    A run folder stands for the `model/` inside it.

    Raises:
        StudioloError: nothing has that name, its folder is gone or holds no model, or the hub could not be
            reached.
    """
    name = str(name_or_path)
    if name == BASE_NAME:
        return _base()
    if record := _record_of(name):
        return _registered(name, record)
    path = Path(name).expanduser()
    if path.is_dir() or (path.is_file() and path.suffix.lower() in SINGLE_FILES):
        return _path_ref(path)
    if _HUB_ID.fullmatch(name) and not isinstance(name_or_path, Path):
        return _from_hub(name)
    raise _unknown(name)


def register(path: str | Path, name: str, *, replace: bool = False) -> ModelRef:
    """Gives a folder or a single file a name. It stays where it is.

    Raises:
        StudioloError: a name that cannot be one or is taken (unless `replace`), or no model.
    """
    check_name(name, replace=replace)
    ref = _path_ref(Path(path))
    record = {"path": str(ref.path), "registered": datetime.now(UTC).isoformat(timespec="seconds")}
    with atomic_path(_record_path(name)) as temporary:
        temporary.write_text(json.dumps(record, indent=2) + "\n", encoding="utf-8")
    return ModelRef(name, ref.path, ref.kind, ref.card)


def draws(path: Path) -> bool:
    """Whether what lies there is taken for a model that draws: by its names, and how a pickle begins."""
    if path.is_file() and path.suffix.lower() in SINGLE_FILES - {".safetensors"}:
        with open(path, "rb") as file:
            return file.read(16).startswith(_TORCH_SAVES)
    return bool(_marker(path) or _marker(path / "model"))


def check_name(name: str, *, replace: bool = False) -> None:
    """Refuses, before any work is done for it, a name that `register` would refuse after."""
    if not _NAME.fullmatch(name):
        raise StudioloError(
            "not a name for a model",
            where=repr(name),
            remedy="Use 1 to 64 letters, digits, '.', '_' or '-', starting with a letter or digit.",
        )
    if name == BASE_NAME:
        raise StudioloError("the embedded base model has this name", where=name, remedy="Choose another.")
    if (_record_path(name).exists() and not replace) or (weights_dir() / name).exists():
        raise StudioloError(
            "a model of this name exists",
            where=name,
            remedy=f"Choose another name, or remove it first: studiolo models remove {name}",
        )


def list_models() -> list[ModelRef]:
    """The embedded base model (when its weights are there), then the registered models by name.

    A record whose folder has gone is listed with the path it had and an empty card.
    """
    found = [_base()] if _marker(_base_path()) else []
    for file in sorted(models_dir().glob("*.json")):
        if record := _record_of(file.stem):
            path = Path(record["path"])
            card = _card_or_nothing(path)
            found.append(ModelRef(file.stem, path, _kind(path, card), card))
    return found


def remove(name: str) -> ModelRef:
    """Forgets a registered name and returns what it stood for. The folder itself is left alone."""
    if name == BASE_NAME:
        raise StudioloError("the embedded base model cannot be removed", where=name)
    record = _record_of(name)
    if record is None:
        raise _unknown(name)
    path = Path(record["path"])
    card = _card_or_nothing(path)
    _record_path(name).unlink()
    return ModelRef(name, path, _kind(path, card), card)


def _base_path() -> Path:
    return Path(__file__).resolve().parent.parent / "base" / "weights"


def _base() -> ModelRef:
    path = _base_path()
    if not _marker(path):
        raise StudioloError(
            "the weights of the embedded base model are missing",
            where=path,
            remedy="Install Studiolo again, or name another model.",
        )
    return ModelRef(BASE_NAME, path, "base", _card(path))


def _registered(name: str, record: dict[str, Any]) -> ModelRef:
    path = Path(record["path"])
    if not _marker(path):
        raise StudioloError(
            f"the {'file' if path.suffix.lower() in SINGLE_FILES else 'folder'} of model '{name}' is gone",
            where=path,
            remedy=f"Put it back, or forget the name: studiolo models remove {name}",
        )
    card = _card(path)
    return ModelRef(name, path, _kind(path, card), card)


def _path_ref(given: Path) -> ModelRef:
    path = given.expanduser().resolve()
    if not _marker(path) and _marker(path / "model"):
        path = path / "model"
    if not _marker(path):
        raise StudioloError(
            f"not a Diffusers folder: it holds no {INDEX_FILE}" if path.is_dir() else "no file of weights",
            where=given,
            remedy="Give the folder of a model, the run folder that holds one in model/, or a .safetensors "
            "or .ckpt file.",
        )
    card = _card(path)
    return ModelRef(str(card.get("name") or path.stem), path, _kind(path, card), card)


def _from_hub(hub_id: str) -> ModelRef:
    try:
        path = fetch_diffusers(hub_id)
    except Exception as error:  # its clients raise errors of three libraries for "no network" alone
        raise StudioloError(
            f"no model of this name here, and it could not be had from the hub ({type(error).__name__})",
            where=hub_id,
            remedy=f"Check the spelling and the network, or give a folder. {_hint(hub_id)}",
        ) from error
    if not (path / INDEX_FILE).is_file():
        raise StudioloError(
            f"this repository holds no {INDEX_FILE}", where=hub_id, remedy="Choose a Diffusers one."
        )
    return ModelRef(hub_id, path, "folder", {})


def _unknown(name: str) -> NoSuchModelError:
    if _NAME.fullmatch(name) and (weights_dir() / name).exists():
        return NoSuchModelError("this model speaks and cannot draw", where=name, remedy=_hint(name))
    return NoSuchModelError("no model of this name, and no such folder", where=name, remedy=_hint(name))


def _hint(name: str) -> str:
    known = [ref.name for ref in list_models()]
    if near := difflib.get_close_matches(name, known, n=3, cutoff=0.5):
        return f"Did you mean {' or '.join(near)}?"
    return f"There are: {', '.join(known)}." if known else "There are no models yet."


def _marker(path: Path) -> Path | None:
    """The file that makes `path` a model; None where there is none."""
    if path.is_file():
        return path if path.suffix.lower() in SINGLE_FILES else None
    adapters = ADAPTER_FILES if (path / CARD_FILE).is_file() else ()  # its card names the base
    return next((path / name for name in (INDEX_FILE, *adapters) if (path / name).is_file()), None)


def _kind(path: Path, card: dict[str, Any]) -> Kind:
    if card.get("class_noun") or card.get("subjects"):
        return "subject"
    return "file" if path.suffix.lower() in SINGLE_FILES and not path.is_dir() else "folder"


def _card(path: Path) -> dict[str, Any]:
    if not path.is_file():
        return _read_object(path / CARD_FILE) or {}
    if path.suffix.lower() != ".safetensors":
        return {}
    text = read_header(path).metadata.get(CARD_KEY)
    return _parsed(text, path) if text else {}


def _card_or_nothing(path: Path) -> dict[str, Any]:
    """The card for a list, which one damaged file must not keep from being shown."""
    try:
        return _card(path)
    except StudioloError:
        return {}


def _record_path(name: str) -> Path:
    return models_dir() / f"{name}.json"


def _record_of(name: str) -> dict[str, Any] | None:
    if not _NAME.fullmatch(name):
        return None
    record = _read_object(_record_path(name))
    if record is not None and not isinstance(record.get("path"), str):
        raise StudioloError(
            "damaged record: no path in it", where=_record_path(name), remedy="Delete this file."
        )
    return record


def _read_object(file: Path) -> dict[str, Any] | None:
    """A JSON object, or None where there is no such file."""
    try:
        return _parsed(file.read_text(encoding="utf-8"), file)
    except (FileNotFoundError, NotADirectoryError):
        return None


def _parsed(text: str, file: Path) -> dict[str, Any]:
    try:
        value = json.loads(text)
    except ValueError as error:
        raise StudioloError(
            f"not readable as JSON ({error})", where=file, remedy="Mend or delete it."
        ) from error
    if not isinstance(value, dict):
        raise StudioloError("a JSON object was expected", where=file, remedy="Mend or delete it.")
    return value

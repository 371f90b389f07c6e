"""From one format to another: `studiolo convert`."""

from __future__ import annotations

import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any, Literal, get_args

import torch

from studiolo.diffusion.components import Components
from studiolo.errors import ConflictError, StudioloError
from studiolo.formats import compvis
from studiolo.formats.adapter_folder import Adapter
from studiolo.formats.diffusers_folder import save_components
from studiolo.formats.embeddings import single_words, write_embedding
from studiolo.formats.inferring import CLIP, CLIP_XL, OPEN_CLIP, OPEN_CLIP_XL
from studiolo.formats.lora import write_adapter
from studiolo.formats.opening import open_components
from studiolo.formats.single_file import write_single_file
from studiolo.formats.sources import Source, find, stored_dtype
from studiolo.formats.tensors import SAFETENSORS, OnProgress, read_metadata, read_tensors, write_tensors
from studiolo.models.registry import CARD_FILE, CARD_KEY
from studiolo.store.files import atomic_dir

Format = Literal["diffusers", "single-file", "peft", "kohya", "embedding"]
DTYPES = {"float16": torch.float16, "bfloat16": torch.bfloat16, "float32": torch.float32}

_KEPT = (compvis.UNET, compvis.VAE, CLIP, OPEN_CLIP, CLIP_XL, OPEN_CLIP_XL, "v_pred", "ztsnr")
_HASHES = {"modelspec.hash_sha256", "sshs_model_hash", "sshs_legacy_hash"}
_POSSIBLE: dict[str, tuple[Format, ...]] = {
    "model": ("diffusers", "single-file"),
    "adapter": ("peft", "kohya"),
    "embedding": ("embedding",),
}


def convert(
    source: str | Path,
    target: str | Path,
    format: Format | None = None,  # noqa: A002 (as the option is called)
    dtype: str | None = None,
    prune: bool = False,
    on_progress: OnProgress | None = None,
) -> list[Path]:
    """Writes a model, an adapter or an embedding in another format; returns the files or folders written.

    Args:
        source: a name, hub id, folder or file.
        target: a path where nothing is yet. A name without suffix is a Diffusers folder, a .safetensors
            file a single file; adapters need `format`, unless it is called pytorch_lora_weights.safetensors.
        dtype: "float16", "bfloat16" or "float32"; by default weights stay as they are stored.
        prune: from a single file to another, leave out all that is not needed to draw: EMA weights,
            optimizer states, tables of the schedule.
        on_progress: called with a file's name, the bytes written and its length.

    An adapter in a folder that has learned words, too, gets their embeddings in files beside the target,
    NAME_WORD.safetensors, and so do several words in the format "embedding".

    Raises:
        StudioloError: the source cannot be read, or cannot be had in that format; its subclass
            ConflictError when there is something at the target already.
    """
    target = Path(target).expanduser()
    refuse_existing(target)
    kind = check_dtype(dtype)
    found = find(source)
    wanted = _format(found, target, format)
    _check_target(target, wanted)
    if wanted in ("peft", "kohya"):
        return _convert_adapter(found, target, wanted, kind, on_progress)
    if wanted == "embedding":
        return _convert_words(found.adapter(), target, kind)
    if wanted == "single-file" and found.is_file:
        return [_rewrite(found, target, kind, prune, on_progress)]
    components = open_components(found.ref, kind or stored_dtype(found.ref))
    return [write_model(components, target, found.ref.card, on_progress)]


def write_model(
    components: Components, target: Path, card: Mapping[str, Any], on_progress: OnProgress | None = None
) -> Path:
    """Writes a model with its card as a single file or a folder, by the target's name."""
    if card:  # of an adapter: it is none any more
        card = _without(card, "kind") | {"fingerprint": components.fingerprint()}
    if target.suffix.lower() == SAFETENSORS:
        return write_single_file(components, target, card=card, on_progress=on_progress)
    with atomic_dir(target) as folder:
        save_components(components, folder)
        if card:
            text = json.dumps(card, indent=2, ensure_ascii=False)
            (folder / CARD_FILE).write_text(text + "\n", encoding="utf-8")
    return target


def refuse_existing(target: Path) -> None:
    """ConflictError where something lies: nothing is ever overwritten."""
    if target.exists() or target.is_symlink():
        raise ConflictError("there is something already", where=target, remedy="Choose another name.")


def check_dtype(name: str | None) -> torch.dtype | None:
    if name is not None and name not in DTYPES:
        raise StudioloError(
            f"there is no dtype {name!r}", where="dtype", remedy=f"Use one of {', '.join(DTYPES)}."
        )
    return DTYPES[name] if name else None


def _possible(found: Source) -> list[Format]:
    """A folder with what was learned beside a base has adapters, words or both; on its base it is a model."""
    if found.kind != "adapter" or found.is_file:
        return list(_POSSIBLE[found.kind])
    adapter = found.adapter()
    kinds = ["adapter"] * bool(adapter.state) + ["embedding"] * bool(adapter.words) + ["model"]
    return [one for kind in kinds for one in _POSSIBLE[kind]]


def _format(found: Source, target: Path, given: str | None) -> Format:
    possible = _possible(found)
    if given is not None:
        if given not in get_args(Format):
            raise StudioloError(
                f"there is no format {given!r}", where="format", remedy=f"Use one of {', '.join(possible)}."
            )
        chosen: Format = given  # type: ignore[assignment]  # it is one, as was just checked
    elif found.kind == "embedding":
        chosen = "embedding"
    elif found.kind == "adapter" and target.name == "pytorch_lora_weights.safetensors":
        chosen = "peft"
    elif found.kind == "adapter":
        raise StudioloError(
            "an adapter: in which format is it to be written?",
            where=found.ref.path,
            remedy=f"Say --format {' or '.join(possible)}.",
        )
    else:
        chosen = "single-file" if target.suffix else "diffusers"
    if chosen not in possible:
        raise StudioloError(
            f"{'an' if found.kind[0] in 'ae' else 'a'} {found.kind} cannot be written in the format {chosen}",
            where=found.ref.path,
            remedy=f"Formats for it: {', '.join(possible)}."
            + (
                " To put it on a base: studiolo merge BASE FILE --out MODEL"
                if found.kind == "adapter"
                else ""
            ),
        )
    return chosen


def _check_target(target: Path, wanted: Format) -> None:
    suffix = target.suffix.lower()
    if wanted == "diffusers" and suffix in (SAFETENSORS, ".ckpt", ".pt", ".bin"):
        raise StudioloError(
            "the format diffusers is a folder, and this is a file's name",
            where=target,
            remedy="Leave the end off.",
        )
    if wanted != "diffusers" and suffix != SAFETENSORS:
        raise StudioloError(
            "only .safetensors files are written: others can hold code",
            where=target,
            remedy=f"Call it {target.with_suffix(SAFETENSORS).name}.",
        )


def _convert_adapter(
    found: Source, target: Path, naming: Any, dtype: torch.dtype | None, on_progress: OnProgress | None
) -> list[Path]:
    adapter = found.adapter()
    beside = _beside(adapter, target)
    written = [write_embedding(alone, file, dtype) for file, alone in beside.items()]
    return [write_adapter(adapter.state, target, naming, dtype, found.ref.card, on_progress), *written]


def _convert_words(adapter: Adapter, target: Path, dtype: torch.dtype | None) -> list[Path]:
    """The one word of an adapter as `target`, several in a file each."""
    words = single_words(adapter)
    files = {target: adapter} if len(words) == 1 else _beside(adapter, target)
    return [write_embedding(one, file, dtype) for file, one in files.items()]


def _beside(adapter: Adapter, target: Path) -> dict[Path, Adapter]:
    """The files for the words of an adapter, NAME_WORD.safetensors, and each word alone."""
    files = {
        target.with_name(f"{target.stem}_{''.join(c for c in word if c.isalnum())}{SAFETENSORS}"): alone
        for word, alone in single_words(adapter).items()
    }
    for file in files:
        refuse_existing(file)
    return files


def _rewrite(
    found: Source, target: Path, dtype: torch.dtype | None, prune: bool, on_progress: OnProgress | None
) -> Path:
    """From file to file, tensor by tensor: also what we would not read is kept, unless it is to be pruned."""
    tensors = read_tensors(found.ref.path)
    if prune:
        tensors = {name: tensor for name, tensor in tensors.items() if name.startswith(_KEPT)}
    metadata = read_metadata(found.ref.path) or {"format": "pt"}
    if dtype or prune:  # hashes of what the file was
        metadata = {name: text for name, text in metadata.items() if name not in _HASHES}
        if found.ref.card:
            metadata[CARD_KEY] = json.dumps(_without(found.ref.card, "fingerprint"), ensure_ascii=False)
    return write_tensors(target, tensors, metadata, dtype, on_progress)


def _without(card: Mapping[str, Any], *keys: str) -> dict[str, Any]:
    return {key: value for key, value in card.items() if key not in keys}

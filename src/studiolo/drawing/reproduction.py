"""The same picture again, from what its file says."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path

import numpy as np
import torch
from PIL import Image

from studiolo.diffusion.sampling import OnStep
from studiolo.diffusion.threads import torch_threads
from studiolo.drawing.given import Given, Source, give
from studiolo.drawing.model import ImageModel, Picture
from studiolo.drawing.provenance import AdapterTrace, GivenTrace, Provenance, read_provenance
from studiolo.errors import StudioloError
from studiolo.models.registry import list_models
from studiolo.store.files import sha256_bytes, sha256_file


@dataclass(frozen=True)
class Reproduction:
    """A picture made again.

    identical: the new file has the same bytes. difference: the largest difference of a colour value, 0 to
    255, None if the sizes differ. changes: what has changed since, such as "torch: 2.12, now 2.13".
    """

    picture: Picture
    identical: bool
    difference: int | None
    changes: list[str]


def reproduce(
    path: str | Path,
    model: str | None = None,
    on_step: OnStep | None = None,
    *,
    init: Source | None = None,
    mask: Source | None = None,
    adapters: Sequence[str | Path] | None = None,
) -> Reproduction:
    """Draws the picture in `path` again, with its batch, settings and number of threads; compares the files.

    `model` says where a model lies that the registry does not know under the recorded name: a file alone
    makes nothing be opened or fetched that was not registered here. `init` and `mask` are the picture that it
    began from and its mask, where it began from one. `adapters` say in the recorded order where its adapters
    lie, if they are not registered under their names.

    Raises:
        StudioloError: the file has no record, its model is not here, or has other weights than it had; the
            picture that it began from is not given, or is another.
    """
    record = read_provenance(path)
    given = _given(record.given, init, mask, path)
    drawer = _load(record, model, adapters, path)
    with torch_threads(record.machine.threads):
        pictures = drawer.draw(
            record.batch,
            record.sampler_settings,
            width=record.width,
            height=record.height,
            batch_size=len(record.batch),
            given=given,
            on_step=on_step,
        )
    again = pictures[record.index]
    # The weights are the same, whatever name they go by now.
    picture = replace(again, record=again.record.model_copy(update={"model": record.model}))
    identical = sha256_bytes(picture.png()) == sha256_file(path)
    return Reproduction(picture, identical, _difference(picture, path), _changes(record, picture.record))


def _given(
    trace: GivenTrace | None, init: Source | None, mask: Source | None, path: str | Path
) -> Given | None:
    """What the picture began from, if it is what `trace` says."""
    if trace is None:
        if init is not None or mask is not None:
            raise StudioloError("it did not begin from a picture", where=path, remedy="Leave out --init.")
        return None
    given = give(init, mask, trace.strength, trace.keep, trace.alpha)
    found = (given.image_sha256, given.mask_sha256) if given else (None, None)
    for name, was, now in zip(("init", "mask"), (trace.image, trace.mask), found, strict=True):
        if now != was:
            what = "a picture" if name == "init" else "a mask"
            told = f"with SHA-256 {was[:12]}..." if was else "none"
            raise StudioloError(
                f"it was drawn from {what} {told}" + (f", this one has {now[:12]}..." if now else ""),
                where=path,
                remedy=f"Give that file: --{name} FILE." if was else f"Leave out --{name}.",
            )
    return given


def _load(
    record: Provenance, model: str | None, adapters: Sequence[str | Path] | None, path: str | Path
) -> ImageModel:
    places = _adapters(record.model.adapters, adapters, path)
    name = model or record.model.name
    if model is None and name not in _registered():
        raise StudioloError(
            f"it was drawn by the model '{name}', which is not registered here",
            where=path,
            remedy="Say where it is: --model NAME_OR_FOLDER.",
        )
    drawer = ImageModel.load(name, _device(record.machine.device), record.machine.dtype, places)
    pairs = [(f"the model '{name}'", drawer.fingerprint, record.model.fingerprint, "model")]
    for now, was in zip(drawer.adapters, record.model.adapters, strict=True):
        pairs.append((f"the adapter '{was.name}'", now.sha256, was.sha256, "adapter"))
    for what, now_hash, was_hash, option in pairs:
        if now_hash != was_hash:
            raise StudioloError(
                f"{what} has other weights now than when it drew this "
                f"(fingerprint {now_hash[:12]}, was {was_hash[:12]})",
                where=path,
                remedy=f"Say where the former one is: --{option} NAME_OR_FOLDER.",
            )
    return drawer


def _device(recorded: str) -> str | None:
    """The kind of device that drew it; None, which is the best there is, where this machine has none."""
    there = {
        "cpu": True,
        "cuda": torch.cuda.is_available(),
        "mps": torch.backends.mps.is_available(),
    }
    return recorded if there.get(recorded) else None


def _adapters(
    traces: Sequence[AdapterTrace], given: Sequence[str | Path] | None, path: str | Path
) -> list[tuple[str | Path, float]]:
    """Where the adapters of `traces` lie, with their weights."""
    if given is not None and len(given) != len(traces):
        raise StudioloError(
            f"it was drawn with {len(traces)} adapters, and {len(given)} are given",
            where=path,
            remedy=f"Give, in this order: {', '.join(trace.name for trace in traces) or 'none'}.",
        )
    missing = [trace.name for trace in traces if given is None and trace.name not in _registered()]
    if missing:
        raise StudioloError(
            f"it was drawn with the adapter '{missing[0]}', which is not registered here",
            where=path,
            remedy="Say where all of them are, in order: --adapter NAME_OR_FILE.",
        )
    places = given or [trace.name for trace in traces]
    return [(place, trace.weight) for place, trace in zip(places, traces, strict=True)]


def _registered() -> set[str]:
    return {ref.name for ref in list_models()}


def _difference(picture: Picture, path: str | Path) -> int | None:
    with Image.open(path, formats=["PNG"]) as image:
        if image.size != picture.image.size:
            return None
        first = np.asarray(image.convert("RGB"), dtype=int)
    return int(np.abs(first - np.asarray(picture.image, dtype=int)).max())


def _changes(then: Provenance, now: Provenance) -> list[str]:
    before, after = then.machine.model_dump(), now.machine.model_dump()
    return [f"{key}: {before[key]}, now {after[key]}" for key in before if before[key] != after[key]]

"""What may lie beside an image: a mask of the subject, a caption."""

from __future__ import annotations

import re
from collections.abc import Sequence
from pathlib import Path

import numpy as np
from PIL import Image

from studiolo.dreambooth.images import SUFFIXES, decode, list_folder, read_bytes
from studiolo.errors import StudioloError

_MASK_NAME = re.compile(r"(.+)[.\-_]mask", re.IGNORECASE)
MAX_CAPTION = 1000


def mask_owner(path: Path) -> str | None:
    """The stem of the image that a mask file belongs to: "fox" for fox.mask.png; None for other files."""
    match = _MASK_NAME.fullmatch(path.stem)
    return match[1] if match else None


def find_mask(image: Path, folder: Path | None) -> Path | None:
    """The mask of `image` in `folder` (NAME.*), or beside it (NAME.mask.*) when `folder` is None."""
    for file in list_folder(folder or image.parent):
        if file.suffix.lower() in SUFFIXES:
            owners = {mask_owner(file), file.stem} if folder is not None else {mask_owner(file)}
            if image.stem in owners and file != image:
                return file
    return None


def read_mask(
    path: Path | None, size: tuple[int, int], small: tuple[int, int]
) -> tuple[Image.Image | None, list[str]]:
    """The mask (mode L, white = subject) of an image of `size`, scaled to `small`, and notes.

    It is None if `path` is None.
    """
    if path is None:
        return None, []
    colour, _ = decode(read_bytes(path), path)
    mask = colour.convert("L")
    if mask.size != size:
        raise StudioloError(
            f"the mask has {mask.width}x{mask.height} pixels, its image {size[0]}x{size[1]}",
            where=path,
            remedy="Make it of the image's size, as it is seen upright.",
        )
    mask = mask.resize(small, Image.Resampling.BOX)
    white = np.asarray(mask) >= 128
    if not white.any():
        raise StudioloError(
            "an empty mask: too little of it is white", where=path, remedy="Paint the subject white."
        )
    return mask, [f"mask {path.name} used" if not white.all() else f"mask {path.name} covers the whole image"]


def read_caption(
    image: Path, source: str | None, noun: str, marks: Sequence[str] = ("[V]",)
) -> tuple[str | None, list[str]]:
    """The caption of `image` from its .txt file ("sidecar") or name ("filename"), and notes.

    `marks` are what may stand for the subject in it, [V] first.
    """
    if source == "filename":
        # "a fox on grass_02 (1).jpg" -> "a fox on grass"
        text = re.sub(r"[\s_\-]*(\(\d+\)|\d+)?$", "", re.sub(r"\s*\(\d+\)$", "", image.stem))
        return _with_identifier(re.sub(r"[_\s]+", " ", text).strip(), noun, marks, image)
    if source is None:
        return None, []
    file = image.with_suffix(".txt")
    if not file.exists():
        return None, [f"has no {file.name}: captioned by the recipe"]
    try:
        text = " ".join(read_bytes(file).decode("utf-8-sig").split())
    except UnicodeDecodeError:
        raise StudioloError("the caption is not UTF-8 text", where=file, remedy="Save it as UTF-8.") from None
    if not text or len(text) > MAX_CAPTION:
        raise StudioloError(
            f"a caption has 1 to {MAX_CAPTION} characters, this one {len(text)}",
            where=file,
            remedy="Write it anew.",
        )
    return _with_identifier(text, noun, marks, file)


def _with_identifier(text: str, noun: str, marks: Sequence[str], where: Path) -> tuple[str, list[str]]:
    """`text` with one of `marks` in it: the first is put before the class noun if there is none."""
    if any(mark in text for mark in marks):
        return text, []
    marked, count = re.subn(
        rf"\b{re.escape(noun)}\b", f"{marks[0]} {noun}", text, count=1, flags=re.IGNORECASE
    )
    if not count:
        raise StudioloError(
            f"the caption {text!r} names neither [V] nor the class '{noun}'",
            where=where,
            remedy=f"Write '[V] {noun}' where it speaks of the subject.",
        )
    return marked, [f"caption read as '{marked}'"]

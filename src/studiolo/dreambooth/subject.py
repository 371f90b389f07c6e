"""A folder of images -> a checked Subject. Every image is repaired with a note or refused with a reason."""

from __future__ import annotations

import re
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Literal

import numpy as np
from PIL import Image

from studiolo.dreambooth.images import (
    SUFFIXES,
    UNREADABLE_SUFFIXES,
    check_shape,
    decode,
    read_bytes,
    shrink,
    to_rgb,
)
from studiolo.dreambooth.sidecars import find_mask, mask_owner, read_caption, read_mask
from studiolo.errors import StudioloError
from studiolo.store.files import sha256_bytes

MANY = 30
SAME = 6.0
"""Root mean square difference of 16x16 thumbnails, in 8-bit levels, below which two are one picture saved
again: photographs saved much smaller at JPEG quality 30 differ by about 6, different ones by 20 and more."""

Source = str | Path | Image.Image


@dataclass(frozen=True)
class InstanceImage:
    """One image of the subject.

    Attributes:
        name: of the file, or "image 3" if the third source is a PIL image.
        path: of the file, or None.
        sha256: of the file's bytes (of the pixels, without a file).
        image: upright RGB, its short side at most twice the model's.
        mask: mode L, white where the subject is, of the image's size; None counts the whole image.
        caption: prompt with [V] in the identifier's place; None takes the recipe's.
    """

    name: str
    path: Path | None
    sha256: str
    image: Image.Image
    mask: Image.Image | None = None
    caption: str | None = None


@dataclass(frozen=True)
class Subject:
    """What is to be learned: images, the class it belongs to, notes on what was repaired or left out."""

    images: list[InstanceImage]
    class_noun: str
    notes: list[str] = field(default_factory=list)


def load_subject(
    sources: Source | Sequence[Source],
    class_noun: str,
    *,
    min_size: int,
    max_images: int = 200,
    masks: str | Path | None = None,
    captions: Literal["sidecar", "filename"] | None = None,
) -> Subject:
    """Reads and checks the images of a subject.

    Args:
        sources: folders, image files or PIL images, one or several. Subfolders are not read.
        class_noun: what the subject is in the words of the base model: "fox", "coffee mug".
        min_size: side of the model's images in pixels. Smaller images are used with a note, refused below
        half. max_images: more are refused; a subject is learned from 3 to 10. masks: folder of masks
        named as the images. Without it, `NAME.mask.png`, `NAME-mask.png` and
            `NAME_mask.png` beside `NAME.jpg` are taken.
        captions: "sidecar" reads `NAME.txt` beside the image, "filename" takes the name; None uses neither.

    Raises:
        StudioloError: naming every file that was refused, why, and what to do.
    """
    noun, notes = check_class_noun(class_noun)
    sources = [sources] if isinstance(sources, str | Path | Image.Image) else list(sources)
    found, ignored = _collect(sources, captions)
    notes += ignored
    if not found:
        raise StudioloError(
            "no images there",
            where=", ".join(str(s) for s in sources if not isinstance(s, Image.Image)) or "images",
            remedy="Put 3 to 10 PNG, JPEG or WebP images of the subject there.",
        )
    if len(found) > max_images:
        raise StudioloError(
            f"{len(found)} images, more than the {max_images} that one subject may have",
            where=found[0].parent if isinstance(found[0], Path) else "images",
            remedy="Choose the 3 to 10 that show the subject best, from several sides.",
        )
    images, more = _load_all(found, noun, min_size, Path(masks) if masks else None, captions)
    notes += more
    if len(images) == 1:
        notes.append(
            "one image only: pose and background will be learned with the subject; 3 to 10 are better"
        )
    if len(images) > MANY:
        notes.append(f"{len(images)} images: 3 to 10 usually suffice, and more need more steps")
    return Subject(images, noun, notes)


def check_class_noun(text: str) -> tuple[str, list[str]]:
    """The noun in lower case without an article, and notes. StudioloError unless it has 1 to 4 words."""
    words = text.lower().split()
    notes = []
    if len(words) > 1 and words[0] in ("a", "an", "the"):
        notes.append(f"class noun: took '{' '.join(words[1:])}' for '{text}'; prompts add the article")
        words = words[1:]
    noun = " ".join(words)
    if not noun or len(words) > 4 or not re.fullmatch(r"[^\W_]+(?:['’\- ][^\W_]+)*", noun):
        raise StudioloError(
            f"{text!r} is not a class noun",
            where="class",
            remedy="Say in one to four words what the subject is: fox, coffee mug.",
        )
    return noun, notes


def _collect(sources: Iterable[Source], captions: str | None) -> tuple[list[Path | Image.Image], list[str]]:
    """The image files (folders in the order of names) and pictures in `sources`; notes on other files."""
    found: list[Path | Image.Image] = []
    notes: list[str] = []
    for source in sources:
        if isinstance(source, Image.Image):
            found.append(source)
        elif (path := Path(source).expanduser()).is_dir():
            images, others = _list_folder(path, captions)
            found += images
            notes += [
                f"{o.name}: {'a folder, not read' if o.is_dir() else 'no image, ignored'}" for o in others
            ]
        elif path.is_symlink() or path.exists():
            found.append(path)
        else:
            raise StudioloError("there is no such file or folder", where=path, remedy="Check the path.")
    return found, notes


def _list_folder(folder: Path, captions: str | None) -> tuple[list[Path], list[Path]]:
    """Images in `folder`, and what else is there; masks and captions of an image are neither."""
    try:
        files = sorted(folder.iterdir())
    except OSError as error:
        raise StudioloError(
            f"cannot be listed: {error.strerror}", where=folder, remedy="Check its permissions."
        ) from None
    visible = [f for f in files if not f.name.startswith(".") and not f.is_dir()]
    images = [f for f in visible if f.suffix.lower() in SUFFIXES | UNREADABLE_SUFFIXES]
    stems = {f.stem for f in images}
    sidecars = {f for f in images if mask_owner(f) in stems}
    if captions == "sidecar":
        sidecars |= {f for f in visible if f.suffix == ".txt" and f.stem in stems}
    images = [f for f in images if f not in sidecars]
    return images, [f for f in files if f not in sidecars and f not in images]


def _load_all(
    found: list[Path | Image.Image], noun: str, min_size: int, masks: Path | None, captions: str | None
) -> tuple[list[InstanceImage], list[str]]:
    """Loads all, leaving out what was there before; raises once for everything that was refused."""
    images: list[InstanceImage] = []
    thumbnails: list[np.ndarray] = []
    notes: list[str] = []
    refused: list[StudioloError] = []
    for number, source in enumerate(found, 1):
        try:
            image, remarks = _load(source, number, noun, min_size, masks, captions)
        except StudioloError as error:
            refused.append(error)
            continue
        notes += [f"{image.name}: {remark}" for remark in remarks]
        thumbnail = _thumbnail(image.image)
        if (twin := _twin(image, thumbnail, images, thumbnails)) is not None:
            notes.append(f"{image.name}: left out, {twin}")
            continue
        images.append(image)
        thumbnails.append(thumbnail)
    _raise(refused)
    if masks is not None and not any(image.mask for image in images):
        raise StudioloError(
            "holds no mask of any image", where=masks, remedy=f"Name masks as the images: {images[0].name}"
        )
    return images, notes


def _load(
    source: Path | Image.Image,
    number: int,
    noun: str,
    min_size: int,
    masks: Path | None,
    captions: str | None,
) -> tuple[InstanceImage, list[str]]:
    if isinstance(source, Image.Image):
        name, path = f"image {number}", None
        image, notes = to_rgb(source, name)
        sha256 = sha256_bytes(image.tobytes() + repr(image.size).encode())
    else:
        name, path = source.name, source
        data = read_bytes(path)
        image, notes = decode(data, path)
        sha256 = sha256_bytes(data)
    where = path or name
    notes += check_shape(image.size, min_size, where)
    if all(low == high for low, high in image.getextrema()):  # type: ignore[misc]
        raise StudioloError("shows nothing: all its pixels are equal", where=where, remedy="Take it out.")
    mask = caption = None
    if path is not None:
        mask, more = read_mask(find_mask(path, masks), image.size)
        caption, words = read_caption(path, captions, noun)
        notes += more + words
    small = shrink(image, 2 * min_size)
    return InstanceImage(name, path, sha256, small, mask and mask.resize(small.size), caption), notes


def _thumbnail(image: Image.Image) -> np.ndarray:
    return np.asarray(image.resize((16, 16), Image.Resampling.BOX), dtype=np.float32)


def _twin(
    image: InstanceImage, thumbnail: np.ndarray, images: list[InstanceImage], thumbnails: list[np.ndarray]
) -> str | None:
    """Why `image` adds nothing to `images`, or None if it does."""
    for other, seen in zip(images, thumbnails, strict=True):
        if other.sha256 == image.sha256:
            return f"the same file as {other.name}"
        if np.sqrt(np.mean((seen - thumbnail) ** 2)) < SAME:
            return f"nearly the same picture as {other.name}"
    return None


def _raise(refused: list[StudioloError]) -> None:
    """Raises nothing, the only error, or one that lists them all."""
    if len(refused) == 1:
        raise refused[0]
    if refused:
        listed = "".join(f"\n- {error}" for error in refused)
        raise StudioloError(f"{len(refused)} images cannot be used:{listed}")

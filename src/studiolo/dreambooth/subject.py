"""A folder of images -> a checked Subject. Every image is repaired with a note or refused with a reason."""

from __future__ import annotations

import re
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Literal, get_args

import numpy as np
from PIL import Image

from studiolo.dreambooth.images import check_shape, decode, read_bytes, shrink, to_rgb
from studiolo.dreambooth.sidecars import find_mask, read_caption, read_mask
from studiolo.dreambooth.sources import Source, find_images
from studiolo.errors import StudioloError
from studiolo.store.files import sha256_bytes

MANY = 30
SAME = 6.0
"""Root mean square difference of 16x16 thumbnails, in 8-bit levels, below which two are one picture saved
again: photographs saved much smaller at JPEG quality 30 differ by about 6, different ones by 20 and more."""

Captions = Literal["sidecar", "filename"]


@dataclass(frozen=True)
class InstanceImage:
    """One image of the subject.

    Attributes:
        name: of the file, or "image 3" if the third source is a PIL image.
        path: of the file, or None.
        sha256: of the file's bytes (of the pixels, without a file).
        image: upright RGB, its short side at most twice the model's.
        original: its (width, height) before it was scaled.
        mask: mode L, white where the subject is, of the image's size; None counts the whole image.
        caption: prompt with [V] (or the subject's name in brackets) in the identifier's place; None takes the
            recipe's.
    """

    name: str
    path: Path | None
    sha256: str
    image: Image.Image
    original: tuple[int, int]
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
    captions: Captions | None = None,
    name: str = "V",
) -> Subject:
    """Reads and checks the images of a subject.

    Args:
        sources: folders, image files or PIL images, one or several. Subfolders are not read.
        class_noun: what the subject is in the words of the base model: "fox", "coffee mug".
        min_size: side of the model's images, in pixels; smaller ones get a note, below half they are refused.
        max_images: more are refused; a subject is learned from 3 to 10.
        masks: folder of masks named as the images; without it, `NAME.mask.png` beside `NAME.jpg` is taken.
        captions: "sidecar" reads `NAME.txt` beside the image, "filename" the name itself; None neither.
        name: of the subject, which captions may call [name] as well as [V].

    Raises:
        StudioloError: naming every file that was refused, why, and what to do.
    """
    noun, notes = check_class_noun(class_noun)
    if captions is not None and captions not in get_args(Captions):
        raise StudioloError(
            f"{captions!r} is no source of captions", where="captions", remedy="Use sidecar or filename."
        )
    if masks is not None and not Path(masks).is_dir():
        raise StudioloError("there is no such folder of masks", where=masks, remedy="Check the path.")
    sources = [sources] if isinstance(sources, str | Path | Image.Image) else list(sources)
    found, ignored = find_images(sources, with_captions=captions == "sidecar")
    named = ", ".join(str(s) for s in sources if not isinstance(s, Image.Image)) or "images"
    _check_count(len(found), max_images, named)
    preflight = _Preflight(noun, min_size, Path(masks) if masks else None, captions, ("[V]", f"[{name}]"))
    preflight.run(found)
    return Subject(preflight.images, noun, notes + ignored + preflight.notes)


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


def _check_count(count: int, most: int, where: str) -> None:
    if not count:
        raise StudioloError(
            "no images there",
            where=where,
            remedy="Put 3 to 10 PNG, JPEG or WebP images of the subject there; subfolders are not read.",
        )
    if count > most:
        raise StudioloError(
            f"{count} images, more than the {most} that one subject may have",
            where=where,
            remedy="Choose the 3 to 10 that show the subject best, from several sides.",
        )


@dataclass
class _Preflight:
    """The check of a set of images: `run` fills `images` and `notes`."""

    noun: str
    min_size: int
    masks: Path | None
    captions: Captions | None
    marks: Sequence[str]
    images: list[InstanceImage] = field(default_factory=list)
    notes: list[str] = field(default_factory=list)
    _thumbnails: list[np.ndarray] = field(default_factory=list)

    def run(self, found: Iterable[Path | Image.Image]) -> None:
        """Raises once, after all were read, for everything that was refused."""
        refused: list[StudioloError] = []
        for number, source in enumerate(found, 1):
            try:
                self._take(*self._load(source, number))
            except StudioloError as error:
                refused.append(error)
        _raise(refused)
        if self.masks is not None and not any(image.mask for image in self.images):
            raise StudioloError(
                "holds no mask of any image",
                where=self.masks,
                remedy=f"Name the masks as the images: {self.images[0].name}",
            )
        if len(self.images) == 1:
            self.notes.append(
                "one image only: its pose and background become part of the subject; use 3 to 10"
            )
        if len(self.images) > MANY:
            self.notes.append(f"{len(self.images)} images: 3 to 10 usually suffice; more need more steps")

    def _load(self, source: Path | Image.Image, number: int) -> tuple[InstanceImage, list[str]]:
        """One checked image and remarks about it."""
        if isinstance(source, Image.Image):
            path, where = None, f"image {number}"
            image, remarks = to_rgb(source, where)
            sha256 = sha256_bytes(image.tobytes() + repr(image.size).encode())
        else:
            path, where = source, str(source)
            data = read_bytes(path)
            image, remarks = decode(data, path)
            sha256 = sha256_bytes(data)
        remarks += check_shape(image.size, self.min_size, where)
        if not np.ptp(np.asarray(image), axis=(0, 1)).any():
            raise StudioloError("shows nothing: all its pixels are equal", where=where, remedy="Take it out.")
        small = shrink(image, 2 * self.min_size)
        mask = caption = None
        if path is not None:
            mask, on_mask = read_mask(find_mask(path, self.masks), image.size, small.size)
            caption, on_caption = read_caption(path, self.captions, self.noun, self.marks)
            remarks += on_mask + on_caption
        return InstanceImage(
            path.name if path else where, path, sha256, small, image.size, mask, caption
        ), remarks

    def _take(self, image: InstanceImage, remarks: list[str]) -> None:
        """Keeps an image unless it is there already."""
        thumbnail = np.asarray(image.image.resize((16, 16), Image.Resampling.BOX), dtype=np.float32)
        for other, seen in zip(self.images, self._thumbnails, strict=True):
            same_file = other.sha256 == image.sha256
            if same_file or np.sqrt(np.mean((seen - thumbnail) ** 2)) < SAME:
                what = "the same file" if same_file else "nearly the same picture"
                self.notes.append(f"{image.name}: left out, {what} as {other.name}")
                return
        self.images.append(image)
        self._thumbnails.append(thumbnail)
        self.notes += [f"{image.name}: {remark}" for remark in remarks]


def _raise(refused: list[StudioloError]) -> None:
    """Raises nothing, the only error, or one that lists them all."""
    if len(refused) == 1:
        raise refused[0]
    if refused:
        listed = "".join("\n- " + str(error).replace("\n", "\n  ") for error in refused)
        raise StudioloError(f"{len(refused)} images cannot be used:{listed}")

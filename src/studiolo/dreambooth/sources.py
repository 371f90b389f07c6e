"""Which files are meant when someone names a folder of images."""

from __future__ import annotations

from collections.abc import Iterable
from pathlib import Path

from PIL import Image

from studiolo.dreambooth.images import SUFFIXES, UNREADABLE_SUFFIXES, list_folder, out_of_reach
from studiolo.dreambooth.sidecars import mask_owner
from studiolo.errors import StudioloError

Source = str | Path | Image.Image


def find_images(sources: Iterable[Source], with_captions: bool) -> tuple[list[Path | Image.Image], list[str]]:
    """The image files and pictures in `sources`, folders in the order of names, and notes on other files.

    Masks that lie beside their images, and captions if `with_captions`, are neither.
    """
    found: list[Path | Image.Image] = []
    notes: list[str] = []
    for source in sources:
        if isinstance(source, Image.Image):
            found.append(source)
            continue
        path = Path(source).expanduser()
        try:
            images, others = _images_of(path, with_captions)
        except OSError as error:
            raise out_of_reach(error, path) from None
        found += images
        notes += [
            f"{other.name}: {'a folder, not read' if other.is_dir() else 'ignored'}" for other in others
        ]
    return [one for one in found if not _is_mask(one, found)], notes


def _is_mask(file: Path | Image.Image, among: Iterable[Path | Image.Image]) -> bool:
    """Whether the image that it is a mask of is named, too, as a shell names all files of a folder."""
    if isinstance(file, Image.Image) or (owner := mask_owner(file)) is None:
        return False
    return any(isinstance(o, Path) and (o.parent, o.stem) == (file.parent, owner) for o in among)


def _images_of(path: Path, with_captions: bool) -> tuple[list[Path], list[Path]]:
    """The images that `path` stands for, and what else lies there."""
    if not path.is_dir():
        if not (path.exists() or path.is_symlink()):
            raise StudioloError("there is no such file or folder", where=path, remedy="Check the path.")
        return [path], []
    files = list_folder(path)
    visible = [file for file in files if not file.name.startswith(".") and not file.is_dir()]
    images = [file for file in visible if file.suffix.lower() in SUFFIXES | UNREADABLE_SUFFIXES]
    stems = {file.stem for file in images}
    sidecars = {file for file in images if mask_owner(file) in stems}
    if with_captions:
        sidecars |= {file for file in visible if file.suffix == ".txt" and file.stem in stems}
    images = [file for file in images if file not in sidecars]
    return images, [file for file in files if file not in sidecars and file not in images]

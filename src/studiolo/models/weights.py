"""Weights of language models that are here: pulled into the data folder, or added from where they lie.

Each has a folder `models/weights/NAME/` with its record, `weights.json`. What was pulled lies beside it in
`files/`; of what was added there is the record alone. So to remove a name is to delete its folder, and
nothing that lies elsewhere can be lost.
"""

from __future__ import annotations

import difflib
import re
import shutil
from collections.abc import Iterator
from contextlib import contextmanager
from datetime import UTC, datetime
from pathlib import Path

from pydantic import Field, ValidationError

from studiolo.errors import StudioloError
from studiolo.models import facts, known
from studiolo.models.facts import Facts, Format, Purpose, Value
from studiolo.models.known import Licence
from studiolo.store.files import atomic_dir
from studiolo.store.paths import weights_dir

RECORD, FILES = "weights.json", "files"

_NAME = re.compile(r"[A-Za-z0-9][A-Za-z0-9._-]{0,63}")


class Weights(Value):
    """Weights that are here.

    Attributes:
        path: what an engine opens: a .gguf file, or a folder of safetensors.
        source: where they came from, as `pull` takes it; for added ones, their path.
        pulled: they lie in the data folder, and go when the name is removed.
        size: bytes, all files together.
        sha256: of each file that was pulled, by its path.
    """

    name: str
    path: Path
    purpose: Purpose
    format: Format
    facts: Facts
    source: str
    pulled: bool
    size: int
    licence: Licence | None = None
    sha256: dict[str, str] = Field(default_factory=dict)
    since: datetime

    @property
    def opens_with(self) -> tuple[str, ...]:
        return opens_with(self.format, self.purpose)


def opens_with(kind: Format, purpose: Purpose) -> tuple[str, ...]:
    """What can open weights of this kind."""
    if kind == "gguf":
        return ("xllamacpp", "anything on llama.cpp")
    return ("transformers", "sentence-transformers") if purpose == "embedding" else ("transformers",)


def list_weights() -> list[Weights]:
    """Those that are here, by name; also those whose files have gone."""
    return [_read(file) for file in sorted(weights_dir().glob(f"[A-Za-z0-9]*/{RECORD}"))]


def has(name: str) -> bool:
    return _NAME.fullmatch(name) is not None and (weights_dir() / name / RECORD).is_file()


def find(name: str) -> Weights:
    """The weights of that name, ready to be opened.

    Raises:
        StudioloError: nothing has that name, it has not been pulled yet, or its files are gone.
    """
    found = find_record(name)
    if not found.path.exists():
        remedy = f"studiolo models remove {name}"
        raise StudioloError(
            f"the weights of '{name}' are gone",
            where=found.path,
            remedy=f"Pull them again: {remedy} and studiolo models pull {name}"
            if found.pulled
            else f"Put them back, or forget the name: {remedy}",
        )
    return found


def find_record(name: str) -> Weights:
    """The same, also if the files are gone."""
    if not has(name):
        raise not_here(name)
    return _read(weights_dir() / name / RECORD)


def add(path: str | Path, name: str, *, purpose: Purpose | None = None) -> Weights:
    """Gives weights that lie elsewhere a name. They stay where they are.

    Args:
        path: a .gguf file, or a folder with config.json and *.safetensors.
        purpose: what they are for, if they do not say it themselves rightly.

    Raises:
        StudioloError: no such weights, pickles, a damaged file, or a name that cannot be one or is taken.
    """
    place = Path(path).expanduser().resolve()
    found, guessed, licence = facts.read(place)
    with locked(name):
        check_free(name)
        with atomic_dir(weights_dir() / name) as folder:
            record = Weights(
                name=name, path=place, purpose=purpose or guessed, format=facts.format_of(place),
                facts=found, source=str(place), pulled=False, size=size_of(place),
                licence=Licence(name=licence) if licence else None, since=now(),
            )  # fmt: skip
            write(record, folder)
    return record


def remove(name: str) -> Weights:
    """Forgets a name, and deletes its files if they were pulled. Returns what it stood for.

    Raises:
        StudioloError: nothing has that name.
    """
    with locked(name):
        record = find_record(name)
        folder = weights_dir() / name
        aside = folder.with_name(f".tmp-removed-{name}")
        shutil.rmtree(aside, ignore_errors=True)
        folder.rename(aside)  # at once gone under its name, however long deleting takes
        shutil.rmtree(aside)
    return record


def check_free(name: str) -> None:
    """Refuses a name that something has."""
    from studiolo.models import registry

    registry.check_name(name)


@contextmanager
def locked(name: str) -> Iterator[None]:
    """Nobody else pulls, adds or removes this name meanwhile. A process that dies leaves no lock behind."""
    from filelock import FileLock

    if not _NAME.fullmatch(name):
        raise StudioloError(
            "not a name for a model",
            where=repr(name),
            remedy="Use 1 to 64 letters, digits, '.', '_' or '-', starting with a letter or digit.",
        )
    with FileLock(weights_dir() / f".{name}.lock"):
        yield


def write(record: Weights, folder: Path) -> None:
    """The record, with the path of pulled files relative to `folder`, so that the data folder may move."""
    kept = record.model_copy(update={"path": record.path.relative_to(folder)}) if record.pulled else record
    (folder / RECORD).write_text(kept.model_dump_json(indent=2) + "\n", encoding="utf-8")


def size_of(path: Path) -> int:
    """Bytes of a file, or of all files of a folder."""
    files = path.rglob("*") if path.is_dir() else [path]
    return sum(file.stat().st_size for file in files if file.is_file())


def now() -> datetime:
    return datetime.now(UTC).replace(microsecond=0)


def not_here(name: str) -> StudioloError:
    if name in known.table().weights:
        return StudioloError(
            "these weights are not here yet", where=name, remedy=f"Fetch them: studiolo models pull {name}"
        )
    near = nearest(name)
    return StudioloError(
        "no weights of this name",
        where=name,
        remedy=f"Did you mean {' or '.join(near)}?" if near else "See: studiolo models list",
    )


def nearest(name: str) -> list[str]:
    """Names of weights, here or known, that are like this one."""
    names = {*known.table().weights, *(weights.name for weights in list_weights())}
    return difflib.get_close_matches(name, sorted(names), n=3, cutoff=0.5)


def _read(file: Path) -> Weights:
    try:
        record = Weights.model_validate_json(file.read_bytes())
    except ValidationError as error:
        raise StudioloError(
            f"damaged record ({error.error_count()} faults in it)",
            where=file,
            remedy="Delete the folder that it is in, and pull or add the weights again.",
        ) from error
    return record.model_copy(update={"path": file.parent / record.path})  # an absolute path stays itself

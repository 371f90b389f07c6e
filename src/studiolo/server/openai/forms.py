"""Requests that bring a file with them: multipart/form-data."""

from __future__ import annotations

import re
from collections.abc import AsyncIterator, Iterator
from contextlib import asynccontextmanager
from dataclasses import dataclass
from typing import Any

from starlette.datastructures import FormData, UploadFile
from starlette.requests import Request

from studiolo.language.errors import InvalidRequestError

_MOST_FIELDS, _MOST_FILES = 100, 20
_NAME = re.compile(r"(?P<outer>[^\[\]]+)(?:\[(?P<inner>[^\[\]]*)\])?")
_CHUNK = 2**20


@dataclass(frozen=True)
class Form:
    """Fields and files by name. Of a field `a[b]` comes {"a": {"b": ...}}, as clients write objects, and of
    `a[]` a list; values are texts."""

    fields: dict[str, Any]
    files: dict[str, list[UploadFile]]

    def file(self, name: str) -> UploadFile:
        """The one file of that name.

        Raises:
            InvalidRequestError: there is none, or several.
        """
        found = self.files.get(name, [])
        if len(found) != 1:
            problem = "several files" if found else "missing: a file is required"
            raise InvalidRequestError(problem, where=name, remedy="Send one file in this part.")
        return found[0]


@asynccontextmanager
async def form_of(request: Request, *, files: tuple[str, ...]) -> AsyncIterator[Form]:
    """The form of a request; its files are gone after the block.

    Args:
        files: names of the parts that are files; `a` also stands for `a[]`.

    Raises:
        InvalidRequestError: no such form, or a part in the wrong place.
    """
    if not request.headers.get("content-type", "").lower().startswith("multipart/form-data"):
        raise InvalidRequestError(
            "the body is no form", where="content-type", remedy="Send multipart/form-data with a file."
        )
    async with request.form(max_files=_MOST_FILES, max_fields=_MOST_FIELDS) as sent:
        yield _sorted(sent, files)


def chunks_of(file: UploadFile) -> Iterator[bytes]:
    """The bytes of a file, piece by piece. It waits for the disk."""
    file.file.seek(0)
    while piece := file.file.read(_CHUNK):
        yield piece


def _sorted(sent: FormData, names: tuple[str, ...]) -> Form:
    fields: dict[str, Any] = {}
    files: dict[str, list[UploadFile]] = {}
    for name, value in sent.multi_items():
        if isinstance(value, UploadFile):
            short = name.removesuffix("[]")
            if short not in names:
                raise InvalidRequestError("a file is not expected here", where=name[:100])
            files.setdefault(short, []).append(value)
        elif name in names:
            raise InvalidRequestError(
                "not a file: this part has no filename", where=name, remedy="Send it with a filename."
            )
        else:
            _put(fields, name, value)
    return Form(fields, files)


def _put(fields: dict[str, Any], name: str, value: str) -> None:
    found = _NAME.fullmatch(name)
    if found is None:
        raise InvalidRequestError("not the name of a field", where=name[:100])
    outer, inner = found["outer"], found["inner"]
    if inner is None:
        if outer in fields:
            raise InvalidRequestError("given twice", where=outer[:100])
        fields[outer] = value
        return
    place = fields.setdefault(outer, {} if inner else [])
    if inner == "" and isinstance(place, list):
        place.append(value)
    elif inner and isinstance(place, dict):
        place[inner] = value
    else:
        raise InvalidRequestError("given in two forms", where=outer[:100])

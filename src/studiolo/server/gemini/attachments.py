"""Uploaded files that contents name: their bytes take the place of the name before a model reads it."""

from __future__ import annotations

import asyncio
from collections.abc import Iterable
from typing import TypeVar

from studiolo.errors import TooLargeError
from studiolo.language.caching.contexts import Prefix
from studiolo.language.conversation import CallResult, Content, Data, FileRef, Part, Request, Text
from studiolo.language.errors import InvalidRequestError
from studiolo.server.gemini import names
from studiolo.server.gemini.filetypes import problem_of
from studiolo.server.studio import Studio

Said = TypeVar("Said", Prefix, Request)

_TEXTS = ("text/", "application/json", "application/xml", "application/x-javascript", "application/x-python")


async def attached(studio: Studio, owner: str | None, said: Said) -> Said:
    """The same with the bytes of the owner's files; a file of text becomes text, which every model reads.

    Files at other addresses stay what they are.

    Raises:
        NotFoundError: there is no such file, or it is another's.
        InvalidRequestError: the bytes are not what the file says that they are.
        TooLargeError: all together are more than a request may have.
    """
    if not any(_names_file(part) for content in said.contents for part in content.parts):
        return said
    reader = _Reader(studio, owner)
    contents = await asyncio.to_thread(lambda: tuple(map(reader.content, said.contents)))
    return said.model_copy(update={"contents": contents})


def _names_file(part: Part) -> bool:
    if isinstance(part, CallResult):
        return any(_names_file(medium) for medium in part.media)
    return isinstance(part, FileRef) and names.file(part.uri) is not None


class _Reader:
    """Reads the files of one request; waits for the disk."""

    def __init__(self, studio: Studio, owner: str | None) -> None:
        self._studio, self._owner = studio, owner
        self._left = studio.settings.largest_body

    def content(self, content: Content) -> Content:
        return content.model_copy(update={"parts": tuple(map(self._part, content.parts))})

    def _part(self, part: Part) -> Part:
        if isinstance(part, CallResult):
            return part.model_copy(update={"media": tuple(self._media(part.media))})
        if not isinstance(part, FileRef) or (name := names.file(part.uri)) is None:
            return part
        data = self._data(name, part.media_type)
        return _text(data) if data.media_type.startswith(_TEXTS) else data

    def _media(self, media: Iterable[Data | FileRef]) -> Iterable[Data | FileRef]:
        for medium in media:
            name = names.file(medium.uri) if isinstance(medium, FileRef) else None
            yield medium if name is None else self._data(name, medium.media_type)

    def _data(self, name: str, media_type: str | None) -> Data:
        record = self._studio.files.get(name, owner=self._owner)
        path = self._studio.files.path(record.id)
        if problem := problem_of(record, path):
            raise InvalidRequestError(problem, where=f"files/{name}", remedy="Upload it with its own type.")
        self._left -= record.size
        if self._left < 0:
            raise TooLargeError(
                f"the files of a request have at most {self._studio.settings.largest_body:,} bytes together",
                where=f"files/{name}",
            )
        return Data(media_type=media_type or record.mime, data=path.read_bytes(), name=record.name)


def _text(data: Data) -> Text:
    try:
        return Text(text=data.data.decode("utf-8-sig"))
    except UnicodeDecodeError as error:
        raise InvalidRequestError("this file of text is not in UTF-8", where=data.name) from error

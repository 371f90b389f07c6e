"""What every route that asks a model does: find it, ask it, and account for it, in OpenAI's terms."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncGenerator, Iterator, Mapping
from contextlib import aclosing, contextmanager
from dataclasses import dataclass

from studiolo.errors import NotFoundError, StudioloError, TooLargeError
from studiolo.language.conversation import CallResult, Content, Data, Delta, FileRef, Part, Request, Show
from studiolo.language.errors import UnknownContextError
from studiolo.server.auth import Caller
from studiolo.server.openai.media import OWN_FILES
from studiolo.server.sse import Event
from studiolo.server.studio import Studio

KEEP_ALIVE = 10.0
"""Seconds without a word after which a stream says that it is there still."""

_GOOGLES = "cachedContents/"
"""What the names of contexts begin with in the Gemini dialect, and those of Google's own."""


@dataclass(frozen=True)
class Comment(Event):
    """A line that clients pass over."""

    def encoded(self) -> bytes:
        return f": {self.data}\n\n".encode()


WAITING = Comment("waiting")


@contextmanager
def in_terms(fields: Mapping[str, str]) -> Iterator[None]:
    """Errors of the block name fields as the client knows them; `fields` are found by what they begin with,
    the longest first."""
    try:
        yield
    except StudioloError as error:
        error.where = _renamed(error.where, fields)
        raise


def _renamed(where: str | None, fields: Mapping[str, str]) -> str | None:
    for ours in sorted(fields, key=len, reverse=True):
        if where is not None and where.startswith(ours):
            return fields[ours]
    return where


@dataclass(frozen=True)
class Asking:
    """Who asks whom; `batch` for what is answered at the price of batches."""

    studio: Studio
    caller: Caller
    batch: bool = False

    def shown(self, model: str) -> Show:
        """What of thoughts is told where the request says nothing: of models that run here all; of others
        what they tell by themselves, as not all of them can be asked.

        Raises:
            UnknownModelError: there is no such model.
        """
        hosted = self.studio.engines.info(model).kind == "hosted"
        return Show.HIDDEN if hosted else Show.FULL

    async def resolved(self, request: Request) -> Request:
        """The request with uploaded files read, and its context by the name that it has here.

        Raises:
            NotFoundError: no such file of this caller.
            TooLargeError: all files together are more than a request may have.
        """
        if any(_is_own(part) for content in request.contents for part in _parts(content)):
            reader = _Files(self.studio, self.caller.key_id)
            contents = await asyncio.to_thread(lambda: tuple(map(reader.content, request.contents)))
            request = request.model_copy(update={"contents": contents})
        if request.cache is not None and request.cache.startswith(_GOOGLES):
            name = await asyncio.to_thread(self._context, request.cache)
            request = request.model_copy(update={"cache": name})
        return request

    def answer(self, request: Request) -> AsyncGenerator[Delta]:
        """The answer in pieces, accounted for."""
        return self.studio.charged(self.caller, request.model, self._deltas(request), batch=self.batch)

    async def _deltas(self, request: Request) -> AsyncGenerator[Delta]:
        async with (
            self.studio.engines.lease(request.model, owner=self.caller.key_id) as engine,
            aclosing(engine.generate(request)) as stream,
        ):
            async for delta in stream:
                yield delta

    def _context(self, name: str) -> str:
        short = name.removeprefix(_GOOGLES)
        try:
            return self.studio.contexts_of(self.caller.key_id).get(short).name
        except UnknownContextError:
            return name  # one that Google keeps


class _Files:
    """Reads the uploaded files of one request; waits for the disk."""

    def __init__(self, studio: Studio, owner: str | None) -> None:
        self._files, self._owner = studio.files, owner
        self._most = self._left = studio.settings.largest_body

    def content(self, content: Content) -> Content:
        return content.model_copy(update={"parts": tuple(map(self._part, content.parts))})

    def _part(self, part: Part) -> Part:
        if isinstance(part, CallResult):
            media = (self._data(item) if _is_own(item) else item for item in part.media)
            return part.model_copy(update={"media": tuple(media)})
        return self._data(part) if _is_own(part) else part

    def _data(self, part: Part) -> Data:
        assert isinstance(part, FileRef)
        try:
            record = self._files.get(part.uri.removeprefix(OWN_FILES), owner=self._owner)
        except NotFoundError as error:
            error.where = "file_id"
            raise
        self._left -= record.size
        if self._left < 0:
            raise TooLargeError(
                f"the files of a request have at most {self._most:,} bytes together", where="file_id"
            )
        data = self._files.path(record.id).read_bytes()
        return Data(media_type=record.mime, data=data, name=record.name)


def _parts(content: Content) -> Iterator[Part]:
    for part in content.parts:
        yield part
        if isinstance(part, CallResult):
            yield from part.media


def _is_own(part: Part) -> bool:
    return isinstance(part, FileRef) and part.uri.startswith(OWN_FILES)

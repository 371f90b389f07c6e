"""multipart/related bodies, part by part, as they come (RFC 2387)."""

from __future__ import annotations

from collections.abc import AsyncGenerator, AsyncIterator
from contextlib import aclosing
from dataclasses import dataclass

from python_multipart.exceptions import FormParserError
from python_multipart.multipart import MultipartParser, parse_options_header

from studiolo.language.errors import InvalidRequestError


@dataclass(frozen=True)
class Part:
    """One part: its headers in small letters, and its bytes, to be read before the next part is asked for."""

    headers: dict[str, str]
    pieces: AsyncGenerator[bytes]


def boundary_of(content_type: str) -> bytes:
    """The boundary that a content type tells.

    Raises:
        InvalidRequestError: it tells none.
    """
    _, options = parse_options_header(content_type)
    boundary = options.get(b"boundary", b"")
    if not 1 <= len(boundary) <= 200:
        raise InvalidRequestError("no boundary", where="content-type", remedy="Give one of up to 70 letters.")
    return boundary


async def parts_of(stream: AsyncIterator[bytes], boundary: bytes) -> AsyncGenerator[Part]:
    """The parts in their order.

    Raises:
        InvalidRequestError: it is no such body, or it ends before its end.
    """
    async with aclosing(_found(stream, boundary)) as found:
        async for one in found:
            if isinstance(one, dict):
                pieces = _until_end(found)
                yield Part(one, pieces)
                async for _ in pieces:
                    pass


async def _until_end(found: AsyncGenerator[dict[str, str] | bytes | None]) -> AsyncGenerator[bytes]:
    async for one in found:
        if one is None:
            return
        assert isinstance(one, bytes)
        yield one


async def _found(
    stream: AsyncIterator[bytes], boundary: bytes
) -> AsyncGenerator[dict[str, str] | bytes | None]:
    """For each part its headers, its bytes in pieces, and None."""
    collected = _Collected()
    parser = collected.parser(boundary)
    async for data in stream:
        try:
            parser.write(data)
        except FormParserError as error:
            raise InvalidRequestError(f"not a multipart body: {error}") from error
        for one in collected.take():
            yield one
    if not collected.ended:
        raise InvalidRequestError("the multipart body breaks off")


class _Collected:
    """What a parser has found since it was looked at."""

    def __init__(self) -> None:
        self.ended = False
        self._found: list[dict[str, str] | bytes | None] = []
        self._headers: dict[str, str] = {}
        self._name, self._value = bytearray(), bytearray()

    def take(self) -> list[dict[str, str] | bytes | None]:
        found, self._found = self._found, []
        return found

    def parser(self, boundary: bytes) -> MultipartParser:
        return MultipartParser(
            boundary,
            {
                "on_part_begin": self._begin,
                "on_header_field": lambda data, start, end: self._name.extend(data[start:end]),
                "on_header_value": lambda data, start, end: self._value.extend(data[start:end]),
                "on_header_end": self._header,
                "on_headers_finished": lambda: self._found.append(self._headers),
                "on_part_data": lambda data, start, end: self._found.append(bytes(data[start:end])),
                "on_part_end": lambda: self._found.append(None),
                "on_end": self._end,
            },
        )

    def _begin(self) -> None:
        self._headers = {}

    def _header(self) -> None:
        self._headers[self._name.decode("latin-1").lower()] = self._value.decode("latin-1").strip()
        self._name, self._value = bytearray(), bytearray()

    def _end(self) -> None:
        self.ended = True

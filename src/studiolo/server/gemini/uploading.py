"""How files come: in chunks to an address of their own, which may be gone on with after any interruption; or
whole, in one request.

The protocol is that of Google's clients (https://ai.google.dev/gemini-api/docs/files): a request that begins
it is answered with the address; whoever knows that needs no key.
"""

from __future__ import annotations

import asyncio
import json
import secrets
from collections.abc import AsyncGenerator, AsyncIterator
from contextlib import aclosing
from datetime import timedelta
from typing import Any

from fastapi import APIRouter
from starlette.requests import Request as HttpRequest
from starlette.responses import JSONResponse, Response

from studiolo.errors import ConflictError, StudioloError
from studiolo.language.errors import InvalidRequestError
from studiolo.server import auth
from studiolo.server.bodies import json_body
from studiolo.server.errors import told
from studiolo.server.gemini import errors, files, names
from studiolo.server.gemini.filetypes import media_type, type_of
from studiolo.server.gemini.multipart import Part, boundary_of, parts_of
from studiolo.server.gemini.reading import read
from studiolo.server.studio import Studio, studio_behind
from studiolo.store.uploads import FileRecord

STATUS = "x-goog-upload-status"
GRANULARITY = 256 * 1024
"""Bytes of which Google's own servers want chunks to be multiples; any size is taken here."""
PURPOSE = "user_data"
_BYTES = {"requestBody": {"content": {"*/*": {"schema": {"type": "string", "format": "binary"}}}}}
_PIECE = 2**20
_MOST_TOLD = 64 * 1024  # bytes of what a multipart upload tells of its file


def add_routes(router: APIRouter, path: str) -> None:
    """Adds it at a path such as `/upload/files`."""
    for method in ("POST", "PUT"):  # one by one: the OpenAPI document tells of each under a name of its own
        router.add_api_route(path, upload, methods=[method], response_class=Response, openapi_extra=_BYTES)


async def upload(http: HttpRequest) -> Response:
    """A file, or what begins one, or a part of one."""
    studio = studio_behind(http)
    if token := http.query_params.get("upload_id"):
        return await _chunk(http, studio, token)
    who = await auth.caller(http)
    protocol = _protocol(http)
    if protocol == "resumable":
        return await _begin(http, studio, who.key_id)
    if protocol == "multipart":
        record = await _multipart(http, studio, who.key_id)
    else:
        record = await _raw(http, studio, who.key_id)
    return await _kept(http, studio, record)


def _protocol(http: HttpRequest) -> str:
    """`resumable`, `multipart` or `raw`, however it is said."""
    said = http.headers.get("x-goog-upload-protocol") or http.query_params.get("uploadType", "")
    protocol = {"media": "raw", "": "raw"}.get(said.lower(), said.lower())
    if http.headers.get("content-type", "").lower().startswith("multipart/related"):
        protocol = "multipart"
    if protocol not in ("resumable", "multipart", "raw"):
        raise InvalidRequestError(
            f"no such way to upload: {said[:100]!r}",
            where="x-goog-upload-protocol",
            remedy="Say resumable, multipart or raw.",
        )
    return protocol


# --- in chunks --------------------------------------------------------------------------------------------


async def _begin(http: HttpRequest, studio: Studio, owner: str | None) -> Response:
    command = http.headers.get("x-goog-upload-command", "start").lower()
    if command != "start":
        raise InvalidRequestError(
            f"{command[:100]!r} without an upload", where="x-goog-upload-command", remedy="Say start first."
        )
    body = await json_body(http) if _has_body(http) else {}
    told_size = http.headers.get("x-goog-upload-header-content-length")
    token = await _begun(
        studio,
        owner,
        read("CreateFileRequest", body).get("file", {}),
        mime=http.headers.get("x-goog-upload-header-content-type"),
        size=None if told_size is None else _number(told_size, "x-goog-upload-header-content-length"),
        name=_file_name(http),
    )
    address = f"{http.base_url}upload/{http.state.version}/files?upload_id={token}&upload_protocol=resumable"
    headers = {
        STATUS: "active",
        "x-goog-upload-url": address,
        "x-goog-upload-control-url": address,
        "x-goog-upload-chunk-granularity": str(GRANULARITY),
    }
    return Response(headers=headers)


async def _begun(
    studio: Studio, owner: str | None, file: dict[str, Any], *, mime: str | None, size: int | None,
    name: str | None = None,
) -> str:  # fmt: skip
    """The token of a new upload. What the body says of the file goes before what headers say."""
    told_id = file.get("name")
    own_id = names.file(told_id) if told_id else secrets.token_hex(8)
    if own_id is None or names.batch_of_results(own_id) is not None:
        raise InvalidRequestError(
            "not a name for a file", where="file.name", remedy="Say files/ID, with an ID of your own."
        )
    sized = file.get("sizeBytes")
    if sized is not None and size is not None and sized != size:
        raise InvalidRequestError(f"{sized} bytes, and a header says {size}", where="file.size_bytes")
    title = file.get("displayName") or name or own_id
    return await asyncio.to_thread(
        studio.files.begin,
        owner=owner,
        id=own_id,
        name=title,
        mime=media_type(file.get("mimeType") or mime or type_of(title)),
        purpose=PURPOSE,
        size=size if sized is None else sized,
        lifetime=timedelta(seconds=studio.settings.file_lifetime),
    )


async def _chunk(http: HttpRequest, studio: Studio, token: str) -> Response:
    """What comes to the address of an upload. Every answer has a status: clients ask again without one."""
    try:
        commands = _commands(http)
        if "cancel" in commands:
            await asyncio.to_thread(studio.files.cancel, token)
            return Response(headers={STATUS: "cancelled"})
        if "query" in commands:
            return await _queried(studio, token)
        if "upload" in commands:
            await _append(http, studio, token)
        if "finalize" in commands:
            return await _kept(http, studio, await asyncio.to_thread(studio.files.finish, token))
        return Response(headers={STATUS: "active", **await _received(studio, token)})
    except StudioloError as error:
        said = told(error)
        response = errors.envelope(said)
        response.headers[STATUS] = "active" if isinstance(error, ConflictError) else "final"
        return response


def _commands(http: HttpRequest) -> set[str]:
    told_ones = http.headers.get("x-goog-upload-command", "upload, finalize")
    commands = {command.strip().lower() for command in told_ones.split(",")}
    if unknown := commands - {"upload", "finalize", "query", "cancel"}:
        raise InvalidRequestError(
            f"no such command: {sorted(unknown)[0][:100]!r}",
            where="x-goog-upload-command",
            remedy="Say upload, finalize, query or cancel.",
        )
    return commands


async def _queried(studio: Studio, token: str) -> Response:
    finished = await asyncio.to_thread(studio.files.finished, token)
    status = "final" if finished else "active"
    return Response(headers={STATUS: status, **await _received(studio, token)})


async def _received(studio: Studio, token: str) -> dict[str, str]:
    return {"x-goog-upload-size-received": str(await asyncio.to_thread(studio.files.offset, token))}


async def _append(http: HttpRequest, studio: Studio, token: str) -> None:
    """Writes what comes, as it comes. Bytes that are here already, as of a chunk whose answer was lost, are
    left out."""
    there = await asyncio.to_thread(studio.files.offset, token)
    offset = _number(http.headers.get("x-goog-upload-offset", str(there)), "x-goog-upload-offset")
    skip = there - offset
    async with aclosing(_pieces(http.stream())) as pieces:
        async for piece in pieces:
            left_out = min(max(skip, 0), len(piece))
            skip -= left_out
            offset += left_out
            if rest := piece[left_out:]:
                offset = await asyncio.to_thread(studio.files.append, token, offset, rest)


# --- whole ------------------------------------------------------------------------------------------------


async def _raw(http: HttpRequest, studio: Studio, owner: str | None) -> FileRecord:
    mime = http.headers.get("x-goog-upload-header-content-type") or http.headers.get("content-type")
    token = await _begun(studio, owner, {}, mime=mime, size=None, name=_file_name(http))
    return await _whole(studio, token, http.stream())


async def _multipart(http: HttpRequest, studio: Studio, owner: str | None) -> FileRecord:
    """Two parts: what is told of the file, as JSON, and its bytes."""
    async with aclosing(parts_of(http.stream(), boundary_of(http.headers.get("content-type", "")))) as parts:
        first = await anext(parts, None)
        if first is None:
            raise _two_parts()
        file = read("CreateFileRequest", await _metadata(first)).get("file", {})
        second = await anext(parts, None)
        if second is None:
            raise _two_parts()
        token = await _begun(studio, owner, file, mime=second.headers.get("content-type"), size=None)
        record = await _whole(studio, token, second.pieces)
        if await anext(parts, None) is not None:
            await asyncio.to_thread(studio.files.delete, record.id, owner=owner)
            raise _two_parts()
    return record


async def _metadata(part: Part) -> dict[str, Any]:
    text = bytearray()
    async for piece in part.pieces:
        text += piece
        if len(text) > _MOST_TOLD:
            break
    try:
        value = json.loads(text)
    except (ValueError, RecursionError):
        value = None
    if not isinstance(value, dict):
        raise InvalidRequestError(
            "the first part is no JSON object", where="file", remedy='Send {"file": {...}} first.'
        )
    return value


async def _whole(studio: Studio, token: str, stream: AsyncIterator[bytes]) -> FileRecord:
    """The file of all these bytes; nothing is left of it if they break off."""
    offset = 0
    try:
        async with aclosing(_pieces(stream)) as pieces:
            async for piece in pieces:
                offset = await asyncio.to_thread(studio.files.append, token, offset, piece)
        return await asyncio.to_thread(studio.files.finish, token)
    except BaseException:
        await asyncio.shield(asyncio.to_thread(studio.files.cancel, token))
        raise


# --- both -------------------------------------------------------------------------------------------------


async def _kept(http: HttpRequest, studio: Studio, record: FileRecord) -> Response:
    file = await asyncio.to_thread(files.told, http, studio, record)
    return JSONResponse({"file": file}, headers={STATUS: "final"})


async def _pieces(stream: AsyncIterator[bytes]) -> AsyncGenerator[bytes]:
    """The same bytes in fewer pieces; what came before it broke off comes, too."""
    piece = bytearray()
    try:
        async for part in stream:
            piece += part
            if len(piece) >= _PIECE:
                yield bytes(piece)
                piece.clear()
    except Exception:
        if piece:
            yield bytes(piece)
        raise
    if piece:
        yield bytes(piece)


def _file_name(http: HttpRequest) -> str | None:
    """Clients write it in UTF-8; headers are read as Latin-1."""
    name = http.headers.get("x-goog-upload-file-name")
    return None if name is None else name.encode("latin-1").decode("utf-8", "replace")


def _has_body(http: HttpRequest) -> bool:
    return http.headers.get("content-length", "0") != "0" or "transfer-encoding" in http.headers


def _number(text: str, where: str) -> int:
    if not text.isascii() or not text.isdigit() or len(text) > 15:
        raise InvalidRequestError(f"{text[:100]!r} is no number of bytes", where=where)
    return int(text)


def _two_parts() -> InvalidRequestError:
    return InvalidRequestError(
        "a multipart upload has two parts", remedy="Send what is told of the file, as JSON, then its bytes."
    )

"""files: what was uploaded, its bytes, and the results of batches, which are told of as files."""

from __future__ import annotations

import asyncio
import base64
from typing import Annotated, Any

from fastapi import APIRouter, Depends, Query
from starlette.requests import Request as HttpRequest
from starlette.responses import FileResponse, Response, StreamingResponse

from studiolo.jobs.batches import BatchRecord
from studiolo.language.errors import InvalidRequestError
from studiolo.server.auth import Caller, caller
from studiolo.server.gemini import batches, models, names
from studiolo.server.gemini.filetypes import problem_of
from studiolo.server.gemini.wire_response import time_of
from studiolo.server.studio import Studio, studio_of
from studiolo.store.uploads import FileRecord

Who = Annotated[Caller, Depends(caller)]
House = Annotated[Studio, Depends(studio_of)]
Wire = dict[str, Any]

USUAL, MOST = 10, 100
"""Files of a page, as at Google."""


def add_routes(router: APIRouter, path: str) -> None:
    """Adds them at a path such as `/files`."""
    router.add_api_route(path, page, methods=["GET"])
    router.add_api_route(path + "/{name}:download", download, methods=["GET"], response_class=Response)
    router.add_api_route(path + "/{name}", get, methods=["GET"])
    router.add_api_route(path + "/{name}", delete, methods=["DELETE"])


async def page(
    http: HttpRequest,
    studio: House,
    who: Who,
    size: Annotated[int, Query(alias="pageSize")] = USUAL,
    token: Annotated[str | None, Query(alias="pageToken")] = None,
) -> Wire:
    """Some files of this key, the newest first, by whichever dialect they came."""
    found = await asyncio.to_thread(
        studio.files.page, owner=who.key_id, size=models.page_size(size or USUAL, MOST), after=token or None
    )
    answer = {"files": [await asyncio.to_thread(told, http, studio, file) for file in found.files]}
    return answer | ({"nextPageToken": found.next} if found.next else {})


async def get(name: str, http: HttpRequest, studio: House, who: Who) -> Wire:
    """What is told of a file."""
    if (batch := names.batch_of_results(name)) is not None:
        return _results_told(http, await studio.batches.get(batch, who.key_id))
    record = await asyncio.to_thread(studio.files.get, name, owner=who.key_id)
    return await asyncio.to_thread(told, http, studio, record)


async def delete(name: str, studio: House, who: Who) -> Wire:
    """Forgets a file at once."""
    if names.batch_of_results(name) is not None:
        raise InvalidRequestError(
            "the results of a batch go with it", where=f"files/{name}", remedy="Delete the batch."
        )
    await asyncio.to_thread(studio.files.delete, name, owner=who.key_id)
    return {}


async def download(name: str, studio: House, who: Who, alt: str = "media") -> Response:
    """The bytes of a file."""
    if alt != "media":
        raise InvalidRequestError(f"{alt!r} is no form of bytes", where="alt", remedy="Say alt=media.")
    if (batch := names.batch_of_results(name)) is not None:
        answered = await studio.batches.get(batch, who.key_id)
        batches.check_answered(answered)  # before the answer has begun
        lines = batches.result_lines(studio, answered)
        return StreamingResponse(lines, media_type="application/jsonl")
    record = await asyncio.to_thread(studio.files.get, name, owner=who.key_id)
    # Whatever it is, no browser shows it as a page of this server.
    headers = {"content-disposition": "attachment", "x-content-type-options": "nosniff"}
    return FileResponse(studio.files.path(record.id), media_type=record.mime, headers=headers)


def told(http: HttpRequest, studio: Studio, file: FileRecord) -> Wire:
    """A file, as the wire has it. It waits for the disk."""
    address = address_of(http, file.id)
    wire: Wire = {
        "name": f"files/{file.id}",
        "mimeType": file.mime,
        "sizeBytes": str(file.size),
        "createTime": time_of(file.created),
        "updateTime": time_of(file.created),
        "sha256Hash": base64.b64encode(bytes.fromhex(file.sha256)).decode(),
        "uri": address,
        "downloadUri": f"{address}:download?alt=media",
        "state": "ACTIVE",
        "source": "UPLOADED",
    }
    if file.name != file.id:
        wire["displayName"] = file.name
    if file.expires:
        wire["expirationTime"] = time_of(file.expires)
    if problem := problem_of(file, studio.files.path(file.id)):
        wire |= {"state": "FAILED", "error": {"code": 3, "message": problem}}
    return wire


def _results_told(http: HttpRequest, record: BatchRecord) -> Wire:
    """The file of a batch's answers, as files are told of."""
    batches.check_answered(record)
    assert record.ended is not None
    name = names.results(record.id)
    address = address_of(http, name)
    wire: Wire = {
        "name": f"files/{name}",
        "displayName": record.title or name,
        "mimeType": "application/jsonl",
        "createTime": time_of(record.ended),
        "updateTime": time_of(record.ended),
        "uri": address,
        "downloadUri": f"{address}:download?alt=media",
        "state": "ACTIVE",
        "source": "GENERATED",
    }
    return wire | ({"expirationTime": time_of(record.expires)} if record.expires else {})


def address_of(http: HttpRequest, name: str) -> str:
    """Where a client finds a file: an address at this server, in the version that it speaks."""
    return f"{http.base_url}{http.state.version}/files/{name}"

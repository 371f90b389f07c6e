"""/files: uploaded, listed, fetched, deleted (https://platform.openai.com/docs/api-reference/files)."""

from __future__ import annotations

import asyncio
import mimetypes
from collections.abc import Iterable
from datetime import timedelta
from typing import Annotated, Any, Literal
from urllib.parse import quote

from fastapi import APIRouter, Depends, Query
from pydantic import Field
from starlette.requests import Request
from starlette.responses import FileResponse, JSONResponse, Response

from studiolo.server.auth import Caller, caller
from studiolo.server.openai import document
from studiolo.server.openai.forms import chunks_of, form_of
from studiolo.server.openai.wire import Wire, read
from studiolo.server.studio import Studio, studio_of
from studiolo.store.uploads import FileRecord

Purpose = Literal["assistants", "batch", "fine-tune", "vision", "user_data", "evals"]
BATCH_LIFETIME = timedelta(days=30)
"""How long files for and of batches are kept, if nothing else is said; other files stay until deleted."""

_UNKNOWN_TYPE = "application/octet-stream"


class ExpiresAfter(Wire):
    """`seconds` come as text in forms."""

    anchor: Literal["created_at"]
    seconds: Annotated[int, Field(strict=False, ge=3600, le=2_592_000)]


class FileRequest(Wire):
    """The fields of the form, beside its `file`."""

    purpose: Purpose
    expires_after: ExpiresAfter | None = None


def add_routes(router: APIRouter) -> None:
    for path, route, methods, extra in (
        ("/files", create_file, ["POST"], document.form(FileRequest, file="file")),
        ("/files", list_files, ["GET"], None),
        ("/files/{file_id}", retrieve_file, ["GET"], None),
        ("/files/{file_id}", delete_file, ["DELETE"], None),
        ("/files/{file_id}/content", file_content, ["GET"], None),
    ):
        router.add_api_route(path, route, methods=methods, response_model=None, openapi_extra=extra)


async def create_file(
    request: Request, studio: Studio = Depends(studio_of), caller: Caller = Depends(caller)
) -> Response:
    """Takes a file in, whole or not at all."""
    async with form_of(request, files=("file",)) as form:
        wanted, file = read(FileRequest, form.fields), form.file("file")
        name = file.filename or "file"
        record = await asyncio.to_thread(
            studio.files.add,
            chunks_of(file),
            owner=caller.key_id,
            name=name,
            mime=media_type(name, file.content_type),
            purpose=wanted.purpose,
            lifetime=lifetime_of(wanted.purpose, wanted.expires_after),
        )
    return JSONResponse(file_of(record))


async def list_files(
    after: str | None = None,
    limit: int = Query(10_000, ge=1, le=10_000),
    order: Literal["asc", "desc"] = "desc",
    purpose: str | None = None,
    studio: Studio = Depends(studio_of),
    caller: Caller = Depends(caller),
) -> Response:
    """The caller's files, by default the newest first."""
    page = await asyncio.to_thread(
        studio.files.page,
        owner=caller.key_id,
        size=limit,
        after=after,
        purpose=purpose,
        oldest_first=order == "asc",
    )
    return JSONResponse(page_of(map(file_of, page.files), more=page.next is not None))


async def retrieve_file(
    file_id: str, studio: Studio = Depends(studio_of), caller: Caller = Depends(caller)
) -> Response:
    record = await asyncio.to_thread(studio.files.get, file_id, owner=caller.key_id)
    return JSONResponse(file_of(record))


async def delete_file(
    file_id: str, studio: Studio = Depends(studio_of), caller: Caller = Depends(caller)
) -> Response:
    record = await asyncio.to_thread(studio.files.delete, file_id, owner=caller.key_id)
    return JSONResponse({"id": record.id, "object": "file", "deleted": True})


async def file_content(
    file_id: str, studio: Studio = Depends(studio_of), caller: Caller = Depends(caller)
) -> Response:
    """The bytes of a file, as something to be kept and never as a page to be shown."""
    record = await asyncio.to_thread(studio.files.get, file_id, owner=caller.key_id)
    return FileResponse(
        studio.files.path(record.id),
        media_type=record.mime,
        headers={
            "content-disposition": f"attachment; filename*=UTF-8''{quote(record.name, safe='')}",
            "x-content-type-options": "nosniff",
        },
    )


def file_of(record: FileRecord) -> dict[str, Any]:
    """The wire form of a file."""
    return {
        "id": record.id,
        "object": "file",
        "bytes": record.size,
        "created_at": int(record.created.timestamp()),
        "expires_at": None if record.expires is None else int(record.expires.timestamp()),
        "filename": record.name,
        "purpose": record.purpose,
        "status": "processed",
        "status_details": None,
    }


def page_of(data: Iterable[dict[str, Any]], *, more: bool) -> dict[str, Any]:
    """The wire form of a page of a list; `more` follow after its last one."""
    shown = list(data)
    return {
        "object": "list",
        "data": shown,
        "first_id": shown[0]["id"] if shown else None,
        "last_id": shown[-1]["id"] if shown else None,
        "has_more": more,
    }


def lifetime_of(purpose: str, wished: ExpiresAfter | None) -> timedelta | None:
    """How long a file is kept; None: until it is deleted."""
    if wished is not None:
        return timedelta(seconds=wished.seconds)
    return BATCH_LIFETIME if purpose == "batch" else None


def media_type(name: str, told: str | None) -> str:
    """What the client says it is, else what its name says."""
    said = (told or "").partition(";")[0].strip()
    if said and said != _UNKNOWN_TYPE:
        return said
    return mimetypes.guess_type(name)[0] or _UNKNOWN_TYPE

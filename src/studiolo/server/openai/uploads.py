"""/uploads: files in parts (https://platform.openai.com/docs/api-reference/uploads)."""

from __future__ import annotations

import asyncio
from typing import Annotated, Any

from fastapi import APIRouter, Depends
from pydantic import Field
from starlette.requests import Request
from starlette.responses import JSONResponse, Response

from studiolo.errors import TooLargeError
from studiolo.server.auth import Caller, caller
from studiolo.server.bodies import json_body
from studiolo.server.openai import document
from studiolo.server.openai.files import ExpiresAfter, Purpose, file_of, lifetime_of
from studiolo.server.openai.forms import chunks_of, form_of
from studiolo.server.openai.uploads_kept import Parted, part_id, parted_in
from studiolo.server.openai.wire import Wire, read
from studiolo.server.studio import Studio, studio_of
from studiolo.store.uploads import FileRecord

LARGEST_PART = 64 * 2**20
"""Bytes, as with OpenAI."""


class UploadRequest(Wire):
    bytes: Annotated[int, Field(ge=1)]
    filename: Annotated[str, Field(min_length=1, max_length=512)]
    mime_type: Annotated[str, Field(pattern=r"^[A-Za-z0-9!#$&^_.+-]{1,60}/[A-Za-z0-9!#$&^_.+-]{1,100}$")]
    purpose: Purpose
    expires_after: ExpiresAfter | None = None


class PartRequest(Wire):
    """The form has its `data` alone."""


class CompleteRequest(Wire):
    part_ids: Annotated[list[str], Field(min_length=1, max_length=10_000)]
    md5: str | None = None


def add_routes(router: APIRouter) -> None:
    for path, route, extra in (
        ("/uploads", create_upload, document.body(UploadRequest)),
        ("/uploads/{upload_id}/parts", add_part, document.form(PartRequest, file="data")),
        ("/uploads/{upload_id}/complete", complete_upload, document.body(CompleteRequest)),
        ("/uploads/{upload_id}/cancel", cancel_upload, None),
    ):
        router.add_api_route(path, route, methods=["POST"], response_model=None, openapi_extra=extra)


async def create_upload(
    request: Request, studio: Studio = Depends(studio_of), caller: Caller = Depends(caller)
) -> Response:
    """Announces a file that comes in parts."""
    wanted = read(UploadRequest, await json_body(request))
    if wanted.bytes > studio.files.largest:
        raise TooLargeError(f"files have at most {studio.files.largest:,} bytes here", where="bytes")
    upload = await asyncio.to_thread(
        parted_in(studio.database).begin,
        owner=caller.key_id,
        name=wanted.filename,
        mime=wanted.mime_type,
        size=wanted.bytes,
        purpose=wanted.purpose,
        lifetime=lifetime_of(wanted.purpose, wanted.expires_after),
    )
    return JSONResponse(upload_of(upload))


async def add_part(
    request: Request,
    upload_id: str,
    studio: Studio = Depends(studio_of),
    caller: Caller = Depends(caller),
) -> Response:
    """Takes a part in; parts may come in any order, and at the same time."""
    kept = parted_in(studio.database)
    upload = await asyncio.to_thread(kept.get, upload_id, caller.key_id)
    async with form_of(request, files=("data",)) as form:
        read(PartRequest, form.fields)
        data = form.file("data")
        if data.size is not None and data.size > LARGEST_PART:
            raise TooLargeError(f"parts have at most {LARGEST_PART:,} bytes", where="data")
        part = await asyncio.to_thread(kept.add, studio.files, upload, chunks_of(data))
    created = int(part.created.timestamp())
    return JSONResponse(
        {"id": part_id(part), "object": "upload.part", "created_at": created, "upload_id": upload.id}
    )


async def complete_upload(
    request: Request,
    upload_id: str,
    studio: Studio = Depends(studio_of),
    caller: Caller = Depends(caller),
) -> Response:
    """Makes a file of the parts, in the order in which they are named."""
    wanted = read(CompleteRequest, await json_body(request))
    kept = parted_in(studio.database)
    upload = await asyncio.to_thread(kept.get, upload_id, caller.key_id)
    upload, record = await asyncio.to_thread(kept.complete, studio.files, upload, wanted.part_ids, wanted.md5)
    return JSONResponse(upload_of(upload, record))


async def cancel_upload(
    upload_id: str, studio: Studio = Depends(studio_of), caller: Caller = Depends(caller)
) -> Response:
    kept = parted_in(studio.database)
    upload = await asyncio.to_thread(kept.get, upload_id, caller.key_id)
    return JSONResponse(upload_of(await asyncio.to_thread(kept.cancel, studio.files, upload)))


def upload_of(upload: Parted, file: FileRecord | None = None) -> dict[str, Any]:
    """The wire form of an upload."""
    return {
        "id": upload.id,
        "object": "upload",
        "bytes": upload.size,
        "created_at": int(upload.created.timestamp()),
        "expires_at": int(upload.expires.timestamp()),
        "filename": upload.name,
        "purpose": upload.purpose,
        "status": upload.status,
        "file": None if file is None else file_of(file),
    }

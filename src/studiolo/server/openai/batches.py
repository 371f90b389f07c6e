"""/batches: many requests in one file, answered when there is room, at half the price."""

from __future__ import annotations

import asyncio
import secrets
from collections.abc import Callable, Iterator
from dataclasses import replace
from datetime import datetime, timedelta
from typing import Any

import sqlalchemy as sa
from fastapi import APIRouter, Depends, Query
from starlette.requests import Request
from starlette.responses import JSONResponse, Response

from studiolo.errors import ConflictError, NotFoundError
from studiolo.jobs.items import OVER, BatchRecord
from studiolo.language.errors import InvalidRequestError
from studiolo.server.auth import Caller, caller
from studiolo.server.bodies import json_body
from studiolo.server.openai import document
from studiolo.server.openai.batch_answers import PREFIX
from studiolo.server.openai.batches_kept import KeptBatch, kept_in
from studiolo.server.openai.batches_wire import (
    BatchRequest,
    Checked,
    batch_of,
    checked,
    error_lines,
    items_of,
    output_lines,
)
from studiolo.server.openai.files import BATCH_LIFETIME, page_of
from studiolo.server.openai.wire import read
from studiolo.server.studio import Studio, studio_of

RESULTS = timedelta(days=30)
"""How long the answers wait for somebody to ask for the batch, and so for its files."""

_FINAL = {"succeeded": "completed", "cancelled": "cancelled", "expired": "expired", "failed": "failed"}


def add_routes(router: APIRouter) -> None:
    for path, route, methods, extra in (
        ("/batches", create_batch, ["POST"], document.body(BatchRequest)),
        ("/batches", list_batches, ["GET"], None),
        ("/batches/{batch_id}", retrieve_batch, ["GET"], None),
        ("/batches/{batch_id}/cancel", cancel_batch, ["POST"], None),
    ):
        router.add_api_route(path, route, methods=methods, response_model=None, openapi_extra=extra)


async def create_batch(
    request: Request, studio: Studio = Depends(studio_of), caller: Caller = Depends(caller)
) -> Response:
    """Takes a batch in. What is wrong with its file is told in the batch, which has failed then."""
    wanted = read(BatchRequest, await json_body(request))
    found = await asyncio.to_thread(_checked, studio, caller, wanted)
    kept = kept_in(studio.database)
    lifetime = BATCH_LIFETIME
    if wanted.output_expires_after is not None:
        lifetime = timedelta(seconds=wanted.output_expires_after.seconds)
    batch = KeptBatch(
        id=f"batch_{secrets.token_hex(12)}",
        owner=caller.key_id,
        endpoint=wanted.endpoint,
        input=wanted.input_file_id,
        metadata=wanted.metadata,
        lifetime=lifetime,
        created=kept.clock(),
        errors=[problem.told for problem in found.problems] or None,
        final="failed" if found.problems else None,
    )
    if found.problems:
        await asyncio.to_thread(kept.add, batch)
        return JSONResponse(batch_of(batch, None))

    def keep(connection: sa.Connection, job: str, created: datetime) -> None:
        kept.add(replace(batch, id=f"batch_{job}", created=created), connection)

    job = await _begun(studio, caller, wanted, found, keep)
    batch = await asyncio.to_thread(kept.get, f"batch_{job.id}", caller.key_id)
    return JSONResponse(await _told(studio, batch))


async def list_batches(
    after: str | None = None,
    limit: int = Query(20, ge=1, le=100),
    studio: Studio = Depends(studio_of),
    caller: Caller = Depends(caller),
) -> Response:
    """The caller's batches, the newest first."""
    found = await asyncio.to_thread(kept_in(studio.database).page, caller.key_id, limit + 1, after)
    shown = [await _told(studio, batch) for batch in found[:limit]]
    return JSONResponse(page_of(shown, more=len(found) > limit))


async def retrieve_batch(
    batch_id: str, studio: Studio = Depends(studio_of), caller: Caller = Depends(caller)
) -> Response:
    batch = await asyncio.to_thread(kept_in(studio.database).get, batch_id, caller.key_id)
    return JSONResponse(await _told(studio, batch))


async def cancel_batch(
    batch_id: str, studio: Studio = Depends(studio_of), caller: Caller = Depends(caller)
) -> Response:
    """Begins no more of its requests; what is answered can be fetched."""
    kept = kept_in(studio.database)
    batch = await asyncio.to_thread(kept.get, batch_id, caller.key_id)
    if batch.final is not None:
        raise ConflictError(f"this batch is {batch.final}", where=batch_id)
    await studio.batches.cancel(batch.job, caller.key_id)
    if batch.cancelling is None:
        batch = await asyncio.to_thread(kept.change, batch, cancelling=kept.clock())
    return JSONResponse(await _told(studio, batch))


def _checked(studio: Studio, caller: Caller, wanted: BatchRequest) -> Checked:
    try:
        record = studio.files.get(wanted.input_file_id, owner=caller.key_id)
    except NotFoundError as error:
        error.where = "input_file_id"
        raise
    if record.purpose != "batch":
        raise InvalidRequestError(
            f"the purpose of this file is {record.purpose}",
            where="input_file_id",
            remedy="Upload it with the purpose batch.",
        )
    settings = studio.settings
    return checked(
        studio.files.path(record.id),
        wanted.endpoint,
        studio.engines.info,
        longest=settings.largest_body,
        deepest=settings.largest_depth,
    )


async def _begun(
    studio: Studio,
    caller: Caller,
    wanted: BatchRequest,
    found: Checked,
    keep: Callable[[sa.Connection, str, datetime], None],
) -> BatchRecord:
    path = studio.files.path(wanted.input_file_id)
    return await studio.batches.create(
        owner=caller.key_id,
        kind=PREFIX + wanted.endpoint,
        model=found.models[0] if len(found.models) == 1 else "",
        items=items_of(path, studio.settings.largest_body),
        lifetime=RESULTS,
        beside=keep,
    )


# --- its end ----------------------------------------------------------------------------------------------


async def _told(studio: Studio, batch: KeptBatch) -> dict[str, Any]:
    """The wire form of a batch as it is now; one that has ended gets its files first."""
    if batch.errors is not None:
        return batch_of(batch, None)
    try:
        job = await studio.batches.get(batch.job, batch.owner)
    except NotFoundError:
        return batch_of(batch, None)
    if job.state in OVER and batch.final is None:
        batch = await _finished(studio, batch, job)
    return batch_of(batch, job)


_finishing: dict[str, asyncio.Lock] = {}


async def _finished(studio: Studio, batch: KeptBatch, job: BatchRecord) -> KeptBatch:
    """Writes the files of a batch that has ended, once."""
    lock = _finishing.setdefault(batch.id, asyncio.Lock())
    async with lock:
        try:
            return await asyncio.to_thread(_write_files, studio, batch, job)
        finally:
            _finishing.pop(batch.id, None)


def _write_files(studio: Studio, batch: KeptBatch, job: BatchRecord) -> KeptBatch:
    kept = kept_in(studio.database)
    batch = kept.get(batch.id, batch.owner)
    if batch.final is not None:
        return batch
    left = job.counts.total - job.counts.done - job.counts.failed
    results = studio.batches.results
    output = failures = None
    if job.counts.done:
        output = _file(studio, batch, "output", output_lines(batch.id, results(job.id)))
    if job.counts.failed or left:
        lines = error_lines(batch.id, results(job.id), left=f"batch_{_FINAL[job.state]}")
        failures = _file(studio, batch, "error", lines)
    return kept.change(batch, final=_FINAL[job.state], output=output, failures=failures)


def _file(studio: Studio, batch: KeptBatch, what: str, lines: Iterator[bytes]) -> str:
    """The id of the file; one that is there already, as after a crash, is the one."""
    name, after = f"{batch.id}_{what}.jsonl", None
    while True:
        page = studio.files.page(owner=batch.owner, purpose="batch_output", after=after)
        for file in page.files:
            if file.name == name:
                return file.id
        if (after := page.next) is None:
            break
    record = studio.files.add(
        lines,
        owner=batch.owner,
        name=name,
        mime="application/jsonl",
        purpose="batch_output",
        lifetime=batch.lifetime,
    )
    return record.id

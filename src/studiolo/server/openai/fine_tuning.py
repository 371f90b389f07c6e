"""/fine_tuning/jobs: subjects taught from uploaded images."""

from __future__ import annotations

import asyncio
import re
from collections.abc import AsyncIterator, Iterable, Iterator
from contextlib import contextmanager, suppress
from dataclasses import replace
from datetime import timedelta
from pathlib import Path
from typing import Any

import sqlalchemy as sa
from fastapi import APIRouter, Depends, Query
from starlette.requests import Request
from starlette.responses import JSONResponse, Response

from studiolo.errors import ConflictError, NotFoundError, StudioloError
from studiolo.jobs.tuning_table import TuningEvent, TuningRecord, taught_score
from studiolo.jobs.tunings import TuningSpec
from studiolo.language.errors import UnsupportedError
from studiolo.server.auth import Caller, caller
from studiolo.server.bodies import json_body
from studiolo.server.errors import NotBuiltError
from studiolo.server.openai import document
from studiolo.server.openai.answering import in_terms
from studiolo.server.openai.files import page_of
from studiolo.server.openai.fine_tuning_kept import KeptJob, kept_in
from studiolo.server.openai.fine_tuning_wire import (
    PREFIX,
    JobRequest,
    checkpoint_of,
    event_number,
    event_of,
    job_of,
    listed_in,
    spec_of,
)
from studiolo.server.openai.wire import read
from studiolo.server.studio import Studio, studio_of

JSON = dict[str, Any]
RESULTS = timedelta(days=30)
"""How long previews and metrics are files after they were told of; told of again, they are there again."""

_FILTER = re.compile(r"metadata\[(.+)\]")
_PAGE = 100


def add_routes(router: APIRouter) -> None:
    jobs, job = "/fine_tuning/jobs", "/fine_tuning/jobs/{job_id}"
    for path, route, methods, extra in (
        (jobs, create_job, ["POST"], document.body(JobRequest)),
        (jobs, list_jobs, ["GET"], None),
        (job, retrieve_job, ["GET"], None),
        (f"{job}/cancel", cancel_job, ["POST"], None),
        (f"{job}/pause", pause_job, ["POST"], None),
        (f"{job}/resume", pause_job, ["POST"], None),
        (f"{job}/events", list_events, ["GET"], None),
        (f"{job}/checkpoints", list_checkpoints, ["GET"], None),
    ):
        router.add_api_route(path, route, methods=methods, response_model=None, openapi_extra=extra)


async def create_job(
    request: Request, studio: Studio = Depends(studio_of), caller: Caller = Depends(caller)
) -> Response:
    """Queues a training, when all that can be checked before has been."""
    wanted = read(JobRequest, await json_body(request))
    _check_taught(studio, wanted.model)
    files = await asyncio.to_thread(_files_of, studio, caller, wanted)
    spec, kept = spec_of(wanted, files, caller.key_id)
    jobs = await asyncio.to_thread(kept_in, studio.database)

    def keep(connection: sa.Connection, tuning: str) -> None:
        jobs.add(replace(kept, tuning=tuning), connection)

    with _in_terms_of(spec):
        record = await studio.tunings.create(spec, beside=keep)
    return JSONResponse(job_of(record, kept))


async def list_jobs(
    request: Request,
    after: str | None = None,
    limit: int = Query(20, ge=1, le=100),
    studio: Studio = Depends(studio_of),
    caller: Caller = Depends(caller),
) -> Response:
    """The caller's jobs, the newest first; `metadata[k]=v` leaves those with this value."""
    wanted = {
        found[1]: value
        for name, value in request.query_params.items()
        if (found := _FILTER.fullmatch(name)) is not None
    }
    shown: list[JSON] = []
    async for job in _jobs(studio, caller, None if after is None else _tuning(after)):
        if wanted.items() <= (job["metadata"] or {}).items():
            shown.append(job)
        if len(shown) > limit:
            break
    return JSONResponse(page_of(shown[:limit], more=len(shown) > limit))


async def retrieve_job(
    job_id: str, studio: Studio = Depends(studio_of), caller: Caller = Depends(caller)
) -> Response:
    return JSONResponse(await _told(studio, await _record(studio, caller, job_id)))


async def cancel_job(
    job_id: str, studio: Studio = Depends(studio_of), caller: Caller = Depends(caller)
) -> Response:
    """Ends a job: at once if it waits, else when its step is saved."""
    await _record(studio, caller, job_id)
    record = await studio.tunings.cancel(_tuning(job_id), caller.key_id)
    return JSONResponse(await _told(studio, record))


async def pause_job(
    job_id: str, studio: Studio = Depends(studio_of), caller: Caller = Depends(caller)
) -> Response:
    """Not offered."""
    await _record(studio, caller, job_id)
    raise NotBuiltError("jobs are not paused", where=job_id, remedy="Cancel it, or let it run.")


async def list_events(
    job_id: str,
    after: str | None = None,
    limit: int = Query(20, ge=1, le=1000),
    studio: Studio = Depends(studio_of),
    caller: Caller = Depends(caller),
) -> Response:
    """What happened, the last first; previews carry the id of a file."""
    record = await _record(studio, caller, job_id)
    events = (await _events(studio, record))[::-1]
    if after is not None:
        number = event_number(after)
        events = [event for event in events if event.number < number]
    previews: dict[int | None, Path] = dict(await studio.tunings.previews(record.id))
    shown = []
    for event in events[:limit]:
        path = previews.get(event.step) if event.kind == "preview" else None
        file = None if path is None else await asyncio.to_thread(_preview, studio, record, event, path)
        shown.append(event_of(event, file))
    return JSONResponse(page_of(shown, more=len(events) > limit))


async def list_checkpoints(
    job_id: str,
    after: str | None = None,
    limit: int = Query(10, ge=1, le=100),
    studio: Studio = Depends(studio_of),
    caller: Caller = Depends(caller),
) -> Response:
    """The states of the training that are kept, the last first."""
    record = await _record(studio, caller, job_id)
    losses = {
        event.step: event.data["loss"]
        for event in await _events(studio, record)
        if event.kind == "step" and event.step is not None and "loss" in event.data
    }
    scores = await studio.tunings.scores(record.id)
    found = (await studio.tunings.checkpoints(record.id))[::-1]
    told = []
    for step, path in found:
        with suppress(FileNotFoundError):  # a newer one has taken its place a moment ago
            told.append(checkpoint_of(record, step, path.stat().st_mtime, losses, scores))
    if after is not None:
        places = [place for place, one in enumerate(told) if one["id"] == after]
        if not places:
            raise NotFoundError("no checkpoint of this id", where="after")
        told = told[places[0] + 1 :]
    return JSONResponse(page_of(told[:limit], more=len(told) > limit))


# --- what is asked for ------------------------------------------------------------------------------------


def _check_taught(studio: Studio, model: str) -> None:
    """Refuses models that are not there, and those that are not taught subjects."""
    if studio.engines.info(model).kind not in ("drawing", "subject"):
        raise UnsupportedError(
            "models that speak are not tuned here", where="model", remedy="Name studiolo-base."
        )


def _files_of(studio: Studio, caller: Caller, wanted: JobRequest) -> tuple[str, ...]:
    """Ids of the images or archives: those that are named, and those of a list."""
    owner = caller.key_id
    named = dict.fromkeys((wanted.training_file, *(wanted.training_files or ())))
    files: list[str] = []
    for id_ in named:
        files.extend(_listed(studio, owner, id_, "training_file"))
    return tuple(dict.fromkeys(files))


def _listed(studio: Studio, owner: str | None, id_: str, where: str) -> Iterable[str]:
    _check_file(studio, owner, id_, where)
    listed = listed_in(studio.files.path(id_))
    if listed is None:
        return (id_,)
    for inner in listed:
        _check_file(studio, owner, inner, where)
    return listed


def _check_file(studio: Studio, owner: str | None, id_: str, where: str) -> None:
    try:
        studio.files.get(id_, owner=owner)
    except NotFoundError as error:
        raise NotFoundError(f"no file {id_[:100]!r}", where=where, remedy=error.remedy) from None


@contextmanager
def _in_terms_of(spec: TuningSpec) -> Iterator[None]:
    """Errors name the field at fault as the client knows it."""
    try:
        with in_terms({"recipe": "hyperparameters", "class": "hyperparameters.class_noun"}):
            yield
    except StudioloError as error:
        if spec.name is not None and error.where in (spec.name, repr(spec.name)):
            error.where = "suffix"
        raise


# --- what is told -----------------------------------------------------------------------------------------


def _tuning(job: str) -> str:
    return job.removeprefix(PREFIX)


async def _record(studio: Studio, caller: Caller, job: str) -> TuningRecord:
    """
    Raises:
        NotFoundError: there is none of this caller's.
    """
    if not job.startswith(PREFIX):
        raise NotFoundError("no fine-tuning job of this id", where=job[:100])
    return await studio.tunings.get(_tuning(job), caller.key_id)


async def _told(studio: Studio, record: TuningRecord) -> JSON:
    kept = await asyncio.to_thread(kept_in(studio.database).of, [record.id])
    return await _job(studio, record, kept.get(record.id))


async def _job(studio: Studio, record: TuningRecord, kept: KeptJob | None) -> JSON:
    results = await asyncio.to_thread(_results, studio, record)
    return job_of(record, kept, results, taught_score(record, await studio.tunings.scores(record.id)))


async def _jobs(studio: Studio, caller: Caller, after: str | None) -> AsyncIterator[JSON]:
    """All jobs behind `after`, page by page."""
    while True:
        page = await studio.tunings.page(caller.key_id, _PAGE, after)
        kept = await asyncio.to_thread(kept_in(studio.database).of, [record.id for record in page])
        for record in page:
            yield await _job(studio, record, kept.get(record.id))
        if len(page) < _PAGE:
            return
        after = page[-1].id


async def _events(studio: Studio, record: TuningRecord) -> list[TuningEvent]:
    """All of them, in order."""
    found: list[TuningEvent] = []
    while page := await studio.tunings.events(record.id, found[-1].number if found else 0):
        found.extend(page)
    return found


def _preview(studio: Studio, record: TuningRecord, event: TuningEvent, path: Path) -> str | None:
    """The file of a preview; None if it cannot be had now."""
    name = f"{record.name}-step-{event.step}.png"
    return _file(studio, record, f"preview-{record.id[:24]}-{event.step}", name, "image/png", path)


def _results(studio: Studio, record: TuningRecord) -> list[str]:
    """The files of a training that has succeeded: losses and rates, step by step; and scores, if any."""
    run, made = studio.tunings.folder / record.id / "run", []
    for what in ("metrics", "scores"):
        path = run / f"{what}.csv"
        if record.state == "succeeded" and path.is_file():
            name = f"{record.name}-{what}.csv"
            made.append(_file(studio, record, f"{what}-{record.id[:24]}", name, "text/csv", path))
    return [file for file in made if file is not None]


def _file(studio: Studio, record: TuningRecord, id_: str, name: str, mime: str, path: Path) -> str | None:
    """The file of that id, made of `path` if it is not there; None while another request makes it."""
    try:
        return studio.files.get(id_, owner=record.owner).id
    except NotFoundError:
        pass
    try:
        made = studio.files.add(
            path.read_bytes(),
            owner=record.owner,
            name=name,
            mime=mime,
            purpose="fine-tune-results",
            lifetime=RESULTS,
            id=id_,
        )
    except (ConflictError, NotFoundError):  # also where it has taken over what this one had begun
        return None
    return made.id

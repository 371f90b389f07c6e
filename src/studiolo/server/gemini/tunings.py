"""Teaching subjects: tunedModels, the developer's form, and tuningJobs, that of enterprise clients.

A subject is a model of its own: `tunedModels/NAME` and `models/NAME` are the same one. Training images are
uploaded files. Google's clients have no field for them in the developer's form (it sends no examples), so
`http_options={"extra_body": ...}` brings them, beside `class_noun` and any other field of a recipe:

    {"tuningTask": {"trainingData": {"files": ["files/ID", ...]}, "hyperparameters": {"class_noun": "toy"}}}
"""

from __future__ import annotations

import re
from collections.abc import AsyncIterator, Iterable, Mapping
from contextlib import suppress
from typing import Annotated, Any

from fastapi import APIRouter, Depends, Query
from starlette.requests import Request as HttpRequest
from starlette.responses import FileResponse, Response

from studiolo.errors import ConflictError, NotFoundError
from studiolo.jobs.tuning_table import UNDER_WAY, TuningRecord
from studiolo.jobs.tunings import TuningSpec
from studiolo.language.errors import InvalidRequestError
from studiolo.server.auth import Caller, caller
from studiolo.server.bodies import json_body
from studiolo.server.gemini import document, models, names
from studiolo.server.gemini.reading import camel, read, snake
from studiolo.server.gemini.wire_response import time_of
from studiolo.server.pool import ModelInfo
from studiolo.server.studio import Studio, studio_of

Who = Annotated[Caller, Depends(caller)]
House = Annotated[Studio, Depends(studio_of)]
Wire = dict[str, Any]

USUAL, MOST = 10, 1000
"""Tunings of a page."""
SNAPSHOTS = 100
"""Of the losses of a training, evenly over its steps."""

_STATES = {"queued": "CREATING", "running": "CREATING", "cancelling": "CREATING", "succeeded": "ACTIVE",
           "failed": "FAILED", "cancelled": "JOB_STATE_CANCELLED"}  # fmt: skip
"""Google knows no cancelled tuned model; its clients take the name of a job's state all the same."""
_JOB_STATES = {"queued": "PENDING"} | {
    state: state.upper() for state in ("running", "cancelling", "succeeded", "failed", "cancelled")
}
_METADATA = "type.googleapis.com/google.ai.generativelanguage.v1beta.CreateTunedModelMetadata"


def add_routes(router: APIRouter, before: str) -> None:
    """Adds them behind a prefix, which may be empty."""
    tuned, jobs = f"{before}/tunedModels", f"{before}/tuningJobs"
    router.add_api_route(tuned, create, methods=["POST"], openapi_extra=document.body("TunedModel"))
    router.add_api_route(tuned, page, methods=["GET"])
    router.add_api_route(tuned + "/{name}:cancel", cancel, methods=["POST"])
    router.add_api_route(tuned + "/{name}/operations/{id}", operation, methods=["GET"])
    router.add_api_route(tuned + "/{name}/previews", previews, methods=["GET"])
    router.add_api_route(tuned + "/{name}/previews/{step}", preview, methods=["GET"], response_class=Response)
    for model in (tuned + "/{name}", f"{before}/models/{{name}}"):
        router.add_api_route(model, change, methods=["PATCH"], openapi_extra=document.body("TunedModel"))
        router.add_api_route(model, delete, methods=["DELETE"])
    router.add_api_route(tuned + "/{name}", get, methods=["GET"])
    router.add_api_route(jobs, create_job, methods=["POST"], openapi_extra=document.body("TuningJob"))
    router.add_api_route(jobs, jobs_page, methods=["GET"])
    router.add_api_route(jobs + "/{name}:cancel", cancel, methods=["POST"])
    router.add_api_route(jobs + "/{name}", get_job, methods=["GET"])


# --- the developer's form ---------------------------------------------------------------------------------


async def create(
    http: HttpRequest,
    studio: House,
    who: Who,
    tuned_id: Annotated[str | None, Query(alias="tunedModelId")] = None,
) -> Wire:
    """Begins to teach a subject; the answer is an operation."""
    asked = read("TunedModel", await json_body(http))
    task = asked.get("tuningTask", {})
    title = asked.get("displayName", "")
    record = await _create(
        studio,
        who,
        name=tuned_id or _name_of(title),
        title=title,
        base=asked.get("baseModel"),
        sources=list(_sources(task.get("trainingData", {}))),
        values=task.get("hyperparameters", {}),
        where="tuning_task",
    )
    return _operation(record)


async def page(
    studio: House,
    who: Who,
    size: Annotated[int, Query(alias="pageSize")] = USUAL,
    token: Annotated[str | None, Query(alias="pageToken")] = None,
) -> Wire:
    """Some subjects by name: those that this key teaches or has taught, and all that can be drawn."""
    mine = {record.name: tuned(record) async for record in _all(studio, who)}
    found = {model.name: _known(model) for model in studio.engines.models() if model.kind == "subject"} | mine
    rest = sorted(name for name in found if not token or name > token)
    shown = rest[: models.page_size(size or USUAL, MOST)]
    answer: Wire = {"tunedModels": [found[name] for name in shown]}
    return answer | ({"nextPageToken": shown[-1]} if len(rest) > len(shown) else {})


async def get(name: str, http: HttpRequest, studio: House, who: Who) -> Wire:
    """How far the teaching of a subject is, with its losses; or what is known of one that is taught."""
    record = await _find(studio, who, name)
    if record is None:
        info = studio.engines.info(models.named(studio, name, "getTunedModel", http))
        if info.kind != "subject":
            raise NotFoundError("this model was not taught a subject", where=f"tunedModels/{name[:100]}")
        return _known(info)
    return tuned(record, await _snapshots(studio, record))


async def operation(name: str, id: str, studio: House, who: Who) -> Wire:  # noqa: A002
    """The same as the operation that `create` told of."""
    record = await _own(studio, who, id)
    if name != record.name:
        raise NotFoundError("no such operation", where=f"tunedModels/{name[:100]}/operations/{id[:100]}")
    return _operation(record, await _snapshots(studio, record))


async def cancel(name: str, studio: House, who: Who) -> Wire:
    """Ends the teaching. What is over stays as it is."""
    record = await _own(studio, who, name)
    try:
        await studio.tunings.cancel(record.id, who.key_id)
    except ConflictError:
        if (await studio.tunings.get(record.id, who.key_id)).state in UNDER_WAY:
            raise
    return {}


async def change(name: str, http: HttpRequest, studio: House, who: Who) -> Wire:
    """Gives a subject another title."""
    asked = read("TunedModel", await json_body(http))
    if fixed := sorted(asked.keys() - {"displayName", "name"}):
        raise InvalidRequestError(
            f"only the title of a subject changes, and not its {', '.join(fixed)}",
            where=snake(fixed[0]),
            remedy="Teach another one.",
        )
    if "displayName" not in asked:
        raise InvalidRequestError("no title", where="display_name", remedy="Give one.")
    record = await _own(studio, who, name)
    return tuned(await studio.tunings.retitle(record.id, who.key_id, asked["displayName"]))


async def delete(name: str, studio: House, who: Who) -> Wire:
    """Forgets a subject: nobody can draw it any more."""
    record = await _own(studio, who, name)
    await studio.tunings.delete(record.id, who.key_id)
    studio.engines.look_again()
    await studio.artist.forget(record.name)
    return {}


async def previews(name: str, http: HttpRequest, studio: House, who: Who) -> Wire:
    """Studiolo's own: the pictures that were drawn on the way, by step, at the same seeds."""
    record = await _own(studio, who, name)
    address = f"{http.base_url}{http.state.version}/tunedModels/{record.name}/previews"
    found = await studio.tunings.previews(record.id)
    return {"previews": [{"step": step, "uri": f"{address}/{step}"} for step, _ in found]}


async def preview(name: str, step: int, studio: House, who: Who) -> Response:
    """One of them, as a PNG file."""
    record = await _own(studio, who, name)
    for drawn, path in await studio.tunings.previews(record.id):
        if drawn == step:
            return FileResponse(path, media_type="image/png")
    raise NotFoundError("no preview of this step", where=f"tunedModels/{record.name}/previews/{step}")


# --- the form of enterprise clients -----------------------------------------------------------------------


async def create_job(http: HttpRequest, studio: House, who: Who) -> Wire:
    """Begins to teach a subject; the answer is the job."""
    asked = read("TuningJob", await json_body(http))
    spec, title = asked.get("supervisedTuningSpec", {}), asked.get("tunedModelDisplayName", "")
    labels = asked.get("labels", {})
    noun = {"class_noun": labels["class_noun"]} if "class_noun" in labels else {}
    files = (part.strip() for part in spec.get("trainingDatasetUri", "").split(","))
    record = await _create(
        studio,
        who,
        name=_name_of(title),
        title=title,
        base=asked.get("baseModel"),
        sources=[file for file in files if file],
        values=noun | spec.get("hyperParameters", {}),
        where="supervised_tuning_spec",
    )
    return job(http, record)


async def jobs_page(
    http: HttpRequest,
    studio: House,
    who: Who,
    size: Annotated[int, Query(alias="pageSize")] = USUAL,
    token: Annotated[str | None, Query(alias="pageToken")] = None,
) -> Wire:
    """Some jobs, the newest first."""
    shown = models.page_size(size or USUAL, MOST)
    found = await studio.tunings.page(who.key_id, shown + 1, token or None)
    answer: Wire = {"tuningJobs": [job(http, record) for record in found[:shown]]}
    return answer | ({"nextPageToken": found[shown - 1].id} if len(found) > shown else {})


async def get_job(name: str, http: HttpRequest, studio: House, who: Who) -> Wire:
    """How far a job is."""
    return job(http, await _own(studio, who, name))


# --- what is told -----------------------------------------------------------------------------------------


def tuned(record: TuningRecord, snapshots: Iterable[Wire] = ()) -> Wire:
    """A tuning as a tuned model."""
    task: Wire = {
        "hyperparameters": {"class_noun": record.class_noun, "steps": record.steps, **record.recipe}
    }
    if record.started:
        task["startTime"] = time_of(record.started)
    if record.ended:
        task["completeTime"] = time_of(record.ended)
    if losses := list(snapshots):
        task["snapshots"] = losses
    wire: Wire = {
        "name": f"tunedModels/{record.name}",
        "displayName": record.title or record.name,
        "baseModel": f"models/{record.base}",
        "state": _STATES[record.state],
        "createTime": time_of(record.created),
        "updateTime": time_of(record.ended or record.started or record.created),
        "tuningTask": task,
    }
    return wire | ({"error": _error(record)} if record.problem else {})


def job(http: HttpRequest, record: TuningRecord) -> Wire:
    """A tuning as a job; its name begins with the project that the request named."""
    where = http.path_params
    project = f"projects/{where['project']}/locations/{where['location']}/" if "project" in where else ""
    values = {camel(key): value for key, value in record.recipe.items()}
    wire: Wire = {
        "name": f"{project}tuningJobs/{record.id}",
        "tunedModelDisplayName": record.title or record.name,
        "baseModel": record.base,
        "state": f"JOB_STATE_{_JOB_STATES[record.state]}",
        "createTime": time_of(record.created),
        "updateTime": time_of(record.ended or record.started or record.created),
        "labels": {"class_noun": record.class_noun},
        "supervisedTuningSpec": {
            "trainingDatasetUri": ",".join(f"files/{file}" for file in record.files),
            "hyperParameters": values,
        },
    }
    if record.started:
        wire["startTime"] = time_of(record.started)
    if record.ended:
        wire["endTime"] = time_of(record.ended)
    if record.state == "succeeded":
        wire["tunedModel"] = {"model": f"models/{record.name}", "endpoint": f"models/{record.name}"}
    return wire | ({"error": _error(record)} if record.problem else {})


def _operation(record: TuningRecord, snapshots: Iterable[Wire] = ()) -> Wire:
    wire: Wire = {
        "name": f"tunedModels/{record.name}/operations/{record.id}",
        "metadata": {
            "@type": _METADATA,
            "tunedModel": f"tunedModels/{record.name}",
            "totalSteps": record.steps,
            "completedSteps": record.step,
            "completedPercent": 100 * (record.state == "succeeded" or record.step / record.steps),
            "snapshots": list(snapshots),
        },
    }
    if record.state in UNDER_WAY:
        return wire
    if record.state == "succeeded":
        return wire | {"done": True, "response": tuned(record)}
    return wire | {"done": True, "error": _error(record)}


def _error(record: TuningRecord) -> Wire:
    if record.state == "cancelled":
        return {"code": 1, "message": "it was cancelled"}
    return {"code": 9, "message": record.problem or "it failed"}


def _known(model: ModelInfo) -> Wire:
    """A subject of which only the model is known."""
    made = time_of(model.created)
    wire: Wire = {"name": f"tunedModels/{model.name}", "displayName": model.title, "state": "ACTIVE",
                  "createTime": made, "updateTime": made}  # fmt: skip
    return wire | ({"baseModel": f"models/{model.base}"} if model.base else {})


async def _snapshots(studio: Studio, record: TuningRecord) -> list[Wire]:
    """Losses of up to `SNAPSHOTS` of the steps that are done, evenly, the last among them; and of those that
    have them the `scores`, which are Studiolo's own. Step 0 is the base, before it was taught."""
    found: list[Wire] = []
    after = 0
    while events := await studio.tunings.events(record.id, after):
        after = events[-1].number
        found += [
            {"step": event.step, "meanLoss": event.data["loss"], "computeTime": time_of(event.created)}
            for event in events
            if event.kind == "step"
        ]
    stride = -(-len(found) // SNAPSHOTS) or 1
    shown = {snapshot["step"]: snapshot for snapshot in found[::-1][::stride]}
    losses = {snapshot["step"]: snapshot for snapshot in found}
    for event in await studio.tunings.scores(record.id):
        plain = {"step": event.step, "computeTime": time_of(event.created)}
        told = {**event.data, "best": bool(event.data["best"])}
        shown[event.step] = losses.get(event.step, plain) | {"scores": told}
    return [shown[step] for step in sorted(shown)]


# --- what is asked ----------------------------------------------------------------------------------------


async def _create(
    studio: Studio, who: Caller, *, name: str | None, title: str, base: str | None, sources: list[str],
    values: Mapping[str, Any], where: str,
) -> TuningRecord:  # fmt: skip
    if not base:
        raise InvalidRequestError("no base model", where="base_model", remedy="Say models/studiolo-base.")
    recipe = {snake(key): value for key, value in values.items()}
    for key, instead in (("epoch_count", "steps"), ("learning_rate_multiplier", "learning_rate")):
        if recipe.pop(key, None) is not None:
            raise InvalidRequestError(
                "not known here", where=f"{where}.hyperparameters.{key}", remedy=f"Give {instead}."
            )
    noun = recipe.pop("class_noun", None)
    if not isinstance(noun, str) or not noun:
        raise InvalidRequestError(
            "no class_noun: what kind of thing the subject is, such as toy or cat",
            where=f"{where}.hyperparameters.class_noun",
            remedy=_REMEDY,
        )
    if not sources:
        raise InvalidRequestError("no images to learn from", where=f"{where}.training_data", remedy=_REMEDY)
    files = [names.file(source) for source in sources]
    if None in files:
        raise InvalidRequestError(
            "no name of an uploaded file", where=f"{where}.training_data", remedy="Say files/ID."
        )
    spec = TuningSpec(
        name=name, title=title, base=names.model(base), class_noun=noun, recipe=recipe, owner=who.key_id,
        files=tuple(file for file in files if file is not None),
    )  # fmt: skip
    return await studio.tunings.create(spec)


_REMEDY = (
    "Give it in http_options={'extra_body': {'tuningTask': {'trainingData': {'files': [...]}, "
    "'hyperparameters': {...}}}}, or in a supervisedTuningSpec."
)


def _sources(data: Mapping[str, Any]) -> Iterable[str]:
    """Names of files, as they stand in a list of them, or as the outputs of examples."""
    yield from data.get("files", [])
    for number, example in enumerate(data.get("examples", {}).get("examples", [])):
        if not example.get("output"):
            raise InvalidRequestError(
                "no output", where=f"tuning_task.training_data.examples.examples[{number}]",
                remedy="Say files/ID of an image.",
            )  # fmt: skip
        yield example["output"]


def _name_of(title: str) -> str | None:
    """The title as a name of a model, with dashes for what names do not have."""
    return re.sub(r"[^A-Za-z0-9._-]+", "-", title).strip("-._")[:64] or None


async def _own(studio: Studio, who: Caller, name: str) -> TuningRecord:
    record = await _find(studio, who, name)
    if record is None:
        raise NotFoundError(
            "no subject of this name has been taught with this key", where=f"tunedModels/{name[:100]}"
        )
    return record


async def _find(studio: Studio, who: Caller, name: str) -> TuningRecord | None:
    """The tuning of this key of that id, or the newest of that name."""
    with suppress(NotFoundError):
        return await studio.tunings.get(name, who.key_id)
    async for record in _all(studio, who):
        if record.name == name:
            return record
    return None


async def _all(studio: Studio, who: Caller) -> AsyncIterator[TuningRecord]:
    """All tunings of a key, the newest first; of several that had one name, the newest alone."""
    after: str | None = None
    seen: set[str] = set()
    while some := await studio.tunings.page(who.key_id, 100, after):
        for record in some:
            if record.name not in seen:
                yield record
            seen.add(record.name)
        after = some[-1].id

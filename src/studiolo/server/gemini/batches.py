"""batchGenerateContent, asyncBatchEmbedContent and batches: many requests in one job, at half price.

A batch is told of as a long-running operation (https://ai.google.dev/api/batch-api).
"""

from __future__ import annotations

import asyncio
from collections.abc import Iterable, Iterator, Mapping
from typing import Annotated, Any

from fastapi import APIRouter, Depends, Query
from starlette.requests import Request as HttpRequest

from studiolo.errors import ConflictError, NotFoundError
from studiolo.jobs.batches import FILES, BatchRecord, ItemResult, read_lines
from studiolo.language.errors import InvalidRequestError
from studiolo.server.auth import Caller, caller
from studiolo.server.bodies import json_body
from studiolo.server.gemini import document, models, names
from studiolo.server.gemini.batch_answers import CONTENT, EMBEDDING, check_content, check_embedding
from studiolo.server.gemini.reading import read
from studiolo.server.gemini.wire_response import time_of
from studiolo.server.sse import dumps
from studiolo.server.studio import Studio, studio_of

Who = Annotated[Caller, Depends(caller)]
House = Annotated[Studio, Depends(studio_of)]
Wire = dict[str, Any]
Items = Iterable[tuple[str | None, Wire]]

MOST = 100
"""Batches of a page."""

_STATES = {
    "queued": "PENDING",
    "running": "RUNNING",
    "cancelling": "RUNNING",
    "succeeded": "SUCCEEDED",
    "failed": "FAILED",
    "cancelled": "CANCELLED",
    "expired": "EXPIRED",
}
ANSWERED = ("succeeded", "cancelled")
"""States in which there are answers."""
_TYPE = "type.googleapis.com/google.ai.generativelanguage.v1main."
_MESSAGES = {CONTENT: "GenerateContentBatch", EMBEDDING: "EmbedContentBatch"}


def add_routes(router: APIRouter, models_path: str, path: str) -> None:
    """Adds them below paths such as `/models` and `/batches`."""
    model = models_path + "/{model:path}"
    for verb, make in (("batchGenerateContent", create), ("asyncBatchEmbedContent", create_embeddings)):
        told = document.body("BatchGenerateContentRequest")
        router.add_api_route(f"{model}:{verb}", make, methods=["POST"], openapi_extra=told)
    router.add_api_route(path, page, methods=["GET"])
    router.add_api_route(path + "/{name}:cancel", cancel, methods=["POST"])
    router.add_api_route(path + "/{name}", get, methods=["GET"])
    router.add_api_route(path + "/{name}", delete, methods=["DELETE"])


async def create(model: str, http: HttpRequest, studio: House, who: Who) -> Wire:
    """Takes a batch of requests for content in."""
    name = models.named(studio, model, "batchGenerateContent", http)
    body = read("BatchGenerateContentRequest", await json_body(http))
    return await _create(studio, who, CONTENT, name, body.get("batch", {}))


async def create_embeddings(model: str, http: HttpRequest, studio: House, who: Who) -> Wire:
    """The same for embeddings."""
    name = models.named(studio, model, "asyncBatchEmbedContent", http)
    body = read("BatchGenerateContentRequest", await json_body(http))
    return await _create(studio, who, EMBEDDING, name, body.get("batch", {}))


async def page(
    studio: House,
    who: Who,
    size: Annotated[int, Query(alias="pageSize")] = 50,
    token: Annotated[str | None, Query(alias="pageToken")] = None,
) -> Wire:
    """Some batches, the newest first. Answers within an operation come with `get` alone."""
    shown = models.page_size(size, MOST)
    found = await _batches_of(studio, who, shown + 1, token or None)
    answer: Wire = {"operations": [told(record) for record in found[:shown]]}
    return answer | ({"nextPageToken": found[shown - 1].id} if len(found) > shown else {})


async def get(name: str, studio: House, who: Who) -> Wire:
    """How far a batch is; with its answers, when it is over and its requests came within one body."""
    record = await _own(studio, who, name)
    if record.state in ANSWERED and "inline" in record.metadata:
        answers = await asyncio.to_thread(_inlined, record, studio.batches.results(record.id))
        return told(record, {"inlinedResponses": {"inlinedResponses": answers}})
    return told(record)


async def cancel(name: str, studio: House, who: Who) -> Wire:
    """Begins no more of its requests; answers that are there stay. One that is over stays as it is."""
    record = await _own(studio, who, name)
    try:
        await studio.batches.cancel(record.id, who.key_id)
    except ConflictError:
        if (await _own(studio, who, name)).state in ("queued", "running"):
            raise
    return {}


async def delete(name: str, studio: House, who: Who) -> Wire:
    """Forgets a batch that is over, and its answers."""
    await studio.batches.delete((await _own(studio, who, name)).id, who.key_id)
    return {}


# --- what is told -----------------------------------------------------------------------------------------


def told(record: BatchRecord, output: Wire | None = None) -> Wire:
    """A batch, as the wire has it."""
    name, message = f"batches/{record.id}", _MESSAGES[record.kind]
    if output is None and record.state in ANSWERED and "inline" not in record.metadata:
        output = {"responsesFile": f"files/{names.results(record.id)}"}
    wire: Wire = {
        "@type": _TYPE + message,
        "name": name,
        "model": f"models/{record.model}",
        "displayName": record.title,
        "createTime": time_of(record.created),
        "updateTime": time_of(record.ended or record.started or record.created),
        "batchStats": _stats(record),
        "state": f"BATCH_STATE_{_STATES[record.state]}",
    }
    if record.ended:
        wire["endTime"] = time_of(record.ended)
    if source := record.metadata.get("file"):
        wire["inputConfig"] = {"fileName": source}
    if output is not None:
        wire["output"] = output
    operation: Wire = {"name": name, "metadata": wire}
    if record.ended is None:
        return operation
    operation["done"] = True
    if record.state in ("failed", "expired"):
        problem = record.problem or "its answers were kept for a time, and that is over"
        return operation | {"error": {"code": 9, "message": problem}}
    return operation | {"response": {"@type": f"{_TYPE}{message}Output", **(output or {})}}


def _stats(record: BatchRecord) -> Wire:
    """Counts of nothing are left out, as Google does it; numbers of 64 bits are texts in its JSON."""
    counts = record.counts
    stats = {
        "requestCount": counts.total,
        "successfulRequestCount": counts.done,
        "failedRequestCount": counts.failed,
        "pendingRequestCount": counts.total - counts.done - counts.failed,
    }
    return {name: str(count) for name, count in stats.items() if count}


def check_answered(record: BatchRecord) -> None:
    """Raises NotFoundError: it has no answers."""
    if record.state not in ANSWERED:
        raise NotFoundError("this batch has no answers yet, or no longer", where=f"batches/{record.id}")


def result_lines(studio: Studio, record: BatchRecord) -> Iterator[bytes]:
    """The lines of the file of a batch's answers, in the order of its requests, one in memory at a time."""
    for result in studio.batches.results(record.id):
        keyed = {"key": result.key} if result.key is not None else {}
        yield f"{dumps(keyed | _answer(result))}\n".encode()


def _inlined(record: BatchRecord, results: Iterable[ItemResult]) -> list[Wire]:
    given = record.metadata["inline"]
    return [
        _answer(result) | ({"metadata": given[result.number]} if given[result.number] else {})
        for result in results
    ]


def _answer(result: ItemResult) -> Wire:
    if result.answer is not None:
        return result.answer
    return {"error": {"code": 1, "message": "The batch was cancelled before this request was answered."}}


# --- what is asked ----------------------------------------------------------------------------------------


async def _create(studio: Studio, who: Caller, kind: str, model: str, batch: Mapping[str, Any]) -> Wire:
    config = batch.get("inputConfig", {})
    inline, file = config.get("requests", {}).get("requests", []), config.get("fileName")
    if bool(inline) == bool(file):
        raise InvalidRequestError(
            "either requests or a file of them are wanted", where="batch.input_config",
            remedy="Give requests.requests or fileName.",
        )  # fmt: skip
    if batch.get("model") and names.model(batch["model"]) != model:
        raise InvalidRequestError("the batch names another model than the path", where="batch.model")
    asked: Wire = {"owner": who.key_id, "kind": kind, "model": model, "title": batch.get("displayName", "")}
    if inline:
        items: Items = _inline_items(kind, model, inline)
        asked["metadata"] = {"inline": [request.get("metadata", {}) for request in inline]}
        items = await asyncio.to_thread(list, items)
    else:
        items, asked["metadata"] = await _file_items(studio, who, model, file)
        asked["lifetime"] = FILES
    return told(await studio.batches.create(**asked, items=items))


def _inline_items(kind: str, model: str, requests: list[Wire]) -> Items:
    """Each is looked at now: who sent it is still there to be told what is wrong with it."""
    check = check_content if kind == CONTENT else check_embedding
    for number, asked in enumerate(requests):
        where = f"batch.input_config.requests.requests[{number}].request"
        body = asked.get("request")
        if not body:
            raise InvalidRequestError("no request", where=where)
        body = {**body, "model": body.get("model") or f"models/{model}"}
        try:
            check(body, model)
        except InvalidRequestError as error:
            inner = f"{where}.{error.where}" if error.where else where
            raise InvalidRequestError(error.message, where=inner, remedy=error.remedy) from error
        yield None, body


async def _file_items(studio: Studio, who: Caller, model: str, name: str) -> tuple[Items, Wire]:
    """What is wrong within one line's request becomes the answer to that line."""
    own = names.file(name)
    if own is None:
        raise InvalidRequestError(
            "no name of an uploaded file", where="batch.input_config.file_name", remedy="Say files/ID."
        )
    record = await asyncio.to_thread(studio.files.get, own, owner=who.key_id)
    lines = read_lines(studio.files.path(record.id))
    return (_item(number, line, model) for number, line in lines), {"file": f"files/{own}"}


def _item(number: int, line: Wire, model: str) -> tuple[str | None, Wire]:
    key, body = line.get("key"), line.get("request")
    if (key is not None and not isinstance(key, str)) or not isinstance(body, dict):
        raise InvalidRequestError(
            "not a request of a batch",
            where=f"line {number}",
            remedy='Write {"key": TEXT, "request": {...}}.',
        )
    if unknown := sorted(line.keys() - {"key", "request"}):
        raise InvalidRequestError(f"unknown: {unknown[0][:100]!r}", where=f"line {number}")
    return key, {**body, "model": body.get("model") or f"models/{model}"}


async def _own(studio: Studio, who: Caller, name: str) -> BatchRecord:
    record = await studio.batches.get(name, who.key_id)
    if record.kind not in _MESSAGES:
        raise NotFoundError("this batch was made by another API", where=f"batches/{name}")
    return record


async def _batches_of(studio: Studio, who: Caller, number: int, after: str | None) -> list[BatchRecord]:
    """The next of this API's; those of the other are passed over."""
    found: list[BatchRecord] = []
    while len(found) < number:
        some = await studio.batches.page(who.key_id, number, after)
        found += [record for record in some if record.kind in _MESSAGES]
        if len(some) < number:
            break
        after = some[-1].id
    return found[:number]

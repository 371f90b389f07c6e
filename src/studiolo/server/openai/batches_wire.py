"""The wire form of batches and the lines of their files (https://platform.openai.com/docs/api-reference/batch)."""

from __future__ import annotations

import json
from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass
from datetime import datetime, timedelta
from pathlib import Path
from typing import Annotated, Any, Literal

from pydantic import Field, StringConstraints

from studiolo.errors import StudioloError
from studiolo.jobs.items import BatchRecord, ItemResult
from studiolo.language.conversation import Usage
from studiolo.language.errors import InvalidRequestError
from studiolo.server.bodies import json_object
from studiolo.server.errors import told
from studiolo.server.openai.batches_kept import KeptBatch
from studiolo.server.openai.errors import code_of
from studiolo.server.openai.files import ExpiresAfter
from studiolo.server.openai.wire import Wire, emulated, read

JSON = dict[str, Any]
Metadata = Annotated[
    dict[Annotated[str, StringConstraints(max_length=64)], Annotated[str, StringConstraints(max_length=512)]],
    Field(max_length=16),
]
Endpoint = Literal[
    "/v1/chat/completions",
    "/v1/responses",
    "/v1/embeddings",
    "/v1/images/generations",
    "/v1/images/edits",
]

MOST_LINES = 50_000
"""Requests of one batch, as with OpenAI."""
MOST_ERRORS = 100
"""Errors of an input file that are told of."""
_BYTE_ORDER_MARK = b"\xef\xbb\xbf"
WINDOW = timedelta(hours=24)


class BatchRequest(Wire):
    completion_window: Annotated[
        Literal["24h"], emulated("batches are done when there is room, and not ended when it is over")
    ]
    endpoint: Endpoint
    input_file_id: str
    metadata: Metadata | None = None
    output_expires_after: ExpiresAfter | None = None


class Line(Wire):
    """One line of an input file."""

    custom_id: Annotated[str, Field(min_length=1, max_length=512)]
    method: Literal["POST"]
    url: str
    body: dict[str, Any]


# --- the input file ---------------------------------------------------------------------------------------


@dataclass(frozen=True)
class Problem:
    """What is wrong with a line (from 1) of the input file, or with all of it."""

    line: int | None
    code: str
    message: str
    param: str | None = None

    @property
    def told(self) -> JSON:
        return {"code": self.code, "line": self.line, "message": self.message, "param": self.param}


@dataclass(frozen=True)
class Checked:
    """What a look through the input file has found; `models` in the order of their first lines."""

    problems: list[Problem]
    models: list[str]


def checked(
    path: Path, endpoint: str, check_model: Callable[[str], object], *, longest: int, deepest: int
) -> Checked:
    """Looks at every line. It waits for the disk.

    Args:
        check_model: raises StudioloError for a model that is not here.
        longest: bytes of one line.
        deepest: levels of its JSON.
    """
    problems: list[Problem] = []
    seen: dict[str, int] = {}
    models: dict[str, StudioloError | None] = {}
    for number, data in _lines(path, longest):
        if len(problems) >= MOST_ERRORS:
            break
        try:
            line = _line(data, number, endpoint, longest, deepest)
            if line.custom_id in seen:
                message = f"the custom_id {line.custom_id[:80]!r} is that of line {seen[line.custom_id]} too"
                raise _BadLineError("duplicate_custom_id", message, "custom_id")
            seen[line.custom_id] = number
            if len(seen) > MOST_LINES:
                raise _BadLineError("too_many_tasks", f"more than {MOST_LINES:,} requests", None)
            _check_model(line.body, models, check_model)
        except _BadLineError as bad:
            problems.append(Problem(number, bad.code, bad.message, bad.where))
            if bad.code in ("too_many_tasks", "line_too_long"):
                break
    if not seen and not problems:
        problems.append(Problem(None, "empty_file", "the input file has no requests"))
    return Checked(problems, list(models))


def items_of(path: Path, longest: int) -> Iterator[tuple[str, JSON]]:
    """Key and body of each line of a file that was checked, one in memory at a time."""
    for _, data in _lines(path, longest):
        line = json.loads(data.removeprefix(_BYTE_ORDER_MARK))
        yield line["custom_id"], line["body"]


class _BadLineError(StudioloError):
    def __init__(self, code: str, message: str, where: str | None) -> None:
        super().__init__(message, where=where)
        self.code = code


def _lines(path: Path, longest: int) -> Iterator[tuple[int, bytes]]:
    """Lines that are not empty, with their numbers from 1; of one that is too long its beginning."""
    with path.open("rb") as file:
        number = 0
        while line := file.readline(longest + 1):
            number += 1
            if line.strip():
                yield number, line


def _line(data: bytes, number: int, endpoint: str, longest: int, deepest: int) -> Line:
    if len(data) > longest:
        raise _BadLineError("line_too_long", f"a line has at most {longest:,} bytes", None)
    if number == 1:
        data = data.removeprefix(_BYTE_ORDER_MARK)
    try:
        value = json_object(data, deepest, "the line")
    except InvalidRequestError as error:
        raise _BadLineError("invalid_json_line", error.message, None) from None
    try:
        line = read(Line, value)
    except InvalidRequestError as error:
        raise _BadLineError("invalid_request", error.message, error.where) from None
    if not line.custom_id.isprintable():
        raise _BadLineError("invalid_custom_id", "a custom_id has no control characters", "custom_id")
    if line.url != endpoint:
        message = f"the url {line.url[:80]!r} is not the batch's endpoint, {endpoint}"
        raise _BadLineError("invalid_url", message, "url")
    return line


def _check_model(body: JSON, models: dict[str, StudioloError | None], check: Callable[[str], object]) -> None:
    model = body.get("model")
    if not isinstance(model, str) or not model:
        raise _BadLineError("missing_required_parameter", "missing: this parameter is required", "body.model")
    if model not in models:
        models[model] = None
        try:
            check(model)
        except StudioloError as error:
            models[model] = error
    if (refused := models[model]) is not None:
        raise _BadLineError(code_of(told(refused)) or "invalid_model", told(refused).text, "body.model")


# --- the files of results ---------------------------------------------------------------------------------


def output_lines(identity: str, results: Iterable[ItemResult]) -> Iterator[bytes]:
    """The lines of the output file: requests that were answered."""
    for result in results:
        if result.answer is not None and not result.failed:
            yield _result(identity, result, response=result.answer["response"], error=None)


def error_lines(identity: str, results: Iterable[ItemResult], *, left: str) -> Iterator[bytes]:
    """The lines of the error file: requests that failed, and those that were not begun.

    Args:
        left: why some were not begun, as a code.
    """
    for result in results:
        if result.answer is None:
            error = {"code": left, "message": "This request was not executed before the batch ended."}
            yield _result(identity, result, response=None, error=error)
        elif result.failed:
            yield _result(identity, result, response=result.answer["error"], error=None)


def _result(identity: str, result: ItemResult, *, response: JSON | None, error: JSON | None) -> bytes:
    line = {
        "id": f"batch_req_{identity.removeprefix('batch_')}_{result.number}",
        "custom_id": result.key,
        "response": response,
        "error": error,
    }
    return json.dumps(line, ensure_ascii=False).encode() + b"\n"


# --- the batch --------------------------------------------------------------------------------------------


def batch_of(kept: KeptBatch, job: BatchRecord | None) -> JSON:
    """The wire form of a batch.

    Args:
        job: what carries it; None where its input file was refused.
    """
    status = status_of(kept, job)
    ended = _stamp(job.ended if job else kept.created)
    counts = job.counts if job else None
    return {
        "id": kept.id,
        "object": "batch",
        "endpoint": kept.endpoint,
        "model": (job.model or None) if job else None,
        "errors": None if kept.errors is None else {"object": "list", "data": kept.errors},
        "input_file_id": kept.input,
        "completion_window": "24h",
        "status": status,
        "output_file_id": kept.output,
        "error_file_id": kept.failures,
        "created_at": _stamp(kept.created),
        "in_progress_at": _stamp(job.started) if job else None,
        "expires_at": _stamp(kept.created + WINDOW),
        "finalizing_at": ended if kept.final == "completed" else None,
        "completed_at": ended if kept.final == "completed" else None,
        "failed_at": ended if status == "failed" else None,
        "expired_at": ended if status == "expired" else None,
        "cancelling_at": _stamp(kept.cancelling),
        "cancelled_at": ended if status == "cancelled" else None,
        "request_counts": {
            "total": counts.total if counts else 0,
            "completed": counts.done if counts else 0,
            "failed": counts.failed if counts else 0,
        },
        "usage": usage_of(job.usage) if job else None,
        "metadata": kept.metadata,
    }


def status_of(kept: KeptBatch, job: BatchRecord | None) -> str:
    """OpenAI's word for where it stands."""
    if kept.final is not None or job is None:
        return kept.final or "failed"
    match job.state:
        case "queued":
            return "validating"
        case "running":
            return "in_progress"
        case "succeeded":
            return "finalizing"
        case "cancelled":
            return "cancelling"
        case state:
            return state


def usage_of(usage: Usage) -> JSON:
    """Tokens of all requests together."""
    output = usage.answer + usage.thoughts + usage.summaries
    return {
        "input_tokens": usage.prompt,
        "input_tokens_details": {"cached_tokens": usage.cached},
        "output_tokens": output,
        "output_tokens_details": {"reasoning_tokens": usage.thoughts + usage.summaries},
        "total_tokens": usage.prompt + output,
    }


def _stamp(moment: datetime | None) -> int | None:
    return None if moment is None else int(moment.timestamp())

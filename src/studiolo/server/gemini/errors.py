"""What went wrong, in Google's envelope (https://cloud.google.com/apis/design/errors)."""

from __future__ import annotations

import re
from collections.abc import Iterator
from typing import Any

from starlette.responses import JSONResponse, Response

from studiolo.server.errors import Told
from studiolo.server.sse import Event

_STATUS = {
    400: "INVALID_ARGUMENT", 401: "UNAUTHENTICATED", 403: "PERMISSION_DENIED", 404: "NOT_FOUND",
    405: "UNIMPLEMENTED",
    409: "ABORTED", 413: "INVALID_ARGUMENT", 429: "RESOURCE_EXHAUSTED", 499: "CANCELLED", 500: "INTERNAL",
    501: "UNIMPLEMENTED", 502: "UNAVAILABLE", 503: "UNAVAILABLE", 504: "DEADLINE_EXCEEDED",
}  # fmt: skip

# Where a request is wrong in the conversation's own names, and what the wire calls that; the first that fits.
_PLACES = (
    (re.compile(r"config\.format(\.rule)?"), "generation_config.response_schema"),
    (re.compile(r"config\.thinking"), "generation_config.thinking_config"),
    (re.compile(r"config\.modalities"), "generation_config.response_modalities"),
    (re.compile(r"config\.logprobs"), "generation_config.response_logprobs"),
    (re.compile(r"config\.stop"), "generation_config.stop_sequences"),
    (re.compile(r"config\.candidates"), "generation_config.candidate_count"),
    (re.compile(r"config\.max_tokens"), "generation_config.max_output_tokens"),
    (re.compile(r"config\."), "generation_config."),
    (re.compile(r"tool_choice\.allowed"), "tool_config.function_calling_config.allowed_function_names"),
    (re.compile(r"tool_choice"), "tool_config.function_calling_config"),
    (re.compile(r"cache="), "cached_content="),
    (re.compile(r"cache$"), "cached_content"),
    (re.compile(r"safety$"), "safety_settings"),
)


def envelope(told: Told) -> Response:
    """The answer that tells it; `app` adds the headers."""
    return JSONResponse(error_of(told), told.status)


def broken(told: Told) -> Iterator[Event]:
    """What a stream says that breaks off."""
    yield Event(error_of(told))


def error_of(told: Told) -> dict[str, Any]:
    """The object with its key `error`."""
    where = None if told.where is None else _in_wire_names(told.where)
    error: dict[str, Any] = {
        "code": told.status,
        "message": _message(told, where),
        "status": _STATUS.get(told.status) or ("INVALID_ARGUMENT" if told.status < 500 else "INTERNAL"),
    }
    if details := list(_details(told, where)):
        error["details"] = details
    return {"error": error}


def _message(told: Told, where: str | None) -> str:
    """With where and what to do, unless Google's words have said it already."""
    text = told.message if where is None or where in told.message else f"{where}: {told.message}"
    if told.remedy is None:
        return text
    return f"{text if text.endswith(('.', '!', '?')) else text + '.'} {told.remedy}"


def _in_wire_names(where: str) -> str:
    for pattern, name in _PLACES:
        if found := pattern.match(where):
            return name + where[found.end() :]
    return where


def _field_of(description: str) -> str | None:
    """The field that one of several descriptions is about (see `reading`)."""
    found = re.search(r"(?:^| at )'([\w.$\[\]]+)'", description)
    return found[1] if found else None


def _details(told: Told, where: str | None) -> Iterator[dict[str, Any]]:
    kind = "type.googleapis.com/google.rpc."
    if told.status == 400 and where:
        lines = told.message.split("\n")
        violations = [{"field": _field_of(line) or where, "description": line} for line in lines]
        yield {"@type": f"{kind}BadRequest", "fieldViolations": violations}
    if told.kind == "unauthenticated":
        yield {"@type": f"{kind}ErrorInfo", "reason": "API_KEY_INVALID", "domain": "googleapis.com"}
    if told.retry_after is not None:
        yield {
            "@type": f"{kind}RetryInfo",
            "retryDelay": f"{max(0.0, told.retry_after):.3f}".rstrip("0").rstrip(".") + "s",
        }

"""What went wrong, in OpenAI's envelope (https://platform.openai.com/docs/guides/error-codes)."""

from __future__ import annotations

from typing import Any

from starlette.responses import JSONResponse, Response

from studiolo.errors import StudioloError
from studiolo.language.errors import TooLongError, UnknownModelError
from studiolo.models.registry import NoSuchModelError
from studiolo.server.errors import KeyRefusedError, Kind, NotPermittedError, Told

_TYPES: dict[Kind, str] = {
    "invalid": "invalid_request_error",
    "unauthenticated": "invalid_request_error",
    "permission": "invalid_request_error",
    "not_found": "invalid_request_error",
    "rate_limit": "rate_limit_error",
    "unsupported": "invalid_request_error",
    "conflict": "invalid_request_error",
    "too_large": "invalid_request_error",
    "upstream": "server_error",
    "unavailable": "server_error",
    "internal": "server_error",
    "cancelled": "invalid_request_error",
}
_CODES: dict[Kind, str] = {
    "not_found": "not_found",
    "rate_limit": "rate_limit_exceeded",
    "unsupported": "unsupported_value",
    "too_large": "request_too_large",
    "upstream": "upstream_error",
    "unavailable": "server_overloaded",
    "internal": "internal_error",
}
_CODES_OF_CAUSES: dict[type[StudioloError], str] = {
    UnknownModelError: "model_not_found",
    NoSuchModelError: "model_not_found",
    TooLongError: "context_length_exceeded",
    KeyRefusedError: "invalid_api_key",
    NotPermittedError: "permission_denied",
}


def envelope(told: Told) -> Response:
    """The answer that tells it; `app` adds the headers."""
    return JSONResponse({"error": error_of(told)}, told.status)


def error_of(told: Told) -> dict[str, Any]:
    """The object within the envelope, which is also what a stream says that breaks off."""
    return {
        "message": told.text,
        "type": _TYPES[told.kind],
        "param": _param(told),
        "code": code_of(told),
    }


def _param(told: Told) -> str | None:
    """The field at fault. Of a model that is none, `where` is its name."""
    if told.cause is not None and issubclass(told.cause, UnknownModelError):
        return "model"
    return None if told.where is None else told.where.removeprefix("query.")


def code_of(told: Told) -> str | None:
    """OpenAI's code, where there is one."""
    for cause, code in _CODES_OF_CAUSES.items():
        if told.cause is not None and issubclass(told.cause, cause):
            return code
    return _CODES.get(told.kind)

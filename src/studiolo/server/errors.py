"""From what went wrong to what a client is told: one table, before any dialect puts it in its own words."""

from __future__ import annotations

import asyncio
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, Literal

from fastapi.exceptions import RequestValidationError
from pydantic import ValidationError
from starlette.exceptions import HTTPException
from starlette.requests import ClientDisconnect

from studiolo.errors import ConflictError, NotFoundError, StudioloError, TooLargeError
from studiolo.language.errors import (
    AuthenticationError,
    InvalidRequestError,
    LanguageError,
    OverloadedError,
    RateLimitError,
    TimedOutError,
    UnknownContextError,
    UnknownModelError,
    UnsupportedError,
    UpstreamError,
)
from studiolo.models.registry import NoSuchModelError

Kind = Literal[
    "invalid", "unauthenticated", "permission", "not_found", "rate_limit", "unsupported", "conflict",
    "too_large", "upstream", "unavailable", "internal", "cancelled",
]  # fmt: skip


class KeyRefusedError(AuthenticationError):
    """A key is needed, and there is none, or it is unknown, expired or revoked (401)."""


class NotPermittedError(AuthenticationError):
    """The key is good, and may not do this (403)."""


class SpentError(RateLimitError):
    """The key has spent what it may for now (429). To ask again before the day or the month is over is in
    vain."""

    retry = False


class NotBuiltError(UnsupportedError):
    """A call that clients know and this server does not offer (501)."""


@dataclass(frozen=True)
class Told:
    """What a client is told. `status` is of HTTP, `retry_after` in seconds, `where` the field at fault,
    `cause` the kind of the error where it was one of ours."""

    status: int
    message: str
    where: str | None = None
    remedy: str | None = None
    retry_after: float | None = None
    kind: Kind = "internal"
    cause: type[StudioloError] | None = None

    @property
    def text(self) -> str:
        """All of it in one text, for envelopes that have room for no more."""
        text = self.message if self.where is None else f"{self.where}: {self.message}"
        return text if self.remedy is None else f"{_sentence(text)} {self.remedy}"

    @property
    def headers(self) -> dict[str, str]:
        """`retry-after` in whole seconds, rounded up, and `retry-after-ms`, which OpenAI's client prefers."""
        headers = {"www-authenticate": "Bearer"} if self.kind == "unauthenticated" else {}
        if self.retry_after is not None:
            milliseconds = max(0, round(self.retry_after * 1000))
            headers |= {"retry-after": str(-(-milliseconds // 1000)), "retry-after-ms": str(milliseconds)}
        return headers


# The first that fits: special kinds stand before those that they are kinds of.
_STATUS: tuple[tuple[type[BaseException], int, Kind], ...] = (
    (KeyRefusedError, 401, "unauthenticated"),
    (NotPermittedError, 403, "permission"),
    (NotFoundError, 404, "not_found"),
    (UnknownModelError, 404, "not_found"),
    (UnknownContextError, 404, "not_found"),
    (NoSuchModelError, 404, "not_found"),
    (ConflictError, 409, "conflict"),
    (TooLargeError, 413, "too_large"),
    (OverloadedError, 503, "unavailable"),
    (RateLimitError, 429, "rate_limit"),
    (TimedOutError, 504, "upstream"),
    (UpstreamError, 502, "upstream"),
    (NotBuiltError, 501, "unsupported"),
    (UnsupportedError, 400, "unsupported"),
    (InvalidRequestError, 400, "invalid"),
)
_OF_STATUS: dict[int, Kind] = {
    401: "unauthenticated", 403: "permission", 404: "not_found", 409: "conflict", 413: "too_large",
    429: "rate_limit", 501: "unsupported", 502: "upstream", 503: "unavailable", 504: "upstream",
}  # fmt: skip


def told(error: BaseException) -> Told:
    """What to tell of an error. Of one that nobody foresaw nothing is told but that it happened."""
    if isinstance(error, StudioloError):
        return _of_ours(error)
    if isinstance(error, ValidationError | RequestValidationError):
        return _of_validation(error)
    if isinstance(error, HTTPException):
        return _of_http(error)
    if isinstance(error, ClientDisconnect):  # which nobody reads but who looks at the log
        return Told(499, "the client went away", kind="cancelled")
    if isinstance(error, asyncio.CancelledError):
        return Told(503, "the server is stopping", remedy="Try again.", retry_after=1, kind="unavailable")
    return Told(500, "something went wrong in the server", remedy="Tell its operator the request id.")


def _of_ours(error: StudioloError) -> Told:
    if isinstance(error, AuthenticationError) and not isinstance(error, KeyRefusedError | NotPermittedError):
        # An upstream's, not this server's: the client can do nothing about that key.
        return Told(502, f"the upstream refused this server: {error.message}", error.where, kind="upstream")
    for kind, status, word in _STATUS:
        if isinstance(error, kind):
            after = getattr(error, "retry_after", None)
            return Told(status, error.message, _shown(error), error.remedy, after, word, type(error))
    if isinstance(error, LanguageError):
        return Told(500, error.message, _shown(error), error.remedy)
    return Told(400, error.message, _shown(error), error.remedy, kind="invalid")


def _of_validation(error: ValidationError | RequestValidationError) -> Told:
    found: Sequence[Any] = error.errors()
    first = found[0]
    where = ".".join(str(step) for step in first["loc"] if step != "body")
    more = f" (and {len(found) - 1} more)" if len(found) > 1 else ""
    return Told(400, f"{first['msg']}{more}", where or None, kind="invalid")


def _of_http(error: HTTPException) -> Told:
    kind = _OF_STATUS.get(error.status_code, "invalid" if error.status_code < 500 else "internal")
    return Told(error.status_code, str(error.detail), kind=kind)


def _shown(error: StudioloError) -> str | None:
    """Where it went wrong, unless that is a path on the server's disk."""
    return None if error.where is None or error.where.startswith(("/", "\\", "~")) else error.where


def _sentence(text: str) -> str:
    return text if text.endswith((".", "!", "?")) else f"{text}."

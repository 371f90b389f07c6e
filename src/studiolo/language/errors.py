"""What can go wrong between a request and its answer, in kinds that a caller can act on."""

from __future__ import annotations

from typing import Any

from studiolo.errors import StudioloError


class LanguageError(StudioloError):
    """Base of them. `retry` says whether the same request may succeed later or elsewhere."""

    retry = False


class InvalidRequestError(LanguageError):
    """The request contradicts itself or the model's limits (HTTP 400)."""


class UnsupportedError(InvalidRequestError):
    """The request is sound, but this model or engine cannot do it, and nothing is dropped in silence."""


class TooLongError(InvalidRequestError):
    """More tokens than the model reads at once."""


class AuthenticationError(LanguageError):
    """The key is missing, wrong, or not allowed to do this (401, 403)."""


class UnknownModelError(LanguageError):
    """No model of this name (404)."""


class UnknownContextError(LanguageError):
    """No explicit context of this name, or it has expired (404)."""


class RateLimitError(LanguageError):
    """Too much at once (429). `retry_after` is in seconds, when the other side named it."""

    retry = True

    def __init__(self, message: str, *, retry_after: float | None = None, **told: Any) -> None:
        super().__init__(message, **told)
        self.retry_after = retry_after


class OverloadedError(RateLimitError):
    """The queue is full or the upstream is down for now (503)."""


class UpstreamError(LanguageError):
    """The other side failed, or said something that its own protocol does not allow (502)."""

    retry = True


class TimedOutError(UpstreamError):
    """It did not answer in time (504)."""

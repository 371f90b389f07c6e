"""What llama.cpp's server tells of an error, as one of our kinds."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from studiolo.language.errors import (
    InvalidRequestError,
    LanguageError,
    OverloadedError,
    TooLongError,
    UnsupportedError,
    UpstreamError,
)

_KINDS: dict[str, type[LanguageError]] = {
    "invalid_request_error": InvalidRequestError,
    "exceed_context_size_error": TooLongError,
    "not_supported_error": UnsupportedError,
    "unavailable_error": OverloadedError,
}


def error_of(told: Mapping[str, Any]) -> LanguageError:
    """The server's {"code", "message", "type"} as one of our kinds."""
    message = str(told.get("message", told))
    if "too large to process" in message:  # a text to embed; called a server error
        return TooLongError(f"a text is longer than the context: {message}", remedy="Shorten it.")
    if "failed to parse grammar" in message:
        return UnsupportedError("this grammar cannot be read", remedy="See llama.cpp's grammars/README.md.")
    return _KINDS.get(str(told.get("type")), UpstreamError)(f"the engine refused or failed: {message}")

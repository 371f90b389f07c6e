"""The resource names of the Gemini dialect, and the plain names behind them."""

from __future__ import annotations

import re

from studiolo.language.errors import UnknownContextError

_MODEL = re.compile(
    r"(?:projects/[^/]+/locations/[^/]+/)?(?:publishers/google/)?(?:models/|tunedModels/)?(?P<name>.+)",
    re.DOTALL,
)
_CACHED = re.compile(r"(?:projects/[^/]+/locations/[^/]+/)?cachedContents/(?P<id>[^/]+)", re.DOTALL)


def model(resource: str) -> str:
    """The model's name: `models/x`, `tunedModels/x`, `publishers/google/models/x`, with a project before it
    or not, and `x` itself are `x`."""
    found = _MODEL.fullmatch(resource)
    return found["name"] if found else resource


def cached_content(resource: str) -> str:
    """The context's name behind `cachedContents/ID`, with a project before it or not.

    Raises:
        UnknownContextError: it is no such name.
    """
    found = _CACHED.fullmatch(resource)
    if found is None:
        raise UnknownContextError(
            "no name of a cached content", where="cached_content", remedy="Say cachedContents/ID."
        )
    return found["id"]

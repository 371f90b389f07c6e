"""The resource names of the Gemini dialect, and the plain names behind them."""

from __future__ import annotations

import re

from studiolo.language.errors import UnknownContextError

_MODEL = re.compile(
    r"(?:projects/[^/]+/locations/[^/]+/)?(?:publishers/google/)?(?:models/|tunedModels/)?(?P<name>.+)",
    re.DOTALL,
)
_CACHED = re.compile(r"(?:projects/[^/]+/locations/[^/]+/)?cachedContents/(?P<id>[^/]+)", re.DOTALL)
# One at Google is for Google's models.
_FILE = re.compile(
    r"(?:https?://(?!generativelanguage\.googleapis\.com)[^/]+(?:/gemini)?/v1[a-z0-9]*/)?files/(?P<id>[^/:?#]+)"
)
_RESULTS = "batch-"


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


def file(resource: str) -> str | None:
    """The id behind `files/ID`, or behind the address of such a file at this server or one before it;
    None: it is a file somewhere else."""
    found = _FILE.fullmatch(resource)
    return found["id"] if found else None


def results(batch: str) -> str:
    """The name of the file of a batch's results."""
    return f"{_RESULTS}{batch}"


def batch_of_results(file: str) -> str | None:
    """The batch whose results a file has; None: it is another file."""
    return file.removeprefix(_RESULTS) if file.startswith(_RESULTS) else None

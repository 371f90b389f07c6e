"""Which dialect a request speaks, and the one path under which it is answered.

Both APIs own `/v1/models`, `/v1/files` and `/v1/batches`. What a path does not tell, the credential does:
Google's clients send `x-goog-api-key` and `x-goog-api-client`, or `?key=`; OpenAI's a bearer token.

Every path comes down to one: `/gemini/v1beta/...` or `/openai/v1/...`, which may also be asked for as such.
"""

from __future__ import annotations

import re
from dataclasses import dataclass
from typing import Literal
from urllib.parse import parse_qs

from starlette.datastructures import Headers
from starlette.types import ASGIApp, Receive, Scope, Send

Dialect = Literal["gemini", "openai"]
GEMINI, OPENAI = "/gemini/v1beta", "/openai/v1"

_VERSION = re.compile(r"/(upload/|download/)?(v1beta1|v1beta|v1alpha|v1)(?=/|$)")
_VERB = re.compile(r":[a-zA-Z]+$")
_OPENAI_ONLY = {
    "chat", "completions", "responses", "embeddings", "images", "audio", "fine_tuning", "uploads",
    "moderations", "conversations", "vector_stores",
}  # fmt: skip
_GEMINI_ONLY = {
    "cachedContents", "tunedModels", "tuningJobs", "publishers", "projects", "operations", "interactions",
    "batchPredictionJobs", "corpora", "fileSearchStores",
}  # fmt: skip


@dataclass(frozen=True)
class Way:
    """`path` is where it is answered, `version` what the client wrote."""

    dialect: Dialect
    path: str
    version: str


def way_of(path: str, headers: Headers, query: str) -> Way | None:
    """Where a request belongs; None for what is no dialect's (health, metrics, pages)."""
    for base in ("/openai", "/gemini"):
        if path == base or path.startswith(base + "/"):
            return _within("openai" if base == "/openai" else "gemini", path.removeprefix(base))
    found = _VERSION.match(path)
    if found is None:
        return None
    if found[1] or found[2] != "v1" or _speaks_gemini(path[found.end() + 1 :], headers, query):
        return _within("gemini", path)
    return _within("openai", path)


def _within(dialect: Dialect, path: str) -> Way:
    """`path` begins with the version, or the version may be left out."""
    found = _VERSION.match(path)
    kind, version = (found[1] or "", found[2]) if found else ("", "v1" if dialect == "openai" else "v1beta")
    rest = path[found.end() :] if found else path
    if dialect == "openai":
        return Way(dialect, OPENAI + rest, version)
    return Way(dialect, f"{GEMINI}{'/' + kind.rstrip('/') if kind else ''}{rest}", version)


def _speaks_gemini(rest: str, headers: Headers, query: str) -> bool:
    root = rest.partition("/")[0]
    if root in _OPENAI_ONLY:
        return False
    if root in _GEMINI_ONLY or (root in ("models", "batches", "files") and _VERB.search(rest)):
        return True
    return "x-goog-api-key" in headers or "x-goog-api-client" in headers or "key" in parse_qs(query)


class Dialects:
    """Gives every request its dialect (`request.state.dialect`, `.version`) and its one path."""

    def __init__(self, app: ASGIApp) -> None:
        self.app = app

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] == "http":
            way = way_of(scope["path"], Headers(scope=scope), scope["query_string"].decode("latin-1"))
            if way is not None:
                scope["state"] |= {"dialect": way.dialect, "version": way.version}
                scope["path"] = way.path
                scope["raw_path"] = way.path.encode()
        await self.app(scope, receive, send)

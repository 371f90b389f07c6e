"""Who calls, by the key that came with the request."""

from __future__ import annotations

from dataclasses import dataclass

from starlette.requests import Request

from studiolo.server.studio import studio_of


@dataclass(frozen=True)
class Caller:
    """Who calls. `key_id` is None for whoever calls over loopback without a key: the owner of what is there
    without one."""

    key_id: str | None
    name: str


NOBODY = Caller(None, "loopback")


def key_of(request: Request) -> str | None:
    """The key of a request: Google's header or `?key=`, or OpenAI's bearer token."""
    scheme, _, token = request.headers.get("authorization", "").partition(" ")
    bearer = token.strip() if scheme.lower() == "bearer" else None
    return request.headers.get("x-goog-api-key") or bearer or request.query_params.get("key") or None


async def caller(request: Request) -> Caller:
    """Who calls; a dependency of every route but those of the operator.

    Raises:
        KeyRefusedError: a key is needed, and this is none.
        RateLimitError: more than this key may now.
    """
    return await studio_of(request).keys.admit(key_of(request), request)

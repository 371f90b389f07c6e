"""Who calls, by the key that came with the request."""

from __future__ import annotations

from contextlib import ExitStack

from starlette.requests import Request

from studiolo.server.limits import NOBODY, Caller
from studiolo.server.logs import entry_of
from studiolo.server.pages import check_page
from studiolo.server.studio import studio_behind

__all__ = ["NOBODY", "Caller", "caller", "key_of"]


def key_of(request: Request) -> str | None:
    """The key of a request: Google's header, OpenAI's bearer token, or `?key=`."""
    scheme, _, token = request.headers.get("authorization", "").partition(" ")
    bearer = token.strip() if scheme.lower() == "bearer" else None
    return request.headers.get("x-goog-api-key") or bearer or request.query_params.get("key") or None


async def caller(request: Request) -> Caller:
    """Who calls; a dependency of every route but those of the operator.

    The request counts against the key's limits until its answer has gone out, or its client has.

    Raises:
        KeyRefusedError: a key is needed and there is none, or it is unknown, expired or revoked.
        NotPermittedError: a web page calls that may not (see `pages`), and it has no key of ours.
        RateLimitError: this key has had, or has running, all that it may.
    """
    entry = entry_of(request.scope)
    if entry.caller is None:
        who, leave = await studio_behind(request).keys.admit(key_of(request))
        if who.key_id is None:
            check_page(request)
        entry.caller = who
        entry.at_end.append(leave)
        if request.method == "POST":  # while somebody waits for an answer, background work does not begin
            place = ExitStack()
            place.enter_context(studio_behind(request).room.interactive())
            entry.at_end.append(place.close)
    return entry.caller

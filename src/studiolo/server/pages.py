"""Which web pages may have this server work for them, where it asks nobody for a key.

Any page that somebody looks at can send requests from their machine to this one. What it sends is told by two
headers that no page can set itself: `Origin`, whose page it is, and `Host`, by what name it called. A page of
another origin is one that `--cors` must name. And a page whose own name was made to mean this machine (DNS
rebinding) has, for its browser, the server's own origin; the name that it called gives it away.
"""

from __future__ import annotations

import re
from collections.abc import Iterable

from starlette.requests import Request

from studiolo.server.errors import NotPermittedError
from studiolo.server.settings import is_loopback
from studiolo.server.studio import studio_behind

ANY = "*"
_HOST = re.compile(r"(?:\[([0-9A-Fa-f:.]+)\]|([^\[\]:\s]+))(?::\d{1,5})?")
_SHOWN = 200


def check_page(request: Request) -> None:
    """Refuses requests that only a page from elsewhere sends; those that come from no page are let in.

    Browsers keep answers from pages of other origins, and yet send what a form could send: a page could have
    this machine work for it blindly. From a page under a name of its own they keep nothing.

    Raises:
        NotPermittedError: it called by a name that is not this server's, or is of an origin that may not.
    """
    settings = studio_behind(request).settings
    if ANY in settings.cors:  # every page may: there is nothing that a name would keep from it
        return
    host, origin = request.headers.get("host"), request.headers.get("origin")
    if host is not None and not is_known(host, settings.hosts):
        raise NotPermittedError(
            "this server does not answer to this name",
            where=f"Host: {host[:_SHOWN]}",
            remedy="Call it as localhost or 127.0.0.1, start it with --allow-host and this name,"
            " or send a key of its own.",
        )
    if origin is None or origin in settings.cors or origin.partition("://")[2] == host:
        return
    raise NotPermittedError(
        "pages of this origin may not call this server",
        where=origin[:_SHOWN],
        remedy="Start the server with --cors and this origin, or send a key of its own.",
    )


def is_known(host: str, names: Iterable[str]) -> bool:
    """Whether a `Host` header, `NAME` or `NAME:PORT`, is one of `names`, or means this machine to everybody:
    localhost, 127.0.0.0/8 and [::1]. These no name server can give another meaning."""
    found = _HOST.fullmatch(host)
    if found is None:
        return False
    name = (found[1] or found[2]).lower().removesuffix(".")
    return is_loopback(name) or any(known in (ANY, name) for known in map(str.lower, names))

"""All that the routes answer from."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from starlette.requests import Request

from studiolo.language.caching.contexts import Contexts
from studiolo.language.conversation import Usage
from studiolo.server.pool import EnginePool
from studiolo.server.settings import Settings

if TYPE_CHECKING:
    from studiolo.server.auth import Caller
    from studiolo.server.keys import Keys


@dataclass
class Studio:
    """The rooms behind the server; lives in `app.state.studio`."""

    settings: Settings
    engines: EnginePool
    contexts: Contexts
    keys: Keys
    files: Any = None
    batches: Any = None
    tunings: Any = None
    artist: Any = None

    def contexts_of(self, owner: str | None) -> Contexts:
        """The explicit contexts of one key; those of whoever needs none for None."""
        return self.contexts if owner is None else Contexts(self.contexts.folder / "keys" / owner)

    async def account(self, caller: Caller, model: str, usage: Usage, *, batch: bool = False) -> float:
        """Writes down what a request took: for the key's limits, the access log and the metrics.

        Call it once an answer, when its usage is known, also when the client has gone by then.

        Returns:
            its price in US dollars; 0 for models without one.
        """
        dollars = 0.0
        await self.keys.spent(caller, model, usage, dollars, batch=batch)
        return dollars

    async def close(self) -> None:
        await self.engines.close()


def studio_of(request: Request) -> Studio:
    """The studio behind the server that was asked; a dependency."""
    studio = request.app.state.studio
    assert isinstance(studio, Studio)
    return studio

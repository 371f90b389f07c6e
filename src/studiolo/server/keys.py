"""Keys: who may call, how much, and what they have spent."""

from __future__ import annotations

from typing import TYPE_CHECKING

from starlette.requests import Request

from studiolo.language.conversation import Usage

if TYPE_CHECKING:
    from studiolo.server.auth import Caller


class Keys:
    """For now nobody needs one."""

    async def admit(self, key: str | None, request: Request) -> Caller:
        from studiolo.server.auth import NOBODY

        return NOBODY

    async def spent(
        self, caller: Caller, model: str, usage: Usage, dollars: float, *, batch: bool = False
    ) -> None:
        """Writes down what a request took."""

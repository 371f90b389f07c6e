"""What goes before the contents of a request, and what is told of one that is kept."""

from __future__ import annotations

from datetime import datetime

from studiolo.language.conversation import Content, Request, Tool, ToolChoice, Value
from studiolo.language.errors import InvalidRequestError


class Prefix(Value):
    """What goes before the contents of a request."""

    contents: tuple[Content, ...] = ()
    system: str | None = None
    tools: tuple[Tool, ...] = ()
    tool_choice: ToolChoice = ToolChoice()

    def before(self, request: Request) -> Request:
        """`request` with this before its own contents.

        Raises:
            InvalidRequestError: the request has a system text, tools or a tool choice of its own.
        """
        own = {
            "system": request.system is not None,
            "tools": bool(request.tools),
            "tool_choice": request.tool_choice != ToolChoice(),
        }
        if contradicting := [name for name, is_set in own.items() if is_set]:
            raise InvalidRequestError(
                f"a request that uses a context has no {', '.join(contradicting)} of its own",
                where=f"cache={request.cache}" if request.cache else None,
                remedy="Leave them out, or create a context with them.",
            )
        update = {name: getattr(self, name) for name in own}
        contents = self.contents + request.contents
        return request.model_copy(update={**update, "contents": contents, "cache": None})


class Context(Value):
    """What is told of a context; the prefix itself is not.

    Attributes:
        tokens: of the prefix, as the engine counted them.
        size: bytes of the prefix as JSON.
    """

    name: str
    model: str
    title: str = ""
    created: datetime
    updated: datetime
    expires: datetime
    tokens: int
    size: int

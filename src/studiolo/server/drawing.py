"""The assistant draws: a chat model is offered a function that makes pictures of one subject.

Its call is not the client's to answer: the picture is drawn here and comes back within the same answer, as a
part of it, and the model goes on behind it. The prompt is held to a pattern with the subject in it, so that
also a small model writes one that can be drawn.
"""

from __future__ import annotations

import re
from collections.abc import AsyncGenerator, Awaitable, Callable, Sequence
from contextlib import aclosing
from dataclasses import dataclass

from studiolo.language.conversation import (
    Call,
    CallResult,
    Content,
    Data,
    Delta,
    FinishReason,
    Part,
    Request,
    Role,
    Text,
    Tool,
    ToolChoice,
    ToolMode,
    Usage,
    user,
)
from studiolo.language.engines.around import Around
from studiolo.language.engines.base import Engine
from studiolo.language.errors import UnsupportedError

DRAW = "draw_picture"
MOST_PICTURES = 4
"""Pictures of one answer; a small model may not know where to end."""

_PLACE = r"(on|in|at|beside|under|with|wearing) (a |the )?[a-z]{2,14}( [a-z]{2,14}){0,4}"
"""Short, for a small model that may go on for ever goes round in circles."""

Draw = Callable[[str], Awaitable[bytes]]
"""Makes the PNG file of a prompt."""


@dataclass(frozen=True)
class Subject:
    """What can be drawn.

    Attributes:
        name: of the drawing model.
        noun: the class of the subject it was taught, or None: it draws whatever it knows.
    """

    name: str
    noun: str | None
    draw: Draw

    @property
    def tool(self) -> Tool:
        """The function as it is told to the chat model."""
        about, pattern = "Draws a picture.", r"^[^\[\]\n]{3,200}$"
        if self.noun is not None:
            about = f"Draws a picture of {self.name}, a {self.noun}."
            subject = f"[V] {self.noun}"
            pattern = rf"^a (photo|drawing|picture) of {re.escape(subject)} {_PLACE}$"
        return Tool(
            name=DRAW,
            description=f"{about} The prompt says what is to be seen, and where.",
            parameters={
                "type": "object",
                "properties": {"prompt": {"type": "string", "pattern": pattern}},
                "required": ["prompt"],
                "additionalProperties": False,
            },
        )


class Drawing(Around):
    """An `Engine` whose answers may hold pictures (`Data`, image/png).

    Asked for pictures (`config.modalities` with "image") it draws one before it speaks, and speaks only if it
    is asked for text as well; otherwise it is the model's choice. `Usage` is the sum of all rounds.
    """

    def __init__(self, engine: Engine, subject: Subject) -> None:
        super().__init__(engine)
        self._subject = subject

    async def generate(self, request: Request) -> AsyncGenerator[Delta]:
        """As of any engine.

        Raises:
            UnsupportedError: several candidates; a client's function of the name of ours.
        """
        self._check(request)
        wanted = "image" in request.config.modalities
        round_ = _Round(self._inner(request, forced=wanted), Usage(), MOST_PICTURES)
        while True:
            async with aclosing(self._round(round_)) as stream:
                async for delta in stream:
                    yield delta
            if not round_.drawn or round_.finished:
                return
            last = request.config.modalities == ("image",)
            if last:
                yield Delta(finish=FinishReason.STOP, usage=round_.usage, model=self.model)
                return
            round_ = self._next(round_, may_draw=not wanted and round_.left > 0)

    async def count_tokens(self, request: Request) -> int:
        return await self.engine.count_tokens(self._inner(request, forced=False))

    # --- one round with the model

    async def _round(self, round_: _Round) -> AsyncGenerator[Delta]:
        """What the model says; its calls for pictures are drawn. What ends the round waits for that."""
        async with aclosing(self.engine.generate(round_.request)) as stream:
            async for delta in stream:
                if isinstance(delta.part, Call) and delta.part.name == DRAW:
                    round_.drawn.append(delta.part)
                    delta = delta.model_copy(update={"part": None})
                elif delta.part is not None:
                    round_.said.append(delta.part)
                    round_.calls |= isinstance(delta.part, Call)
                if delta.usage:
                    round_.usage += delta.usage
                if delta.finish or delta.blocked:
                    round_.last = delta.model_copy(update={"part": None, "logprobs": ()})
                said = Delta(part=delta.part, logprobs=delta.logprobs, notes=delta.notes, model=delta.model)
                if said.part or said.logprobs or (said.notes and not delta.finish):
                    yield said
        if len(round_.drawn) > round_.left:
            yield Delta(notes=(f"an answer has at most {MOST_PICTURES} pictures",), model=self.model)
            del round_.drawn[round_.left :]
        round_.left -= len(round_.drawn)
        for call in round_.drawn:
            png = await self._subject.draw(str(call.arguments["prompt"]))
            yield Delta(part=Data(media_type="image/png", data=png), model=self.model)
        if round_.finished and round_.last:
            yield round_.last.model_copy(update={"usage": round_.usage})

    def _next(self, round_: _Round, *, may_draw: bool) -> _Round:
        """The round after one in which pictures were drawn: the model may go on drawing, or tells of them."""
        before, drawn = round_.request, round_.drawn
        if may_draw:
            said = Content(role=Role.MODEL, parts=(*round_.said, *drawn))
            shown = [CallResult(name=call.name, id=call.id, result={"shown": True}) for call in drawn]
            turns = (*before.contents, said, user(*shown))
            return _Round(before.model_copy(update={"contents": turns}), round_.usage, round_.left)
        shows = "; ".join(str(call.arguments["prompt"]) for call in drawn)
        pictures = Text(text=f"(Here is {shows.replace('[V]', self._subject.name + ', the')}.)")
        said = Content(role=Role.MODEL, parts=(*round_.said, pictures))
        update = {
            "contents": (*before.contents, said, user("Tell me in one sentence what it shows.")),
            "tool_choice": ToolChoice(mode=ToolMode.NONE),
        }
        return _Round(before.model_copy(update=update), round_.usage, round_.left)

    def _inner(self, request: Request, *, forced: bool) -> Request:
        """The request as the chat model gets it."""
        update: dict[str, object] = {
            "contents": tuple(map(self._readable, request.contents)),
            "config": request.config.model_copy(update={"modalities": ("text",)}),
        }
        if request.tool_choice.mode is not ToolMode.NONE or forced:
            update["tools"] = (*request.tools, self._subject.tool)
        if forced:
            update["tool_choice"] = ToolChoice(mode=ToolMode.ANY, allowed=(DRAW,), parallel=False)
        elif request.tool_choice.allowed is not None:
            allowed = (*request.tool_choice.allowed, DRAW)
            update["tool_choice"] = request.tool_choice.model_copy(update={"allowed": allowed})
        return request.model_copy(update=update)

    def _readable(self, content: Content) -> Content:
        """A turn without the pictures that were drawn for it, for a model that cannot see."""
        if content.role is not Role.MODEL or "image" in self.capabilities.modalities:
            return content
        parts: Sequence[Part] = [
            Text(text="(a picture)") if isinstance(part, Data) else part for part in content.parts
        ]
        return content.model_copy(update={"parts": tuple(parts)})

    def _check(self, request: Request) -> None:
        if request.config.candidates > 1:
            raise UnsupportedError(
                "an answer with pictures has one candidate",
                where="config.candidates",
                remedy="Ask again instead.",
            )
        if DRAW in {tool.name for tool in request.tools}:
            raise UnsupportedError(
                "this name is that of our own function", where=DRAW, remedy="Rename yours."
            )


class _Round:
    """One request to the model and what has come of it.

    Attributes:
        said: the parts of the answer without the calls for pictures, which are in `drawn`.
        calls: functions of the client's are among them.
        last: the delta that ended the answer.
        usage: of this and all earlier rounds.
        left: pictures that may still be drawn.
    """

    def __init__(self, request: Request, usage: Usage, left: int) -> None:
        self.request, self.usage, self.left = request, usage, left
        self.said: list[Part] = []
        self.drawn: list[Call] = []
        self.calls = False
        self.last: Delta | None = None

    @property
    def finished(self) -> bool:
        """Whether the answer ends with this round: the model did not only draw, or was cut off."""
        cut_off = self.last is None or self.last.finish is not FinishReason.STOP
        return not self.drawn or self.calls or cut_off

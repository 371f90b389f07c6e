"""What an answer has taken so far, for who has to pay for it though its end was never waited for.

The last delta of an answer tells its usage. Whoever goes earlier does not get that delta, so engines note
down what they have done whenever they stop, however that comes about.
"""

from __future__ import annotations

import math
from collections.abc import AsyncGenerator, Awaitable
from contextvars import ContextVar
from typing import TypeVar

from studiolo.language.conversation import Delta, Request, Usage

T = TypeVar("T")
_BYTES = 4


class Meter:
    """Adds up what engines note; `usage` is its sum."""

    def __init__(self) -> None:
        self.usage = Usage()


_meter: ContextVar[Meter | None] = ContextVar("studiolo_meter", default=None)


def note(usage: Usage) -> None:
    """Tells what was done for an answer, also of one that nobody reads on; to be called once an answer."""
    if (meter := _meter.get()) is not None:
        meter.usage += usage


async def metered(deltas: AsyncGenerator[Delta], meter: Meter) -> AsyncGenerator[Delta]:
    """The same deltas; what engines note meanwhile goes to the meter. Closing it closes them."""
    try:
        while (delta := await _under(meter, anext(deltas, None))) is not None:
            yield delta
    finally:
        await _under(meter, deltas.aclose())


async def _under(meter: Meter, step: Awaitable[T]) -> T:
    """One step of a stream. Each sets the meter anew: a stream may go from task to task."""
    token = _meter.set(meter)
    try:
        return await step
    finally:
        _meter.reset(token)


def estimated(request: Request, made: int) -> Usage:
    """About what an answer took of which `made` bytes of UTF-8 came, from a server that tells its usage only
    at the end: four bytes a token."""
    texts = [request.system or "", *(content.text for content in request.contents)]
    prompt = sum(len(text.encode()) for text in texts)
    return Usage(prompt=math.ceil(prompt / _BYTES), answer=math.ceil(made / _BYTES))

"""An engine that answers a rephrased question as it did before."""

from __future__ import annotations

import logging
import sqlite3
from collections.abc import AsyncGenerator, Iterator
from contextlib import aclosing

from studiolo.language.caching.semantic import Hit, SemanticIndex, reusable
from studiolo.language.collect import Collector
from studiolo.language.conversation import Delta, Request, Usage
from studiolo.language.engines.around import Around
from studiolo.language.engines.base import Engine
from studiolo.language.errors import InvalidRequestError

_log = logging.getLogger(__name__)


class Reusing(Around):
    """An `Engine` that looks into an index first; off unless a threshold is given.

    A reused answer comes with the note "reused, similarity 0.973" and a usage of no tokens, for none were
    computed. It has passed the safety settings of the same kind when it was made.

    Args:
        threshold: the least cosine of two questions' vectors, in (0, 1], at which one's answer serves the
            other; docs/caching.md has measured rates. None: never.
        sampled: also for requests whose temperature is not 0.
    """

    def __init__(
        self, engine: Engine, index: SemanticIndex, *, threshold: float | None = None, sampled: bool = False
    ) -> None:
        if threshold is not None and not 0 < threshold <= 1:
            raise InvalidRequestError(
                "a threshold for reuse is above 0 and at most 1", where=f"threshold={threshold:g}"
            )
        super().__init__(engine)
        self.index, self.threshold, self.sampled = index, threshold, sampled

    async def generate(self, request: Request) -> AsyncGenerator[Delta]:
        reuses = self.threshold is not None and reusable(request, sampled=self.sampled)
        if reuses and (hit := await self._find(request)):
            for delta in replayed(hit):
                yield delta
            return
        collector = Collector()
        async with aclosing(self.engine.generate(request)) as stream:
            async for delta in stream:
                collector.add(delta)
                yield delta
        if reuses:
            await self._keep(request, collector)

    async def _find(self, request: Request) -> Hit | None:
        assert self.threshold is not None
        try:
            return await self.index.find(request, self.threshold)
        except sqlite3.Error as error:  # a cache that fails is one that has nothing
            _log.warning("%s: no answer could be looked up: %s", self.index.file, error)
            return None

    async def _keep(self, request: Request, collector: Collector) -> None:
        try:
            await self.index.add(request, collector.response())
        except sqlite3.Error as error:  # a full disk takes nothing away from the answer that was given
            _log.warning("%s: an answer could not be kept for reuse: %s", self.index.file, error)


def replayed(hit: Hit) -> Iterator[Delta]:
    """An earlier answer as a stream."""
    response = hit.response
    notes = (*response.notes, f"reused, similarity {hit.similarity:.3f}")
    for index, candidate in enumerate(response.candidates):
        for part in candidate.content.parts:
            yield Delta(candidate=index, part=part, model=response.model, notes=notes)
        last = index == len(response.candidates) - 1
        yield Delta(
            candidate=index, finish=candidate.finish, finish_message=candidate.finish_message,
            verdicts=candidate.verdicts, usage=Usage() if last else None, model=response.model, notes=notes,
        )  # fmt: skip

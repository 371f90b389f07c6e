"""An engine whose prompts and answers are judged."""

from __future__ import annotations

from collections.abc import AsyncGenerator, Iterator
from contextlib import aclosing

from studiolo.language.conversation import (
    CallResult,
    Delta,
    FinishReason,
    Request,
    Role,
    Text,
    Threshold,
    Usage,
    Verdict,
)
from studiolo.language.engines.around import Around
from studiolo.language.engines.base import Engine
from studiolo.language.errors import InvalidRequestError, UnsupportedError
from studiolo.language.safety.judging import Classifier, Judge
from studiolo.language.safety.sentences import Held

_MESSAGES = {
    FinishReason.SAFETY: "withheld: a threshold of the safety settings was reached",
    FinishReason.BLOCKLIST: "withheld: a term of the block list",
    FinishReason.PROHIBITED: "withheld: prohibited whatever the settings",
}


class Guarded(Around):
    """An `Engine` that withholds what reaches a threshold of the request's safety settings.

    With all thresholds OFF, or none given, everything passes as it comes and nothing is judged. Else every
    turn of the user and every result of a function is judged before the engine is asked, and the answer
    sentence by sentence: at most one sentence is held back. Pictures, sounds and files are not judged.

    What the engine itself says (verdicts, blocks, finish reasons) is passed through; where both judge a
    harm, the engine's verdict is the one told.

    Args:
        engine_judges: the engine has safety settings of its own and is given the request's; else they are
            kept from it, as they have been seen to.
    """

    def __init__(self, engine: Engine, classifier: Classifier, *, engine_judges: bool = False) -> None:
        super().__init__(engine)
        self.classifier, self._engine_judges = classifier, engine_judges

    async def generate(self, request: Request) -> AsyncGenerator[Delta]:
        """As of any engine.

        Raises:
            UnsupportedError: a threshold on a harm that neither the classifier nor the engine judges.
            InvalidRequestError: two thresholds for one harm.
        """
        judged = self._check(request)
        inner = self._for_engine(request)
        if judged and (block := await self._prompt_block(request)):
            yield block
            return
        async with (
            aclosing(self.engine.generate(inner)) as stream,
            aclosing(self._judged(stream, request) if judged else stream) as given,
        ):
            async for delta in given:
                yield delta

    async def count_tokens(self, request: Request) -> int:
        return await self.engine.count_tokens(self._for_engine(request))

    def _for_engine(self, request: Request) -> Request:
        return request if self._engine_judges else request.model_copy(update={"safety": ()})

    def _check(self, request: Request) -> bool:
        """Whether there is anything to judge."""
        harms = [setting.harm for setting in request.safety]
        if len(set(harms)) < len(harms):
            raise InvalidRequestError("two thresholds for one harm", where="safety", remedy="Give one.")
        wanted = {setting.harm for setting in request.safety if setting.threshold is not Threshold.OFF}
        unknown = wanted - self.classifier.harms
        if unknown and not self._engine_judges:
            raise UnsupportedError(
                f"no classifier here judges {', '.join(sorted(unknown))}",
                where="safety",
                remedy="Leave these thresholds out, or turn them off.",
            )
        return bool(wanted & self.classifier.harms)

    def _judge(self, request: Request) -> Judge:
        known = self.classifier.harms  # other harms are the engine's to judge
        return Judge(self.classifier, [setting for setting in request.safety if setting.harm in known])

    async def _prompt_block(self, request: Request) -> Delta | None:
        judge = self._judge(request)
        for text in _said(request):
            if reason := await judge.hear(text):
                return Delta(blocked=reason, verdicts=judge.verdicts, usage=Usage(), model=self.model)
        return None

    async def _judged(self, stream: AsyncGenerator[Delta], request: Request) -> AsyncGenerator[Delta]:
        """The stream, each candidate up to where it is withheld; when all have ended so, it is left."""
        held = [Held(self._judge(request)) for _ in range(request.config.candidates)]
        finished: set[int] = set()
        async for delta in stream:
            one = held[delta.candidate]
            finished |= {delta.candidate} if delta.finish else set()
            was_open = one.reason is None
            for free in await one.add(delta):
                yield _with_verdicts(free, one.judge.verdicts) if free.finish else free
            if was_open and one.reason:
                yield self._withheld(delta.candidate, one)
            if one.reason and delta.usage:
                yield Delta(candidate=delta.candidate, usage=delta.usage, model=self.model)
            withheld = {i for i, each in enumerate(held) if each.reason}
            if withheld - finished and len(withheld | finished) == len(held):
                # Nothing of what the engine still makes would be given out.
                yield Delta(candidate=delta.candidate, usage=await self._usage(request), model=self.model)
                return
        for index, one in enumerate(held):  # of a stream that broke off without saying so
            was_open = one.reason is None
            for free in await one.rest():
                yield free
            if was_open and one.reason:
                yield self._withheld(index, one)

    def _withheld(self, candidate: int, held: Held) -> Delta:
        assert held.reason is not None
        return Delta(
            candidate=candidate, finish=held.reason, finish_message=_MESSAGES.get(held.reason),
            verdicts=held.judge.verdicts, model=self.model,
        )  # fmt: skip

    async def _usage(self, request: Request) -> Usage:
        """What is known of a stream that was stopped: the tokens of its answer are not."""
        return Usage(prompt=await self.count_tokens(request))


def _said(request: Request) -> Iterator[str]:
    """The words of each of the user's turns, results of functions among them."""
    for content in request.contents:
        if content.role is Role.USER:
            yield "\n".join(_words(part) for part in content.parts)


def _words(part: object) -> str:
    if isinstance(part, CallResult):
        return part.model_dump_json(include={"result"})
    return part.text if isinstance(part, Text) else ""


def _with_verdicts(delta: Delta, ours: tuple[Verdict, ...]) -> Delta:
    theirs = {verdict.harm for verdict in delta.verdicts}
    more = tuple(verdict for verdict in ours if verdict.harm not in theirs)
    return delta.model_copy(update={"verdicts": delta.verdicts + more})

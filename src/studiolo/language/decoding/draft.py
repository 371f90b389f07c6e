"""A candidate as it is written: completion behind completion, each going on where the last one ended."""

from __future__ import annotations

from collections.abc import AsyncGenerator
from contextlib import aclosing
from dataclasses import dataclass, field
from typing import Literal

from studiolo.language.decoding.template import inner_ids
from studiolo.language.decoding.wanted import Wanted
from studiolo.language.engines.completer import Completer, Completion, Constraint, Piece, Tokens
from studiolo.language.errors import UpstreamError


@dataclass
class Run:
    """What one completion has amounted to."""

    text: str = ""
    tokens: list[int] = field(default_factory=list)
    end: Literal["eos", "stop", "length"] | None = None
    stop: str | None = None


class Draft:
    """The prompt and all that was written behind it.

    Attributes:
        run: what the last completion has amounted to.
        read: tokens of the request's prompt that the engine has read, those in its cache among them.
        cached: tokens of it that the engine had in its cache already; None as long as it has not said.
        thoughts, answered: tokens made so far, of the thought and of the answer.
    """

    def __init__(self, completer: Completer, wanted: Wanted) -> None:
        self._completer, self._wanted = completer, wanted
        self._prompt = list(wanted.prompt)
        self._newline = completer.tokenize("\n", special=False)
        self.run = Run()
        self.read = self.thoughts = self.answered = 0
        self.cached: int | None = None

    @property
    def left(self) -> int:
        """Tokens that may still be made."""
        bound = self._wanted.max_tokens - self.thoughts - self.answered
        return max(0, min(bound, self._wanted.context - len(self._prompt)))

    async def complete(
        self,
        max_tokens: int,
        *,
        stop: tuple[str, ...] = (),
        rule: Constraint | None = None,
        logprobs: bool = False,
        thought: bool = False,
    ) -> AsyncGenerator[Piece]:
        """The pieces of one completion behind what there is; `run` is what they amount to."""
        self.run = run = Run()
        if not max_tokens:
            run.end = "length"
            return
        completion = Completion(
            prompt=tuple(self._prompt),
            max_tokens=max_tokens,
            sampling=self._wanted.sampling,
            stop=stop,
            constraint=rule,
            logprobs=self._wanted.logprobs if logprobs else None,
        )
        made = 0
        async with aclosing(self._completer.complete(completion)) as pieces:
            async for piece in pieces:
                made += piece.made
                self._count(piece, thought)
                run.text += piece.text
                run.tokens += piece.tokens
                run.end, run.stop = piece.end, piece.stop
                if made > max_tokens:
                    raise UpstreamError(
                        "the engine made more tokens than it was allowed", where=self._completer.model
                    )
                yield piece
        if run.end is None:
            raise UpstreamError("the engine broke off", where=self._completer.model, remedy="Try again.")

    @staticmethod
    async def through(pieces: AsyncGenerator[Piece]) -> None:
        """To the end of a completion, of which only the whole matters."""
        async with aclosing(pieces):
            async for _ in pieces:
                pass

    def go_on(self, *, behind: str, tag: str = "") -> None:
        """Puts the last run into the prompt, the `tag` that ends it unless the model wrote it, and `behind`.

        The tokens are taken as they were made wherever they say just that; the engine has those in its cache.
        They do not where the last one reaches beyond the tag, or is an end of turn: then the text is
        tokenized again.
        """
        run = self.run
        said = run.text + (run.stop or "")
        if self._completer.detokenize(run.tokens) == said:
            self._prompt += run.tokens
            tag = "" if run.stop else tag
        elif run.text:
            self._prompt += self._ids(run.text, special=False)
        self.force(tag + behind)

    def force(self, text: str) -> None:
        """Writes a text that the model has no say in."""
        if text:
            self._prompt += self._ids(text, special=True)

    def _count(self, piece: Piece, thought: bool) -> None:
        if thought:
            self.thoughts += piece.made
        else:
            self.answered += piece.made
        if self.cached is None:
            self.cached = piece.cached or 0
        asked = len(self._wanted.prompt)
        self.read = asked if piece.made or piece.end else max(self.read, min(piece.read, asked))

    def _ids(self, text: str, *, special: bool) -> Tokens:
        return inner_ids(text, special, self._completer.tokenize, self._newline)

"""One answer: a thought, then words or calls, each a completion behind the ones before."""

from __future__ import annotations

import re
from collections.abc import AsyncGenerator, Callable
from contextlib import aclosing
from dataclasses import dataclass, field, replace
from typing import Literal

from studiolo.language.conversation import Call, Delta, FinishReason, Part, Show, Text, Thought, TokenLogprob
from studiolo.language.decoding import schema as schemas
from studiolo.language.decoding.clusters import Smoother
from studiolo.language.decoding.schema import Schema
from studiolo.language.decoding.template import inner_ids
from studiolo.language.decoding.thinking import Channel, ThoughtPlan
from studiolo.language.decoding.tools import MAX_CALLS, ToolPlan
from studiolo.language.engines.completer import Completer, Completion, Constraint, Piece, Sampling, Tokens
from studiolo.language.errors import UpstreamError


@dataclass(frozen=True)
class Wanted:
    """A request, ready to be decoded.

    Attributes:
        prompt: tokens up to where the thought, or else the answer, begins.
        max_tokens: of thought and answer together.
        context: tokens that prompt and all that is made may have together.
        stop: texts at which the answer ends.
        constraint: what the answer's words must match.
        summarise: the completion that sums a thought up, if its summary is to be shown in its place.
    """

    prompt: Tokens
    max_tokens: int
    context: int
    sampling: Sampling
    stop: tuple[str, ...]
    channel: Channel
    thought: ThoughtPlan
    tools: ToolPlan | None = None
    constraint: Constraint | None = None
    logprobs: int | None = None
    summarise: Callable[[str], Completion] | None = None


@dataclass
class _Run:
    """What one completion has amounted to."""

    text: str = ""
    tokens: list[int] = field(default_factory=list)
    end: Literal["eos", "stop", "length"] | None = None
    stop: str | None = None


class Answer:
    """Decodes one candidate.

    Attributes:
        thoughts: tokens of thought made so far; `answered` those of the answer; `summed_up` those of the
            thought's summary; their sum is what the engine made.
        cached: tokens of the request's prompt that the engine had in its cache already.
    """

    def __init__(self, completer: Completer, wanted: Wanted, candidate: int = 0) -> None:
        self._completer, self._wanted, self._candidate = completer, wanted, candidate
        self._prompt = list(wanted.prompt)
        self._newline = completer.tokenize("\n", special=False)
        self._run = _Run()
        self.thoughts = self.answered = self.summed_up = 0
        self.cached: int | None = None

    async def deltas(self) -> AsyncGenerator[Delta]:
        """The answer in pieces; the last has `finish`."""
        if self._wanted.thought.budget:
            async with aclosing(self._think()) as thoughts:
                async for delta in thoughts:
                    yield delta
        if not self._left:
            yield self._cut_off("before the answer began")
            return
        async with aclosing(self._answer()) as answer:
            async for delta in answer:
                yield delta

    @property
    def _left(self) -> int:
        """Tokens that may still be made."""
        bound = self._wanted.max_tokens - self.thoughts - self.answered
        return max(0, min(bound, self._wanted.context - len(self._prompt)))

    # --- thoughts

    async def _think(self) -> AsyncGenerator[Delta]:
        channel, smoother = self._wanted.channel, Smoother()
        budget = min(self._wanted.thought.budget, self._left)
        async with aclosing(self._complete(budget, stop=(channel.close,), thought=True)) as pieces:
            async for piece in pieces:
                text = smoother.add(piece.text)
                if text and self._wanted.thought.show is Show.FULL:
                    yield self._part(Thought(text=text))
        if (text := smoother.end()) and self._wanted.thought.show is Show.FULL:
            yield self._part(Thought(text=text))
        if self._wanted.summarise and self._run.text.strip():
            async with aclosing(self._sum_up(self._wanted.summarise(self._run.text))) as summary:
                async for delta in summary:
                    yield delta
        if self._left:
            tag = channel.close if self._run.end == "stop" else channel.before + channel.close
            self._go_on(tag=tag, behind=channel.after)

    async def _sum_up(self, completion: Completion) -> AsyncGenerator[Delta]:
        """The summary as the thought that is shown; an ellipsis tells that it was cut off."""
        smoother = Smoother()
        async with aclosing(self._completer.complete(completion)) as pieces:
            async for piece in pieces:
                self.summed_up += piece.made
                text = smoother.add(piece.text)
                if piece.end:
                    text += smoother.end() + (" …" if piece.end == "length" else "")
                if text:
                    yield self._part(Thought(text=text))

    def _part(self, part: Part) -> Delta:
        return Delta(candidate=self._candidate, part=part)

    # --- words, or calls

    async def _answer(self) -> AsyncGenerator[Delta]:
        tools, rule = self._wanted.tools, self._wanted.constraint
        if tools is not None and tools.forced:
            self._force(tools.form.openings[0] + tools.form.behind)
            steps = self._calls(tools)
        elif tools is None or rule is None:
            steps = self._words(tools, rule)
        elif not tools.form.grammatical:
            steps = self._calls_or_words(tools, rule)
        elif rule.kind == "json":
            steps = self._calls_or_json(tools, rule)
        else:
            steps = self._calls_or_rule(tools, rule)
        async with aclosing(steps):
            async for delta in steps:
                yield delta

    async def _words(self, tools: ToolPlan | None, rule: Constraint | None) -> AsyncGenerator[Delta]:
        """Text as it comes; if the model opens a call, the calls. White space before a call is left out."""
        openings = tools.form.openings if tools else ()
        stop = (*self._wanted.stop, *openings)
        smoother, blank = Smoother(), ""
        async with aclosing(self._complete(self._left, stop=stop, rule=rule, logprobs=True)) as pieces:
            async for piece in pieces:
                text = blank + smoother.add(piece.text)
                blank = text[len(text.rstrip()) :] if tools else ""
                if (text := text.removesuffix(blank)) or piece.logprobs:
                    yield self._text(text, piece.logprobs)
        text, met = blank + smoother.end(), self._run.stop
        if tools is None or met not in openings:
            if text:
                yield self._text(text)
            yield self._finish(rule)
            return
        if called := tools.form.tagged or not self._run.text.strip():
            steps = self._calls(tools)
        else:  # what looks like an opening is just more words
            text += met or ""
            steps = self._words(None, rule)
        if text := text.rstrip() if called else text:
            yield self._text(text)
        self._go_on(tag=met or "", behind=tools.form.behind if called else "")
        async with aclosing(steps):
            async for delta in steps:
                yield delta

    def _text(self, text: str, logprobs: tuple[TokenLogprob, ...] = ()) -> Delta:
        return Delta(candidate=self._candidate, part=Text(text=text) if text else None, logprobs=logprobs)

    async def _calls(self, tools: ToolPlan) -> AsyncGenerator[Delta]:
        """Calls, one after another, from behind an opening; each comes out whole."""
        several = tools.parallel and tools.form.several
        for index in range(MAX_CALLS if several else 1):
            made = await self._call(tools, index)
            if not made:
                yield self._cut_off("inside a function call")
                return
            for call in made:
                yield self._part(call)
            self._go_on(behind=tools.form.close)
            if not several or not self._left or not await self._another(tools):
                break
        yield Delta(candidate=self._candidate, finish=FinishReason.STOP)

    async def _call(self, tools: ToolPlan, index: int) -> list[Call]:
        """What comes behind one opening; nothing if it was cut off."""
        name = None
        if tools.form.apart:
            name = await self._name(tools)
            if name is None:
                return []
            self._go_on(behind=tools.form.between(index))
        await self._through(self._complete(self._left, rule=tools.constraint(name)))
        if self._run.end == "length" or not self._run.text:
            return []
        return tools.calls((name or "") + self._run.text)

    async def _name(self, tools: ToolPlan) -> str | None:
        """The name of the function that the model chooses; None if it was cut off.

        The brace that begins the arguments goes along: it tells the end of a name from the beginning of a
        longer one.
        """
        names = Constraint("choice", tuple(name + "{" for name in tools.schemas))
        await self._through(self._complete(self._left, rule=names))
        self._run.text = name = self._run.text.removesuffix("{")
        return name if name in tools.schemas and self._run.end == "eos" else None

    async def _another(self, tools: ToolPlan) -> bool:
        """Whether the model opens a call now, rather than end its turn or say something."""
        openings = tools.form.openings
        longest = min(self._left, max(map(len, openings)) + 4)  # white space before it
        async with aclosing(self._complete(longest, stop=openings)) as pieces:
            async for piece in pieces:
                if piece.text.strip():
                    return False
        if self._run.stop is None or not self._left:
            return False
        self._go_on(tag=self._run.stop, behind=tools.form.behind)
        return True

    async def _calls_or_words(self, tools: ToolPlan, rule: Constraint) -> AsyncGenerator[Delta]:
        """The model is free to open a call; if it begins with anything else, that is forgotten, and it is
        held to the rule. What is forgotten is counted, for it was made."""
        called = await self._another(tools)
        async with aclosing(self._calls(tools) if called else self._words(None, rule)) as steps:
            async for delta in steps:
                yield delta

    async def _calls_or_json(self, tools: ToolPlan, rule: Constraint) -> AsyncGenerator[Delta]:
        """The model chooses between the tag and the first character of an answer in JSON; then it is held to
        either.

        The chosen character is made again under the schema; it is counted, for it was made.
        """
        opening = tools.form.openings[0]
        first = Constraint("choice", (opening, *first_characters(rule.rule)))
        longest = min(self._left, len(opening))  # no token has less than a byte
        await self._through(self._complete(longest, rule=first))
        if self._run.text not in first.rule or not self._left:
            yield self._cut_off("before the answer began")
            return
        called = self._run.text == opening
        if called:
            self._go_on(behind=tools.form.behind)
        async with aclosing(self._calls(tools) if called else self._words(None, rule)) as steps:
            async for delta in steps:
                yield delta

    async def _calls_or_rule(self, tools: ToolPlan, rule: Constraint) -> AsyncGenerator[Delta]:
        """The same for choices and regular expressions, which can be joined with the tag into one."""
        either: Constraint
        opening = tools.form.openings[0]
        if rule.kind == "choice":
            either = Constraint("choice", (opening, *rule.rule))
        else:
            either = Constraint("regex", f"(?:{re.escape(opening)})|(?:{rule.rule})")
        completion = self._complete(self._left, stop=self._wanted.stop, rule=either, logprobs=True)
        async with aclosing(completion) as pieces:
            told = [one async for piece in pieces for one in piece.logprobs]
        if self._run.text != opening:
            yield self._text(self._run.text, tuple(told))
            yield self._finish(rule)
            return
        self._go_on(behind=tools.form.behind)
        async with aclosing(self._calls(tools)) as calls:
            async for delta in calls:
                yield delta

    # --- the end

    def _finish(self, rule: Constraint | None) -> Delta:
        run = self._run
        if run.end == "length":
            return self._cut_off("before the answer was whole" if rule else "before the answer ended")
        if rule is not None and run.end == "stop":
            return Delta(
                candidate=self._candidate,
                finish=FinishReason.OTHER,
                finish_message=f"ended at the stop text {run.stop!r} before the answer was whole",
            )
        if rule is not None:
            schemas.check_answer(run.text, rule)
        return Delta(candidate=self._candidate, finish=FinishReason.STOP)

    def _cut_off(self, where: str) -> Delta:
        spent = self.thoughts + self.answered >= self._wanted.max_tokens
        bound = f"max_tokens ({self._wanted.max_tokens}) are spent" if spent else "the context is full"
        return Delta(
            candidate=self._candidate, finish=FinishReason.LENGTH, finish_message=f"cut off {where}: {bound}"
        )

    # --- completions

    async def _complete(
        self,
        max_tokens: int,
        *,
        stop: tuple[str, ...] = (),
        rule: Constraint | None = None,
        logprobs: bool = False,
        thought: bool = False,
    ) -> AsyncGenerator[Piece]:
        """The pieces of one completion behind the prompt so far; `_run` is what they amount to."""
        self._run = run = _Run()
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
                self._count(piece.made, thought)
                if self.cached is None:
                    self.cached = piece.cached or 0
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
    async def _through(pieces: AsyncGenerator[Piece]) -> None:
        """To the end of a completion, of which only the whole matters."""
        async with aclosing(pieces):
            async for _ in pieces:
                pass

    def _count(self, made: int, thought: bool) -> None:
        if thought:
            self.thoughts += made
        else:
            self.answered += made

    def _go_on(self, *, behind: str, tag: str = "") -> None:
        """Puts the last run into the prompt, the `tag` that ends it unless the model wrote it, and `behind`.

        The tokens are taken as they were made wherever they say just that; the engine has those in its cache.
        They do not where the last one reaches beyond the tag, or is an end of turn: then the text is
        tokenized again.
        """
        run = self._run
        said = run.text + (run.stop or "")
        if self._completer.detokenize(run.tokens) == said:
            self._prompt += run.tokens
            tag = "" if run.stop else tag
        elif run.text:
            self._prompt += self._ids(run.text, special=False)
        self._force(tag + behind)

    def _force(self, text: str) -> None:
        if text:
            self._prompt += self._ids(text, special=True)

    def _ids(self, text: str, *, special: bool) -> Tokens:
        return inner_ids(text, special, self._completer.tokenize, self._newline)


def first_characters(rule: Schema | bool) -> tuple[str, ...]:
    """With which characters JSON of a schema can begin; all that JSON can if the schema does not tell by its
    type."""
    kinds = {"object": "{", "array": "[", "string": '"', "boolean": "tf", "null": "n"}
    kinds |= dict.fromkeys(("number", "integer"), "-0123456789")
    named = rule.get("type", list(kinds)) if isinstance(rule, dict) else list(kinds)
    wanted = [named] if isinstance(named, str) else named
    return tuple(dict.fromkeys(character for kind in wanted for character in kinds[kind]))


def seeded(wanted: Wanted, candidate: int) -> Wanted:
    """The same for another candidate: another seed, if there is one."""
    seed = wanted.sampling.seed
    return (
        wanted if seed is None else replace(wanted, sampling=replace(wanted.sampling, seed=seed + candidate))
    )

"""One answer: a thought, then words or calls, each a completion behind the ones before."""

from __future__ import annotations

import re
from collections.abc import AsyncGenerator
from contextlib import aclosing

from studiolo.language.conversation import Call, Delta, FinishReason, Part, Show, Text, Thought, TokenLogprob
from studiolo.language.decoding import schema as schemas
from studiolo.language.decoding.clusters import Smoother
from studiolo.language.decoding.draft import Draft
from studiolo.language.decoding.schema import Schema
from studiolo.language.decoding.tools import MAX_CALLS, ToolPlan
from studiolo.language.decoding.wanted import Wanted
from studiolo.language.engines.completer import Completer, Completion, Constraint


class Answer:
    """Decodes one candidate.

    Attributes:
        draft: what has been written so far, and the tokens that it took.
        summed_up: tokens of the thought's summary, which are in none of those.
    """

    def __init__(self, completer: Completer, wanted: Wanted, candidate: int = 0) -> None:
        self._completer, self._wanted, self._candidate = completer, wanted, candidate
        self.draft = Draft(completer, wanted)
        self.summed_up = 0

    async def deltas(self) -> AsyncGenerator[Delta]:
        """The answer in pieces; the last has `finish`."""
        if self._wanted.thought.budget:
            async with aclosing(self._think()) as thoughts:
                async for delta in thoughts:
                    yield delta
        if not self.draft.left:
            yield self._cut_off("before the answer began")
            return
        async with aclosing(self._answer()) as answer:
            async for delta in answer:
                yield delta

    # --- thoughts

    async def _think(self) -> AsyncGenerator[Delta]:
        channel, smoother = self._wanted.channel, Smoother()
        budget = min(self._wanted.thought.budget, self.draft.left)
        async with aclosing(self.draft.complete(budget, stop=(channel.close,), thought=True)) as pieces:
            async for piece in pieces:
                text = smoother.add(piece.text)
                if text and self._wanted.thought.show is Show.FULL:
                    yield self._part(Thought(text=text))
        if (text := smoother.end()) and self._wanted.thought.show is Show.FULL:
            yield self._part(Thought(text=text))
        if self._wanted.summarise and self.draft.run.text.strip():
            async with aclosing(self._sum_up(self._wanted.summarise(self.draft.run.text))) as summary:
                async for delta in summary:
                    yield delta
        if self.draft.left:
            tag = channel.close if self.draft.run.end == "stop" else channel.before + channel.close
            self.draft.go_on(tag=tag, behind=channel.after)

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
            self.draft.force(tools.form.openings[0] + tools.form.behind)
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
        async with aclosing(
            self.draft.complete(self.draft.left, stop=stop, rule=rule, logprobs=True)
        ) as pieces:
            async for piece in pieces:
                text = blank + smoother.add(piece.text)
                blank = text[len(text.rstrip()) :] if tools else ""
                if (text := text.removesuffix(blank)) or piece.logprobs:
                    yield self._text(text, piece.logprobs)
        text, met = blank + smoother.end(), self.draft.run.stop
        if tools is None or met not in openings:
            if text:
                yield self._text(text)
            yield self._finish(rule)
            return
        if called := tools.form.tagged or not self.draft.run.text.strip():
            steps = self._calls(tools)
        else:  # what looks like an opening is just more words
            text += met or ""
            steps = self._words(None, rule)
        if text := text.rstrip() if called else text:
            yield self._text(text)
        self.draft.go_on(tag=met or "", behind=tools.form.behind if called else "")
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
            self.draft.go_on(behind=tools.form.close)
            if not several or not self.draft.left or not await self._another(tools):
                break
        yield Delta(candidate=self._candidate, finish=FinishReason.STOP)

    async def _call(self, tools: ToolPlan, index: int) -> list[Call]:
        """What comes behind one opening; nothing if it was cut off."""
        name = None
        if tools.form.apart:
            name = await self._name(tools)
            if name is None:
                return []
            self.draft.go_on(behind=tools.form.between(index))
        await self.draft.through(self.draft.complete(self.draft.left, rule=tools.constraint(name)))
        if self.draft.run.end == "length" or not self.draft.run.text:
            return []
        return tools.calls((name or "") + self.draft.run.text)

    async def _name(self, tools: ToolPlan) -> str | None:
        """The name of the function that the model chooses; None if it was cut off.

        The brace that begins the arguments goes along: it tells the end of a name from the beginning of a
        longer one.
        """
        names = Constraint("choice", tuple(name + "{" for name in tools.schemas))
        await self.draft.through(self.draft.complete(self.draft.left, rule=names))
        self.draft.run.text = name = self.draft.run.text.removesuffix("{")
        return name if name in tools.schemas and self.draft.run.end == "eos" else None

    async def _another(self, tools: ToolPlan) -> bool:
        """Whether the model opens a call now, rather than end its turn or say something."""
        openings = tools.form.openings
        longest = min(self.draft.left, max(map(len, openings)) + 4)  # white space before it
        async with aclosing(self.draft.complete(longest, stop=openings)) as pieces:
            async for piece in pieces:
                if piece.text.strip():
                    return False
        if self.draft.run.stop is None or not self.draft.left:
            return False
        self.draft.go_on(tag=self.draft.run.stop, behind=tools.form.behind)
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
        longest = min(self.draft.left, len(opening))  # no token has less than a byte
        await self.draft.through(self.draft.complete(longest, rule=first))
        if self.draft.run.text not in first.rule or not self.draft.left:
            yield self._cut_off("before the answer began")
            return
        called = self.draft.run.text == opening
        if called:
            self.draft.go_on(behind=tools.form.behind)
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
        completion = self.draft.complete(self.draft.left, stop=self._wanted.stop, rule=either, logprobs=True)
        async with aclosing(completion) as pieces:
            told = [one async for piece in pieces for one in piece.logprobs]
        if self.draft.run.text != opening:
            yield self._text(self.draft.run.text, tuple(told))
            yield self._finish(rule)
            return
        self.draft.go_on(behind=tools.form.behind)
        async with aclosing(self._calls(tools)) as calls:
            async for delta in calls:
                yield delta

    # --- the end

    def _finish(self, rule: Constraint | None) -> Delta:
        run = self.draft.run
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
        spent = self.draft.thoughts + self.draft.answered >= self._wanted.max_tokens
        bound = f"max_tokens ({self._wanted.max_tokens}) are spent" if spent else "the context is full"
        return Delta(
            candidate=self._candidate, finish=FinishReason.LENGTH, finish_message=f"cut off {where}: {bound}"
        )


def first_characters(rule: Schema | bool) -> tuple[str, ...]:
    """With which characters JSON of a schema can begin; all that JSON can if the schema does not tell by its
    type."""
    kinds = {"object": "{", "array": "[", "string": '"', "boolean": "tf", "null": "n"}
    kinds |= dict.fromkeys(("number", "integer"), "-0123456789")
    named = rule.get("type", list(kinds)) if isinstance(rule, dict) else list(kinds)
    wanted = [named] if isinstance(named, str) else named
    return tuple(dict.fromkeys(character for kind in wanted for character in kinds[kind]))

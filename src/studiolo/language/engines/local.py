"""An engine of any completer: weights of one's own that answer, think, call functions and keep to schemas."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncGenerator, Sequence
from contextlib import aclosing, suppress
from dataclasses import fields, replace
from typing import NamedTuple

from studiolo.language import metering
from studiolo.language.conversation import (
    Delta,
    GenerationConfig,
    Request,
    Show,
    Thinking,
    ThinkingMode,
    Usage,
)
from studiolo.language.decoding import schema, summary, thinking, tools, turns
from studiolo.language.decoding.answer import Answer
from studiolo.language.decoding.forms import EMULATED, Form
from studiolo.language.decoding.template import ChatTemplate, Segment, Vault, token_ids
from studiolo.language.decoding.tools import ToolPlan
from studiolo.language.decoding.wanted import Wanted, seeded
from studiolo.language.embedders import cut
from studiolo.language.engines.base import Capabilities, Token
from studiolo.language.engines.completer import Completer, Completion, Sampling, Tokens
from studiolo.language.errors import InvalidRequestError, TooLongError, UnsupportedError

MAX_CANDIDATES = 16


class Prompt(NamedTuple):
    """A request's prompt, whether a thought is open at its end, and how calls are written in it."""

    tokens: Tokens
    think: bool
    form: Form


class LocalEngine:
    """Answers by the model's own chat template. Safety settings are for whoever stands before it.

    Usage: `prompt` are the tokens of the request's prompt, once for all candidates, template and tools and an
    opened thought included; `thoughts`, `summaries` and `answer` are all that the completer made (see
    `decoding.thinking` and `summary`), calls and what was made to decide on them counted to the answer.

    Args:
        recommended: how to draw where the request does not say. Its penalties are for free text alone: what
            a schema or a call holds repeats its brackets and keys with reason.
    """

    def __init__(self, completer: Completer, recommended: Sampling = Sampling()) -> None:
        self._completer = completer
        self._recommended = recommended
        self._template = ChatTemplate(completer.template, completer.special_tokens)
        self._channel = thinking.channel_of(self._template)

    @property
    def model(self) -> str:
        return self._completer.model

    @property
    def capabilities(self) -> Capabilities:
        """The completer's, with what is built on it."""
        able = self._completer.capabilities
        return able.model_copy(
            update={
                "modalities": frozenset({"text"}),
                "thinking": True,
                "tools": able.grammar,
                "candidates": MAX_CANDIDATES,
            }
        )

    async def generate(self, request: Request) -> AsyncGenerator[Delta]:
        """The answer in pieces; texts end between letters, and code-fence markers come whole.

        Raises:
            InvalidRequestError: an empty or misplaced turn, a prompt longer than the context, a budget that
                leaves no answer, tools that contradict each other.
            UnsupportedError: media, a form that cannot be enforced, whatever else the completer lacks.
            UpstreamError: the completer broke its word.
        """
        wanted = self._prepare(request)
        answers = [
            Answer(self._completer, seeded(wanted, index), index)
            for index in range(request.config.candidates)
        ]
        running = len(answers)
        try:
            async with aclosing(_together([answer.deltas() for answer in answers])) as deltas:
                async for delta in deltas:
                    running -= delta.finish is not None
                    usage = None if running else _usage(wanted, answers)
                    yield delta.model_copy(update={"usage": usage, "model": self.model}) if usage else delta
        finally:
            metering.note(_usage(wanted, answers))

    async def count_tokens(self, request: Request) -> int:
        """Tokens of the prompt as `generate` would read it."""
        return len(self.prompt_tokens(request))

    def prompt_tokens(self, request: Request) -> Tokens:
        """The prompt as `generate` would read it."""
        return self._prompt(request, self._tools(request))[0]

    async def tokenize(self, texts: Sequence[str]) -> list[list[Token]]:
        """The tokens of each text, as it would be read within a turn."""
        read = [self._completer.tokenize(text, special=False) for text in texts]
        return [list(map(Token, ids, self._completer.token_bytes(ids))) for ids in read]

    async def embed(self, texts: Sequence[str], *, dimensions: int | None = None) -> list[list[float]]:
        """One unit vector a text.

        Raises:
            UnsupportedError: the model has no embeddings, or not so many dimensions.
        """
        if not self.capabilities.embeddings:
            raise UnsupportedError("this model has no embeddings", where=self.model, remedy="Choose another.")
        return [cut(vector, dimensions) for vector in await self._completer.embed(texts)]

    async def close(self) -> None:
        await self._completer.close()

    # --- from a request to what is decoded

    def _prepare(self, request: Request) -> Wanted:
        self._check(request)
        config, able = request.config, self.capabilities
        allowed = self._tools(request)
        constraint = schema.constraint(config.format, self._completer.schema_keywords)
        if allowed and not allowed.forced and constraint and constraint.kind in ("lark", "gbnf"):
            raise UnsupportedError(
                "a grammar and functions cannot be offered at once",
                where="config.format",
                remedy="Demand a call, leave the functions out, or give a schema or a regular expression.",
            )
        prompt, think, form = self._prompt(request, allowed)
        max_tokens = config.max_tokens or able.max_output or able.context
        room = min(max_tokens, able.context - len(prompt))
        if room <= 0:
            raise TooLongError(
                # Clients of several servers know the case by OpenAI's words for it.
                f"the prompt has {len(prompt):,} tokens, and"
                f" this model's maximum context length is {able.context:,}",
                where="contents",
                remedy="Make it shorter.",
            )
        thought = thinking.plan(config.thinking, room=room) if think else thinking.ThoughtPlan(0)
        return Wanted(
            prompt=prompt,
            max_tokens=max_tokens,
            context=able.context,
            sampling=self._sampling(config, free=constraint is None and allowed is None),
            stop=(*config.stop, *self._template.stop),
            channel=self._channel,
            thought=thought,
            tools=replace(allowed, form=form) if allowed else None,
            constraint=constraint,
            logprobs=config.logprobs,
            summarise=self._summary if thought.show is Show.SUMMARY else None,
        )

    def _summary(self, thought: str) -> Completion:
        """What sums a thought up."""
        off = GenerationConfig(thinking=Thinking(mode=ThinkingMode.OFF))
        context = self.capabilities.context - summary.MOST_TOKENS
        while True:
            asked = Request(model=self.model, contents=(summary.question(thought),), config=off)
            prompt = self._prompt(asked, None).tokens
            if len(prompt) <= context or not thought:
                return Completion(
                    prompt, summary.MOST_TOKENS, Sampling(temperature=0), stop=("\n", *self._template.stop)
                )
            thought = summary.shorter(thought)

    def _tools(self, request: Request) -> ToolPlan | None:
        return tools.plan(request, self._completer.schema_keywords)

    def _prompt(self, request: Request, allowed: ToolPlan | None) -> Prompt:
        think = thinking.wished(request.config.thinking)
        segments, form = self._written(request, allowed, think)
        if think is None:
            think = thinking.thinks_by_itself(self._channel, segments)
        opening = thinking.opening(segments, self._channel, think=think)
        if opening:
            segments = [*segments, (opening, True)]
        return Prompt(token_ids(segments, self._completer.tokenize), think, form)

    def _written(
        self, request: Request, allowed: ToolPlan | None, think: bool | None
    ) -> tuple[list[Segment], Form]:
        """The conversation in the template's own form of calls, if that can express it, else in the emulated
        one."""
        own = self._template.form
        if own.native and tools.fits(own, allowed, request.config.format):
            with suppress(InvalidRequestError):
                return self._render(request, allowed, think, own), own
        return self._render(request, allowed, think, EMULATED), EMULATED

    def _render(
        self, request: Request, allowed: ToolPlan | None, think: bool | None, form: Form
    ) -> list[Segment]:
        vault, known = Vault(), self._template
        system = [vault.hide(request.system, wanted=True)] if request.system else []
        if allowed and not form.native:
            system.append(tools.instruction(allowed, vault))
        if think and not self._channel.native:
            system.append(thinking.INSTRUCTION)
        messages = turns.messages(
            request.contents,
            "\n\n".join(system),
            vault,
            takes_system=known.takes_system,
            form=form,
            grammars=allowed.grammars if allowed else (),
        )
        declared = tools.declarations(allowed.tools, vault) if allowed and form.native else None
        return known.render(messages, vault, tools=declared, thinking=think)

    def _sampling(self, config: GenerationConfig, *, free: bool) -> Sampling:
        """What the request says, and for the rest what is recommended."""
        given = {item.name: getattr(config, item.name) for item in fields(Sampling)}
        default = (
            self._recommended
            if free
            else replace(self._recommended, presence_penalty=None, frequency_penalty=None)
        )
        return replace(default, **{name: value for name, value in given.items() if value is not None})

    def _check(self, request: Request) -> None:
        """Refuses what this engine would have to leave out."""
        config, able = request.config, self.capabilities
        refused = {
            "cache": request.cache is not None,
            "config.modalities": config.modalities != ("text",),
            "config.logprobs": config.logprobs is not None and not able.logprobs,
            "config.seed": config.seed is not None and not able.seed,
            "config.bias": bool(config.bias) and not able.bias,
            "config.format": config.format.kind != "text" and not able.grammar,
            "tools": bool(request.tools) and request.tool_choice.mode != "none" and not able.grammar,
        }
        for where, is_refused in refused.items():
            if is_refused:
                raise UnsupportedError(
                    "this engine cannot do this", where=where, remedy="Leave it out, or choose another model."
                )
        if "" in config.stop:
            raise InvalidRequestError("an empty stop text", where="config.stop", remedy="Leave it out.")


def _usage(wanted: Wanted, answers: Sequence[Answer]) -> Usage:
    """What they have taken so far."""
    drafts = [answer.draft for answer in answers]
    prompt = max(draft.read for draft in drafts)
    return Usage(
        prompt=prompt,
        cached=min(drafts[0].cached or 0, prompt),  # what was written behind it may have been there as well
        answer=sum(draft.answered for draft in drafts),
        thoughts=sum(draft.thoughts for draft in drafts),
        summaries=sum(answer.summed_up for answer in answers),
        prompt_by_modality={"text": prompt},
    )


async def _together(streams: Sequence[AsyncGenerator[Delta]]) -> AsyncGenerator[Delta]:
    """The deltas of several streams as they come. Closing it closes them all; the first failure ends them
    all."""
    if len(streams) == 1:
        async with aclosing(streams[0]) as only:
            async for delta in only:
                yield delta
        return
    queue: asyncio.Queue[Delta | BaseException | None] = asyncio.Queue(maxsize=len(streams))
    tasks = [asyncio.create_task(_pass_on(stream, queue)) for stream in streams]
    try:
        open_streams = len(streams)
        while open_streams:
            item = await queue.get()
            if isinstance(item, BaseException):
                raise item
            if item is None:
                open_streams -= 1
            else:
                yield item
    finally:
        for task in tasks:
            task.cancel()
        for task in tasks:
            with suppress(asyncio.CancelledError):
                await task


async def _pass_on(stream: AsyncGenerator[Delta], queue: asyncio.Queue[Delta | BaseException | None]) -> None:
    try:
        async with aclosing(stream):
            async for delta in stream:
                await queue.put(delta)
        await queue.put(None)
    except Exception as error:  # told to the reader, whatever it is
        await queue.put(error)

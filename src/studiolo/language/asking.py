"""Ask, from Python: text or a pydantic model in, text or an instance out; functions are called on the way."""

from __future__ import annotations

from collections.abc import AsyncGenerator, Iterator, Mapping, Sequence
from contextlib import aclosing
from datetime import timedelta
from typing import Any, TypeVar, overload

from pydantic import BaseModel, TypeAdapter

from studiolo.language import DEFAULT_MODEL
from studiolo.language import conversation as c
from studiolo.language.caching.contexts import Context, Prefix
from studiolo.language.collect import Collector, collected
from studiolo.language.errors import InvalidRequestError, UpstreamError
from studiolo.language.functions import Function, by_name, called, declared
from studiolo.language.opening import engine
from studiolo.language.running import iterate, run

M = TypeVar("M", bound=BaseModel)
Prompt = str | c.Part | Sequence[str | c.Part]
Schema = type[BaseModel] | dict[str, Any]
Think = int | str | bool | None
Safety = str | Mapping[str, str] | None

MAX_ROUNDS = 8
"""How often the functions of one question may be called before the answer must be there."""


@overload
def ask(prompt: Prompt, *, schema: type[M], model: str = ..., **settings: Any) -> M: ...
@overload
def ask(prompt: Prompt, *, schema: dict[str, Any], model: str = ..., **settings: Any) -> Any: ...
@overload
def ask(prompt: Prompt, *, model: str = ..., **settings: Any) -> str: ...
def ask(prompt: Prompt, *, schema: Schema | None = None, model: str = DEFAULT_MODEL, **settings: Any) -> Any:
    """The answer to one question.

    Args:
        prompt: text, or a list of texts and other parts.
        schema: a pydantic model, of which an instance comes back, or a JSON Schema, for a value of JSON.
        model: a name; see `studiolo models list`.
        settings: as of `Chat`: system, tools, think, and any field of GenerationConfig.

    Raises:
        LanguageError: of the kind that fits; an answer cut off before it fits the schema is one.
    """
    chat = Chat(model=model, schema=schema, **settings)
    text = chat.send(prompt)
    return text if schema is None else parsed(chat.response, schema)


class Chat:
    """A conversation that remembers itself; the model is sent all of it each time.

    Args:
        model: a name; see `studiolo models list`.
        system: what the model is to be and to mind.
        tools: Python functions, called when the model wants it, or declarations (`Tool`), whose calls come
            back in `response.calls`.
        think: tokens to think with at most, "dynamic", a level ("low", "medium", "high"), or False.
        thoughts: what of its thoughts is told: "full" (where nothing is said), "summary" or "hidden".
        schema: the form of every answer.
        context: the name of an explicit context that goes before the turns; see `keep`.
        safety: from which probability of harm on anything is withheld ("low", "medium", "high"), or one such
            word for each harm.
        reuse: answer a question as one of the same meaning was answered before, from this cosine on; see
            docs/caching.md. It needs the weights `minilm`.
        settings: fields of GenerationConfig: temperature, max_tokens, seed, stop, ...

    Attributes:
        contents: the turns so far.
        response: the last answer with its usage, thoughts and finish reason.
    """

    def __init__(
        self,
        *,
        model: str = DEFAULT_MODEL,
        system: str | None = None,
        tools: Sequence[Function | c.Tool] = (),
        think: Think = None,
        thoughts: str | None = None,
        schema: Schema | None = None,
        context: str | None = None,
        safety: Safety = None,
        reuse: float | None = None,
        **settings: Any,
    ) -> None:
        self.model, self.system, self.context, self.reuse = model, system, context, reuse
        self.safety = safety_settings(safety)
        self.functions = by_name([tool for tool in tools if not isinstance(tool, c.Tool)])
        self.tools = as_tools(tools)
        wish, form = thinking(think, thoughts), json_format(schema)
        self.config = c.GenerationConfig(thinking=wish, format=form, **settings)
        self.contents: list[c.Content] = []
        self.response = c.Response(candidates=(), usage=c.Usage(), model=model)

    def send(self, prompt: Prompt) -> str:
        """The answer's text; the turn and the answer are remembered unless something went wrong."""
        return "".join(self.stream(prompt))

    def stream(self, prompt: Prompt) -> Iterator[str]:
        """The same in pieces as they come."""
        for delta in self.deltas(prompt):
            if isinstance(delta.part, c.Text):
                yield delta.part.text

    def deltas(self, prompt: Prompt) -> Iterator[c.Delta]:
        """Everything that comes: words, thoughts, calls, usage."""
        return iterate(self.astream(prompt))

    async def asend(self, prompt: Prompt) -> str:
        """`send` for asynchronous callers."""
        response = await collected(self.astream(prompt))
        return response.text

    async def astream(self, prompt: Prompt) -> AsyncGenerator[c.Delta]:
        """`deltas` for asynchronous callers. Functions are called between rounds, until the model asks for no
        more of them; after `MAX_ROUNDS` it is offered none, and has to answer."""
        turns = [*self.contents, c.user(*_parts(prompt))]
        opened = await engine(self.model, reuse=self.reuse)
        for round_ in range(MAX_ROUNDS + 1):
            collector, request = Collector(), self._request(opened.model, turns)
            if round_ == MAX_ROUNDS:
                request = request.model_copy(update={"tool_choice": c.ToolChoice(mode=c.ToolMode.NONE)})
            async with aclosing(opened.generate(request)) as stream:
                async for delta in stream:
                    collector.add(delta)
                    yield delta
            self.response = collector.response()
            if not self.response.candidates:
                return
            turns.append(self.response.candidates[0].content)
            calls = [call for call in self.response.calls if call.name in self.functions]
            if not calls or len(calls) < len(self.response.calls):
                self.contents = turns
                return
            turns.append(c.user(*[await called(call, self.functions) for call in calls]))

    def _request(self, model: str, turns: Sequence[c.Content]) -> c.Request:
        return c.Request(
            model=model,
            contents=tuple(turns),
            system=self.system,
            tools=self.tools,
            config=self.config,
            safety=self.safety,
            cache=self.context,
        )


def count_tokens(prompt: Prompt, *, model: str = DEFAULT_MODEL, system: str | None = None) -> int:
    """How many tokens the prompt is to the model, its template included."""
    request = c.Request(model=model, contents=(c.user(*_parts(prompt)),), system=system)

    async def counted() -> int:
        return await (await engine(model)).count_tokens(request)

    return run(counted())


def embed(texts: Sequence[str], *, model: str) -> list[list[float]]:
    """One unit vector a text."""

    async def vectors() -> list[list[float]]:
        return await (await engine(model)).embed(texts)

    return run(vectors())


def keep(
    prompt: Prompt,
    *,
    name: str,
    hours: float = 24,
    model: str = DEFAULT_MODEL,
    system: str | None = None,
    tools: Sequence[Function | c.Tool] = (),
) -> Context:
    """Keeps what many questions have in common, under a name that `Chat` and `ask` take as `context`.

    The model reads it ahead where it runs in this process, and later questions find it read.

    Raises:
        InvalidRequestError: nothing in it, too long for the model, or a name that is none or taken.
    """
    turns = (c.user(*_parts(prompt)),) if prompt else ()
    prefix = Prefix(contents=turns, system=system, tools=as_tools(tools))

    async def kept() -> Context:
        opened = await engine(model)
        return await opened.create(prefix, ttl=timedelta(hours=hours), name=name)

    return run(kept())


def as_tools(tools: Sequence[Function | c.Tool]) -> tuple[c.Tool, ...]:
    """Declarations; Python functions are declared by their types and docstrings."""
    return tuple(tool if isinstance(tool, c.Tool) else declared(tool) for tool in tools)


def safety_settings(safety: Safety) -> tuple[c.SafetySetting, ...]:
    """One threshold for all harms that people do to others, or one for each that is named.

    Raises:
        InvalidRequestError: a word that names none.
    """
    if safety is None:
        return ()
    named = dict.fromkeys(c.Harm, safety) if isinstance(safety, str) else safety
    try:
        return tuple(
            c.SafetySetting(harm=c.Harm(harm), threshold=c.Threshold(word)) for harm, word in named.items()
        )
    except ValueError as error:
        raise InvalidRequestError(
            f"no safety setting: {error}",
            where=f"safety = {safety!r}",
            remedy=f"Thresholds are {', '.join(c.Threshold)}; harms {', '.join(c.Harm)}.",
        ) from None


def thinking(think: Think, thoughts: str | None = None) -> c.Thinking | None:
    """What a short word for it means: None as the model does, False off, a number a budget, else a name.

    Raises:
        InvalidRequestError: a word that means nothing, or a wish for thoughts where thinking is left to the
            model.
    """
    if thoughts is not None and (think is None or thoughts not in set(c.Show)):
        raise InvalidRequestError(
            "thoughts are shown of a model that is told to think, in full, as a summary or not at all",
            where=f"think = {think!r}, thoughts = {thoughts!r}",
            remedy=f"Say how long to think, such as dynamic, and for thoughts {', '.join(c.Show)}.",
        )
    show = c.Show.FULL if thoughts is None else c.Show(thoughts)
    if think is None:
        return None
    if think is False or think == "off":
        return c.Thinking(mode=c.ThinkingMode.OFF)
    if think is True or think == "dynamic":
        return c.Thinking(mode=c.ThinkingMode.DYNAMIC, show=show)
    if isinstance(think, int) or think.isdecimal():
        return c.Thinking(mode=c.ThinkingMode.BUDGET, budget=int(think), show=show)
    if think in set(c.Level):
        return c.Thinking(mode=c.ThinkingMode.LEVEL, level=c.Level(think), show=show)
    raise InvalidRequestError(
        "not a way to think",
        where=f"think = {think!r}",
        remedy=f"Give a number of tokens, off, dynamic, {', '.join(c.Level)}.",
    )


def json_format(schema: Schema | None) -> c.Format:
    """The format that a schema asks for; None is free text."""
    if schema is None:
        return c.Format()
    rule = schema if isinstance(schema, dict) else schema.model_json_schema()
    return c.Format(kind=c.FormatKind.JSON, rule=rule)


def parsed(response: c.Response, schema: Schema) -> Any:
    """The answer as an instance of the model, or as a value of JSON.

    Raises:
        UpstreamError: it is no whole answer, or does not fit the schema.
    """
    if not response.candidates or response.candidates[0].finish is not c.FinishReason.STOP:
        reason = response.candidates[0].finish if response.candidates else response.blocked
        raise UpstreamError(
            f"the answer did not come to its end: {reason}",
            where=response.model,
            remedy="Allow more tokens (max_tokens), or ask for less.",
        )
    adapter: TypeAdapter[Any] = TypeAdapter(Any if isinstance(schema, dict) else schema)
    try:
        return adapter.validate_json(response.text)
    except ValueError as error:
        raise UpstreamError(f"the answer does not fit the schema: {error}", where=response.model) from error


def _parts(prompt: Prompt) -> Sequence[str | c.Part]:
    return [prompt] if isinstance(prompt, str | BaseModel) else prompt

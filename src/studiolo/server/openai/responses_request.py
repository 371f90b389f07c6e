"""From the request of responses to a conversation."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
from typing import assert_never

from studiolo.language.conversation import (
    Call,
    CallResult,
    Content,
    Data,
    FileRef,
    Format,
    FormatKind,
    GenerationConfig,
    Part,
    Request,
    Role,
    Show,
    Text,
    Thought,
    Tool,
    ToolChoice,
)
from studiolo.language.errors import InvalidRequestError
from studiolo.server.openai import asked, media
from studiolo.server.openai import responses_wire as w
from studiolo.server.openai.chat_request import arguments, signature_of


@dataclass(frozen=True)
class Located:
    """An item and where it stands; items of earlier responses have their response's id there."""

    item: w.Item
    where: str


def items_of(request: w.ResponseRequest) -> list[Located]:
    """What is sent; a text is a message of the user's."""
    if isinstance(request.input, str):
        return [Located(w.Message(role="user", content=request.input), "input")]
    return [Located(item, f"input[{number}]") for number, item in enumerate(request.input)]


def request_of(request: w.ResponseRequest, earlier: Sequence[Located], *, show: Show) -> Request:
    """The conversation, with all that is wished of its answer.

    Args:
        earlier: the items before those that are sent.
        show: what of thoughts is told if the request has no word on it.

    Raises:
        InvalidRequestError: it contradicts itself; `where` is OpenAI's name of the field.
        UnsupportedError: something that cannot be done here.
    """
    items = [*earlier, *items_of(request)]
    contents = tuple(_turns(items))
    if not contents:
        raise InvalidRequestError("nobody but the system has spoken", where="input")
    text = request.text or w.TextWish()
    said = [request.instructions or "", *_system(items)]
    tools = _tools(request.tools or ())
    return Request(
        model=request.model,
        contents=contents,
        system=asked.system_text(said, text.verbosity),
        tools=tools,
        tool_choice=_choice(request, tools),
        config=_config(request, _shown(request, show)),
        safety=asked.safety(request.safety),
        cache=request.cached_content,
    )


def custom_tools(request: w.ResponseRequest) -> frozenset[str]:
    """Names of tools whose calls are answered in the custom form."""
    return frozenset(tool.name for tool in request.tools or () if isinstance(tool, w.CustomTool))


def draws(request: w.ResponseRequest) -> str | None:
    """The drawing model that the answer may use.

    Raises:
        InvalidRequestError: several.
    """
    models = [tool.model for tool in request.tools or () if isinstance(tool, w.ImageTool)]
    if len(models) > 1:
        raise InvalidRequestError("one model draws", where="tools", remedy="Name one.")
    return models[0] if models else None


# --- items ------------------------------------------------------------------------------------------------


def _turns(items: Iterable[Located]) -> Iterator[Content]:
    """The turns: items of one speaker that follow each other are one. Messages of the user's are one each, as
    they were sent."""
    names: dict[str, str] = {}
    role, parts = Role.USER, list[Part]()
    before: w.Item | None = None
    for located in items:
        item, where = located.item, located.where
        if isinstance(item, w.Message) and item.role in ("system", "developer"):
            continue
        speaker, more = _said(item, names, where)
        said_before = isinstance(item, w.Message) and isinstance(before, w.Message)
        if parts and (speaker is not role or (speaker is Role.USER and said_before)):
            yield Content(role=role, parts=tuple(parts))
            parts = []
        role, before = speaker, item
        parts += more
    if parts:
        yield Content(role=role, parts=tuple(parts))


def _said(item: w.Item, names: dict[str, str], where: str) -> tuple[Role, list[Part]]:
    match item:
        case w.Message():
            role = Role.MODEL if item.role == "assistant" else Role.USER
            return role, list(_message_parts(item, where))
        case w.FunctionCall():
            names[item.call_id] = item.name
            call = Call(
                name=item.name,
                arguments=arguments(item.arguments, where=f"{where}.arguments"),
                id=item.call_id,
                signature=signature_of(item.extra_content, f"{where}.extra_content"),
            )
            return Role.MODEL, [call]
        case w.CustomToolCall():
            names[item.call_id] = item.name
            given = {asked.CUSTOM_INPUT: item.input}
            return Role.MODEL, [Call(name=item.name, arguments=given, id=item.call_id)]
        case w.FunctionCallOutput() | w.CustomToolCallOutput():
            return Role.USER, [_result(item, names, where)]
        case w.Reasoned():
            return Role.MODEL, list(_thought(item, where))
        case w.ImageGenerationCall():
            return Role.MODEL, list(_drawn(item, where))
        case _:
            assert_never(item)


def _message_parts(message: w.Message, where: str) -> Iterator[Part]:
    if isinstance(message.content, str):
        yield Text(text=message.content)
        return
    for number, part in enumerate(message.content):
        yield _part(part, f"{where}.content[{number}]")


def _part(part: w.Part, where: str) -> Part:
    match part:
        case w.InputText() | w.OutputText():
            return Text(text=part.text)
        case w.OutputRefusal():
            return Text(text=part.refusal)
        case w.InputSound():
            sound = part.input_audio
            return media.sound(sound.data, sound.format, where=f"{where}.input_audio.data")
        case w.InputImage():
            if part.image_url is not None and part.file_id is None:
                return media.picture(part.image_url, where=f"{where}.image_url")
            return media.file(data=None, uploaded=part.file_id, url=part.image_url, name=None, where=where)
        case w.InputFile():
            return media.file(
                data=part.file_data, uploaded=part.file_id, url=part.file_url, name=part.filename, where=where
            )
        case _:
            assert_never(part)


def _result(
    item: w.FunctionCallOutput | w.CustomToolCallOutput, names: dict[str, str], where: str
) -> CallResult:
    name = names.get(item.call_id)
    if name is None:
        raise InvalidRequestError(f"no call before it has the id {item.call_id!r}", where=f"{where}.call_id")
    if isinstance(item.output, str):
        return CallResult(name=name, result=item.output, id=item.call_id)
    parts = [_part(part, f"{where}.output[{number}]") for number, part in enumerate(item.output)]
    text = "".join(part.text for part in parts if isinstance(part, Text))
    pictures = tuple(part for part in parts if isinstance(part, Data | FileRef))
    return CallResult(name=name, result=text, id=item.call_id, media=pictures)


def _thought(item: w.Reasoned, where: str) -> Iterator[Thought]:
    text = "".join(part.text for part in item.content or ())
    signature = item.encrypted_content and media.decoded(
        item.encrypted_content, where=f"{where}.encrypted_content"
    )
    if text or signature:
        yield Thought(text=text, signature=signature or None)


def _drawn(item: w.ImageGenerationCall, where: str) -> Iterator[Data]:
    if item.result:
        yield Data(media_type="image/png", data=media.decoded(item.result, where=f"{where}.result"))


def _system(items: Iterable[Located]) -> Iterator[str]:
    for located in items:
        item = located.item
        if isinstance(item, w.Message) and item.role in ("system", "developer"):
            for part in _message_parts(item, located.where):
                if not isinstance(part, Text):
                    raise InvalidRequestError("the system speaks in text", where=located.where)
                yield part.text


# --- wishes -----------------------------------------------------------------------------------------------


def _tools(declared: Iterable[w.Tool]) -> tuple[Tool, ...]:
    made = [_tool(tool) for tool in declared]
    return tuple(tool for tool in made if tool is not None)


def _tool(tool: w.Tool) -> Tool | None:
    match tool:
        case w.FunctionTool():
            return Tool(
                name=tool.name,
                description=tool.description or "",
                parameters=tool.parameters,
                returns=tool.output_schema,
            )
        case w.CustomTool():
            grammar = tool.format if isinstance(tool.format, w.GrammarForm) else None
            return asked.custom_tool(
                tool.name,
                tool.description or "",
                grammar.syntax if grammar else None,
                grammar.definition if grammar else None,
            )
        case w.ImageTool():
            return None
        case _:
            assert_never(tool)


def _choice(request: w.ResponseRequest, tools: tuple[Tool, ...]) -> ToolChoice:
    choice, mode, names = request.tool_choice, None, None
    match choice:
        case str():
            mode = choice
        case w.Chosen():
            mode, names = "required", [choice.name]
        case w.Allowed():
            mode, names = choice.mode, [tool.name for tool in choice.tools]
    return asked.tool_choice(mode, names, request.parallel_tool_calls, tools)


def _shown(request: w.ResponseRequest, show: Show) -> Show:
    if request.include_reasoning is not None:
        return Show.FULL if request.include_reasoning else Show.HIDDEN
    reasoning = request.reasoning
    return Show.SUMMARY if reasoning and (reasoning.summary or reasoning.generate_summary) else show


def _config(request: w.ResponseRequest, show: Show) -> GenerationConfig:
    reasoning = request.reasoning or w.Reasoning()
    text = request.text or w.TextWish()
    wants_picture = isinstance(request.tool_choice, w.ChosenImage)
    if wants_picture and draws(request) is None:
        raise InvalidRequestError("no tool that draws is declared", where="tool_choice")
    return GenerationConfig(
        max_tokens=request.max_output_tokens,
        temperature=request.temperature,
        top_p=request.top_p,
        top_k=request.top_k,
        seed=request.seed,
        stop=tuple(request.stop or ()),
        logprobs=_logprobs(request),
        format=asked.guided(
            _format(text.format), request.guided_choice, request.guided_regex, request.guided_grammar
        ),
        thinking=asked.thinking(reasoning.effort, request.thinking_budget, show),
        modalities=("text", "image") if wants_picture else ("text",),
    )


def _logprobs(request: w.ResponseRequest) -> int | None:
    wanted = "message.output_text.logprobs" in (request.include or ())
    return (request.top_logprobs or 0) if wanted or request.top_logprobs is not None else None


def _format(wanted: w.TextForm | w.JSONForm | w.JSONSchemaForm | None) -> Format:
    match wanted:
        case w.JSONForm():
            return Format(kind=FormatKind.JSON, rule={"type": "object"})
        case w.JSONSchemaForm():
            return Format(kind=FormatKind.JSON, rule=wanted.schema_)
        case _:
            return Format()

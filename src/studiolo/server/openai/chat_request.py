"""From the request of chat/completions to a conversation."""

from __future__ import annotations

import json
from collections.abc import Iterable, Iterator, Sequence
from typing import Any, assert_never

from studiolo.language.conversation import (
    Call,
    CallResult,
    Content,
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
from studiolo.server.openai import chat_wire as w


def request_of(chat: w.ChatRequest, *, show: Show) -> Request:
    """The conversation, with all that is wished of its answer.

    Args:
        show: what of thoughts is told if the request has no word on it.

    Raises:
        InvalidRequestError: it contradicts itself; `where` is OpenAI's name of the field.
        UnsupportedError: something that cannot be done here.
    """
    tools = _tools(chat.tools or ())
    said = [_words(message.content) for message in chat.messages if isinstance(message, w.SystemMessage)]
    contents = tuple(_contents(chat.messages))
    if not contents:
        raise InvalidRequestError("nobody but the system has spoken", where="messages")
    if chat.include_reasoning is not None:
        show = Show.FULL if chat.include_reasoning else Show.HIDDEN
    return Request(
        model=chat.model,
        contents=contents,
        system=asked.system_text(said, chat.verbosity),
        tools=tools,
        tool_choice=_choice(chat, tools),
        config=_config(chat, show),
        safety=asked.safety(chat.safety),
        cache=chat.cached_content,
    )


def custom_tools(chat: w.ChatRequest) -> frozenset[str]:
    """Names of tools whose calls are answered in the custom form."""
    return frozenset(tool.custom.name for tool in chat.tools or () if isinstance(tool, w.CustomTool))


# --- messages ---------------------------------------------------------------------------------------------


def _contents(messages: Sequence[w.Message]) -> Iterator[Content]:
    """The turns. Results that follow each other are one turn of the user's."""
    names: dict[str, str] = {}
    results: list[CallResult] = []
    for number, message in enumerate(messages):
        where = f"messages[{number}]"
        if results and not isinstance(message, w.ToolMessage):
            yield Content(role=Role.USER, parts=tuple(results))
            results = []
        match message:
            case w.SystemMessage():
                pass
            case w.UserMessage():
                yield Content(role=Role.USER, parts=tuple(_user_parts(message.content, where)))
            case w.AssistantMessage():
                parts = tuple(_model_parts(message, where))
                names |= {part.id: part.name for part in parts if isinstance(part, Call)}
                yield Content(role=Role.MODEL, parts=parts)
            case w.ToolMessage():
                results.append(_result(message, names, where))
            case _:
                assert_never(message)
    if results:
        yield Content(role=Role.USER, parts=tuple(results))


def _words(content: str | Sequence[w.TextPart]) -> str:
    return content if isinstance(content, str) else "".join(part.text for part in content)


def _user_parts(content: str | Sequence[w.UserPart], where: str) -> Iterator[Part]:
    if isinstance(content, str):
        yield Text(text=content)
        return
    for number, part in enumerate(content):
        yield _user_part(part, f"{where}.content[{number}]")


def _user_part(part: w.UserPart, where: str) -> Part:
    match part:
        case w.TextPart():
            return Text(text=part.text)
        case w.ImagePart():
            return media.picture(part.image_url.url, where=f"{where}.image_url.url")
        case w.AudioPart():
            sound = part.input_audio
            return media.sound(sound.data, sound.format, where=f"{where}.input_audio.data")
        case w.FilePart():
            given = part.file
            return media.file(
                data=given.file_data, uploaded=given.file_id, name=given.filename, where=f"{where}.file"
            )
        case _:
            assert_never(part)


def _model_parts(message: w.AssistantMessage, where: str) -> Iterator[Part]:
    if message.reasoning_content:
        yield Thought(text=message.reasoning_content)
    text = _model_words(message)
    if text or not (message.tool_calls or message.reasoning_content or message.images):
        yield Text(text=text)
    for number, picture in enumerate(message.images or ()):
        yield media.picture(picture.image_url.url, where=f"{where}.images[{number}].image_url.url")
    for number, call in enumerate(message.tool_calls or ()):
        yield _call(call, f"{where}.tool_calls[{number}]")


def _model_words(message: w.AssistantMessage) -> str:
    content = message.content or ""
    texts = [content] if isinstance(content, str) else [_model_word(part) for part in content]
    return "".join(texts) or message.refusal or ""


def _model_word(part: w.TextPart | w.RefusalPart) -> str:
    return part.text if isinstance(part, w.TextPart) else part.refusal


def _call(call: w.FunctionCall | w.CustomCall, where: str) -> Call:
    if isinstance(call, w.CustomCall):
        return Call(name=call.custom.name, arguments={asked.CUSTOM_INPUT: call.custom.input}, id=call.id)
    return Call(
        name=call.function.name,
        arguments=arguments(call.function.arguments, where=f"{where}.function.arguments"),
        id=call.id,
        signature=signature_of(call.extra_content, f"{where}.extra_content"),
    )


def arguments(text: str, *, where: str) -> dict[str, Any]:
    """The arguments of a call, which travel as a text of JSON.

    Raises:
        InvalidRequestError: no JSON object.
    """
    try:
        made = json.loads(text) if text else {}
    except (ValueError, RecursionError):
        made = None
    if not isinstance(made, dict):
        raise InvalidRequestError("arguments are a JSON object, as text", where=where)
    return made


def signature_of(extra: dict[str, Any] | None, where: str) -> bytes | None:
    """What Gemini wants back with a call, as Google's own OpenAI-like endpoint has it."""
    google = (extra or {}).get("google")
    signature = google.get("thought_signature") if isinstance(google, dict) else None
    return media.decoded(signature, where=where) if isinstance(signature, str) else None


def _result(message: w.ToolMessage, names: dict[str, str], where: str) -> CallResult:
    name = names.get(message.tool_call_id)
    if name is None:
        raise InvalidRequestError(
            f"no call before it has the id {message.tool_call_id!r}", where=f"{where}.tool_call_id"
        )
    return CallResult(name=name, result=_words(message.content), id=message.tool_call_id)


# --- wishes -----------------------------------------------------------------------------------------------


def _tools(declared: Iterable[w.Tool]) -> tuple[Tool, ...]:
    return tuple(_tool(tool) for tool in declared)


def _tool(tool: w.Tool) -> Tool:
    if isinstance(tool, w.FunctionTool):
        told = tool.function
        return Tool(name=told.name, description=told.description or "", parameters=told.parameters)
    custom = tool.custom
    grammar = custom.format.grammar if isinstance(custom.format, w.GrammarForm) else None
    return asked.custom_tool(
        custom.name,
        custom.description or "",
        grammar.syntax if grammar else None,
        grammar.definition if grammar else None,
    )


def _choice(chat: w.ChatRequest, tools: tuple[Tool, ...]) -> ToolChoice:
    choice, mode, names = chat.tool_choice, None, None
    match choice:
        case str():
            mode = choice
        case w.ChosenFunction() | w.ChosenCustom():
            mode, names = "required", [_name(choice)]
        case w.Allowed():
            mode, names = choice.allowed_tools.mode, [_name(tool) for tool in choice.allowed_tools.tools]
    return asked.tool_choice(mode, names, chat.parallel_tool_calls, tools)


def _name(chosen: w.ChosenFunction | w.ChosenCustom) -> str:
    return chosen.function.name if isinstance(chosen, w.ChosenFunction) else chosen.custom.name


def _config(chat: w.ChatRequest, show: Show) -> GenerationConfig:
    if chat.top_logprobs is not None and not chat.logprobs:
        raise InvalidRequestError("it needs logprobs to be true", where="top_logprobs")
    if chat.stream_options is not None and not chat.stream:
        raise InvalidRequestError("it needs stream to be true", where="stream_options")
    stops = [chat.stop] if isinstance(chat.stop, str) else chat.stop or []
    return GenerationConfig(
        max_tokens=_max_tokens(chat),
        temperature=chat.temperature,
        top_p=chat.top_p,
        top_k=chat.top_k,
        seed=chat.seed,
        stop=tuple(stops),
        presence_penalty=chat.presence_penalty,
        frequency_penalty=chat.frequency_penalty,
        bias=tuple((int(token), bias) for token, bias in (chat.logit_bias or {}).items()),
        candidates=chat.n or 1,
        logprobs=(chat.top_logprobs or 0) if chat.logprobs else None,
        format=asked.guided(
            _format(chat.response_format), chat.guided_choice, chat.guided_regex, chat.guided_grammar
        ),
        modalities=tuple(chat.modalities or ("text",)),
        thinking=asked.thinking(chat.reasoning_effort, chat.thinking_budget, show),
    )


def _max_tokens(chat: w.ChatRequest) -> int | None:
    given = {chat.max_tokens, chat.max_completion_tokens} - {None}
    if len(given) > 1:
        raise InvalidRequestError(
            "max_tokens is the old name of max_completion_tokens, and they differ",
            where="max_tokens",
            remedy="Give one.",
        )
    return given.pop() if given else None


def _format(wanted: w.ResponseFormat | None) -> Format:
    match wanted:
        case w.JSONForm():
            return Format(kind=FormatKind.JSON, rule={"type": "object"})
        case w.JSONSchemaForm():
            schema = wanted.json_schema.schema_
            return Format(kind=FormatKind.JSON, rule=True if schema is None else schema)
        case _:
            return Format()

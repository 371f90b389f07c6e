"""From a `Request` to the body of OpenAI's chat/completions, as each kind of server wants it.

Sources: the API reference of OpenAI (chat/create), and what the servers add to it or leave out of it:
vLLM (serving/openai_compatible_server, features/structured_outputs, features/reasoning_outputs),
llama.cpp (tools/server/README), Ollama (api/openai-compatibility), OpenRouter (use-cases/reasoning-tokens).
"""

from __future__ import annotations

import base64
import json
from collections.abc import Iterator
from dataclasses import dataclass, field
from typing import Any

from studiolo.language.conversation import (
    Call,
    CallResult,
    Content,
    Data,
    FileRef,
    Format,
    FormatKind,
    Level,
    Part,
    Request,
    Role,
    Show,
    Text,
    Thinking,
    ThinkingMode,
    Thought,
    Threshold,
    Tool,
    ToolMode,
)
from studiolo.language.engines.upstream import check_schema, usable_tools
from studiolo.language.errors import InvalidRequestError, UnsupportedError

_AUDIO_FORMATS = {"audio/wav": "wav", "audio/x-wav": "wav", "audio/mpeg": "mp3", "audio/mp3": "mp3"}


@dataclass(frozen=True)
class Dialect:
    """How a kind of server differs from OpenAI's own.

    Attributes:
        max_tokens: the field for the bound on the answer.
        top_k: it has this field.
        candidates: it gives several answers (`n`).
        choice: it has `tool_choice` and `parallel_tool_calls`.
        strict: it enforces arguments on `strict`, and limits names of tools to 64 letters of a few kinds.
        thoughts: the field of a message for what the model thought, or None if there is no such field.
        shows_thoughts: it streams them.
        video: it takes `video_url` parts.
        files: it takes `file` parts.
        stops: the most stop texts, or None if there is no limit.
        formats: constraints besides JSON.
    """

    name: str
    max_tokens: str = "max_tokens"
    top_k: bool = True
    candidates: bool = True
    choice: bool = True
    strict: bool = False
    thoughts: str | None = "reasoning"
    shows_thoughts: bool = True
    video: bool = False
    files: bool = False
    stops: int | None = None
    formats: frozenset[FormatKind] = frozenset()


DIALECTS = {
    dialect.name: dialect
    for dialect in (
        Dialect("openai", max_tokens="max_completion_tokens", top_k=False, strict=True, thoughts=None,
                shows_thoughts=False, files=True, stops=4),
        Dialect("vllm", video=True,
                formats=frozenset({FormatKind.CHOICE, FormatKind.REGEX, FormatKind.LARK, FormatKind.GBNF})),
        Dialect("llamacpp", thoughts="reasoning_content",
                formats=frozenset({FormatKind.CHOICE, FormatKind.GBNF})),
        Dialect("ollama", top_k=False, candidates=False, choice=False),
        Dialect("openrouter", strict=True, video=True, files=True, stops=4),
    )
}  # fmt: skip
"""The kinds of servers that are known. SGLang, LM Studio and Google's compatible endpoint: "openai"."""


@dataclass
class Body:
    """The body to send (without `stream`), and what a user should know of how it came about."""

    fields: dict[str, Any]
    notes: list[str] = field(default_factory=list)


def body_of(request: Request, model: str, dialect: Dialect) -> Body:
    """The body for this server.

    Raises:
        UnsupportedError: names the field that this kind of server has nothing for.
        InvalidRequestError: the request contradicts itself.
    """
    _refuse_what_no_server_has(request)
    body = Body({"model": model})
    body.fields["messages"] = _messages(request, dialect, body.notes)
    body.fields |= _sampling(request, dialect)
    body.fields |= _tools(request, dialect)
    body.fields |= _format(request.config.format, dialect)
    body.fields |= _thinking(request.config.thinking, dialect)
    if dialect.name == "openrouter":
        # Without this it also chooses providers that ignore a parameter, and says nothing.
        body.fields["provider"] = {"require_parameters": True}
    return body


def _unsupported(what: str, dialect: Dialect, remedy: str | None = None) -> UnsupportedError:
    return UnsupportedError(
        f"servers of the kind '{dialect.name}' have nothing for it", where=what, remedy=remedy
    )


def _refuse_what_no_server_has(request: Request) -> None:
    nothing = "the OpenAI API has nothing for it"
    if request.cache is not None:
        raise UnsupportedError(nothing, where="cache", remedy="Send the cached contents with the request.")
    for setting in request.safety:
        if setting.threshold not in (Threshold.OFF, Threshold.NONE):
            raise UnsupportedError(nothing, where=f"safety.{setting.harm.value}")
    if request.config.modalities != ("text",):
        raise UnsupportedError("only text is made here", where="config.modalities")


# --- messages ---------------------------------------------------------------------------------------------


def _messages(request: Request, dialect: Dialect, notes: list[str]) -> list[dict[str, Any]]:
    messages: list[dict[str, Any]] = []
    if request.system is not None:
        messages.append({"role": "system", "content": request.system})
    open_calls: list[tuple[str, str]] = []  # (name, id) that have no result yet
    for number, content in enumerate(request.contents):
        if content.role is Role.MODEL:
            messages.append(_model_message(content, number, dialect, open_calls, notes))
        else:
            messages += _user_messages(content, dialect, open_calls)
    return messages


def _model_message(
    content: Content, number: int, dialect: Dialect, open_calls: list[tuple[str, str]], notes: list[str]
) -> dict[str, Any]:
    message: dict[str, Any] = {"role": "assistant", "content": content.text or None}
    open_calls.clear()
    for part in content.parts:
        match part:
            case Call():
                call_id = part.id or f"call_{number}_{len(open_calls)}"
                open_calls.append((part.name, call_id))
                function = {"name": part.name, "arguments": json.dumps(part.arguments, ensure_ascii=False)}
                message.setdefault("tool_calls", []).append(
                    {"id": call_id, "type": "function", "function": function}
                )
            case Data() | FileRef() | CallResult():
                raise _unsupported(
                    f"contents.{number}: a part of kind '{part.kind}' in the model's turn", dialect
                )
    if thoughts := content.thoughts:
        if dialect.thoughts:
            message[dialect.thoughts] = thoughts
        else:
            _note(notes, "thoughts of earlier turns were left out: the upstream has no place for them")
    if any(isinstance(part, Call | Thought) and part.signature for part in content.parts):
        _note(notes, "signatures of earlier thoughts were left out: the upstream has no place for them")
    if message["content"] is None and "tool_calls" not in message:
        message["content"] = ""
    return message


def _note(notes: list[str], text: str) -> None:
    if text not in notes:
        notes.append(text)


def _user_messages(
    content: Content, dialect: Dialect, open_calls: list[tuple[str, str]]
) -> Iterator[dict[str, Any]]:
    results = [part for part in content.parts if isinstance(part, CallResult)]
    others = [part for part in content.parts if not isinstance(part, CallResult)]
    # The API wants the results right after the calls, before anything else that the user says. Those that
    # name their call choose first: the others take what is left of their function's.
    answered = {id(result): _answered(result, open_calls) for result in results if result.id}
    answered |= {id(result): _answered(result, open_calls) for result in results if not result.id}
    for result in results:
        yield _result_message(result, answered[id(result)], dialect)
    if all(isinstance(part, Text) for part in others):
        if others:
            yield {"role": "user", "content": content.text}
    else:
        yield {"role": "user", "content": [_user_part(part, dialect) for part in others]}


def _answered(result: CallResult, open_calls: list[tuple[str, str]]) -> str:
    """The id of the call that this is the result of."""
    for pair in open_calls:
        if pair[1] == result.id if result.id else pair[0] == result.name:
            open_calls.remove(pair)
            return pair[1]
    raise InvalidRequestError(
        "a result without its call in the turn before", where=f"{result.name} {result.id}".strip()
    )


def _result_message(result: CallResult, call_id: str, dialect: Dialect) -> dict[str, Any]:
    if result.media:
        raise _unsupported("media in the result of a function", dialect)
    value = result.result
    text = value if isinstance(value, str) else json.dumps(value, ensure_ascii=False)
    return {"role": "tool", "tool_call_id": call_id, "content": text}


def _user_part(part: Part, dialect: Dialect) -> dict[str, Any]:
    match part:
        case Text():
            return {"type": "text", "text": part.text}
        case Data():
            url = f"data:{part.media_type};base64,{base64.b64encode(part.data).decode()}"
            return _media_part(part.media_type, url, part, dialect)
        case FileRef() if part.media_type:
            return _media_part(part.media_type, part.uri, part, dialect)
        case FileRef():
            raise InvalidRequestError("a file without its media type", where=part.uri)
        case _:
            raise InvalidRequestError(f"a part of kind '{part.kind}' in the user's turn", where="contents")


def _media_part(media_type: str, url: str, part: Data | FileRef, dialect: Dialect) -> dict[str, Any]:
    kind = media_type.partition("/")[0]
    if kind == "image":
        return {"type": "image_url", "image_url": {"url": url}}
    if media_type in _AUDIO_FORMATS and isinstance(part, Data):
        data = base64.b64encode(part.data).decode()
        return {"type": "input_audio", "input_audio": {"data": data, "format": _AUDIO_FORMATS[media_type]}}
    if kind == "video" and dialect.video:
        return {"type": "video_url", "video_url": {"url": url}}
    if kind not in ("audio", "video") and dialect.files and isinstance(part, Data):
        return {"type": "file", "file": {"filename": part.name or "file", "file_data": url}}
    raise _unsupported(f"a part of media type {media_type} given as {part.kind}", dialect)


# --- wishes -----------------------------------------------------------------------------------------------


def _sampling(request: Request, dialect: Dialect) -> dict[str, Any]:
    config = request.config
    if config.bias:  # in tokens of a vocabulary that only the upstream knows
        raise _unsupported("config.bias", dialect)
    if config.top_k is not None and not dialect.top_k:
        raise _unsupported("config.top_k", dialect)
    if config.candidates > 1 and not dialect.candidates:
        raise _unsupported("config.candidates", dialect)
    if dialect.stops is not None and len(config.stop) > dialect.stops:
        raise _unsupported(f"config.stop with more than {dialect.stops} texts", dialect)
    fields = {
        dialect.max_tokens: config.max_tokens,
        "temperature": config.temperature,
        "top_p": config.top_p,
        "top_k": config.top_k,
        "seed": config.seed,
        "stop": list(config.stop) or None,
        "presence_penalty": config.presence_penalty,
        "frequency_penalty": config.frequency_penalty,
        "n": config.candidates if config.candidates > 1 else None,
        "logprobs": True if config.logprobs is not None else None,
        "top_logprobs": config.logprobs or None,
    }
    return {name: value for name, value in fields.items() if value is not None}


def _tools(request: Request, dialect: Dialect) -> dict[str, Any]:
    choice, usable = request.tool_choice, usable_tools(request)
    if not usable:
        return {}
    if not dialect.choice:
        if choice.mode is ToolMode.NONE:
            return {}  # what is not shown cannot be called
        if choice.mode is ToolMode.ANY:
            raise _unsupported("tool_choice.mode 'any'", dialect)
        if not choice.parallel:
            raise _unsupported("tool_choice.parallel", dialect)
    fields: dict[str, Any] = {"tools": [_tool(tool, choice.mode, dialect) for tool in usable]}
    if dialect.choice:
        fields["tool_choice"] = {ToolMode.NONE: "none", ToolMode.ANY: "required"}.get(choice.mode, "auto")
        fields["parallel_tool_calls"] = choice.parallel
    return fields


def _tool(tool: Tool, mode: ToolMode, dialect: Dialect) -> dict[str, Any]:
    if dialect.strict and (len(tool.name) > 64 or not set(".:").isdisjoint(tool.name)):
        raise _unsupported(
            f"the tool's name '{tool.name}'", dialect, "Use at most 64 letters, digits, '_' and '-'."
        )
    function: dict[str, Any] = {"name": tool.name}
    described = [tool.description] if tool.description else []
    if tool.returns is not None:  # the API has no field for it, but the model reads the description
        described.append(f"Returns JSON of this schema: {json.dumps(tool.returns, ensure_ascii=False)}")
    if described:
        function["description"] = "\n".join(described)
    function["parameters"] = tool.parameters or {
        "type": "object",
        "properties": {},
        "additionalProperties": False,
    }
    if dialect.strict and mode is ToolMode.VALIDATED:
        function["strict"] = True
    return {"type": "function", "function": function}


def _format(wanted: Format, dialect: Dialect) -> dict[str, Any]:
    kind, rule = wanted.kind, wanted.rule
    if kind is FormatKind.TEXT:
        return {}
    if kind is FormatKind.JSON:
        if rule == {"type": "object"}:  # as a strict schema it would be refused: it names no properties
            return {"response_format": {"type": "json_object"}}
        if isinstance(rule, dict):
            check_schema(rule, where="config.format.rule")
            schema = {"name": "answer", "schema": rule, "strict": True}
            return {"response_format": {"type": "json_schema", "json_schema": schema}}
        if rule is None or rule is True:
            return {"response_format": {"type": "json_object"}}
        raise InvalidRequestError("no answer is valid against this schema", where="config.format.rule")
    if kind not in dialect.formats:
        raise _unsupported(f"config.format of kind '{kind.value}'", dialect)
    if kind is FormatKind.CHOICE:
        if not isinstance(rule, tuple) or not rule:
            raise InvalidRequestError("a list of choices is wanted", where="config.format.rule")
        if dialect.name == "llamacpp":  # a GBNF string has the escapes of a JSON one
            return {
                "grammar": "root ::= " + " | ".join(json.dumps(text, ensure_ascii=False) for text in rule)
            }
        return {"structured_outputs": {"choice": list(rule)}}
    if not isinstance(rule, str):
        raise InvalidRequestError("a text is wanted", where="config.format.rule")
    if dialect.name == "llamacpp":
        return {"grammar": rule}
    return {"structured_outputs": {"regex" if kind is FormatKind.REGEX else "grammar": rule}}


def _thinking(thinking: Thinking | None, dialect: Dialect) -> dict[str, Any]:
    if thinking is None:
        return {}
    if thinking.show and not dialect.shows_thoughts:
        raise _unsupported("config.thinking.show", dialect)
    if thinking.show is Show.SUMMARY:  # Chat Completions has thoughts as they are, or none
        raise _unsupported("config.thinking.show 'summary'", dialect, "Show them in full, or hide them.")
    if thinking.mode is ThinkingMode.BUDGET and thinking.budget is None:
        raise InvalidRequestError("a budget without its number", where="config.thinking.budget")
    if thinking.mode is ThinkingMode.LEVEL and thinking.level is None:
        raise InvalidRequestError("a level without its name", where="config.thinking.level")
    off = thinking.mode is ThinkingMode.OFF or (thinking.mode is ThinkingMode.BUDGET and thinking.budget == 0)
    match dialect.name:
        case "openrouter":
            return {"reasoning": _openrouter_reasoning(thinking, off) | {"exclude": not thinking.show}}
        case "vllm" | "llamacpp":
            return _template_thinking(thinking, off, dialect)
        case _:
            return _effort(thinking, off, dialect)


def _openrouter_reasoning(thinking: Thinking, off: bool) -> dict[str, Any]:
    if off:
        return {"effort": "none"}
    if thinking.mode is ThinkingMode.BUDGET:
        return {"max_tokens": thinking.budget}
    return {"effort": thinking.level.value} if thinking.level else {"enabled": True}


def _template_thinking(thinking: Thinking, off: bool, dialect: Dialect) -> dict[str, Any]:
    fields: dict[str, Any] = {"chat_template_kwargs": {"enable_thinking": not off}}
    if thinking.mode is ThinkingMode.BUDGET and not off:
        name = "thinking_token_budget" if dialect.name == "vllm" else "thinking_budget_tokens"
        fields[name] = thinking.budget
    elif thinking.mode is ThinkingMode.LEVEL and thinking.level:
        if dialect.name == "llamacpp":
            raise _unsupported("config.thinking.level", dialect, "Give a budget.")
        fields["reasoning_effort"] = thinking.level.value
    return fields


def _effort(thinking: Thinking, off: bool, dialect: Dialect) -> dict[str, Any]:
    if off:
        return {"reasoning_effort": "none"}
    if thinking.mode is ThinkingMode.BUDGET:
        raise _unsupported("config.thinking.budget", dialect, "Give a level.")
    if thinking.mode is ThinkingMode.DYNAMIC or thinking.level is None:
        return {}
    if thinking.level is Level.MINIMAL and dialect.name == "ollama":
        raise _unsupported("config.thinking.level 'minimal'", dialect)
    return {"reasoning_effort": thinking.level.value}

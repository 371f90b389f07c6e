"""From a `Request` to the body of Google's generateContent (https://ai.google.dev/api/generate-content)."""

from __future__ import annotations

import base64
from typing import Any

from studiolo.language.conversation import (
    Call,
    CallResult,
    Content,
    Data,
    FileRef,
    Format,
    FormatKind,
    GenerationConfig,
    Harm,
    Part,
    Request,
    Role,
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

HARMS = {
    Harm.HARASSMENT: "HARM_CATEGORY_HARASSMENT",
    Harm.HATE: "HARM_CATEGORY_HATE_SPEECH",
    Harm.SEXUAL: "HARM_CATEGORY_SEXUALLY_EXPLICIT",
    Harm.DANGEROUS: "HARM_CATEGORY_DANGEROUS_CONTENT",
    Harm.CIVIC: "HARM_CATEGORY_CIVIC_INTEGRITY",
    Harm.JAILBREAK: "HARM_CATEGORY_JAILBREAK",
}
_THRESHOLDS = {
    Threshold.OFF: "OFF",
    Threshold.NONE: "BLOCK_NONE",
    Threshold.HIGH: "BLOCK_ONLY_HIGH",
    Threshold.MEDIUM: "BLOCK_MEDIUM_AND_ABOVE",
    Threshold.LOW: "BLOCK_LOW_AND_ABOVE",
}
_MOST_STOPS = 5


def body_of(request: Request) -> dict[str, Any]:
    """The body in the names of the wire.

    Raises:
        UnsupportedError: names the field that the API has nothing for.
        InvalidRequestError: the request contradicts itself.
    """
    body: dict[str, Any] = {
        "contents": [_content(content, number) for number, content in enumerate(request.contents)],
        "generationConfig": _generation_config(request.config),
    }
    if request.system is not None:
        body["systemInstruction"] = {"parts": [{"text": request.system}]}
    body |= _tools(request)
    if request.safety:
        body["safetySettings"] = [
            {"category": HARMS[setting.harm], "threshold": _THRESHOLDS[setting.threshold]}
            for setting in request.safety
        ]
    if request.cache is not None:
        body["cachedContent"] = request.cache
    return body


# --- contents ---------------------------------------------------------------------------------------------


def _content(content: Content, number: int) -> dict[str, Any]:
    parts = [_part(part, content.role, f"contents.{number}") for part in content.parts]
    return {"role": "model" if content.role is Role.MODEL else "user", "parts": parts}


def _part(part: Part, role: Role, where: str) -> dict[str, Any]:
    if isinstance(part, Call | Thought) and role is Role.USER:
        raise InvalidRequestError(f"a part of kind '{part.kind}' in the user's turn", where=where)
    if isinstance(part, CallResult) and role is Role.MODEL:
        raise InvalidRequestError("the result of a function in the model's turn", where=where)
    match part:
        case Text():
            return {"text": part.text}
        case Thought():
            # A signature without words came on an empty text, and goes back on one.
            thought = {"text": part.text, "thought": True} if part.text else {"text": ""}
            return thought | _signed(part.signature)
        case Data() | FileRef():
            return _media(part, where)
        case Call():
            call: dict[str, Any] = {"name": part.name, "args": part.arguments}
            return {"functionCall": call | ({"id": part.id} if part.id else {})} | _signed(part.signature)
        case CallResult():
            return {"functionResponse": _function_response(part, where)}


def _signed(signature: bytes | None) -> dict[str, str]:
    return {"thoughtSignature": base64.b64encode(signature).decode()} if signature else {}


def _media(part: Data | FileRef, where: str) -> dict[str, Any]:
    if isinstance(part, Data):
        return {"inlineData": {"mimeType": part.media_type, "data": base64.b64encode(part.data).decode()}}
    if part.media_type is None:
        raise InvalidRequestError("a file without its media type", where=f"{where}: {part.uri}")
    return {"fileData": {"mimeType": part.media_type, "fileUri": part.uri}}


def _function_response(result: CallResult, where: str) -> dict[str, Any]:
    # The API wants an object; what is none goes under the name that it documents for that.
    value = result.result if isinstance(result.result, dict) else {"output": result.result}
    response: dict[str, Any] = {"name": result.name, "response": value}
    if result.id:
        response["id"] = result.id
    if result.media:
        response["parts"] = [_media(part, where) for part in result.media]
    return response


# --- tools ------------------------------------------------------------------------------------------------


def _tools(request: Request) -> dict[str, Any]:
    choice, usable = request.tool_choice, usable_tools(request)
    if not request.tools:
        return {}
    if not choice.parallel:
        raise UnsupportedError("the Gemini API always allows several calls", where="tool_choice.parallel")
    calling: dict[str, Any] = {"mode": choice.mode.value.upper()}
    # Names may be given with two modes only; with the others, what is not declared cannot be called.
    named = choice.allowed is not None and choice.mode in (ToolMode.ANY, ToolMode.VALIDATED)
    if named:
        calling["allowedFunctionNames"] = list(choice.allowed or ())
    declared = request.tools if named else usable
    if not declared:
        return {}
    return {
        "tools": [{"functionDeclarations": [_declaration(tool) for tool in declared]}],
        "toolConfig": {"functionCallingConfig": calling},
    }


def _declaration(tool: Tool) -> dict[str, Any]:
    declaration: dict[str, Any] = {"name": tool.name, "description": tool.description}
    if tool.parameters is not None:
        declaration["parametersJsonSchema"] = tool.parameters
    if tool.returns is not None:
        declaration["responseJsonSchema"] = tool.returns
    return declaration


# --- wishes -----------------------------------------------------------------------------------------------


def _generation_config(config: GenerationConfig) -> dict[str, Any]:
    if len(config.stop) > _MOST_STOPS:
        raise UnsupportedError(f"the Gemini API takes at most {_MOST_STOPS} stop texts", where="config.stop")
    if config.bias:
        raise UnsupportedError("the Gemini API takes no bias", where="config.bias", remedy="Leave it out.")
    fields = {
        "maxOutputTokens": config.max_tokens,
        "temperature": config.temperature,
        "topP": config.top_p,
        "topK": config.top_k,
        "seed": config.seed,
        "stopSequences": list(config.stop) or None,
        "presencePenalty": config.presence_penalty,
        "frequencyPenalty": config.frequency_penalty,
        "candidateCount": config.candidates if config.candidates > 1 else None,
        "responseLogprobs": True if config.logprobs is not None else None,
        "logprobs": config.logprobs or None,
        "responseModalities": None
        if config.modalities == ("text",)
        else [name.upper() for name in config.modalities],
    }
    wishes = {name: value for name, value in fields.items() if value is not None}
    return wishes | _format(config.format) | _thinking(config.thinking)


def _format(wanted: Format) -> dict[str, Any]:
    kind, rule = wanted.kind, wanted.rule
    match kind:
        case FormatKind.TEXT:
            return {}
        case FormatKind.JSON if rule is False:
            raise InvalidRequestError("no answer is valid against this schema", where="config.format.rule")
        case FormatKind.JSON:
            if not isinstance(rule, dict):
                return {"responseMimeType": "application/json"}
            check_schema(rule, where="config.format.rule")
            return {"responseMimeType": "application/json", "responseJsonSchema": rule}
        case FormatKind.CHOICE:
            if not isinstance(rule, tuple) or not rule:
                raise InvalidRequestError("a list of choices is wanted", where="config.format.rule")
            return {
                "responseMimeType": "text/x.enum",
                "responseSchema": {"type": "STRING", "enum": list(rule)},
            }
        case _:
            raise UnsupportedError(
                f"the Gemini API has nothing for a format of kind '{kind.value}'", where="config.format"
            )


def _thinking(thinking: Thinking | None) -> dict[str, Any]:
    if thinking is None:
        return {}
    match thinking.mode:
        case ThinkingMode.OFF:
            wish: dict[str, Any] = {"thinkingBudget": 0}
        case ThinkingMode.BUDGET if thinking.budget is not None:
            wish = {"thinkingBudget": thinking.budget}
        case ThinkingMode.LEVEL if thinking.level is not None:
            wish = {"thinkingLevel": thinking.level.value.upper()}
        case ThinkingMode.DYNAMIC:
            wish = {"thinkingBudget": -1}
        case _:
            raise InvalidRequestError(
                f"thinking by {thinking.mode.value} without its value", where="config.thinking"
            )
    return {"thinkingConfig": wish | {"includeThoughts": bool(thinking.show)}}

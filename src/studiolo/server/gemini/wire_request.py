"""From the Gemini dialect's messages to a request of the conversation form."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Mapping
from typing import Any

from studiolo.language.caching.contexts import Prefix
from studiolo.language.collect import join
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
    Level,
    Part,
    Request,
    Role,
    SafetySetting,
    Show,
    Text,
    Thinking,
    ThinkingMode,
    Thought,
    Threshold,
    Tool,
    ToolChoice,
    ToolMode,
)
from studiolo.language.errors import InvalidRequestError, UnsupportedError
from studiolo.server.gemini import names
from studiolo.server.gemini.reading import read

Fields = Mapping[str, Any]

HARMS = {
    "HARM_CATEGORY_HARASSMENT": Harm.HARASSMENT,
    "HARM_CATEGORY_HATE_SPEECH": Harm.HATE,
    "HARM_CATEGORY_SEXUALLY_EXPLICIT": Harm.SEXUAL,
    "HARM_CATEGORY_DANGEROUS_CONTENT": Harm.DANGEROUS,
    "HARM_CATEGORY_CIVIC_INTEGRITY": Harm.CIVIC,
    "HARM_CATEGORY_JAILBREAK": Harm.JAILBREAK,
}
_THRESHOLDS = {
    "OFF": Threshold.OFF,
    "BLOCK_NONE": Threshold.NONE,
    "BLOCK_ONLY_HIGH": Threshold.HIGH,
    "BLOCK_MEDIUM_AND_ABOVE": Threshold.MEDIUM,
    "BLOCK_LOW_AND_ABOVE": Threshold.LOW,
}
_ROLES = {"": Role.USER, "user": Role.USER, "function": Role.USER, "tool": Role.USER, "model": Role.MODEL}
_SAMPLING = {
    "maxOutputTokens": "max_tokens",
    "temperature": "temperature",
    "topK": "top_k",
    "seed": "seed",
    "presencePenalty": "presence_penalty",
    "frequencyPenalty": "frequency_penalty",
    "candidateCount": "candidates",
}
_LEAST_TOP_P = 1e-6
"""Stands for 0, which leaves the likeliest token alone."""


class PictureRequest(Request):
    """One that also says how its pictures are to be: a ratio such as 16:9, the type of their files, and the
    quality of JPEG files (0 to 100)."""

    aspect_ratio: str | None = None
    media_type: str | None = None
    quality: int | None = None


def request_of(body: Any, model: str) -> Request:
    """The request that the body of a generateContent asks of that model.

    Raises:
        InvalidRequestError: says what, where, in the names of the wire.
    """
    return request_from(read("GenerateContentRequest", body), model)


def request_from(asked: Fields, model: str) -> Request:
    """The same of a message that was read."""
    check_model(asked.get("model"), model)
    prefix = prefix_from(asked)
    if not prefix.contents:
        raise InvalidRequestError(
            "* GenerateContentRequest.contents: contents is not specified", where="contents"
        )
    cached = asked.get("cachedContent")
    kind, wishes = _picture(asked.get("generationConfig", {}).get("imageConfig", {}))
    return kind(
        model=model,
        **wishes,
        **dict(prefix),
        config=_config(asked.get("generationConfig", {})),
        safety=_safety(asked.get("safetySettings", [])),
        cache=names.cached_content(cached) if cached else None,
    )


def prefix_from(asked: Fields) -> Prefix:
    """What requests and contexts have in common."""
    contents = asked.get("contents", [])
    turns = (_content(content, f"contents[{number}]") for number, content in enumerate(contents))
    return Prefix(
        contents=tuple(_joined(turns)),
        system=_system(asked.get("systemInstruction")),
        tools=_tools(asked.get("tools", [])),
        tool_choice=_tool_choice(asked.get("toolConfig", {})),
    )


def _joined(turns: Iterable[Content]) -> Iterator[Content]:
    """The model's turns put together: Google's client keeps a streamed answer as one content for each chunk,
    the last of which may be empty."""
    said: list[Part] = []
    for turn in turns:
        if turn.role is Role.MODEL:
            for part in turn.parts:
                if part != Text(text=""):
                    join(said, part)
            continue
        if said:
            yield Content(role=Role.MODEL, parts=tuple(said))
            said = []
        yield turn
    if said:
        yield Content(role=Role.MODEL, parts=tuple(said))


def check_model(named: str | None, model: str) -> None:
    """Refuses a body that names another model than the path."""
    if named and names.model(named) != model:
        raise InvalidRequestError(
            f"the body names the model {named!r}, and the path {model!r}",
            where="model",
            remedy="Name one of them.",
        )


def text_of(content: Fields, where: str) -> str:
    """The words of a content that has nothing but words."""
    parts = _content(content, where).parts
    if other := next((part for part in parts if not isinstance(part, Text)), None):
        raise UnsupportedError(f"text is wanted here, and this is a part of kind '{other.kind}'", where=where)
    return "\n".join(part.text for part in parts if isinstance(part, Text))


# --- contents ---------------------------------------------------------------------------------------------


def _content(content: Fields, where: str) -> Content:
    role = content.get("role", "")
    if role not in _ROLES:
        raise InvalidRequestError(
            "Please use a valid role: user, model.", where=f"{where}.role", remedy=_remedy_of_role(role)
        )
    parts = [
        part
        for number, wire in enumerate(content.get("parts", []))
        for part in _part(wire, f"{where}.parts[{number}]")
    ]
    if not parts:
        raise InvalidRequestError("a content without parts", where=f"{where}.parts", remedy="Give it one.")
    return Content(role=_ROLES[role], parts=tuple(parts))


def _remedy_of_role(role: str) -> str | None:
    return "Use systemInstruction." if role == "system" else None


def _part(part: Fields, where: str) -> list[Part]:
    """One part, and behind it a signature that has no place in it."""
    given = [name for name in _READERS if name in part]
    signature = part.get("thoughtSignature")
    if len(given) > 1:
        raise InvalidRequestError(
            f"oneof field 'data' is already set. Cannot set '{given[1]}'",
            where=where,
            remedy="Make two parts.",
        )
    if not given:
        if signature:
            return [Thought(text="", signature=signature)]
        if part.get("thought"):  # of which nothing was shown; chats send it back as it came
            return []
        raise InvalidRequestError(
            "required oneof field 'data' must have one initialized field", where=where,
            remedy="Give the part a text, or whatever it is to be.",
        )  # fmt: skip
    if part.get("thought") and given == ["text"]:
        return [Thought(text=part["text"], signature=signature)]
    read_part = _READERS[given[0]](part[given[0]], f"{where}.{given[0]}")
    if isinstance(read_part, Call):
        return [read_part.model_copy(update={"signature": signature})]
    if isinstance(read_part, Text) and not read_part.text and signature:
        return [Thought(text="", signature=signature)]
    return [read_part, Thought(text="", signature=signature)] if signature else [read_part]


def _blob(blob: Fields, where: str) -> Data:
    for name in ("mimeType", "data"):
        if not blob.get(name):
            raise InvalidRequestError(f"no {name}", where=where, remedy="Give both mimeType and data.")
    return Data(media_type=blob["mimeType"], data=blob["data"], name=blob.get("displayName"))


def _file(file: Fields, where: str) -> FileRef:
    if not file.get("fileUri"):
        raise InvalidRequestError("no fileUri", where=where, remedy="Name the file.")
    own = names.file(file["fileUri"])
    uri = file["fileUri"] if own is None else f"files/{own}"
    return FileRef(uri=uri, media_type=file.get("mimeType"))


def _call(call: Fields, where: str) -> Call:
    return Call(name=_name(call, where), arguments=call.get("args", {}), id=call.get("id", ""))


def _result(result: Fields, where: str) -> CallResult:
    media: list[Data | FileRef] = []
    for number, part in enumerate(result.get("parts", [])):
        place = f"{where}.parts[{number}]"
        if ("inlineData" in part) == ("fileData" in part):
            raise InvalidRequestError("either inlineData or fileData is wanted", where=place)
        media.append(
            _blob(part["inlineData"], place) if "inlineData" in part else _file(part["fileData"], place)
        )
    return CallResult(
        name=_name(result, where),
        result=result.get("response", {}),
        id=result.get("id", ""),
        media=tuple(media),
    )


def _name(named: Fields, where: str) -> str:
    if not named.get("name"):
        raise InvalidRequestError("no name", where=f"{where}.name", remedy="Name the function.")
    return str(named["name"])


_READERS: dict[str, Callable[[Any, str], Part]] = {
    "text": lambda text, _: Text(text=text),
    "inlineData": _blob,
    "fileData": _file,
    "functionCall": _call,
    "functionResponse": _result,
}


def _system(content: Fields | None) -> str | None:
    # Its role counts for nothing: clients write user, system or none.
    return None if content is None else text_of({**content, "role": ""}, "system_instruction") or None


# --- tools ------------------------------------------------------------------------------------------------


def _tools(tools: list[Fields]) -> tuple[Tool, ...]:
    return tuple(
        _tool(declaration, f"tools[{outer}].function_declarations[{inner}]")
        for outer, tool in enumerate(tools)
        for inner, declaration in enumerate(tool.get("functionDeclarations", []))
    )


def _tool(declaration: Fields, where: str) -> Tool:
    if declaration.get("behavior") == "NON_BLOCKING":
        raise UnsupportedError("calls are blocking here", where=f"{where}.behavior", remedy="Leave it out.")
    name = _name(declaration, where)
    try:
        return Tool(
            name=name,
            description=declaration.get("description", ""),
            parameters=_one_schema(declaration, "parameters", "parametersJsonSchema", where),
            returns=_one_schema(declaration, "response", "responseJsonSchema", where),
        )
    except ValueError:
        raise InvalidRequestError(
            "Invalid function name. Must start with a letter or an underscore. Must be alphanumeric (a-z, "
            "A-Z, 0-9), underscores (_), dots (.), colons (:) or dashes (-), with a maximum length of 128.",
            where=f"{where}.name",
        ) from None


def _one_schema(message: Fields, openapi: str, json_schema: str, where: str) -> dict[str, Any] | None:
    if openapi in message and json_schema in message:
        raise InvalidRequestError(
            f"both {openapi} and {json_schema}", where=where, remedy="Give one of them."
        )
    schema = message.get(openapi, message.get(json_schema))
    if schema is not None and not isinstance(schema, dict):
        raise InvalidRequestError("a schema is an object", where=f"{where}.{json_schema}")
    return schema


def _tool_choice(config: Fields) -> ToolChoice:
    calling = config.get("functionCallingConfig", {})
    mode = calling.get("mode", "AUTO")
    mode = ToolMode.AUTO if mode == "MODE_UNSPECIFIED" else ToolMode(mode.lower())
    allowed = calling.get("allowedFunctionNames") or None
    if allowed and mode not in (ToolMode.ANY, ToolMode.VALIDATED):
        raise InvalidRequestError(
            "allowed_function_names should only be set when function calling mode is ANY or VALIDATED",
            where="tool_config.function_calling_config.allowed_function_names",
            remedy="Set the mode, or leave the names out.",
        )
    return ToolChoice(mode=mode, allowed=tuple(allowed) if allowed else None)


# --- wishes -----------------------------------------------------------------------------------------------


def _config(config: Fields) -> GenerationConfig:
    wishes = {ours: config[wire] for wire, ours in _SAMPLING.items() if wire in config}
    if "topP" in config:
        wishes["top_p"] = max(config["topP"], _LEAST_TOP_P)
    stop = tuple(config.get("stopSequences", ()))
    if len(stop) > 16:
        raise InvalidRequestError(
            f"at most 16 texts, and these are {len(stop)}", where="generation_config.stop_sequences"
        )
    return GenerationConfig(
        **wishes,
        stop=stop,
        logprobs=_logprobs(config),
        format=_format(config),
        thinking=_thinking(config.get("thinkingConfig")),
        modalities=_modalities(config),
    )


def _logprobs(config: Fields) -> int | None:
    wanted, number = config.get("responseLogprobs", False), config.get("logprobs")
    if number is not None and not wanted:
        raise InvalidRequestError(
            "logprobs is set, and response_logprobs is not", where="generation_config.logprobs",
            remedy="Set responseLogprobs to true.",
        )  # fmt: skip
    return (number or 0) if wanted else None


def _format(config: Fields) -> Format:
    where = "generation_config"
    schema = _one_schema(config, "responseSchema", "responseJsonSchema", where)
    mime = config.get("responseMimeType") or "text/plain"
    match mime:
        case "text/plain" if schema is None:
            return Format()
        case "text/plain":
            raise InvalidRequestError(
                "a response schema needs a mime type of its own",
                where=f"{where}.response_mime_type",
                remedy="Set responseMimeType to application/json or text/x.enum.",
            )
        case "application/json":
            return Format(kind=FormatKind.JSON, rule=schema)
        case "text/x.enum":
            return Format(kind=FormatKind.CHOICE, rule=_choices(schema or {}))
    raise UnsupportedError(
        f"answers are not to be had as {mime!r}",
        where=f"{where}.response_mime_type",
        remedy="Allowed are text/plain, application/json and text/x.enum.",
    )


def _choices(schema: Fields) -> tuple[str, ...]:
    choices = schema.get("enum")
    if not isinstance(choices, list) or not choices or not all(isinstance(text, str) for text in choices):
        raise InvalidRequestError(
            "text/x.enum needs a schema with the texts to choose from",
            where="generation_config.response_schema.enum",
            remedy='Give {"type": "STRING", "enum": [...]}.',
        )
    return tuple(choices)


def _thinking(config: Fields | None) -> Thinking | None:
    if not config:
        return None
    show = Show.FULL if config.get("includeThoughts") else Show.HIDDEN
    budget, level = config.get("thinkingBudget"), config.get("thinkingLevel", "THINKING_LEVEL_UNSPECIFIED")
    levelled = level != "THINKING_LEVEL_UNSPECIFIED"
    if budget is not None and levelled:
        raise InvalidRequestError(
            "You can only set only one of thinking budget and thinking level.",
            where="generation_config.thinking_config",
        )
    if levelled:
        return Thinking(mode=ThinkingMode.LEVEL, level=_level(level), show=show)
    if budget == 0:
        return Thinking(mode=ThinkingMode.OFF)
    if budget is None and not show:
        return None
    if budget is None or budget == -1:
        return Thinking(mode=ThinkingMode.DYNAMIC, show=show)
    return Thinking(mode=ThinkingMode.BUDGET, budget=budget, show=show)


def _level(level: str) -> Level:
    return Level.HIGH if level == "XHIGH" else Level(level.lower())


def _modalities(config: Fields) -> tuple[Any, ...]:
    where = "generation_config.response_modalities"
    wanted = [name.lower() for name in config.get("responseModalities", []) if name != "MODALITY_UNSPECIFIED"]
    if "video" in wanted or "audio" in wanted:
        raise UnsupportedError("answers are text and pictures", where=where, remedy="Ask for TEXT or IMAGE.")
    if config.get("imageConfig") and "image" not in wanted:
        raise InvalidRequestError(
            "image_config is set, and no IMAGE is asked for",
            where=where,
            remedy="Add IMAGE, or leave it out.",
        )
    return tuple(dict.fromkeys(wanted)) or ("text",)


def _picture(config: Fields) -> tuple[type[Request], dict[str, Any]]:
    """The kind of a request, and what it says of pictures."""
    output = config.get("imageOutputOptions", {})
    wishes = {
        "aspect_ratio": config.get("aspectRatio"),
        "media_type": config.get("outputMimeType", output.get("mimeType")),
        "quality": config.get("outputCompressionQuality", output.get("compressionQuality")),
    }
    asked = any(value is not None for value in wishes.values())
    return (PictureRequest, wishes) if asked else (Request, {})


def _safety(settings: list[Fields]) -> tuple[SafetySetting, ...]:
    made = []
    for number, setting in enumerate(settings):
        where = f"safety_settings[{number}]"
        category = setting.get("category", "HARM_CATEGORY_UNSPECIFIED")
        threshold = setting.get("threshold", "HARM_BLOCK_THRESHOLD_UNSPECIFIED")
        if setting.get("method") == "SEVERITY":
            raise UnsupportedError(
                "harm is judged by its probability here", where=f"{where}.method", remedy="Leave it out."
            )
        if category == "HARM_CATEGORY_UNSPECIFIED":
            raise InvalidRequestError("no category", where=f"{where}.category", remedy="Name one.")
        if category in HARMS:
            if threshold in _THRESHOLDS:
                made.append(SafetySetting(harm=HARMS[category], threshold=_THRESHOLDS[threshold]))
        elif threshold not in ("OFF", "BLOCK_NONE", "HARM_BLOCK_THRESHOLD_UNSPECIFIED"):
            raise UnsupportedError(
                "pictures are not judged here", where=where, remedy="Leave it out, or set it to OFF."
            )
    return tuple(made)

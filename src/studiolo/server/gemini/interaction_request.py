"""From interactions to a request of the conversation form."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

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
    Part,
    Request,
    Role,
    SafetySetting,
    Show,
    Text,
    Thought,
    Tool,
    ToolChoice,
    ToolMode,
)
from studiolo.language.errors import InvalidRequestError, UnsupportedError
from studiolo.server.gemini import names
from studiolo.server.gemini.fields import ENUMS
from studiolo.server.gemini.reading import read
from studiolo.server.gemini.wire_config import config_of, safety_of
from studiolo.server.gemini.wire_request import PictureRequest
from studiolo.server.gemini.wire_tools import name_of

JSON = dict[str, Any]
Fields = Mapping[str, Any]

MEDIA = ("image", "audio", "video", "document")
CONTENTS = ("text", *MEDIA)


@dataclass(frozen=True)
class Step:
    """A step as it was read, and where it stands."""

    fields: Fields
    where: str


def steps_in(asked: Any) -> list[JSON]:
    """The input of an interaction as steps, as they are kept; contents that follow each other are one turn of
    the user's.

    Raises:
        InvalidRequestError: it is none.
    """
    if isinstance(asked, str):
        asked = {"type": "text", "text": asked}
    items = asked if isinstance(asked, list) else [asked]
    steps: list[JSON] = []
    open_turn: list[JSON] | None = None
    for number, item in enumerate(items):
        if not isinstance(item, dict):
            raise InvalidRequestError("a content or a step is wanted", where=f"input[{number}]")
        if item.get("type") not in CONTENTS:
            steps.append(item)
            open_turn = None
        elif open_turn is None:
            open_turn = [item]
            steps.append({"type": "user_input", "content": open_turn})
        else:
            open_turn.append(item)
    return steps


def read_steps(steps: Iterable[JSON], before: str) -> list[Step]:
    """The steps, read.

    Raises:
        WireError: they are none.
    """
    found = []
    for number, step in enumerate(steps):
        where = f"{before}[{number}]"
        found.append(Step(read("InteractionStep", step, where), where))
    return found


def request_from(asked: Fields, model: str, steps: Sequence[Step]) -> Request:
    """The conversation of all steps, with all that is wished of its next turn.

    Raises:
        InvalidRequestError: it contradicts itself.
        UnsupportedError: something that cannot be done here.
    """
    contents = tuple(_turns(steps))
    if not contents:
        raise InvalidRequestError("nothing is said", where="input", remedy="Give the interaction an input.")
    wishes, picture = _wishes(asked)
    kind, more = (PictureRequest, picture) if picture else (Request, {})
    cached = asked.get("cachedContent")
    return kind(
        model=model,
        contents=contents,
        system=asked.get("systemInstruction") or None,
        tools=tuple(_tool(tool, f"tools[{n}]") for n, tool in enumerate(asked.get("tools", ()))),
        tool_choice=_tool_choice(asked.get("generationConfig", {}).get("toolChoice")),
        config=wishes,
        safety=_safety(asked.get("safetySettings", ())),
        cache=names.cached_content(cached) if cached else None,
        **more,
    )


# --- steps ------------------------------------------------------------------------------------------------


def _turns(steps: Iterable[Step]) -> Iterator[Content]:
    """The turns: steps of one speaker that follow each other are one."""
    called: dict[str, str] = {}
    role, parts = Role.USER, list[Part]()
    for step in steps:
        speaker, said = _said(step, called)
        if parts and speaker is not role:
            yield Content(role=role, parts=tuple(parts))
            parts = []
        role = speaker
        for part in said:
            if isinstance(part, Call):
                parts.append(_signed(part, parts))
            elif speaker is Role.MODEL:
                join(parts, part)
            else:
                parts.append(part)
    if parts:
        yield Content(role=role, parts=tuple(parts))


def _signed(call: Call, before: list[Part]) -> Call:
    """The call with the signature of the thought before it, which upstreams want back with the call."""
    last = before[-1] if before else None
    if not isinstance(last, Thought) or last.signature is None:
        return call
    before[-1:] = [Thought(text=last.text)] if last.text else []
    return call.model_copy(update={"signature": last.signature})


def _said(step: Step, called: dict[str, str]) -> tuple[Role, list[Part]]:
    fields, where = step.fields, step.where
    match fields.get("type"):
        case "user_input":
            return Role.USER, list(_parts(fields, where))
        case "model_output":
            return Role.MODEL, list(_parts(fields, where))
        case "thought":
            words = "".join(part.get("text", "") for part in fields.get("summary", ()))
            signature = fields.get("signature")
            return Role.MODEL, [Thought(text=words, signature=signature)] if words or signature else []
        case "function_call":
            name = name_of(fields, where)
            called[fields.get("id", "")] = name
            call = Call(name=name, arguments=fields.get("arguments", {}), id=fields.get("id", ""))
            return Role.MODEL, [call]
        case "function_result":
            return Role.USER, [_result(fields, called, where)]
    raise UnsupportedError(
        f"steps of the type {str(fields.get('type'))[:40]!r} are not taken here",
        where=f"{where}.type",
        remedy="They belong to tools that Google runs.",
    )


def _parts(fields: Fields, where: str) -> Iterator[Part]:
    for number, content in enumerate(fields.get("content", ())):
        yield _part(content, f"{where}.content[{number}]")


def _part(content: Fields, where: str) -> Text | Data | FileRef:
    kind = content.get("type")
    if kind == "text":
        return Text(text=content.get("text", ""))
    if kind not in MEDIA:
        raise InvalidRequestError(
            "no such type of content", where=f"{where}.type", remedy=f"Say one of {', '.join(CONTENTS)}."
        )
    if content.get("processing", "static") not in ("static", {"type": "static"}):
        raise UnsupportedError("media are read as they are", where=f"{where}.processing")
    if ("data" in content) == ("uri" in content):
        raise InvalidRequestError("either data or uri is wanted", where=where)
    mime = content.get("mimeType")
    if "data" in content:
        if not mime:
            raise InvalidRequestError("no mime_type", where=where, remedy="Say what the data is.")
        return Data(media_type=mime, data=content["data"])
    own = names.file(content["uri"])
    return FileRef(uri=content["uri"] if own is None else f"files/{own}", media_type=mime)


def _result(fields: Fields, called: Mapping[str, str], where: str) -> CallResult:
    id_ = fields.get("callId", "")
    name = fields.get("name") or called.get(id_)
    if not name:
        raise InvalidRequestError(f"no call before it has the id {id_!r}", where=f"{where}.call_id")
    result, media = fields.get("result", ""), list[Data | FileRef]()
    if isinstance(result, list):
        words = []
        for number, item in enumerate(result):
            place = f"{where}.result[{number}]"
            part = _part(read("InteractionContent", item, place), place)
            words.append(part.text) if isinstance(part, Text) else media.append(part)
        result = "".join(words)
    if fields.get("isError"):
        result = {"error": result}
    return CallResult(name=name, result=result, id=id_, media=tuple(media))


# --- wishes -----------------------------------------------------------------------------------------------


def _tool(tool: Fields, where: str) -> Tool:
    kind = tool.get("type", "function")
    if kind != "function":
        raise UnsupportedError(
            f"there is no tool {kind[:40]!r} here", where=f"{where}.type",
            remedy="Declare a function, and answer its calls.",
        )  # fmt: skip
    parameters = tool.get("parameters")
    if parameters is not None and not isinstance(parameters, dict):
        raise InvalidRequestError("a schema is an object", where=f"{where}.parameters")
    try:
        return Tool(name=name_of(tool, where), description=tool.get("description", ""), parameters=parameters)
    except ValueError:
        raise InvalidRequestError(
            "a function's name has letters, digits and _.:-, and begins with a letter", where=f"{where}.name"
        ) from None


def _tool_choice(choice: Any) -> ToolChoice:
    where = "generation_config.tool_choice"
    if choice is None:
        return ToolChoice()
    if isinstance(choice, str):
        return ToolChoice(mode=_mode(choice, where))
    allowed = read("InteractionToolChoice", choice, where).get("allowedTools", {})
    mode = _mode(allowed.get("mode", "auto"), f"{where}.allowed_tools.mode")
    return ToolChoice(mode=mode, allowed=tuple(allowed["tools"]) if allowed.get("tools") else None)


def _mode(word: str, where: str) -> ToolMode:
    if word.upper() not in ENUMS["FunctionCallingConfig.Mode"][1:]:
        raise InvalidRequestError(
            f"no such mode: {word[:40]!r}", where=where, remedy="Say auto, any, none or validated."
        )
    return ToolMode(word.lower())


def _wishes(asked: Fields) -> tuple[GenerationConfig, JSON]:
    """How the turn is to be made, and how its pictures are to be, if that is said."""
    given = asked.get("generationConfig", {})
    names_ = ("temperature", "topP", "seed", "maxOutputTokens", "stopSequences")
    plain = {name: given[name] for name in names_ if name in given}
    summed = given.get("thinkingSummaries") == "AUTO"
    thinking = {"thinkingLevel": given["thinkingLevel"]} if "thinkingLevel" in given else {}
    if thinking or summed:
        plain["thinkingConfig"] = {**thinking, "includeThoughts": summed}
    config = config_of(plain)
    if config.thinking is not None and summed:
        thought = config.thinking.model_copy(update={"show": Show.SUMMARY})
        config = config.model_copy(update={"thinking": thought})
    form, kinds, picture = _formats(asked)
    if ratio := given.get("imageConfig", {}).get("aspectRatio"):
        picture = {"aspect_ratio": ratio} | picture
    modalities = _modalities(asked, kinds)
    return config.model_copy(update={"format": form, "modalities": modalities}), picture


def _modalities(asked: Fields, kinds: Sequence[str]) -> tuple[Any, ...]:
    wanted = [name.lower() for name in asked.get("responseModalities", ())] or list(kinds) or ["text"]
    if others := set(wanted) - {"text", "image"}:
        raise UnsupportedError(
            "answers are text and pictures", where="response_modalities", remedy=f"Leave out {others.pop()}."
        )
    return tuple(dict.fromkeys(wanted))


def _formats(asked: Fields) -> tuple[Format, list[str], JSON]:
    """The form of the text, which kinds of answers are asked for, and how pictures are to be."""
    form, kinds, picture = Format(), list[str](), JSON()
    given = asked.get("responseFormat")
    where, mime = "response_format", asked.get("responseMimeType")
    for number, one in enumerate(given if isinstance(given, list) else [] if given is None else [given]):
        place = f"{where}[{number}]" if isinstance(given, list) else where
        if not isinstance(one, dict):
            raise InvalidRequestError("an object is wanted", where=place)
        if one.get("type") not in ("text", "image", "audio", "video"):  # a JSON Schema by itself
            one = {"type": "text", "mime_type": mime or "application/json", "schema": one}
        fields = read("InteractionFormat", one, place)
        kinds.append(fields["type"])
        if fields["type"] == "text":
            form = _text_format(fields, place)
        elif fields["type"] == "image":
            picture = _picture(fields, place)
        else:
            raise UnsupportedError("answers are text and pictures", where=f"{place}.type")
    if given is None and mime:
        form = _text_format({"mimeType": mime}, "response_mime_type")
    return form, kinds, picture


def _text_format(fields: Fields, where: str) -> Format:
    schema = fields.get("schema")
    mime = fields.get("mimeType") or ("application/json" if schema is not None else "text/plain")
    if mime == "text/plain" and schema is None:
        return Format()
    if mime != "application/json":
        raise UnsupportedError(
            f"text of that form is not to be had as {mime[:100]!r}", where=where,
            remedy="Allowed are text/plain and, with a schema or without, application/json.",
        )  # fmt: skip
    if schema is not None and not isinstance(schema, dict):
        raise InvalidRequestError("a schema is an object", where=f"{where}.schema")
    return Format(kind=FormatKind.JSON, rule=schema)


def _picture(fields: Fields, where: str) -> JSON:
    if fields.get("delivery", "inline") != "inline":
        raise UnsupportedError("pictures come with the answer", where=f"{where}.delivery")
    wishes = {"aspect_ratio": fields.get("aspectRatio"), "media_type": fields.get("mimeType")}
    return {name: value for name, value in wishes.items() if value is not None}


def _safety(settings: Iterable[Fields]) -> tuple[SafetySetting, ...]:
    """In the words of generateContent."""
    return safety_of(
        {**setting, "category": f"HARM_CATEGORY_{setting.get('type', 'UNSPECIFIED')}"} for setting in settings
    )

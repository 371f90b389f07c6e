"""Contents of the Gemini dialect's messages: who said what, in which parts."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator
from typing import Any

from studiolo.language.collect import join
from studiolo.language.conversation import Call, CallResult, Content, Data, FileRef, Part, Role, Text, Thought
from studiolo.language.errors import InvalidRequestError, UnsupportedError
from studiolo.server.gemini import names
from studiolo.server.gemini.wire_tools import Fields, name_of

_ROLES = {"": Role.USER, "user": Role.USER, "function": Role.USER, "tool": Role.USER, "model": Role.MODEL}


def contents_of(contents: Iterable[Fields]) -> tuple[Content, ...]:
    """The turns of a conversation, those of the model put together where they follow one another."""
    return tuple(_joined(_content(content, f"contents[{number}]") for number, content in enumerate(contents)))


def system_of(content: Fields | None) -> str | None:
    """What a system instruction says. Its role counts for nothing: clients write user, system or none."""
    return None if content is None else text_of({**content, "role": ""}, "system_instruction") or None


def text_of(content: Fields, where: str) -> str:
    """The words of a content that has nothing but words."""
    parts = _content(content, where).parts
    if other := next((part for part in parts if not isinstance(part, Text)), None):
        raise UnsupportedError(f"text is wanted here, and this is a part of kind '{other.kind}'", where=where)
    return "\n".join(part.text for part in parts if isinstance(part, Text))


def texts_of(contents: Iterable[Fields]) -> list[tuple[str, str]]:
    """The texts of contents that have nothing but words, part by part, each with the role that said it, as it
    was written (empty: none was)."""
    said = []
    for number, content in enumerate(contents):
        parts = _content(content, f"contents[{number}]").parts
        for place, part in enumerate(parts):
            if not isinstance(part, Text):
                raise UnsupportedError(
                    f"text is wanted here, and this is a part of kind '{part.kind}'",
                    where=f"contents[{number}].parts[{place}]",
                )
            said.append((content.get("role", ""), part.text))
    return said


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
    return Call(name=name_of(call, where), arguments=call.get("args", {}), id=call.get("id", ""))


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
        name=name_of(result, where),
        result=result.get("response", {}),
        id=result.get("id", ""),
        media=tuple(media),
    )


_READERS: dict[str, Callable[[Any, str], Part]] = {
    "text": lambda text, _: Text(text=text),
    "inlineData": _blob,
    "fileData": _file,
    "functionCall": _call,
    "functionResponse": _result,
}

"""From the Gemini dialect's messages to a request of the conversation form."""

from __future__ import annotations

from typing import Any

from studiolo.language.caching.contexts import Prefix
from studiolo.language.conversation import Request
from studiolo.language.errors import InvalidRequestError
from studiolo.server.gemini import names
from studiolo.server.gemini.reading import read
from studiolo.server.gemini.wire_config import config_of, safety_of
from studiolo.server.gemini.wire_content import contents_of, system_of
from studiolo.server.gemini.wire_format import in_old_words
from studiolo.server.gemini.wire_tools import Fields, tool_choice_of, tools_of


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
    config = in_old_words(asked.get("generationConfig", {}))
    kind, wishes = _picture(config.get("imageConfig", {}))
    return kind(
        model=model,
        **wishes,
        **dict(prefix),
        config=config_of(config),
        safety=safety_of(asked.get("safetySettings", [])),
        cache=names.cached_content(cached) if cached else None,
    )


def prefix_from(asked: Fields) -> Prefix:
    """What requests and contexts have in common."""
    return Prefix(
        contents=contents_of(asked.get("contents", [])),
        system=system_of(asked.get("systemInstruction")),
        tools=tools_of(asked.get("tools", [])),
        tool_choice=tool_choice_of(asked.get("toolConfig", {})),
    )


def check_model(named: str | None, model: str) -> None:
    """Refuses a body that names another model than the path."""
    if named and names.model(named) != model:
        raise InvalidRequestError(
            f"the body names the model {named!r}, and the path {model!r}",
            where="model",
            remedy="Name one of them.",
        )


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

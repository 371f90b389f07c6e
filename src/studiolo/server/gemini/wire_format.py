"""`responseFormat`, the newer words for what `responseMimeType`, `responseSchema` and `imageConfig` say."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

from studiolo.language.errors import InvalidRequestError
from studiolo.server.gemini.reading import snake
from studiolo.server.gemini.wire_tools import Fields

_WHERE = "generation_config.response_format"
_SAME = (("responseMimeType", "responseSchema", "responseJsonSchema"), ("imageConfig", "responseModalities"))


def in_old_words(config: Fields) -> Fields:
    """A generation config in which `responseFormat` is told in the older fields.

    Raises:
        InvalidRequestError: both are there.
    """
    said = dict(_told(config.get("responseFormat", ())))
    for names in _SAME:
        both = [snake(name) for name in names if name in config]
        if both and said.keys() & set(names):
            raise InvalidRequestError(f"{both[0]} says the same", where=_WHERE, remedy="Give one of them.")
    return {**config, **said}


def _told(forms: list[Fields]) -> Iterator[tuple[str, Any]]:
    kinds = []
    for number, form in enumerate(forms):
        if len(form) != 1:
            raise InvalidRequestError("one of text and image is wanted", where=f"{_WHERE}[{number}]")
        kinds += [kind.upper() for kind in form]
        if text := form.get("text"):
            default = "application/json" if "schema" in text else "text/plain"
            yield "responseMimeType", text.get("mimeType") or default
            if "schema" in text:
                yield "responseJsonSchema", text["schema"]
        if image := form.get("image"):
            told = {"aspectRatio": image.get("aspectRatio"), "outputMimeType": image.get("mimeType")}
            yield "imageConfig", {name: value for name, value in told.items() if value is not None}
    if len(set(kinds)) < len(kinds):
        raise InvalidRequestError("two forms of one kind", where=_WHERE, remedy="Give one of each.")
    if "IMAGE" in kinds:
        yield "responseModalities", kinds

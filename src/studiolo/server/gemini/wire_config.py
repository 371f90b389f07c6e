"""What the Gemini dialect's requests wish of an answer: its length, form, thoughts and safety."""

from __future__ import annotations

from collections.abc import Iterable
from typing import Any

from studiolo.language.conversation import (
    Format,
    FormatKind,
    GenerationConfig,
    Harm,
    Level,
    SafetySetting,
    Show,
    Thinking,
    ThinkingMode,
    Threshold,
)
from studiolo.language.errors import InvalidRequestError, UnsupportedError
from studiolo.server.gemini.wire_tools import Fields, schema_of

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


def config_of(config: Fields) -> GenerationConfig:
    """How the answer is to be made, and in which form."""
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


def safety_of(settings: Iterable[Fields]) -> tuple[SafetySetting, ...]:
    """What is to be blocked."""
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
    schema = schema_of(config, "responseSchema", "responseJsonSchema", where)
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

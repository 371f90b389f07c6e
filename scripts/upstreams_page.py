"""Writes the tables of docs/upstreams.md from the code: `python scripts/upstreams_page.py`."""

from __future__ import annotations

import re
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

from studiolo.language.catalog import load_catalog
from studiolo.language.conversation import (
    Call,
    CallResult,
    Data,
    FileRef,
    Format,
    FormatKind,
    GenerationConfig,
    Harm,
    Level,
    Request,
    SafetySetting,
    Show,
    Thinking,
    ThinkingMode,
    Thought,
    Threshold,
    Tool,
    ToolChoice,
    ToolMode,
    model,
    user,
)
from studiolo.language.engines import gemini_body, openai_body
from studiolo.language.errors import UnsupportedError
from studiolo.language.prices import Price
from studiolo.store.files import atomic_path

PAGE = Path(__file__).parent.parent / "docs" / "upstreams.md"
REFUSED = "refused"
NOTHING = "as without it"

_TOOL = Tool(
    name="f", description="d", parameters={"type": "object", "properties": {"a": {"type": "string"}}}
)
_OTHER = Tool(name="g", parameters={"type": "object", "properties": {}})
_CALLED = (user("hi"), model(Call(name="f", arguments={"a": "b"}, id="1")))

Fields = dict[str, Any]


def _config(**wishes: Any) -> tuple[Fields, Fields]:
    return {}, {"config": GenerationConfig(**wishes)}


def _said(part: Any) -> tuple[Fields, Fields]:
    return {"contents": (user("hi", "hi"),)}, {"contents": (user("hi", part),)}


def _tools(before: ToolMode = ToolMode.AUTO, **choice: Any) -> tuple[Fields, Fields]:
    tools = {"tools": (_TOOL, _OTHER)}
    return {**tools, "tool_choice": ToolChoice(mode=before)}, {**tools, "tool_choice": ToolChoice(**choice)}


def _thought(*thoughts: Thought) -> Fields:
    return {"contents": (user("hi"), model(*thoughts, "yes"), user("hi"))}


def _result(*parts: Any) -> Fields:
    return {"contents": (*_CALLED, user(*parts))}


def _media(media_type: str) -> Data:
    return Data(media_type=media_type, data=b"x")


_RESULT = CallResult(name="f", result="c", id="1")
_RETURNS = Tool(name="f", description="d", returns={"type": "string"})

# Of each wish: a request without it, and the same with it.
WISHES: dict[str, tuple[Fields, Fields]] = {
    "system": ({}, {"system": "s"}),
    "contents: a picture": _said(_media("image/png")),
    "contents: sound, WAV or MP3": _said(_media("audio/wav")),
    "contents: sound of other kinds": _said(_media("audio/flac")),
    "contents: a film": _said(_media("video/mp4")),
    "contents: a document": _said(_media("application/pdf")),
    "contents: a picture by its URI": _said(FileRef(uri="https://a.example/b.png", media_type="image/png")),
    "contents: a thought": (_thought(), _thought(Thought(text="hm"))),
    "contents: a call": ({"contents": (user("hi"), model("a"))}, {"contents": _CALLED}),
    "contents: a result": (_result("c"), _result(_RESULT)),
    "contents: a result with media": (
        _result(_RESULT),
        _result(_RESULT.model_copy(update={"media": (_media("image/png"),)})),
    ),
    "tools": ({}, {"tools": (_TOOL,)}),
    "tools: returns": ({"tools": (_RETURNS.model_copy(update={"returns": None}),)}, {"tools": (_RETURNS,)}),
    "tool_choice.mode none": _tools(mode=ToolMode.NONE),
    "tool_choice.mode auto": _tools(before=ToolMode.NONE, mode=ToolMode.AUTO),
    "tool_choice.mode any": _tools(mode=ToolMode.ANY),
    "tool_choice.mode validated": _tools(before=ToolMode.NONE, mode=ToolMode.VALIDATED),
    "tool_choice.allowed": _tools(allowed=("f",)),
    "tool_choice.allowed, mode validated": _tools(
        before=ToolMode.VALIDATED, mode=ToolMode.VALIDATED, allowed=("f",)
    ),
    "tool_choice.parallel false": _tools(parallel=False),
    "config.max_tokens": _config(max_tokens=5),
    "config.temperature": _config(temperature=0.5),
    "config.top_p": _config(top_p=0.5),
    "config.top_k": _config(top_k=5),
    "config.seed": _config(seed=5),
    "config.stop, up to 4": _config(stop=("a", "b", "c", "d")),
    "config.stop, 5": _config(stop=("a", "b", "c", "d", "e")),
    "config.stop, more": _config(stop=("a", "b", "c", "d", "e", "f")),
    "config.presence_penalty": _config(presence_penalty=1.0),
    "config.frequency_penalty": _config(frequency_penalty=1.0),
    "config.candidates": _config(candidates=2),
    "config.logprobs": _config(logprobs=2),
    "config.bias": _config(bias=((5, 1.0),)),
    "config.format json, no schema": _config(format=Format(kind=FormatKind.JSON)),
    "config.format json": _config(format=Format(kind=FormatKind.JSON, rule={"type": "object"})),
    "config.format choice": _config(format=Format(kind=FormatKind.CHOICE, rule=("a", "b"))),
    "config.format regex": _config(format=Format(kind=FormatKind.REGEX, rule="a+")),
    "config.format lark": _config(format=Format(kind=FormatKind.LARK, rule='start: "a"')),
    "config.format gbnf": _config(format=Format(kind=FormatKind.GBNF, rule='root ::= "a"')),
    "config.thinking off": _config(thinking=Thinking(mode=ThinkingMode.OFF)),
    "config.thinking budget": _config(thinking=Thinking(mode=ThinkingMode.BUDGET, budget=64)),
    "config.thinking level": _config(thinking=Thinking(mode=ThinkingMode.LEVEL, level=Level.LOW)),
    "config.thinking dynamic": _config(thinking=Thinking()),
    "config.thinking show full": (
        {"config": GenerationConfig(thinking=Thinking())},
        {"config": GenerationConfig(thinking=Thinking(show=Show.FULL))},
    ),
    "config.thinking show summary": (
        {"config": GenerationConfig(thinking=Thinking())},
        {"config": GenerationConfig(thinking=Thinking(show=Show.SUMMARY))},
    ),
    "config.modalities with image": _config(modalities=("text", "image")),
    "safety": ({}, {"safety": (SafetySetting(harm=Harm.HATE, threshold=Threshold.LOW),)}),
    "cache": ({}, {"cache": "cachedContents/c"}),
}

Mapping = Callable[[Request], dict[str, Any]]


def columns() -> dict[str, Mapping]:
    """How each kind of server is asked."""

    def openai(dialect: openai_body.Dialect) -> Mapping:
        return lambda request: openai_body.body_of(request, "m", dialect).fields

    return {name: openai(dialect) for name, dialect in openai_body.DIALECTS.items()} | {
        "gemini": gemini_body.body_of
    }


def fields_table() -> str:
    """For each wish the names on the wire that it becomes, for each kind of server."""
    kinds = columns()
    rows = [f"| | {' | '.join(kinds)} |", "|---" * (len(kinds) + 1) + "|"]
    for wish, pair in WISHES.items():
        rows.append(f"| {wish} | {' | '.join(cell(body_of, *pair) for body_of in kinds.values())} |")
    return "\n".join(rows)


def cell(body_of: Mapping, without: Fields, wished: Fields) -> str:
    """The names on the wire that differ between two requests."""
    try:
        after = dict(_leaves(body_of(_request(wished))))
    except UnsupportedError:
        return REFUSED
    before = dict(_leaves(body_of(_request(without))))
    new = [_short(path) for path, value in after.items() if before.get(path) != value]
    gone = [_short(path) for path in before if path not in after]
    names = dict.fromkeys(name for name in new or gone if name not in _PLAIN) or dict.fromkeys(new or gone)
    text = ", ".join(f"`{name}`" for name in names)
    return text if new else f"without {text}" if gone else NOTHING


def _request(fields: Fields) -> Request:
    return Request(**{"model": "m", "contents": (user("hi"),), **fields})


def _leaves(value: Any, path: tuple[str, ...] = ()) -> Iterator[tuple[tuple[str, ...], Any]]:
    if isinstance(value, dict) and value:
        for name, inner in value.items():
            yield from _leaves(inner, (*path, name))
    elif isinstance(value, list) and value:
        for number, inner in enumerate(value):
            yield from _leaves(inner, (*path, str(number)))
    else:
        yield path, value


# Below these names lies what tells one wish from another; below all others is detail.
_DEEP = ("messages", "contents", "content", "parts", "tools", "function", "functionDeclarations",
         "functionResponse", "generationConfig", "toolConfig", "functionCallingConfig", "thinkingConfig",
         "chat_template_kwargs", "structured_outputs", "reasoning")  # fmt: skip
_PLAIN = ("role", "type", "text", "content", "name", "id", "includeThoughts", "exclude")


def _short(path: tuple[str, ...]) -> str:
    names = [name for name in path if not name.isdigit()]
    return next((name for name in names if name not in _DEEP), names[-1])


def models_table() -> str:
    """The catalogue: US dollars per million tokens."""
    rows = [
        "| model | context | at | as | prompt | cached | answer | batch prompt | batch answer "
        "| not verified |",
        "|---" * 10 + "|",
    ]
    for name, known in load_catalog().models.items():
        for place in known.routes:
            prices = " | ".join(_prices(place.price))
            where = f"{place.upstream} | `{place.model}`"
            rows.append(
                f"| {name} | {known.context:,} | {where} | {prices} | {', '.join(place.unverified)} |"
            )
    return "\n".join(rows)


def _prices(price: Price | None) -> list[str]:
    if price is None:
        return [""] * 5
    batch = price.batch
    rates = [price.prompt, price.cached, price.answer, batch and batch.prompt, batch and batch.answer]
    return ["" if rate is None else f"{rate * 1e6:g}" for rate in rates]


def page() -> str:
    """The page with its tables as the code has them now."""
    text = PAGE.read_text(encoding="utf-8")
    for name, table in (("fields", fields_table()), ("models", models_table())):
        pattern = re.compile(rf"(<!-- table {name} .*?-->\n).*?(<!-- end -->)", re.DOTALL)
        text, found = pattern.subn(lambda match, table=table: f"{match[1]}{table}\n{match[2]}", text)
        if found != 1:
            raise SystemExit(f"{PAGE}: no place for the table '{name}'")
    return text


if __name__ == "__main__":
    written = page()
    with atomic_path(PAGE) as temporary:
        temporary.write_text(written, encoding="utf-8")

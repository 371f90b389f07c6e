"""What chat/completions and responses ask for in the same terms: tools, forms, thoughts, extensions."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from typing import Any, Literal

from studiolo.language.asking import safety_settings
from studiolo.language.conversation import (
    Format,
    FormatKind,
    Level,
    SafetySetting,
    Show,
    Thinking,
    ThinkingMode,
    Tool,
    ToolChoice,
    ToolMode,
)
from studiolo.language.errors import InvalidRequestError

Effort = Literal["none", "minimal", "low", "medium", "high", "xhigh", "max"]
ToolName = r"^[A-Za-z_][A-Za-z0-9_.:-]{0,127}$"
CUSTOM_INPUT = "input"
"""The argument of a function that stands for a custom tool."""

_BRIEF = {"low": "Answer as briefly as you can.", "medium": "", "high": "Answer at length and in detail."}


def custom_tool(name: str, description: str, syntax: str | None, rule: str | None) -> Tool:
    """A custom tool, whose input is text: as a function of one text.

    Args:
        syntax: of the grammar, "lark" or "regex"; None: any text.

    """
    text: dict[str, Any] = {"type": "string"}
    if syntax == "regex":
        text["pattern"] = f"^(?:{rule})$"
    schema = {
        "type": "object",
        "properties": {CUSTOM_INPUT: text},
        "required": [CUSTOM_INPUT],
        "additionalProperties": False,
    }
    grammar = rule if syntax == "lark" else None
    return Tool(name=name, description=description, parameters=schema, grammar=grammar)


def tool_choice(
    mode: str | None, names: Sequence[str] | None, parallel: bool | None, tools: Iterable[Tool]
) -> ToolChoice:
    """How the tools are to be used.

    Args:
        mode: none, auto or required; None: auto where there are tools.
        names: leaves only these.

    Raises:
        InvalidRequestError: a call is demanded of none, or of one that is not declared.
    """
    declared = {tool.name for tool in tools}
    if missing := set(names or ()) - declared:
        raise InvalidRequestError(
            f"no such tool is declared: {', '.join(sorted(missing))}", where="tool_choice"
        )
    if mode == "required" and not declared:
        raise InvalidRequestError("a call is demanded, but no tool is declared", where="tool_choice")
    kinds = {"none": ToolMode.NONE, "required": ToolMode.ANY}
    return ToolChoice(
        mode=kinds.get(mode or "auto", ToolMode.AUTO),
        allowed=None if names is None else tuple(names),
        parallel=parallel is not False,
    )


def thinking(effort: str | None, budget: int | None, show: Show) -> Thinking | None:
    """How long to think; None leaves it to the model.

    Args:
        effort: OpenAI's word; the two above "high" are "high".
        budget: in tokens; 0: not at all; -1: as long as it takes.

    Raises:
        InvalidRequestError: both are given.
    """
    if effort is not None and budget is not None:
        raise InvalidRequestError(
            "an effort and a budget contradict each other", where="thinking_budget", remedy="Give one."
        )
    if effort == "none" or budget == 0:
        return Thinking(mode=ThinkingMode.OFF)
    if effort is not None:
        level = Level(effort) if effort in set(Level) else Level.HIGH
        return Thinking(mode=ThinkingMode.LEVEL, level=level, show=show)
    if budget == -1:
        return Thinking(mode=ThinkingMode.DYNAMIC, show=show)
    if budget is not None:
        return Thinking(mode=ThinkingMode.BUDGET, budget=budget, show=show)
    return None


def guided(wanted: Format, choice: Sequence[str] | None, regex: str | None, grammar: str | None) -> Format:
    """The form of the answer: what the API's own field wants, or one of the extensions.

    Raises:
        InvalidRequestError: two forms.
    """
    forms = [] if wanted.kind is FormatKind.TEXT else [wanted]
    if choice is not None:
        forms.append(Format(kind=FormatKind.CHOICE, rule=tuple(choice)))
    if regex is not None:
        forms.append(Format(kind=FormatKind.REGEX, rule=regex))
    if grammar is not None:
        forms.append(Format(kind=FormatKind.GBNF if "::=" in grammar else FormatKind.LARK, rule=grammar))
    if len(forms) > 1:
        raise InvalidRequestError("an answer has one form, and here are several", remedy="Give one.")
    return forms[0] if forms else Format()


def system_text(said: Iterable[str], verbosity: str | None) -> str | None:
    """All that the system says, with what stands for a wish for more or fewer words."""
    texts = [text for text in (*said, _BRIEF[verbosity or "medium"]) if text]
    return "\n\n".join(texts) or None


def safety(wished: str | Mapping[str, str] | None) -> tuple[SafetySetting, ...]:
    return safety_settings(wished)

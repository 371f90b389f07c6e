"""The forms in which models write calls of functions down.

Which one a model was trained to is seen in what its chat template makes of a call. Known are:

- Hermes, Qwen 2.5 and 3: `<tool_call>` {"name": ..., "arguments": {...}} `</tool_call>`;
- Llama 3.1 to 3.3: the whole turn is {"name": ..., "parameters": {...}}, one call a turn
  (https://github.com/meta-llama/llama-models/blob/main/models/llama3_1/prompt_format.md);
- Mistral: `[TOOL_CALLS]` and a list of {"name": ..., "arguments": {...}}, and since 2025
  `[TOOL_CALLS]name[ARGS]{...}` for each call, with an id between in some (mistral-common's tokenizers v3 to
  v13);
- Gemma 4: `<|tool_call>call:name{...}<tool_call|>` (see `gemma_calls`).

Models of all other templates are told of the functions in the system text, and asked for the first form
(`EMULATED`): those that know no functions, and those with forms that are not known here (the XML of
Qwen3-Coder and GLM, DeepSeek's, Granite's, ...).
"""

from __future__ import annotations

import json
import re
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass, replace
from typing import Any

from studiolo.language.decoding import gemma_calls, schema
from studiolo.language.decoding.schema import Schema
from studiolo.language.engines.completer import Constraint

PROBE_NAME, PROBE_ARGUMENTS, PROBE_RESULT, PROBE_WORDS = "probe_call", {"x": "y"}, "it-returned", "let-me-see"
"""A call, its result, and words before it, with which templates are tried."""

Named = tuple[str, Any]
"""A function and its arguments."""


@dataclass(frozen=True)
class Form:
    """How calls are opened, written and closed.

    Attributes:
        openings: texts of which one begins a call; the first is written where a call is demanded.
        behind: what is written behind the opening, before the model goes on; `close` behind the call.
        constraint: what the model is held to between, from the functions' schemas by name and the most calls
            that may come at once.
        read: the calls in what it wrote there.
        native: the template declares functions, writes calls and feeds back results in this form.
        several: further calls may come, each behind an opening of its own.
        tagged: the opening is found nowhere but before calls; else it is one only where a turn begins, and
            answers of a given form cannot be told from calls.
        grammatical: the opening is ordinary text to a grammar, and no control token.
        apart: a control token that stands between name and arguments; then `constraint` is of the arguments
            alone, and the name is chosen before.
        inline: results go into the message that made the calls (`tool_responses`).
        words: words may go before the calls of a turn.
    """

    openings: tuple[str, ...]
    behind: str
    close: str
    constraint: Callable[[Mapping[str, Schema], int], Constraint]
    read: Callable[[str], list[Named]]
    native: bool = True
    several: bool = True
    tagged: bool = True
    grammatical: bool = True
    apart: str = ""
    inline: bool = False
    words: bool = True

    def between(self, index: int) -> str:
        """What is written between name and arguments of a turn's call `index`."""
        return self.apart.replace(_NO_ID, f"{index:09d}")


# --- JSON ---------------------------------------------------------------------------------------------------


def call_schema(arguments: Mapping[str, Schema]) -> Schema:
    """The schema of one call to one of the functions. Their own references are led to where they lie now."""
    calls: list[Schema] = []
    definitions: dict[str, Schema] = {}
    for index, (name, held) in enumerate(arguments.items()):
        if any("$ref" in inner for _, inner in schema.walk(held, "")):
            definitions[f"f{index}"] = _moved(held, f"#/$defs/f{index}")
            held = {"$ref": f"#/$defs/f{index}"}
        calls.append(
            {
                "type": "object",
                "properties": {"name": {"const": name}, "arguments": held},
                "required": ["name", "arguments"],
                "additionalProperties": False,
            }
        )
    whole: Schema = calls[0] if len(calls) == 1 else {"anyOf": calls}
    return {**whole, "$defs": definitions} if definitions else whole


def _moved(value: Any, root: str) -> Any:
    """A schema whose references to its own root lead to `root`."""
    if isinstance(value, list):
        return [_moved(item, root) for item in value]
    if not isinstance(value, dict):
        return value
    return {
        key: root + item[1:] if key == "$ref" and isinstance(item, str) else _moved(item, root)
        for key, item in value.items()
    }


_ONE_LINE = {"x-guidance": {"whitespace_flexible": False, "item_separator": ", ", "key_separator": ": "}}


def _json(value: Schema) -> str:
    """JSON of a schema, on one line, within a grammar."""
    return "%json " + json.dumps(_ONE_LINE | value)


def _object(functions: Mapping[str, Schema], most: int) -> Constraint:
    return Constraint("json", call_schema(functions))


def _read_object(text: str) -> list[Named]:
    call = json.loads(text)
    return [(call["name"], call["arguments"])]


def _list(functions: Mapping[str, Schema], most: int) -> Constraint:
    """A list of calls; the space that most templates have before it belongs to its first token."""
    item = call_schema(functions)
    definitions = item.pop("$defs", {})
    calls = {"type": "array", "items": item, "minItems": 1, "maxItems": most, "$defs": definitions}
    return Constraint("lark", f'start: " "? calls\ncalls: {_json(calls)}')


def _read_list(text: str) -> list[Named]:
    return [(call["name"], call["arguments"]) for call in json.loads(text)]


def _rest(functions: Mapping[str, Schema], most: int) -> Constraint:
    """A call from its name on, all but the last brace."""
    heads = [json.dumps(f'{name}", "parameters": ') for name in functions]
    rules = [f"a{index}: {_json(held)}" for index, held in enumerate(functions.values())]
    start = " | ".join(f"{head} a{index}" for index, head in enumerate(heads))
    return Constraint("lark", "\n".join([f"start: {start}", *rules]))


def _read_rest(text: str) -> list[Named]:
    call = json.loads(f'{{"name": "{text}}}')
    return [(call["name"], call["parameters"])]


def _arguments(functions: Mapping[str, Schema], most: int) -> Constraint:
    """The arguments of the one function that was chosen."""
    (held,) = functions.values()
    return Constraint("json", held)


def _read_named(text: str) -> list[Named]:
    name, _, arguments = text.partition("{")
    return [(name, json.loads("{" + arguments))]


def _gemma(functions: Mapping[str, Schema], most: int) -> Constraint:
    return Constraint("lark", gemma_calls.grammar(functions))


# --- the forms ----------------------------------------------------------------------------------------------

_NO_ID = "000000000"

HERMES = Form(("<tool_call>",), "\n", "\n</tool_call>", _object, _read_object)
EMULATED = replace(HERMES, native=False)
LLAMA = Form(
    openings=(
        '{"name": "',
        '{"type": "function", "name": "',  # as the functions are declared, and sometimes called
        '<|python_tag|>{"name": "',
        '<|python_tag|>{"type": "function", "name": "',
    ),
    behind="",
    close="}",
    constraint=_rest,
    read=_read_rest,
    several=False,
    tagged=False,
)
MISTRAL_LIST = Form(("[TOOL_CALLS]",), "", "", _list, _read_list, several=False, grammatical=False)
MISTRAL_NAMED = Form(("[TOOL_CALLS]",), "", "", _arguments, _read_named, grammatical=False, apart="[ARGS]")
GEMMA = Form(("<|tool_call>",), "", "<tool_call|>", _gemma, lambda text: [gemma_calls.parsed(text)])


def recognised(text: str, turn: str) -> Form | None:
    """The form of the probing call in what a template made of it.

    Args:
        text: the probing conversation.
        turn: how the template ends a turn of the user's and begins the model's.
    """
    if PROBE_RESULT not in text:
        return None
    call = f'{{"name": "{PROBE_NAME}", "parameters": {{"x": "y"}}}}'
    gemma_result = f'<|tool_response>response:{PROBE_NAME}{{value:<|"|>{PROBE_RESULT}<|"|>}}<tool_response|>'
    if f'<|tool_call>call:{PROBE_NAME}{{x:<|"|>y<|"|>}}<tool_call|>' in text:
        return GEMMA if gemma_result in text else None
    if any(said == {"name": PROBE_NAME, "arguments": PROBE_ARGUMENTS} for said in _tagged_objects(text)):
        return HERMES
    if named := re.search(rf"\[TOOL_CALLS\]{PROBE_NAME}(\[CALL_ID\]\w+)?\[ARGS\]\{{", text):
        return replace(MISTRAL_NAMED, apart=f"[CALL_ID]{_NO_ID}[ARGS]") if named[1] else MISTRAL_NAMED
    if re.search(rf'\[TOOL_CALLS\]\s*\[\{{"name": "{PROBE_NAME}", "arguments": ', text):
        return MISTRAL_LIST
    return LLAMA if turn + call in text else None


def _tagged_objects(text: str) -> Iterator[Any]:
    for match in re.finditer(r"<tool_call>\s*(\{.*?\})\s*</tool_call>", text, re.DOTALL):
        try:
            yield json.loads(match[1])
        except ValueError:  # an example within the template's own instruction
            continue

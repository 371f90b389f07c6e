"""Calls as Gemma 4's template writes them, against the grammar that they are held to and the reader."""

from __future__ import annotations

import random
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from language import families
from studiolo.language.decoding import gemma_calls
from studiolo.language.decoding.schema import fault
from studiolo.language.engines.completer import Constraint
from studiolo.language.engines.constraints import matcher, problem
from studiolo.language.errors import UnsupportedError

RICH: dict[str, Any] = {
    "type": "object",
    "properties": {
        "city": {"type": "string", "minLength": 1, "maxLength": 8},
        "days": {"type": "integer", "minimum": 1, "maximum": 20},
        "tags": {"type": "array", "items": {"enum": ["a", "é", 3, None, True]}, "minItems": 1, "maxItems": 3},
        "deep": {"type": "object", "properties": {"x": {"type": ["number", "null"]}}},
        "node": {"$ref": "#/$defs/node"},
        "either": {
            "anyOf": [{"type": "boolean"}, {"type": "array", "items": {"type": "string", "maxLength": 8}}]
        },
    },
    "required": ["city", "tags"],
    "$defs": {
        "node": {
            "type": "object",
            "properties": {"next": {"anyOf": [{"$ref": "#/$defs/node"}, {"type": "null"}]}},
        }
    },
}
NONE = {"type": "object", "properties": {}, "additionalProperties": False}
FUNCTIONS = {"f": RICH, "g": NONE}
CALL = Constraint("lark", gemma_calls.grammar(FUNCTIONS))


def by_template(name: str, arguments: dict[str, Any]) -> str:
    """What stands between the tags."""
    from transformers.utils.chat_template_utils import render_jinja_template

    call = {"function": {"name": name, "arguments": arguments}}
    messages = [{"role": "user", "content": "Hi"}, {"role": "assistant", "content": "", "tool_calls": [call]}]
    (text,), _ = render_jinja_template([messages], chat_template=families.GEMMA4, bos_token="<bos>")
    return text.partition("<|tool_call>")[2].partition("<tool_call|>")[0]


def accepted(text: str) -> bool:
    state, data = matcher(CALL), list(text.encode())
    return state.try_consume_tokens(data) == len(data) and bool(state.is_accepting())


TEXTS = st.text(st.sampled_from('aé<|">{}[]:, \n\\'), min_size=1, max_size=8).filter(
    lambda text: gemma_calls.QUOTE not in text
)
NODES = st.recursive(st.just({}), lambda inner: st.builds(lambda node: {"next": node}, inner), max_leaves=4)
ARGUMENTS = st.fixed_dictionaries(
    {"city": TEXTS, "tags": st.lists(st.sampled_from(["a", "é", 3, True]), min_size=1, max_size=3)},
    optional={
        "days": st.integers(1, 20),
        "deep": st.builds(lambda x: {"x": x}, st.integers(-99, 99) | st.just(0.5)),
        "node": NODES,
        "either": st.booleans() | st.lists(TEXTS, max_size=3),
    },
)


@settings(max_examples=60, deadline=None)
@given(ARGUMENTS)
def test_what_the_template_writes_is_allowed_and_read_back(arguments):
    text = by_template("f", arguments)
    assert accepted(text)
    assert gemma_calls.parsed(text) == ("f", arguments)


def test_a_call_without_arguments():
    assert by_template("g", {}) == "call:g{}"
    assert accepted("call:g{}")
    assert gemma_calls.parsed("call:g{}") == ("g", {})


@pytest.mark.parametrize("seed", range(60))
def test_whatever_the_grammar_allows_is_sound(seed):
    draw, state, text = random.Random(seed), matcher(CALL), b""
    while not state.is_stopped() and not (state.is_accepting() and draw.random() < 0.3):
        order = list(range(32, 127))
        draw.shuffle(order)
        if draw.random() < 0.4 or len(text) > 300:  # so that it comes to an end
            order.sort(key=lambda byte: byte not in b'<|">}],')
        text += bytes([next(byte for byte in order if state.try_consume_tokens([byte]) == 1)])
    name, arguments = gemma_calls.parsed(text.decode())
    assert fault(arguments, FUNCTIONS[name]) == ""


@pytest.mark.parametrize(
    "text",
    [
        'call:f{city:<|"|><|"|>,tags:[3]}',
        'call:f{tags:[3],city:<|"|>Rome<|"|>}',
        'call:f{city:<|"|>Rome<|"|>}',
        'call:f{city:<|"|>Rome<|"|>,days:21,tags:[3]}',
        'call:f{city:<|"|>Rome<|"|>,tags:[4]}',
        'call:f{city:<|"|>Rome<|"|>, tags:[3]}',
        "call:g{x:1}",
        "call:h{}",
    ],
)
def test_what_does_not_fit_the_schema_is_not_allowed(text):
    assert not accepted(text)


@pytest.mark.parametrize(
    "text", ["", "g{}", "call:g", "call:g{}x", "call:g{x:1", "call:g{x:1y:2}", "call:g{x:}"]
)
def test_what_is_no_call_is_not_read(text):
    with pytest.raises(ValueError):  # noqa: PT011 - of json, of str.index and our own
        gemma_calls.parsed(text)


@pytest.mark.parametrize(
    "schema",
    [
        {"type": "string", "pattern": "^a$"},
        {"type": "string", "format": "date"},
        {"type": "object"},
        {"type": "array"},
        {"type": "array", "items": {"type": "string"}, "uniqueItems": True},
        {"oneOf": [{"type": "string"}, {"type": "null"}]},
        {"enum": ['a<|"|>']},
        {"enum": [{"a": 1}]},
        {"type": "string", "enum": [1]},
        {"$ref": "#/$defs/none"},
        {"type": "object", "properties": {"a": {"type": "null"}}, "required": ["b"]},
        {"type": "object", "properties": {"a b": {"type": "null"}}},
        {},
        True,
    ],
)
def test_what_cannot_be_expressed_is_refused(schema):
    with pytest.raises(UnsupportedError, match="cannot express"):
        gemma_calls.grammar({"f": {"type": "object", "properties": {"x": schema}}})


@pytest.mark.parametrize(
    "schema",
    [
        {"type": "string", "maxLength": 5000},
        {"type": ["string", "integer"], "maxLength": 3, "minimum": 2},
        {"type": "array", "items": {"type": "integer"}, "maxItems": 0},
        {"type": "array", "items": {"type": "integer"}, "minItems": 2, "maxItems": 2},
        {"const": 'say "x"\n'},
    ],
)
def test_what_can_be_expressed_compiles(schema):
    functions = {"f": {"type": "object", "properties": {"x": schema}}}
    assert problem(Constraint("lark", gemma_calls.grammar(functions))) == ""

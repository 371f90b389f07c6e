"""Constraints in llguidance's language: a text is accepted where an independent reader accepts it."""

from __future__ import annotations

import json
import re

import jsonschema
import pytest

from studiolo.language.engines.completer import Constraint
from studiolo.language.engines.constraints import Watch, lark
from studiolo.language.errors import InvalidRequestError, UnsupportedError, UpstreamError


def _accepts(constraint, text):
    watch = Watch(lark(constraint))
    try:
        watch.feed(text)
    except UpstreamError:
        return False
    return watch.complete


@pytest.mark.parametrize(
    "pattern", ["a/b", r"a\/b", "[0-9]{2}/[0-9]{2}", "a\nb", "a\\\nb", r"\d+(\.\d+)?", "x|", "é+"]
)
@pytest.mark.parametrize("text", ["a/b", "12/34", "a\nb", "3.5", "3.", "x", "", "éé", "a\\nb"])
def test_a_regular_expression_means_what_it_means_to_re(pattern, text):
    assert _accepts(Constraint("regex", pattern), text) == (re.fullmatch(pattern, text) is not None)


CHOICES = ("yes", "yes and no", 'say "no"', "back\\slash", "two\nlines", "नमस्ते", "👩‍👩‍👧", "/")


@pytest.mark.parametrize("text", [*CHOICES, "", "no", "yes and", "YES", "two\\nlines"])
def test_choices_are_taken_to_the_letter(text):
    assert _accepts(Constraint("choice", CHOICES), text) == (text in CHOICES)


SCHEMA = {
    "type": "object",
    "properties": {"n": {"type": "integer", "minimum": 3, "maximum": 12}, "s": {"enum": ["a", "é"]}},
    "required": ["n"],
    "additionalProperties": False,
}


@pytest.mark.parametrize(
    "value",
    [{"n": 3}, {"n": 12, "s": "é"}, {"n": 13}, {"n": 2}, {"s": "a"}, {"n": 5, "s": "b"}, {"n": 5, "x": 1}, 5],
)
def test_a_schema_means_what_it_means_to_jsonschema(value):
    valid = jsonschema.Draft202012Validator(SCHEMA).is_valid(value)
    assert _accepts(Constraint("json", SCHEMA), json.dumps(value, ensure_ascii=False)) == valid


@pytest.mark.parametrize("value", [None, 1.5, "x", [1, {"a": []}], {}])
def test_true_is_any_json(value):
    assert _accepts(Constraint("json", True), json.dumps(value))


def test_json_comes_on_one_line_unless_it_is_wished_otherwise():
    free = {"type": "array", "items": {"type": "integer"}, "x-guidance": {"whitespace_flexible": True}}
    for text in ("[1,\n 2]", "[ 1, 2 ]", "[1, 2]"):
        assert _accepts(Constraint("json", free), text)
        assert _accepts(Constraint("json", {"type": "array"}), text) == (text == "[1, 2]")


@pytest.mark.parametrize(
    ("constraint", "reason"),
    [
        (Constraint("json", {"type": "array", "uniqueItems": True}), "uniqueItems"),
        (Constraint("json", {"not": {"type": "string"}}), "not"),
        (Constraint("regex", "(?=a)b"), "look-around"),
        (Constraint("regex", "("), "unclosed"),
        (Constraint("lark", "start: nowhere"), "nowhere"),
        (Constraint("lark", ""), "Empty"),
        (Constraint("gbnf", 'root ::= "a"'), "GBNF"),
    ],
)
def test_what_cannot_be_enforced_is_refused_with_the_reason(constraint, reason):
    with pytest.raises(UnsupportedError, match=reason):
        lark(constraint)


@pytest.mark.parametrize("constraint", [Constraint("json", False), Constraint("choice", ())])
def test_what_nothing_can_match_is_refused(constraint):
    with pytest.raises(InvalidRequestError):
        lark(constraint)


def test_a_watch_says_where_a_text_leaves_its_grammar():
    watch = Watch(lark(Constraint("regex", "ab+")))
    watch.feed("a")
    assert not watch.complete
    watch.feed("bb")
    assert watch.complete
    with pytest.raises(UpstreamError, match="lost the constraint"):
        watch.feed("c")

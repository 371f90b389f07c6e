"""What form an answer must have: one spelling, refused where it cannot be enforced, checked when there."""

from __future__ import annotations

import json
from typing import Any

import jsonschema
import pytest

from studiolo.language.conversation import Format, FormatKind
from studiolo.language.decoding.answer import first_characters
from studiolo.language.decoding.forms import call_schema
from studiolo.language.decoding.schema import (
    check_answer,
    constraint,
    enforceable,
    fault,
    normalised,
)
from studiolo.language.engines.completer import Constraint
from studiolo.language.engines.constraints import lark, matcher
from studiolo.language.errors import InvalidRequestError, UnsupportedError, UpstreamError

STRING = {"type": "string"}


def json_format(rule: Any) -> Format:
    return Format(kind=FormatKind.JSON, rule=rule)


# --- Gemini's schemas against Google's own conversion ------------------------------------------------------

GEMINI: list[tuple[dict[str, Any], list[Any], list[Any]]] = [
    ({"type": "STRING"}, ["a", ""], [1, None]),
    ({"type": "STRING", "nullable": True}, ["a", None], [1]),
    ({"type": "STRING", "format": "enum", "enum": ["EAST", "WEST"]}, ["EAST"], ["SOUTH"]),
    ({"type": "INTEGER", "minimum": 1, "maximum": 3}, [1, 3], [0, 4, 1.5]),
    ({"type": "NUMBER", "format": "double"}, [1, 1.5], ["1"]),
    ({"type": "BOOLEAN"}, [True], [1]),
    (
        {"type": "ARRAY", "items": {"type": "STRING"}, "minItems": "1", "maxItems": "2"},
        [["a"]],
        [[], ["a"] * 3, [1]],
    ),
    (
        {
            "type": "OBJECT",
            "properties": {"a": {"type": "STRING"}, "b": {"type": "ARRAY", "items": {"type": "INTEGER"}}},
            "required": ["a"],
            "propertyOrdering": ["b", "a"],
        },
        [{"a": "x"}, {"a": "x", "b": [1]}],
        [{}, {"b": []}, {"a": 1}],
    ),
    ({"anyOf": [{"type": "STRING"}, {"type": "INTEGER"}]}, ["a", 1], [1.5, None]),
    ({"type": "STRING", "minLength": "2", "maxLength": "3", "pattern": "^a"}, ["ab"], ["a", "abcd", "ba"]),
    (
        {"type": "OBJECT", "properties": {"in": {"type": "OBJECT", "nullable": True}}},
        [{"in": None}, {"in": {}}],
        [1],
    ),
    (
        {"type": "OBJECT", "title": "T", "description": "d", "example": {}, "default": {}},
        [{}, {"a": 1}],
        [[]],
    ),
]


@pytest.mark.parametrize(("schema", "right", "wrong"), GEMINI, ids=lambda value: json.dumps(value)[:40])
def test_a_gemini_schema_means_what_google_means_by_it(schema, right, wrong):
    from google.genai import types

    theirs = types.Schema.model_validate(schema).json_schema.model_dump(
        mode="json", exclude_none=True, by_alias=True
    )
    ours = normalised(schema)
    enforceable(ours)
    for value in right:
        assert fault(value, ours) == ""
        jsonschema.validate(value, theirs)
    for value in wrong:
        assert fault(value, ours)
        assert list(jsonschema.Draft202012Validator(theirs).iter_errors(value))


def test_what_google_says_beyond_its_conversion():
    """Order, ranges, numbers as strings, references: of the documentation of google.genai.types.Schema."""
    ordered = {"type": "OBJECT", "properties": {"a": {}, "b": {}}, "propertyOrdering": ["b", "a"]}
    assert list(normalised(ordered)["properties"]) == ["b", "a"]
    assert fault({"c": 1}, normalised(ordered))
    assert normalised({"type": "INTEGER", "format": "enum", "enum": ["101", "201"]})["enum"] == [101, 201]
    assert fault(2**31, normalised({"type": "INTEGER", "format": "int32"}))
    assert not fault(2**31, normalised({"type": "INTEGER", "format": "int64"}))
    pets = {
        "type": "OBJECT",
        "properties": {"pet": {"ref": "#/defs/Pet"}},
        "defs": {"Pet": {"type": "OBJECT", "properties": {"name": {"type": "STRING"}}}},
    }
    assert fault({"pet": {"name": 1}}, normalised(pets))
    assert normalised({"type": "TYPE_UNSPECIFIED"}) == {}
    for nullable in (
        {"type": "STRING", "enum": ["a"], "nullable": True},
        {"any_of": [{"type": "STRING", "enum": ["a"]}, {"type": "INTEGER"}], "nullable": True},
    ):
        assert [fault(value, normalised(nullable)) == "" for value in ("a", None, "b")] == [True, True, False]


# --- older spellings --------------------------------------------------------------------------------------

OLD: list[tuple[dict[str, Any], list[Any], list[Any]]] = [
    ({"items": [STRING, {"type": "integer"}], "additionalItems": False}, [["a", 1], []], [["a", 1, 2], [1]]),
    ({"items": [STRING], "additionalItems": {"type": "null"}}, [["a", None]], [["a", 1]]),
    ({"items": STRING, "additionalItems": False}, [["a", "b"]], [[1]]),
    ({"dependencies": {"a": ["b"]}}, [{}, {"a": 1, "b": 1}], [{"a": 1}]),
    ({"dependencies": {"a": {"required": ["b"]}}}, [{}, {"a": 1, "b": 1}], [{"a": 1}]),
    (
        {"definitions": {"s": STRING}, "properties": {"a": {"$ref": "#/definitions/s"}}},
        [{"a": "x"}],
        [{"a": 1}],
    ),
    ({"definitions": {"s": STRING}, "$ref": "#/definitions/s", "maxLength": 1}, ["long"], [1]),
]


@pytest.mark.parametrize(("schema", "right", "wrong"), OLD, ids=lambda value: json.dumps(value)[:40])
def test_draft_07_means_what_it_meant(schema, right, wrong):
    schema = {"$schema": "http://json-schema.org/draft-07/schema#", **schema}
    theirs = jsonschema.Draft7Validator(schema)
    ours = normalised(schema)
    for value in right:
        assert theirs.is_valid(value)
        assert fault(value, ours) == ""
    for value in wrong:
        assert not theirs.is_valid(value)
        assert fault(value, ours)


def test_bounds_of_draft_04():
    theirs = jsonschema.Draft4Validator(
        {"minimum": 3, "exclusiveMinimum": True, "maximum": 5, "exclusiveMaximum": False}
    )
    ours = normalised(theirs.schema)
    for value in (2, 3, 4, 5, 6):
        assert theirs.is_valid(value) == (fault(value, ours) == "")


# --- what can be enforced ---------------------------------------------------------------------------------

TREE = {
    "type": "object",
    "properties": {"name": STRING, "children": {"type": "array", "items": {"$ref": "#"}}},
    "required": ["name"],
}

CAN: list[Any] = [
    None,
    True,
    {},
    {"title": "T", "description": "d", "examples": [1], "x-mine": 1, "deprecated": True, "$comment": "c"},
    {"type": ["string", "null"]},
    {"enum": [1, "a", None, {"a": [1]}]},
    {"const": {"a": 1}},
    {"type": "integer", "minimum": 0, "exclusiveMaximum": 10, "multipleOf": 3},
    {"type": "number", "exclusiveMinimum": -1.5, "maximum": 1e3},
    {"type": "string", "minLength": 1, "maxLength": 5},
    {"type": "string", "pattern": "^[A-Z]{2}[0-9]+$"},
    *({"type": "string", "format": form} for form in ("date", "time", "date-time", "uuid", "email", "ipv4")),
    {"type": "array", "items": STRING, "minItems": 1, "maxItems": 3},
    {"type": "array", "prefixItems": [STRING, {"type": "integer"}], "items": False},
    {"type": "array", "items": [STRING, {"type": "integer"}], "additionalItems": False},
    {"type": "object", "properties": {"a": STRING}, "required": ["a"], "additionalProperties": False},
    {"type": "object", "additionalProperties": {"type": "integer"}},
    {"type": "object", "patternProperties": {"^x": STRING}, "additionalProperties": False},
    {"anyOf": [STRING, {"type": "integer"}]},
    {"oneOf": [STRING, {"type": "integer"}]},
    {"allOf": [{"type": "object", "properties": {"a": STRING}}, {"required": ["a"]}]},
    {"$ref": "#/$defs/a", "$defs": {"a": STRING}},
    {"$ref": "#/definitions/a", "definitions": {"a": STRING}},
    TREE,
    {"type": "OBJECT", "properties": {"a": {"type": "STRING", "nullable": True}}},
]

CANNOT: list[tuple[Any, str]] = [
    ({"type": "array", "uniqueItems": True}, "uniqueItems"),
    ({"not": STRING}, "not"),
    ({"if": STRING, "then": {"maxLength": 1}}, "if"),
    ({"oneOf": [STRING, {"maxLength": 3}]}, "oneOf"),
    ({"type": "array", "contains": STRING}, "contains"),
    ({"type": "object", "propertyNames": {"pattern": "^a"}}, "propertyNames"),
    ({"dependencies": {"a": ["b"]}}, "dependentRequired"),
    ({"type": "object", "unevaluatedProperties": False}, "unevaluatedProperties"),
    ({"type": "string", "format": "no-such-format"}, "no-such-format"),
    ({"type": "string", "pattern": "(?=a)b"}, "look-a"),
    ({"type": "string", "pattern": r"\p{L}"}, "pattern"),
    ({"$ref": "https://example.org/schema"}, "nothing is fetched"),
    ({"properties": {"a": {"$ref": "other.json#/a"}}}, "nothing is fetched"),
    ({"$ref": "#named", "$defs": {"a": {"$anchor": "named"}}}, "names are not resolved"),
    ({"$dynamicRef": "#a"}, "dynamic"),
    ({"$ref": "#/$defs/gone"}, "gone"),
    ({"type": "integer", "minimum": 5, "maximum": 3}, "nsatisfiable"),
    ({"enum": []}, "nsatisfiable"),
]

NO_SCHEMA: list[tuple[Any, str]] = [
    ({"type": "strange"}, "strange"),
    ({"properties": []}, "object"),
    ({"properties": {"a": 1}}, "a schema is an object"),
    ({"type": "string", "maxLength": "long"}, "long"),
    ({"required": "a"}, "array"),
    (False, "a schema is an object"),
    ("{}", "a schema is an object"),
]


@pytest.mark.parametrize("rule", CAN, ids=lambda rule: json.dumps(rule)[:50])
def test_what_can_be_enforced_is_taken(rule):
    made = constraint(json_format(rule))
    assert made is not None
    assert made.kind == "json"


@pytest.mark.parametrize(("rule", "why"), CANNOT, ids=lambda value: json.dumps(value)[:50])
def test_what_cannot_is_refused_with_the_reason(rule, why):
    with pytest.raises(UnsupportedError, match="cannot be enforced") as caught:
        constraint(json_format(rule))
    assert why in caught.value.message
    assert (caught.value.where or "").startswith("config.format")


@pytest.mark.parametrize(("rule", "why"), NO_SCHEMA, ids=lambda value: json.dumps(value)[:50])
def test_what_is_no_schema_is_told_so(rule, why):
    with pytest.raises(InvalidRequestError, match=why) as caught:
        constraint(json_format(rule))
    assert not isinstance(caught.value, UnsupportedError)


def test_an_engine_that_enforces_less_refuses_more():
    keywords = frozenset({"type", "properties", "required", "format:date"})
    enforceable({"type": "object", "title": "T", "properties": {"maxLength": STRING}}, keywords)
    enforceable({"type": "string", "format": "date"}, keywords)
    for schema, named in (
        ({"properties": {"a": {"type": "string", "maxLength": 3}}}, "maxLength"),
        ({"type": "string", "format": "uuid"}, "uuid"),
        ({"properties": {"a": {"anyOf": [STRING]}}}, "anyOf"),
    ):
        with pytest.raises(UnsupportedError, match=named) as caught:
            enforceable(schema, keywords)
        assert caught.value.where.startswith("schema")


def test_choices_expressions_and_grammars():
    assert constraint(Format()) is None
    assert constraint(Format(kind=FormatKind.CHOICE, rule=("yes", "no", "yes"))) == Constraint(
        "choice", ("yes", "no")
    )
    for kind, rule in (
        (FormatKind.REGEX, "[0-9]{3}"),
        (FormatKind.LARK, 'start: "a" | "b"'),
        (FormatKind.GBNF, 'root ::= "a" [0-9]{1,3} ("b" | "c")*'),
    ):
        assert constraint(Format(kind=kind, rule=rule)) == Constraint(kind.value, rule)
    for kind, rule in (
        (FormatKind.REGEX, "[0-9]{3"),
        (FormatKind.LARK, "start: nothing"),
        (FormatKind.GBNF, "root ::= ("),
    ):
        with pytest.raises(UnsupportedError, match="cannot be enforced"):
            constraint(Format(kind=kind, rule=rule))
    for kind in (FormatKind.REGEX, FormatKind.LARK, FormatKind.CHOICE):
        with pytest.raises(InvalidRequestError):
            constraint(Format(kind=kind, rule=None))


# --- the finished answer ----------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("rule", "right", "wrong"),
    [
        (
            Constraint("json", TREE),
            '{"name": "a", "children": [{"name": "b"}]}',
            '{"name": "a", "children": [{}]}',
        ),
        (Constraint("json", True), "[1]", "[1"),
        (Constraint("json", {"format": "date"}), '"2024-02-29"', '"2023-02-29"'),
        (Constraint("choice", ("yes", "no")), "no", "n"),
        (Constraint("regex", "[0-9]{3}"), "123", "12"),
        (Constraint("regex", "[äö]+"), "äö", "äo"),
        (Constraint("lark", 'start: "a" start | "b"'), "aab", "aa"),
        (Constraint("gbnf", 'root ::= "a"+ "b"'), "aab", "aabb"),
    ],
)
def test_an_answer_is_checked(rule, right, wrong):
    check_answer(right, rule)
    with pytest.raises(UpstreamError, match="not of the form"):
        check_answer(wrong, rule)


@pytest.mark.parametrize(
    "schema",
    [{"type": kind} for kind in ("object", "array", "string", "number", "integer", "boolean", "null")]
    + [{"type": ["string", "null"]}, {"enum": [1, "a"]}, {}],
)
def test_an_answer_begins_as_the_grammar_lets_it(schema):
    """Against llguidance: every character with which JSON of a type can begin."""
    ours = set(first_characters(schema))
    rule = Constraint("json", schema)
    theirs = {chr(byte) for byte in range(33, 127) if matcher(rule).try_consume_tokens([byte]) == 1}
    assert theirs <= ours
    if "type" in schema:
        assert theirs == ours


def test_references_of_each_function_lead_to_its_own_definitions():
    one = {"type": "object", "properties": {"a": {"$ref": "#/$defs/x"}}, "$defs": {"x": {"type": "integer"}}}
    two = {
        "type": "object",
        "properties": {"a": {"$ref": "#/$defs/x"}, "b": {"$ref": "#"}},
        "$defs": {"x": STRING},
    }
    schema = call_schema({"one": one, "two": two})
    enforceable(schema)
    assert not fault({"name": "one", "arguments": {"a": 1}}, schema)
    assert fault({"name": "one", "arguments": {"a": "x"}}, schema)
    assert not fault({"name": "two", "arguments": {"a": "x", "b": {"a": "y"}}}, schema)
    assert fault({"name": "two", "arguments": {"b": {"a": 1}}}, schema)
    assert lark(Constraint("json", schema))


@pytest.mark.parametrize("key", ["minItems", "maxItems", "minLength", "maxLength", "maxProperties"])
def test_sizes_that_would_keep_everybody_waiting_are_refused(key):
    constraint(Format(kind="json", rule={"type": ["array", "string", "object"], key: 1000}))
    with pytest.raises(UnsupportedError, match="largest"):
        constraint(Format(kind="json", rule={"type": ["array", "string", "object"], key: 10**12}))


@pytest.mark.parametrize(
    "rule",
    [
        {"$ref": "#"},
        {"$ref": "#/$defs/a", "$defs": {"a": {"$ref": "#/$defs/b"}, "b": {"$ref": "#/$defs/a"}}},
        {"type": "object", "properties": {"a~/%": {"$ref": "#/properties/a~0~1%25"}}},
    ],
)
def test_references_that_only_lead_to_themselves_are_refused(rule):
    with pytest.raises(UnsupportedError, match="itself"):
        constraint(Format(kind="json", rule=rule))

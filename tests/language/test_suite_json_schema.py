"""Constraints against the official JSON Schema Test Suite, and answers under them against jsonschema."""

from __future__ import annotations

import asyncio
import json
import random
from typing import Any

import jsonschema
import pytest
from suites import benchmark, cases

from studiolo.language.collect import collected
from studiolo.language.conversation import FinishReason, Format, FormatKind, GenerationConfig, Request, user
from studiolo.language.decoding.schema import check_answer
from studiolo.language.engines.completer import Constraint
from studiolo.language.engines.local import LocalEngine

script = benchmark("json_schemas")
suites = benchmark("schema_suites")


# --- the suite's own instances -----------------------------------------------------------------------------

OLD_CONTENT = {"contentMediaType", "contentEncoding"}
"""Assertions in draft-07, optionally; annotations since."""


@pytest.mark.parametrize(("draft", "schemas", "share"), [("draft2020-12", 190, 0.92), ("draft4", 140, 0.95)])
def test_no_invalid_instance_is_taken_and_nearly_all_valid_ones_are(draft, schemas, share):
    judged = script.Judged()
    for case in cases(suites.official, draft):
        script.judge(case, judged)
    assert judged.invalid_taken == []
    assert judged.invalid > 250
    assert judged.schemas - judged.refused >= schemas
    assert judged.valid_taken >= share * judged.valid


def test_what_draft_07_asserts_of_content_is_an_annotation():
    judged = script.Judged()
    for case in cases(suites.official, "draft7"):
        if not (isinstance(case.schema, dict) and case.schema.keys() & OLD_CONTENT):
            script.judge(case, judged)
    assert judged.invalid_taken == []
    assert judged.invalid > 350


# --- what llguidance alone would let through ----------------------------------------------------------------

SOUND: list[tuple[Any, list[str], list[str]]] = [
    (
        {"format": "date"},
        ["2024-02-29", "2000-02-29", "1999-12-31"],
        ["2023-02-29", "1900-02-29", "0000-01-01"],
    ),
    ({"format": "date-time"}, ["2024-02-29T23:59:59Z"], ["2023-02-29T00:00:00Z", "2024-01-01T12:30:60Z"]),
    ({"format": "time"}, ["23:59:59+01:00"], ["12:30:60Z"]),
    ({"format": "date", "pattern": "9$", "allOf": [{"pattern": "^2"}]}, ["2024-02-29"], ["2023-02-29"]),
    ({"pattern": r"^\S$"}, ["é"], ["\ufeff", "\u2003"]),
    ({"pattern": r"^\s$"}, ["\u2003"], ["\u0085", "x"]),
    ({"pattern": r"^[\s\S]{2}$"}, ["a "], ["a"]),
    ({"pattern": r"^\\S$"}, ["\\S"], ["x"]),
    (
        {"format": "uri"},
        ["https://example.com:80/a%20b?c#d", "urn:isbn:1"],
        ["example.com", "http://a b/", ":"],
    ),
    ({"const": {"format": "date"}}, [], ["2023-02-29"]),
]


@pytest.mark.parametrize(("rule", "right", "wrong"), SOUND, ids=lambda value: json.dumps(value)[:50])
def test_days_seconds_and_spaces_are_real_ones(rule, right, wrong):
    made = script.constraint_of({"type": "string", **rule} if "const" not in rule else rule)
    if right:
        assert [text for text in right if not script.takes(made, text)] == []
    assert [text for text in wrong if script.takes(made, text)] == []


def test_every_day_of_four_hundred_years_and_no_other():
    from datetime import date

    made = script.constraint_of({"type": "string", "format": "date"})
    draw = random.Random(0)
    for _ in range(400):
        year, month, day = draw.randint(1, 9999), draw.randint(1, 12), draw.randint(28, 31)
        try:
            real = bool(date(year, month, day))
        except ValueError:
            real = False
        assert script.takes(made, f"{year:04}-{month:02}-{day:02}") == real


@pytest.mark.parametrize(
    ("rule", "why"),
    [
        ({"type": "string", "x-guidance": {"lenient": True}}, "lenient"),
        ({"anyOf": [{"oneOf": [{}, {}], "x-guidance": {"coerce_one_of": True}}]}, "coerce_one_of"),
        ({"type": "object", "minProperties": 2}, "may come twice"),
    ],
)
def test_what_would_weaken_a_constraint_is_refused(rule, why):
    assert why in script.constraint_of(rule)


@pytest.mark.parametrize(
    "rule",
    [
        {"type": "object", "minProperties": 1},
        {"type": "object", "properties": {"a": {}, "b": {}}, "required": ["a", "b"], "minProperties": 2},
        {"type": "array", "minItems": 1.0, "uniqueItems": False},
        {"$schema": "http://json-schema.org/draft-07/schema#", "properties": {"a": {"$id": "#a"}}},
        {"type": "string", "x-guidance": {"whitespace_flexible": True}},
    ],
)
def test_what_weakens_nothing_is_taken(rule):
    assert isinstance(script.constraint_of(rule), Constraint)


@pytest.mark.parametrize(
    ("rule", "text"),
    [
        ({"type": "number", "multipleOf": 0.01}, "19.99"),
        ({"type": "number", "multipleOf": 0.1}, "0.7"),
        ({"type": "string", "pattern": r"^\W$"}, '"é"'),
        ({"type": "string", "pattern": r"^\s$"}, '"\u2003"'),
    ],
)
def test_a_valid_answer_is_not_called_wrong(rule, text):
    made = script.constraint_of(rule)
    assert script.accepts(made, text)
    check_answer(text, made)


# --- random answers ----------------------------------------------------------------------------------------

KINDS: list[dict[str, Any]] = [
    {"enum": [1, "a", None, {"b": [2]}]},
    {"type": "number", "minimum": -3, "maximum": 7.5, "multipleOf": 0.5},
    {"type": "array", "prefixItems": [{"type": "boolean"}], "items": {"type": "integer"}, "maxItems": 4},
    {"anyOf": [{"type": "string", "maxLength": 3}, {"type": "array", "items": {"type": "null"}}]},
    {"type": "string", "pattern": "^[A-Z]{2}-[0-9]+$"},
    {
        "type": "object",
        "properties": {"on": {"type": "string", "format": "date"}, "next": {"$ref": "#"}},
        "required": ["on"],
        "additionalProperties": False,
    },
]


@pytest.mark.parametrize("schema", KINDS, ids=lambda schema: json.dumps(schema)[:40])
def test_random_answers_are_valid_or_told_to_be_cut_off(schema):
    rule, tokenizer, completed = script.constraint_of(schema), script.byte_tokenizer(), 0
    for seed in range(40):
        text, whole = script.drawn(rule, tokenizer, random.Random(seed), 400)
        if whole:
            jsonschema.Draft202012Validator(
                schema, format_checker=jsonschema.Draft202012Validator.FORMAT_CHECKER
            ).validate(json.loads(text))
            completed += 1
    assert completed > 20


FORMATS = ("date", "time", "date-time", "duration", "email", "hostname", "ipv4", "ipv6", "uri", "uuid")


def test_llama_cpp_keeps_every_format_that_is_taken(smollm2):
    """Its llguidance is another than the one that judges here; and what it cannot hold it drops."""
    from studiolo.language.engines.completer import Completion, Sampling
    from studiolo.language.engines.llamacpp import LlamaCpp

    async def begun() -> list[str]:
        completer = LlamaCpp(smollm2, context=128, slots=1)
        prompt, found = completer.tokenize("An example:"), []
        for form in FORMATS:
            rule = script.constraint_of({"type": "string", "format": form})
            wanted = Completion(prompt, 3, Sampling(temperature=0.0), constraint=rule)
            found.append("".join([piece.text async for piece in completer.complete(wanted)]))
        await completer.close()
        return found

    assert all(text.startswith('"') for text in asyncio.run(begun()))


def test_answers_of_a_model_are_valid_or_told_to_be_cut_off(smollm2):
    from studiolo.language.engines.llamacpp import LlamaCpp

    async def answered() -> list[tuple[dict[str, Any], Any]]:
        engine = LocalEngine(LlamaCpp(smollm2, context=512, slots=2))
        config = GenerationConfig(max_tokens=24, temperature=1.0, seed=3)
        found = []
        for schema in KINDS:
            form = Format(kind=FormatKind.JSON, rule=schema)
            request = Request(
                model="smollm2",
                contents=(user("An example, please."),),
                config=config.model_copy(update={"format": form}),
            )
            found.append((schema, (await collected(engine.generate(request))).candidates[0]))
        await engine.close()
        return found

    whole = 0
    for schema, candidate in asyncio.run(answered()):
        assert candidate.finish in (FinishReason.STOP, FinishReason.LENGTH)
        if candidate.finish is FinishReason.STOP:
            jsonschema.validate(json.loads(candidate.text), schema)
            whole += 1
        else:
            assert "cut off" in candidate.finish_message
    assert whole >= 3

"""From what form an answer must have to a constraint that is enforced, or to a refusal that says why.

Schemas come as JSON Schema (2020-12 or draft-07 spellings) or as Gemini's OpenAPI-like `Schema` (types in
capitals, `nullable`, `propertyOrdering`; https://ai.google.dev/api/caching#Schema). Both become JSON Schema
2020-12. llguidance judges what can be enforced: whatever it cannot compile is refused before a token is made.
A finished answer is checked again, by jsonschema or by the grammar itself.
"""

from __future__ import annotations

import json
import math
import re
from collections.abc import Iterator, Mapping
from fractions import Fraction
from functools import cache
from typing import Any, cast
from urllib.parse import unquote

from studiolo.language.conversation import Format, FormatKind
from studiolo.language.engines import constraints
from studiolo.language.engines.completer import Constraint
from studiolo.language.engines.schema_tree import LIST, MAP, ONE, Schema, walk, within
from studiolo.language.errors import InvalidRequestError, UnsupportedError, UpstreamError


def _words(words: str) -> frozenset[str]:
    return frozenset(words.split())


ANNOTATIONS = _words(
    "title description default example examples deprecated readOnly writeOnly $comment $schema $id $anchor"
    " contentMediaType contentEncoding contentSchema $defs definitions propertyOrdering"
)
"""Keywords that rule nothing out."""

ASSERTIONS = (
    ONE
    | LIST
    | MAP
    | _words(
        "$ref $dynamicRef type enum const minLength maxLength pattern format minimum maximum exclusiveMinimum"
        " exclusiveMaximum multipleOf minItems maxItems uniqueItems minContains maxContains required"
        " minProperties maxProperties dependentRequired"
    )
) - ANNOTATIONS
"""Keywords of JSON Schema that can rule something out. Any other name is an annotation, as the standard
says."""

_INTEGERS = ("minItems", "maxItems", "minLength", "maxLength", "minProperties", "maxProperties")
LARGEST_SIZE = 1_000_000
"""A constraint takes time by the numbers in its schema before anything is decoded, and all requests wait."""
_GEMINI_TYPES = _words("STRING NUMBER INTEGER BOOLEAN ARRAY OBJECT NULL TYPE_UNSPECIFIED")
_GEMINI_FORMATS = _words("float double int32 int64 enum byte password")
_RANGES = {"int32": (-(2**31), 2**31 - 1), "int64": (-(2**63), 2**63 - 1)}

_SNAKE = {
    name: re.sub(r"_(\w)", lambda match: match[1].upper(), name)
    for name in _words(
        "property_ordering any_of min_items max_items min_length max_length min_properties max_properties"
        " prefix_items additional_properties"
    )
} | {"defs": "$defs", "ref": "$ref"}


# --- one spelling ------------------------------------------------------------------------------------------


def normalised(schema: Mapping[str, Any], *, where: str = "schema") -> Schema:
    """The same schema in the spelling of JSON Schema 2020-12; of each object's properties the order is kept.

    Of Gemini's schemas: `nullable` becomes a type or branch "null", `propertyOrdering` the order of the
    properties, int32 and int64 ranges; objects that name properties have no others, as on that API. Its
    formats byte, password, float and double tell no more than the type and are left out.

    Raises:
        InvalidRequestError: no schema; says what and where.
    """
    gemini = _is_gemini(schema)
    old = "$schema" in schema and not re.search(r"2019-09|2020-12", str(schema["$schema"]))
    made = _normalised(schema, gemini, old, where)
    if not isinstance(made, dict):
        raise InvalidRequestError("a schema must be an object", where=where, remedy="Give one with a type.")
    made.pop("$schema", None)
    _check_wellformed(made, where)
    return made


def _is_gemini(schema: Any) -> bool:
    if isinstance(schema, Mapping):
        if _named(schema) in _GEMINI_TYPES or schema.keys() & {"propertyOrdering", *_SNAKE}:
            return True
        return any(_is_gemini(inner) for _, inner in within(schema))
    return False


def _named(schema: Mapping[str, Any]) -> str:
    """The type, if there is just one."""
    kind = schema.get("type")
    return str(kind) if isinstance(kind, str) else ""


def _normalised(schema: Any, gemini: bool, old: bool, where: str) -> Any:
    if isinstance(schema, bool):
        return schema
    if not isinstance(schema, Mapping):
        raise InvalidRequestError(
            f"a schema is an object, not {json.dumps(schema, default=str)[:40]}",
            where=where,
            remedy="Mend it.",
        )
    if old and "$ref" in schema:  # until draft-07 all that stands beside a reference is ignored
        schema = {key: value for key, value in schema.items() if key in ("$ref", "$defs", "definitions")}
    made = _gemini_spelled(schema) if gemini else dict(schema)
    made = _sizes_spelled(_tuples_spelled(_dependencies_spelled(_bounds_spelled(made))))
    if old and "#" in str(made.get("$id", "")):  # until draft-07 such an $id was a name, and not an address
        del made["$id"]
    for key, value in made.items():
        made[key] = _normalised_value(key, value, gemini, old, f"{where}.{key}")
    return _nullable(made, gemini)


def _normalised_value(key: str, value: Any, gemini: bool, old: bool, where: str) -> Any:
    if key in ONE:
        return _normalised(value, gemini, old, where)
    if key in LIST and isinstance(value, list | tuple):
        return [_normalised(item, gemini, old, f"{where}[{index}]") for index, item in enumerate(value)]
    if key in MAP and isinstance(value, Mapping):
        return {name: _normalised(item, gemini, old, f"{where}.{name}") for name, item in value.items()}
    return value


def _bounds_spelled(schema: Schema) -> Schema:
    """Draft-04: exclusiveMinimum: true beside minimum."""
    for bound in ("Minimum", "Maximum"):
        exclusive = schema.get(f"exclusive{bound}")
        if isinstance(exclusive, bool):
            del schema[f"exclusive{bound}"]
            if exclusive and bound.lower() in schema:
                schema[f"exclusive{bound}"] = schema.pop(bound.lower())
    return schema


def _dependencies_spelled(schema: Schema) -> Schema:
    """Draft-07: dependencies is what dependentRequired and dependentSchemas are now."""
    for name, needs in dict(schema.pop("dependencies", None) or {}).items():
        key = "dependentRequired" if isinstance(needs, list) else "dependentSchemas"
        schema.setdefault(key, {})[name] = needs
    return schema


def _tuples_spelled(schema: Schema) -> Schema:
    """Draft-07: items: [...] and additionalItems are what prefixItems and items are now."""
    if isinstance(schema.get("items"), list):
        schema["prefixItems"] = schema.pop("items")
        if "additionalItems" in schema:
            schema["items"] = schema["additionalItems"]
    schema.pop("additionalItems", None)  # without a list of items it has no meaning
    return schema


def _sizes_spelled(schema: Schema) -> Schema:
    """2.0 is an integer in JSON Schema; and what asks for nothing is left out."""
    for key in _INTEGERS:
        if isinstance(size := schema.get(key), float) and size.is_integer():
            schema[key] = int(size)
    if schema.get("uniqueItems") is False:
        del schema["uniqueItems"]
    return schema


def _gemini_spelled(schema: Mapping[str, Any]) -> Schema:
    made = {_SNAKE.get(key, key): value for key, value in schema.items() if value is not None}
    if "$ref" in made:
        made["$ref"] = re.sub(r"^#/defs/", "#/$defs/", str(made["$ref"]))
    if (kind := _named(made)) in _GEMINI_TYPES:
        made["type"] = kind.lower()
        if kind == "TYPE_UNSPECIFIED":
            del made["type"]
    for key in _INTEGERS:
        if isinstance(made.get(key), str) and made[key].isdigit():
            made[key] = int(made[key])  # int64 travels as a string
    if _named(made) in ("integer", "number") and isinstance(made.get("enum"), list):
        made["enum"] = [_number(value) for value in made["enum"]]  # they travel as strings too
    if (form := made.get("format")) in _GEMINI_FORMATS:
        del made["format"]
        if form in _RANGES and made.get("type") == "integer":
            made.setdefault("minimum", _RANGES[form][0])
            made.setdefault("maximum", _RANGES[form][1])
    if made.get("properties"):
        order = made.get("propertyOrdering") or ()
        names = [name for name in order if name in made["properties"]]
        names += [name for name in made["properties"] if name not in names]
        made["properties"] = {name: made["properties"][name] for name in names}
        made.setdefault("additionalProperties", False)
    made.pop("propertyOrdering", None)
    return made


def _number(value: Any) -> Any:
    try:
        return json.loads(value) if isinstance(value, str) else value
    except ValueError:
        return value


def _nullable(schema: Schema, gemini: bool) -> Schema:
    if not isinstance(schema.get("nullable"), bool) or not (gemini or "type" in schema):
        return schema
    if not schema.pop("nullable"):
        return schema
    if isinstance(schema.get("type"), str):
        schema["type"] = [schema["type"], "null"] if schema["type"] != "null" else "null"
    if "enum" in schema and None not in schema["enum"]:
        schema["enum"] = [*schema["enum"], None]
    if "anyOf" in schema and {"type": "null"} not in schema["anyOf"]:
        schema["anyOf"] = [*schema["anyOf"], {"type": "null"}]
    return schema


def _check_wellformed(schema: Schema, where: str) -> None:
    from jsonschema import Draft202012Validator, FormatChecker
    from jsonschema.exceptions import SchemaError

    try:
        # No formats: patterns are looked at later.
        Draft202012Validator.check_schema(schema, format_checker=FormatChecker(formats=()))
    except SchemaError as error:
        place = ".".join([where, *map(str, error.absolute_path)])
        raise InvalidRequestError(
            f"not a JSON Schema: {error.message}", where=place, remedy="Mend it."
        ) from error


# --- what can be enforced ----------------------------------------------------------------------------------


def enforceable(schema: Schema, keywords: frozenset[str] | None = None, *, where: str = "schema") -> None:
    """Refuses a (normalised) schema that could only be asked for, not enforced.

    Args:
        schema: of 2020-12.
        keywords: those that the engine enforces; None: all that llguidance does. "format" stands for every
            format that llguidance knows, "format:date" for one.

    Raises:
        UnsupportedError: names the keyword, where it stands, and why.
    """
    for place, inner in walk(schema, where):
        _check_references(inner, schema, place)
        _check_pattern(inner, place)
        _check_sizes(inner, place)
        for key in inner.keys() & ASSERTIONS if keywords is not None else ():
            _check_keyword(key, inner[key], keywords or frozenset(), place)
    if problem := constraints.problem(Constraint("json", schema)):
        raise _refused("the schema", problem, where)


def _check_keyword(key: str, value: Any, keywords: frozenset[str], place: str) -> None:
    if key in keywords or (key == "format" and f"format:{value}" in keywords):
        return
    named = f"the format {value!r}" if key == "format" else f"the keyword {key!r}"
    raise UnsupportedError(
        f"this engine cannot enforce {named}", where=place, remedy="Leave it out, or choose another engine."
    )


def _check_sizes(schema: Schema, place: str) -> None:
    for key in _INTEGERS:
        if isinstance(size := schema.get(key), int) and size > LARGEST_SIZE:
            raise _refused(f"{key} of {size:,}", f"the largest is {LARGEST_SIZE:,}", f"{place}.{key}")


def _check_references(schema: Schema, whole: Schema, place: str) -> None:
    if "$dynamicRef" in schema:
        raise _refused("a dynamic reference", "not supported", f"{place}.$dynamicRef")
    reference = schema.get("$ref")
    if reference is not None and reference != "#" and not str(reference).startswith("#/"):
        raise _refused(
            f"a reference to {reference!r}", "nothing is fetched, and names are not resolved", f"{place}.$ref"
        )
    seen: set[str] = set()
    while isinstance(reference, str):
        if reference in seen:
            raise _refused(f"a reference to {reference!r}", "it leads to itself", f"{place}.$ref")
        seen.add(reference)
        target = _target(whole, reference)
        reference = target.get("$ref") if isinstance(target, Mapping) else None


def _target(whole: Schema, reference: str) -> Any:
    """What a JSON Pointer (RFC 6901) after # leads to; None: nothing."""
    at: Any = whole
    for step in unquote(reference).split("/")[1:]:
        step = step.replace("~1", "/").replace("~0", "~")
        if isinstance(at, Mapping):
            at = at.get(step)
        elif isinstance(at, list) and step.isdecimal() and int(step) < len(at):
            at = at[int(step)]
        else:
            return None
    return at


def _check_pattern(schema: Schema, place: str) -> None:
    for pattern in [schema["pattern"]] if "pattern" in schema else list(schema.get("patternProperties", ())):
        try:
            re.compile(pattern)
        except re.error as error:
            raise _refused(f"the pattern {pattern!r}", f"{error}", f"{place}.pattern") from error


def _refused(what: str, why: str, where: str) -> UnsupportedError:
    return UnsupportedError(
        f"{what} cannot be enforced: {why}",
        where=where,
        remedy="Put it more simply, or check the answer yourself.",
    )


def constraint(form: Format, keywords: frozenset[str] | None = None) -> Constraint | None:
    """What to decode under, or None for plain text.

    Raises:
        InvalidRequestError: the rule is not one of its kind.
        UnsupportedError: it cannot be enforced; says which part.
    """
    kind, rule, where = form.kind, form.rule, "config.format"
    if kind is FormatKind.TEXT:
        return None
    if kind is FormatKind.JSON:
        return Constraint("json", _json_rule(rule, keywords, where))
    if kind is FormatKind.CHOICE:
        return Constraint("choice", _choices(rule, where))
    if not isinstance(rule, str) or not rule:
        raise InvalidRequestError(f"a {kind.value} is a text", where=where, remedy="Give one.")
    found = Constraint(cast(Any, kind.value), rule)
    if problem := constraints.problem(found):
        raise _refused(f"this {kind.value}", problem, where)
    return found


def _json_rule(rule: Any, keywords: frozenset[str] | None, where: str) -> Schema | bool:
    if rule is None or rule is True or rule == {}:
        return True
    if not isinstance(rule, Mapping):
        raise InvalidRequestError(
            "a schema is an object", where=where, remedy="Give one, or none for any JSON."
        )
    schema = normalised(rule, where=where)
    enforceable(schema, keywords, where=where)
    return schema


def _choices(rule: Any, where: str) -> tuple[str, ...]:
    choices = tuple(rule) if isinstance(rule, tuple | list) else ()
    if not choices or not all(isinstance(choice, str) and choice for choice in choices):
        raise InvalidRequestError(
            "there is nothing to choose from", where=where, remedy="Give texts to choose from."
        )
    return tuple(dict.fromkeys(choices))


# --- the finished answer -----------------------------------------------------------------------------------


def check_answer(text: str, rule: Constraint) -> None:
    """Raises UpstreamError if a finished answer is not what was asked for: the engine has failed then."""
    complaint = _json_fault(text, rule.rule) if rule.kind == "json" else _grammar_fault(text, rule)
    if complaint:
        raise UpstreamError(
            f"the engine's answer is not of the form it was held to ({complaint})",
            where="config.format",
            remedy="Try again; if it comes again, report it with the schema.",
        )


def _json_fault(text: str, schema: Schema | bool) -> str:
    try:
        value = json.loads(text)
    except ValueError as error:
        return str(error)
    return "" if schema is True else fault(value, cast(Schema, schema))


def fault(value: Any, schema: Schema) -> str:
    """What is wrong with a value, or an empty text."""
    from jsonschema.exceptions import best_match

    error = best_match(_validator()(schema, format_checker=_validator().FORMAT_CHECKER).iter_errors(value))
    return f"{error.json_path}: {error.message}" if error else ""


@cache
def _validator() -> Any:
    """jsonschema's, in two keywords nearer to the standard."""
    from jsonschema import Draft202012Validator
    from jsonschema.validators import extend

    return extend(Draft202012Validator, {"multipleOf": _multiple_of, "pattern": _pattern})


def _multiple_of(validator: Any, factor: Any, value: Any, schema: Schema) -> Iterator[Exception]:
    """In decimals, as they are written: jsonschema divides floats, and 0.07 is no multiple of 0.01 then."""
    from jsonschema.exceptions import ValidationError

    if not validator.is_type(value, "number"):
        return
    if not math.isfinite(value) or Fraction(str(value)) % Fraction(str(factor)):
        yield ValidationError(f"{value!r} is not a multiple of {factor}")


def _pattern(validator: Any, pattern: str, value: Any, schema: Schema) -> Iterator[Exception]:
    r"""\w and \d are ASCII in JSON Schema (ECMA-262), and \s is not; Python has all of them one way or the
    other."""
    from jsonschema.exceptions import ValidationError

    if not validator.is_type(value, "string"):
        return
    if not re.search(pattern, value) and not re.search(pattern, value, re.ASCII):
        yield ValidationError(f"{value!r} does not match {pattern!r}")


def _grammar_fault(text: str, rule: Constraint) -> str:
    if rule.kind == "choice":
        return "" if text in rule.rule else "none of the choices"
    state = constraints.matcher(rule)
    data = list(text.encode())
    taken = state.try_consume_tokens(data)
    if taken < len(data):
        return f"it departs from the grammar after {taken} bytes"
    return "" if state.is_accepting() else "it ends too early for the grammar"

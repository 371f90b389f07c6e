"""Do answers keep to JSON Schemas, and what is refused?

    python benchmarks/json_schemas.py instances    # what the official suite says of our constraints
    python benchmarks/json_schemas.py answers      # random and real answers, judged by two validators
    python benchmarks/json_schemas.py overhead     # what a constraint costs a token

`answers` needs a second validator besides jsonschema, one in another language: pip install jsonschema-rs.
The schemas are fetched once (see schema_suites.py), and so is the model.
"""

from __future__ import annotations

import asyncio
import itertools
import json
import random
import statistics
import time
from collections import Counter, defaultdict
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass, field
from decimal import Decimal, InvalidOperation
from functools import cache
from pathlib import Path
from typing import Any

import llguidance
import llguidance.numpy
import numpy as np
from measuring import arguments, table, weights
from schema_suites import DRAFTS, Case, official, schemastore

from studiolo.language.collect import collected
from studiolo.language.conversation import FinishReason, Format, FormatKind, GenerationConfig, Request, user
from studiolo.language.decoding import schema as schemas
from studiolo.language.engines import constraints
from studiolo.language.engines.completer import Completion, Constraint, Sampling
from studiolo.language.engines.gguf import Card, read_metadata
from studiolo.language.engines.local import LocalEngine
from studiolo.language.engines.schema_tree import walk
from studiolo.language.errors import InvalidRequestError, LanguageError, UnsupportedError

MAX_TOKENS = 64
"""Of an answer by a model."""
MOST_BYTES = 3000
SLOTS = 8
_MOST_ORDERS = 300


def main() -> None:
    parser = arguments(__doc__)
    parser.add_argument("part", choices=["instances", "answers", "overhead"])
    parser.add_argument("--draws", type=int, default=5, help="random answers a schema")
    parser.add_argument("--every", type=int, default=1, help="ask the model under every n-th schema only")
    parser.add_argument("--show", action="store_true", help="list what is refused, and the answers")
    options = parser.parse_args()
    if options.part == "instances":
        print(instances_table(DRAFTS))
    elif options.part == "answers":
        few = {"draws": 1, "every": 40} if options.quick else {"draws": options.draws, "every": options.every}
        asyncio.run(answers(weights(options.model), **few, show=options.show))
    else:
        asyncio.run(overhead(weights(options.model), options.quick))


# --- what the suite's own instances say --------------------------------------------------------------------


@dataclass
class Judged:
    """How a constraint does by a schema's instances, in numbers of instances."""

    schemas: int = 0
    refused: int = 0
    valid: int = 0
    valid_taken: int = 0
    invalid: int = 0
    invalid_taken: list[str] = field(default_factory=list)


def instances_table(drafts: Sequence[str]) -> str:
    by_keyword: dict[str, Judged] = defaultdict(Judged)
    by_draft: dict[str, Judged] = defaultdict(Judged)
    for draft in drafts:
        for case in official(draft):
            judge(case, by_keyword[keyword_of(case)])
            judge(case, by_draft[f"**{draft}**"])
    for name, judged in by_keyword.items():
        for told in judged.invalid_taken:
            print(f"TAKEN THOUGH INVALID ({name}): {told}")
    never = sorted(name for name, one in by_keyword.items() if one.refused == one.schemas)
    print(f"Refused always: {', '.join(f'`{name}`' for name in never)}.\n")
    rows = [
        (name, one.schemas, one.refused, f"{one.valid_taken} of {one.valid}",
         f"{len(one.invalid_taken)} of {one.invalid}")
        for name, one in [*sorted(by_keyword.items()), *by_draft.items()] if name not in never
    ]  # fmt: skip
    return table(["about", "schemas", "refused", "valid taken", "invalid taken"], rows)


def keyword_of(case: Case) -> str:
    """The keyword that a schema of the official suite is about."""
    return case.group.rpartition("/")[2] if "format/" not in case.group else "formats, each"


def judge(case: Case, judged: Judged) -> None:
    """Adds one schema of the official suite."""
    judged.schemas += 1
    made = constraint_of(case.schema)
    if isinstance(made, str):
        judged.refused += 1
        return
    for value, valid in case.instances:
        taken = takes(made, value)
        if valid:
            judged.valid += 1
            judged.valid_taken += taken
        else:
            judged.invalid += 1
            if taken:
                judged.invalid_taken.append(f"{json.dumps(value)} under {json.dumps(case.schema)}")


def constraint_of(schema: Any) -> Constraint | str:
    """What is decoded under, or why it is refused."""
    try:
        made = schemas.constraint(Format(kind=FormatKind.JSON, rule=schema))
    except (UnsupportedError, InvalidRequestError) as error:
        return error.message
    assert made is not None
    return made


def takes(rule: Constraint, value: Any) -> bool:
    """Whether the constraint lets a value come, in one of the orders of its names."""
    return any(
        accepts(rule, json.dumps(ordered, ensure_ascii=False))
        for ordered in itertools.islice(orders(value), _MOST_ORDERS)
    )


def accepts(rule: Constraint, text: str) -> bool:
    matcher, data = constraints.matcher(rule), list(text.encode())
    return bool(matcher.try_consume_tokens(data) == len(data) and matcher.is_accepting())


def orders(value: Any) -> Iterator[Any]:
    """The value with its objects' members in every order."""
    if isinstance(value, dict):
        for names in itertools.permutations(value):
            for members in itertools.product(*(orders_of_one(value[name]) for name in names)):
                yield dict(zip(names, members, strict=True))
    elif isinstance(value, list):
        for items in itertools.product(*map(orders_of_one, value)):
            yield list(items)
    else:
        yield value


def orders_of_one(value: Any) -> list[Any]:
    return list(itertools.islice(orders(value), _MOST_ORDERS))


# --- random and real answers -------------------------------------------------------------------------------

FEATURES: dict[str, Callable[[dict[str, Any]], bool]] = {
    "enum, const": lambda s: bool(s.keys() & {"enum", "const"}),
    "numbers (range, multipleOf)": lambda s: any("imum" in key or key == "multipleOf" for key in s),
    "strings (length)": lambda s: bool(s.keys() & {"minLength", "maxLength"}),
    "pattern": lambda s: "pattern" in s,
    "format": lambda s: "format" in s,
    "arrays (items, tuples)": lambda s: bool(s.keys() & {"items", "prefixItems"}),
    "arrays (length)": lambda s: bool(s.keys() & {"minItems", "maxItems"}),
    "required": lambda s: bool(s.get("required")),
    "additionalProperties": lambda s: s.get("additionalProperties") is not None,
    "patternProperties": lambda s: "patternProperties" in s,
    "minProperties, maxProperties": lambda s: bool(s.keys() & {"minProperties", "maxProperties"}),
    "$ref": lambda s: "$ref" in s,
    "anyOf, lists of types": lambda s: "anyOf" in s or isinstance(s.get("type"), list),
    "oneOf": lambda s: "oneOf" in s,
    "allOf": lambda s: "allOf" in s,
    "not, if/then/else": lambda s: bool(s.keys() & {"not", "if"}),
    "uniqueItems": lambda s: s.get("uniqueItems") is True,
    "contains": lambda s: "contains" in s,
    "propertyNames": lambda s: "propertyNames" in s,
    "dependencies": lambda s: bool(s.keys() & {"dependencies", "dependentRequired", "dependentSchemas"}),
    "unevaluated...": lambda s: bool(s.keys() & {"unevaluatedItems", "unevaluatedProperties"}),
}


@dataclass
class Answers:
    """What became of the answers under one schema."""

    completed: int = 0
    valid: int = 0
    cut_off: int = 0
    wrong: list[str] = field(default_factory=list)

    def add(self, text: str, whole: bool, schema: Any) -> None:
        if not whole:
            self.cut_off += 1
            return
        self.completed += 1
        told = complaints(text, schema)
        self.valid += not told
        if told:
            self.wrong.append(f"{told}: {text[:300]}")


async def answers(model: Path, draws: int, every: int, show: bool) -> None:
    """Prints the tables."""
    cases = [case for case in [*official(), *schemastore()] if isinstance(case.schema, dict)]
    made = [(case, constraint_of(case.schema)) for case in cases]
    taken = [(case, rule) for case, rule in made if isinstance(rule, Constraint)]
    print(f"{len(cases)} schemas, {len(cases) - len(taken)} refused\n", flush=True)
    kinds: dict[str, dict[int, Answers]] = {
        "random bytes": at_random(taken, byte_tokenizer(), draws, MOST_BYTES),
        "random tokens": at_random(taken, vocabulary_of(model), draws, MAX_TOKENS),
    }
    print(kinds_table(kinds), "\n", flush=True)
    kinds |= await by_model(taken, model, every)
    print(kinds_table(kinds), "\n")
    print(features_table(made, taken, kinds), "\n")
    print(reasons_table([rule for _, rule in made if isinstance(rule, str)]))
    for kind, found in kinds.items():
        for index, one in found.items():
            for told in one.wrong:
                print(f"WRONG ({kind}): {told}\n    under {json.dumps(taken[index][0].schema)[:1500]}")
    if show:
        print("\n".join(f"{case.suite} {case.group}: {rule}" for case, rule in made if isinstance(rule, str)))


def at_random(
    taken: Sequence[tuple[Case, Constraint]], tokenizer: Any, draws: int, most: int
) -> dict[int, Answers]:
    """Answers of tokens drawn evenly from all that the constraint allows."""
    found: dict[int, Answers] = {}
    for index, (case, rule) in enumerate(taken):
        found[index] = Answers()
        for draw in range(draws):
            text, whole = drawn(rule, tokenizer, random.Random(f"{index} {draw}"), most)
            found[index].add(text, whole, case.schema)
    return found


def drawn(rule: Constraint, tokenizer: Any, draw: random.Random, most: int) -> tuple[str, bool]:
    """A random text under the constraint, and whether it is whole. The end is one more token to draw."""
    matcher = llguidance.LLMatcher(tokenizer, constraints.lark(rule))
    mask = llguidance.numpy.allocate_token_bitmask(1, tokenizer.vocab_size)
    data = b""
    for _ in range(most):
        llguidance.numpy.fill_next_token_bitmask(matcher, mask, 0)
        token = one_of(mask[0], tokenizer.vocab_size, draw)
        if token == tokenizer.eos_token:
            return data.decode(), True
        matcher.consume_token(token)
        data += tokenizer.decode_bytes([token])
        if matcher.is_stopped():
            return data.decode(), True
    return data.decode(errors="ignore"), False


def one_of(mask: Any, size: int, draw: random.Random) -> int:
    """One of the set bits, each as likely as any other."""
    for _ in range(32):  # where most are set, that is faster than to look at all
        token = draw.randrange(size)
        if mask[token // 32] >> (token % 32) & 1:
            return token
    return int(draw.choice(np.flatnonzero(np.unpackbits(mask.view(np.uint8), bitorder="little"))))


def byte_tokenizer() -> Any:
    return llguidance.LLTokenizer("byte")


@dataclass
class _Vocabulary:
    """What llguidance wants to know of a tokenizer."""

    tokens: list[bytes]
    special_token_ids: list[int]
    eos_token_id: int
    bos_token_id: int | None

    def __call__(self, text: bytes | str) -> list[int]:
        """Byte by byte, which is one way to write it."""
        data = text.encode() if isinstance(text, str) else text
        return [self.tokens.index(bytes([byte])) for byte in data]


def vocabulary_of(model: Path) -> Any:
    """llguidance's form of a GGUF file's vocabulary."""
    metadata = read_metadata(model)
    vocabulary, kinds = Card(metadata).vocabulary, metadata["tokenizer.ggml.token_type"]
    wrapped = llguidance.TokenizerWrapper(
        _Vocabulary(
            [vocabulary[token] for token in range(len(kinds))],
            [token for token, kind in enumerate(kinds) if kind == 3],
            metadata["tokenizer.ggml.eos_token_id"],
            metadata.get("tokenizer.ggml.bos_token_id"),
        )
    )
    return llguidance.LLTokenizer(wrapped)


async def by_model(
    taken: Sequence[tuple[Case, Constraint]], model: Path, every: int
) -> dict[str, dict[int, Answers]]:
    """Answers of the model, through the whole engine, under each schema or every n-th."""
    from studiolo.language.engines.llamacpp import LlamaCpp

    completer = await LlamaCpp.open(
        model, model="smollm2", context=1024, slots=SLOTS, pool=1024 * SLOTS, queue=len(taken)
    )
    engine = LocalEngine(completer)
    indices = range(0, len(taken), every)
    found: dict[str, dict[int, Answers]] = {}
    for temperature in (0.0, 1.0):
        answered = await asyncio.gather(
            *(answered_by(engine, taken[index][0], temperature, index) for index in indices)
        )
        found[f"SmolLM2, temperature {temperature:g}"] = dict(zip(indices, answered, strict=True))
    await engine.close()
    return found


async def answered_by(engine: LocalEngine, case: Case, temperature: float, seed: int) -> Answers:
    about = case.schema.get("description") or case.schema.get("title") or case.name
    request = Request(
        model=engine.model,
        contents=(user(f"Write a short example of this as JSON: {str(about)[:200]}"),),
        config=GenerationConfig(
            max_tokens=MAX_TOKENS,
            temperature=temperature,
            seed=seed,
            format=Format(kind=FormatKind.JSON, rule=case.schema),
        ),
    )
    found = Answers()
    try:
        response = await collected(engine.generate(request))
    except LanguageError as error:
        found.completed += 1
        found.wrong.append(f"error: {error.message}")
        return found
    candidate = response.candidates[0]
    assert candidate.finish in (FinishReason.STOP, FinishReason.LENGTH)
    found.add(candidate.text, candidate.finish is FinishReason.STOP, case.schema)
    return found


def complaints(text: str, schema: dict[str, Any]) -> str:
    """What two validators say of an answer under the schema as it was given, in its own draft. Patterns are
    for jsonschema-rs alone: it reads them as ECMA-262 does, and Python's \\w is another."""
    import jsonschema
    import jsonschema_rs

    try:
        value, exact = json.loads(text), json.loads(text, parse_float=exact_number)
    except ValueError as error:
        return f"no JSON ({error})"
    if "json-schema.org" not in str(schema.get("$schema", "json-schema.org")):
        schema = {key: rule for key, rule in schema.items() if key != "$schema"}  # a dialect that none knows
    told = []
    validator = jsonschema.validators.validator_for(schema, default=jsonschema.Draft202012Validator)
    validator = jsonschema.validators.extend(validator, {"pattern": lambda *_: None})
    if error := next(validator(schema, format_checker=validator.FORMAT_CHECKER).iter_errors(value), None):
        told.append(f"jsonschema: {error.message[:200]}")
    try:
        jsonschema_rs.validator_for(schema, validate_formats=True).validate(exact)
    except jsonschema_rs.ValidationError as error:
        told.append(f"jsonschema-rs: {error.message[:200]}")
    return "; ".join(told)


def exact_number(text: str) -> Decimal:
    """Not rounded, and not infinite where a double would be."""
    try:
        return Decimal(text)
    except InvalidOperation:  # an exponent of twenty digits
        return Decimal(0) if "e-" in text.lower() else Decimal("-1e9999" if text[0] == "-" else "1e9999")


# --- tables ------------------------------------------------------------------------------------------------


def kinds_table(kinds: dict[str, dict[int, Answers]]) -> str:
    return table(
        ["answers", "asked", "completed", "valid", "cut off, and told so"],
        [(kind, sum(one.completed + one.cut_off for one in found.values()), *sums(found.values()))
         for kind, found in kinds.items()],
    )  # fmt: skip


def sums(found: Iterable[Answers]) -> tuple[int, int, int]:
    found = list(found)
    return (
        sum(one.completed for one in found),
        sum(one.valid for one in found),
        sum(one.cut_off for one in found),
    )


def features_table(
    made: Sequence[tuple[Case, Constraint | str]],
    taken: Sequence[tuple[Case, Constraint]],
    kinds: dict[str, dict[int, Answers]],
) -> str:
    rows = []
    for feature, has in FEATURES.items():
        with_it = [rule for case, rule in made if has_feature(case.schema, has)]
        indices = [index for index, (case, _) in enumerate(taken) if has_feature(case.schema, has)]
        found = [by_schema[index] for by_schema in kinds.values() for index in indices if index in by_schema]
        refused = sum(isinstance(rule, str) for rule in with_it)
        rows.append((feature, len(with_it), refused, *sums(found)))
    whole = [one for by_schema in kinds.values() for one in by_schema.values()]
    rows.append(("all", len(made), len(made) - len(taken), *sums(whole)))
    return table(["with", "schemas", "refused", "completed", "valid", "cut off"], rows)


def has_feature(schema: Any, has: Callable[[dict[str, Any]], bool]) -> bool:
    return any(has(inner) for _, inner in walk(schema, ""))


def reasons_table(reasons: Sequence[str]) -> str:
    counted = Counter(itertools.chain.from_iterable(map(kinds_of, reasons)))
    return table(["refused for", "schemas"], counted.most_common())


@cache
def kinds_of(reason: str) -> tuple[str, ...]:
    """The reason in few words; several where a schema has several keywords too many."""
    if "Unimplemented keys" in reason:
        return tuple(f"`{key}`" for key in json.loads(reason[reason.index("[") : reason.index("]") + 1]))
    words = {
        "a reference to": "a reference to elsewhere, or by a name",
        "dynamic reference": "`$dynamicRef`",
        "oneOf constraints": "`oneOf` with branches that overlap",
        "Unknown format": "an unknown `format`",
        "not disjoint": "`patternProperties` that overlap",
        "inProperties": "`minProperties`, `maxProperties` that cannot be counted",
        "the pattern": "a `pattern` not in Python's dialect",
        "regex": "a `pattern` with look-around or back-references",
        "nsatisfiable": "nothing is valid",
        "not a JSON Schema": "no JSON Schema",
    }
    return (next((told for word, told in words.items() if word in reason), "other"),)


# --- what it costs -----------------------------------------------------------------------------------------

COSTS: dict[str, Any] = {
    "any JSON": True,
    "a small object": {
        "type": "object",
        "properties": {"name": {"type": "string"}, "age": {"type": "integer"}, "job": {"type": "string"}},
        "required": ["name", "age", "job"],
        "additionalProperties": False,
    },
    "a list of objects with enums, numbers, dates": {
        "type": "array",
        "minItems": 5,
        "items": {
            "type": "object",
            "properties": {
                "kind": {"enum": ["order", "return", "offer", "question"]},
                "on": {"type": "string", "format": "date"},
                "price": {"type": "number", "minimum": 0, "maximum": 1000, "multipleOf": 0.01},
                "text": {"type": "string", "maxLength": 40},
            },
            "required": ["kind", "on", "price", "text"],
            "additionalProperties": False,
        },
    },
    "a tree, by reference": {
        "type": "object",
        "properties": {
            "name": {"type": "string", "maxLength": 20},
            "children": {"type": "array", "items": {"$ref": "#"}},
        },
        "required": ["name", "children"],
        "additionalProperties": False,
    },
    "a pattern": {
        "type": "array",
        "minItems": 8,
        "items": {"type": "string", "pattern": "^[A-Z]{2}-[0-9]{4}$"},
    },
}


async def overhead(model: Path, quick: bool) -> None:
    """Prints time a token under each schema over that without, answer by answer in turn."""
    from studiolo.language.engines.llamacpp import LlamaCpp

    completer = await LlamaCpp.open(model, model="smollm2", slots=1)
    tokenizer, rows = vocabulary_of(model), []
    for name, schema in COSTS.items():
        ratios, masks, count = [], [], 0
        for seed in range(1 if quick else 8):
            rule = constraint_of(schema)
            assert isinstance(rule, Constraint)
            ids, under = await timed(completer, rule, seed, 160)
            free, without = await timed(completer, None, seed, len(ids))
            if len(ids) > 8 and len(free) > 8:
                ratios.append((under / len(ids)) / (without / len(free)))
            masks += mask_times(rule, tokenizer, ids)
            count += len(ids)
        rows.append((name, count, f"{statistics.median(ratios):.2f}", f"{statistics.median(masks):.0f}",
                     f"{statistics.quantiles(masks, n=100)[98]:.0f}", f"{max(masks):.0f}"))  # fmt: skip
    await completer.close()
    head = ["schema", "tokens", "time a token, with over without", "mask, median µs", "99 %", "longest"]
    print(table(head, rows))


async def timed(completer: Any, rule: Constraint | None, seed: int, most: int) -> tuple[list[int], float]:
    """The tokens of an answer, and the seconds from its first piece to its last."""
    text = "<|im_start|>user\nWrite a long list of people as JSON.<|im_end|>\n<|im_start|>assistant\n"
    completion = Completion(
        completer.tokenize(text), most, Sampling(temperature=1.0, seed=seed), constraint=rule
    )
    ids: list[int] = []
    began = 0.0
    async for piece in completer.complete(completion):
        began = began or time.perf_counter()
        ids += piece.tokens
    return ids, time.perf_counter() - began


def mask_times(rule: Constraint, tokenizer: Any, ids: Sequence[int]) -> list[float]:
    """Microseconds for each mask along an answer."""
    matcher = llguidance.LLMatcher(tokenizer, constraints.lark(rule))
    mask = llguidance.numpy.allocate_token_bitmask(1, tokenizer.vocab_size)
    times = []
    for token in ids:
        began = time.perf_counter()
        llguidance.numpy.fill_next_token_bitmask(matcher, mask, 0)
        times.append(1e6 * (time.perf_counter() - began))
        if not matcher.consume_token(token):
            break
    return times


if __name__ == "__main__":
    main()

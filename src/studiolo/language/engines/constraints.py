"""Constraints as grammars of llguidance: what both local engines enforce token by token, and what judges
beforehand whether a constraint can be enforced, and afterwards whether it was kept.

https://github.com/guidance-ai/llguidance/blob/main/docs/syntax.md
"""

from __future__ import annotations

import json
from functools import lru_cache
from typing import Any

from studiolo.language.engines.completer import Constraint
from studiolo.language.engines.soundness import loophole, mended
from studiolo.language.errors import InvalidRequestError, UnsupportedError, UpstreamError

_ONE_LINE = {"whitespace_flexible": False, "item_separator": ", ", "key_separator": ": "}
"""JSON on one line: small models that may add white space add it until their tokens are spent."""


def lark(constraint: Constraint) -> str:
    """The constraint as a grammar in llguidance's dialect of Lark, for an engine to decode under.

    llguidance enforces every keyword of a JSON Schema that it accepts, and refuses the rest; for the
    exceptions see `soundness`. The JSON comes on one line, unless the schema's "x-guidance" says otherwise.

    Raises:
        InvalidRequestError: nothing can match, or the rule is not of its kind's form.
        UnsupportedError: llguidance cannot enforce it (or it is GBNF, which is not its language); says why.
    """
    if constraint.kind == "gbnf":
        raise UnsupportedError(
            "a grammar in GBNF cannot be enforced by this engine", remedy="Write it in Lark."
        )
    if found := problem(constraint):
        raise UnsupportedError(
            f"this {constraint.kind} constraint cannot be enforced: {found}",
            remedy="Leave that part of it out, or say it otherwise.",
        )
    return _written(constraint)


def problem(constraint: Constraint) -> str:
    """Why the constraint cannot be enforced, in a line; empty if it can.

    Raises:
        InvalidRequestError: nothing can match.
    """
    if constraint.kind == "json" and (found := loophole(constraint.rule)):
        return found
    try:
        told = _told_of(_written(constraint))
    except ValueError as error:  # GBNF that cannot be translated
        told = str(error)
    return " ".join(told.split("\n   1 |")[0].split())[:300]


def matcher(constraint: Constraint) -> Any:
    """An llguidance matcher of the constraint, over bytes (tokens 0 to 255)."""
    return _matcher(_written(constraint))


def _written(constraint: Constraint) -> str:
    """Of any kind; GBNF is translated, where llguidance can (ValueError where not)."""
    rule: Any = constraint.rule
    match constraint.kind:
        case "json":
            if rule is False:
                raise InvalidRequestError("the schema is false: nothing matches it")
            schema = {} if rule in (True, None) else mended(rule)
            return f"start: %json {json.dumps({'x-guidance': _ONE_LINE} | schema)}"
        case "choice":
            if not rule:
                raise InvalidRequestError("there is nothing to choose from")
            return "start: " + " | ".join(json.dumps(text, ensure_ascii=False) for text in rule)
        case "regex":
            return f"start: /{_slashed(rule)}/"
        case "lark":
            return str(rule)
        case "gbnf":
            from llguidance import grammar_from

            return grammar_from("gbnf", rule)


def _slashed(pattern: str) -> str:
    """The pattern as it may stand between slashes on one line."""
    out, escaped = [], False
    for char in pattern:
        if char == "/" and not escaped:
            out.append("\\/")
        elif char == "\n":
            out.append("n" if escaped else "\\n")
        else:
            out.append(char)
        escaped = char == "\\" and not escaped
    return "".join(out)


@lru_cache(maxsize=256)
def _told_of(grammar: str) -> str:
    """What llguidance has against the grammar."""
    from llguidance import LLMatcher

    if text := LLMatcher.validate_grammar(grammar):
        return str(text)
    # Compiling finds more, such as special tokens (their ids depend on the model) or a size out of bounds.
    return str(_matcher(grammar).get_error())


def _matcher(grammar: str) -> Any:
    from llguidance import LLMatcher

    return LLMatcher(_bytes_tokenizer(), grammar)


@lru_cache(maxsize=1)
def _bytes_tokenizer() -> Any:
    from llguidance import LLTokenizer

    return LLTokenizer("byte")


class Watch:
    """Follows a text as it grows and sees that it keeps to a grammar.

    llama.cpp goes on without a constraint when llguidance gives up on it midway, and says so only in its
    log; this notices.
    """

    def __init__(self, grammar: str) -> None:
        self._matcher = _matcher(grammar)

    def feed(self, text: str) -> None:
        """
        Raises:
            UpstreamError: this text breaks the grammar.
        """
        data = list(text.encode())
        if self._matcher.try_consume_tokens(data) != len(data):
            raise UpstreamError("the engine lost the constraint while it was decoding", remedy="Try again.")

    @property
    def complete(self) -> bool:
        """The text so far may end here."""
        return bool(self._matcher.is_accepting())

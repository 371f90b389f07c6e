"""Constraints as grammars of llguidance, which both local engines enforce token by token.

https://github.com/guidance-ai/llguidance/blob/main/docs/syntax.md
"""

from __future__ import annotations

import json
from functools import lru_cache
from typing import Any

from studiolo.language.engines.completer import Constraint
from studiolo.language.errors import InvalidRequestError, UnsupportedError, UpstreamError

_ONE_LINE = {"whitespace_flexible": False, "item_separator": ", ", "key_separator": ": "}
"""JSON on one line: small models that may add white space add it until their tokens are spent."""


def lark(constraint: Constraint) -> str:
    """The constraint as a grammar in llguidance's dialect of Lark.

    JSON Schemas go in as they are: llguidance enforces every keyword that it accepts, and refuses the rest.
    The JSON comes on one line, unless the schema has an "x-guidance" of its own.

    Raises:
        InvalidRequestError: nothing can match, or the rule is not of its kind's form.
        UnsupportedError: llguidance cannot enforce it (or it is GBNF, which is not its language); says why.
    """
    grammar = _written(constraint)
    if problem := _problem(grammar):
        raise UnsupportedError(
            f"this {constraint.kind} constraint cannot be enforced: {_first_lines(problem)}",
            remedy="Leave that part of it out, or say it otherwise.",
        )
    return grammar


def _written(constraint: Constraint) -> str:
    rule: Any = constraint.rule
    match constraint.kind:
        case "json":
            if rule is False:
                raise InvalidRequestError("the schema is false: nothing matches it")
            schema = {} if rule in (True, None) else rule
            return f"start: %json {json.dumps({'x-guidance': _ONE_LINE} | schema)}"
        case "choice":
            if not rule:
                raise InvalidRequestError("there is nothing to choose from")
            return "start: " + " | ".join(json.dumps(text, ensure_ascii=False) for text in rule)
        case "regex":
            return f"start: /{_slashed(rule)}/"
        case "lark":
            return str(rule)
        case _:
            raise UnsupportedError(
                "a grammar in GBNF cannot be enforced by this engine", remedy="Write it in Lark."
            )


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
def _problem(grammar: str) -> str:
    """Why llguidance refuses the grammar; empty if it does not."""
    from llguidance import LLMatcher

    if text := LLMatcher.validate_grammar(grammar):
        return str(text)
    # Compiling finds more, such as special tokens (their ids depend on the model) or a size out of bounds.
    return str(LLMatcher(_bytes_tokenizer(), grammar).get_error())


@lru_cache(maxsize=1)
def _bytes_tokenizer() -> Any:
    from llguidance import LLTokenizer

    return LLTokenizer("byte")


def _first_lines(problem: str) -> str:
    return " ".join(problem.split("\n   1 |")[0].split())[:300]


class Watch:
    """Follows a text as it grows and sees that it keeps to a grammar.

    llama.cpp goes on without a constraint when llguidance gives up on it midway, and says so only in its
    log; this notices.
    """

    def __init__(self, grammar: str) -> None:
        from llguidance import LLMatcher

        self._matcher = LLMatcher(_bytes_tokenizer(), grammar)

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

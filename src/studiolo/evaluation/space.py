"""The values that a sweep tries: `steps=100,200`, `steps=100..400`, `learning_rate=1e-5..1e-3:log`.

Values are YAML, lists too: `adapter.targets=[attention],[attention,conv]`.
"""

from __future__ import annotations

import itertools
import re
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, Protocol

from studiolo.errors import StudioloError

FORMS = "Write steps=100,200,400, steps=100..400, steps=100..400:50 or learning_rate=1e-5..1e-3:log."


class Suggests(Protocol):
    """What a trial of Optuna offers."""

    def suggest_categorical(self, name: str, choices: Sequence[Any]) -> Any: ...

    def suggest_int(self, name: str, low: int, high: int, *, step: int = 1, log: bool = False) -> int: ...

    def suggest_float(
        self, name: str, low: float, high: float, *, step: float | None = None, log: bool = False
    ) -> float: ...


@dataclass(frozen=True)
class Choice:
    """One of some values, as they are written."""

    name: str
    values: tuple[str, ...]

    def suggest(self, trial: Suggests) -> Any:
        return trial.suggest_categorical(self.name, self.values)

    def points(self) -> tuple[Any, ...]:
        return self.values


@dataclass(frozen=True)
class Range:
    """A number from `low` to `high`, both included; whole where both are written whole."""

    name: str
    low: float
    high: float
    step: float | None = None
    log: bool = False
    whole: bool = False

    def suggest(self, trial: Suggests) -> Any:
        if self.whole:
            step = int(self.step or 1)
            return trial.suggest_int(self.name, int(self.low), int(self.high), step=step, log=self.log)
        return trial.suggest_float(self.name, self.low, self.high, step=self.step, log=self.log)

    def points(self) -> tuple[Any, ...]:
        """Those of a grid: from `low` on, a step apart."""
        if self.step is None:
            raise StudioloError(
                f"a grid needs the step of {self.name}", where=self.name, remedy="Write steps=100..400:50."
            )
        count = int((self.high - self.low) / self.step + 1e-9) + 1
        values = [self.low + i * self.step for i in range(count)]
        return tuple(int(value) if self.whole else value for value in values)


Parameter = Choice | Range


def parse_parameter(text: str) -> Parameter:
    """The values in "KEY=VALUES".

    Raises:
        StudioloError: it has none of the forms.
    """
    name, equals, values = (part.strip() for part in text.partition("="))
    if not (name and equals and values):
        raise StudioloError("a parameter has the form KEY=VALUES", where=text, remedy=FORMS)
    if re.fullmatch(r"[^,/\[\]]*\.\.[^,/\[\]]*", values):
        return _range(name, values, text)
    choices = tuple(value.strip() for value in _split(values, text))
    if not all(choices) or len(set(choices)) < len(choices):
        raise StudioloError("a value is empty or there twice", where=text, remedy=FORMS)
    return Choice(name, choices)


def _split(values: str, text: str) -> list[str]:
    """What commas part; they part nothing within brackets, and in a value that begins with a quote."""
    found, depth, quote = [""], 0, ""
    for sign in values:
        if quote:
            quote = "" if sign == quote else quote
        elif sign in "'\"" and not found[-1].strip():
            quote = sign
        else:
            depth += (sign in "[{") - (sign in "]}")
        if sign == "," and not depth and not quote:
            found.append("")
        else:
            found[-1] += sign
    if depth or quote:
        raise StudioloError("a bracket or quote has no other end", where=text, remedy=FORMS)
    return found


def _range(name: str, values: str, text: str) -> Range:
    ends, _, how = values.partition(":")
    low_text, _, high_text = ends.partition("..")
    try:
        low, high = float(low_text), float(high_text)
        step = float(how) if how and how != "log" else None
    except ValueError:
        raise StudioloError("a range goes from a number to a number", where=text, remedy=FORMS) from None
    whole = all(re.fullmatch(r"\s*-?\d+\s*", end) for end in (low_text, high_text))
    if not low < high or (step is not None and step <= 0) or (how == "log" and low <= 0):
        raise StudioloError("a range rises, by a positive step", where=text, remedy=FORMS)
    if whole and step is not None and step != int(step):
        raise StudioloError("the step of whole numbers is whole", where=text, remedy=FORMS)
    return Range(name, low, high, step, how == "log", whole)


def grid(parameters: Sequence[Parameter]) -> list[dict[str, Any]]:
    """Every combination of the parameters' points; the last parameter changes fastest."""
    names = [parameter.name for parameter in parameters]
    combinations = itertools.product(*(parameter.points() for parameter in parameters))
    return [dict(zip(names, values, strict=True)) for values in combinations]

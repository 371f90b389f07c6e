"""What an embedding does not see: two questions may lie close together and have different answers.

Numbers, names, negations, directions and opposites hardly move a sentence's vector. `difference` looks for
them in the words. It errs on the side of telling a difference: a question then is answered anew, which costs
time only. English is what it was made for; the negations of some other languages are known to it.
"""

from __future__ import annotations

import re
import tomllib
import unicodedata
from collections.abc import Callable, Iterable
from importlib import resources

_WORD = re.compile(r"\d+(?:[.,:]\d+)*|[^\W\d_]+(?:['’][^\W\d_]+)*")
_QUOTED = re.compile(r"\"([^\"]*)\"|“([^”]*)”|«([^»]*)»|`+([^`]*)`+|(?<!\w)'([^']*)'(?!\w)")
_SYMBOL = re.compile(r"[+*/^%<>=&|!~$€£¥°#@\\]|(?<=[\d\s(])[-−–](?=[\d\s(])|(?<!\w)-(?=\d)")
_PAYLOAD = re.compile(r"(?::\s|\n)(.*)", re.DOTALL)

_LISTS = tomllib.loads(resources.files(__package__).joinpath("words.toml").read_text(encoding="utf-8"))
_NUMBERS: dict[str, str] = _LISTS["numbers"]
_OPERATIONS: dict[str, str] = _LISTS["operations"]
_NEGATIONS = frozenset(_LISTS["negations"].split())
_OPENERS = frozenset(_LISTS["openers"].split())
_UNITS = {word: line.split()[0] for line in _LISTS["units"].splitlines() for word in line.split()}
_AXES = [[frozenset(pole.split()) for pole in line.split("|")] for line in _LISTS["axes"].split("\n") if line]


def difference(one: str, other: str) -> str | None:
    """In which of the things that change an answer two texts differ; None: in none of them.

    Not looked at: everything else. "How do I cook rice?" and "How do I cook pasta?" differ in nothing here,
    and only their vectors tell them apart.
    """
    one, other = (unicodedata.normalize("NFKC", text).strip() for text in (one, other))
    for name, facts in _FACTS.items():
        if facts(one) != facts(other):
            return name
    words = _words(one), _words(other)
    if words[0] != words[1] and sorted(words[0]) == sorted(words[1]):
        return "order of words"
    if _named(one, other) != _named(other, one):
        return "names"
    for axis in _AXES:
        ours, theirs = (_poles(axis, each) for each in words)
        if ours and theirs and ours != theirs:
            return "opposites"
    return None


def _words(text: str) -> list[str]:
    return [word.replace("’", "'") for word in _WORD.findall(text.casefold())]


def _numbers(text: str) -> list[str]:
    """In their order: 7 - 3 is not 3 - 7."""
    found = []
    for word in _words(text):
        if word[0].isdigit():
            found.append(re.sub(r",(?=\d{3}(?!\d))", "", word))
        elif word in _NUMBERS:
            found.append(_NUMBERS[word])
    return found


def _negations(text: str) -> int:
    return sum(word in _NEGATIONS or word.endswith("n't") for word in _words(text))


def _units(text: str) -> list[str]:
    """In their order: miles to kilometres is not kilometres to miles."""
    units = [_UNITS[word] for word in _words(text) if word in _UNITS]
    return [unit for i, unit in enumerate(units) if i == 0 or unit != units[i - 1]]


def _symbols(text: str) -> list[str]:
    return _SYMBOL.findall(text) + [_OPERATIONS[word] for word in _words(text) if word in _OPERATIONS]


def _quoted(text: str) -> list[str]:
    return [" ".join(_words("".join(groups))) for groups in _QUOTED.findall(text)]


def _payload(text: str) -> list[str]:
    """What follows a colon or a line break is what the question is about, word for word."""
    found = _PAYLOAD.search(text)
    return found[1].split() if found else []


_FACTS: dict[str, Callable[[str], object]] = {
    "numbers": _numbers,
    "negation": _negations,
    "units": _units,
    "symbols": _symbols,
    "quotes": _quoted,
    "text after a colon": _payload,
}


def _named(one: str, other: str) -> list[str]:
    """The words of `one`, in their order, that are names in either text."""
    names = _capitalised(one) | _capitalised(other)
    return [word for word in map(_stem, _words(one)) if word in names]


def _capitalised(text: str) -> set[str]:
    words = [word.replace("’", "'") for word in _WORD.findall(text)]
    if text.isupper():
        return set(map(_stem, _words(text)))
    return {
        _stem(word.casefold())
        for word in words
        if not word.islower() and not word[0].isdigit() and word.casefold() not in _OPENERS
    }


def _stem(word: str) -> str:
    """A name without its possessive."""
    return word.removesuffix("'s").removesuffix("'")


def _poles(axis: Iterable[frozenset[str]], words: list[str]) -> list[int]:
    return [i for i, pole in enumerate(axis) if not pole.isdisjoint(words)]

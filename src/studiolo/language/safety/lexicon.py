"""The default classifier: words and turns of phrase, by rules that can be read (lexicon.toml).

It is quick, needs no weights and says the same each time. It knows what English says plainly; docs/safety.md
says what it does not catch, which is much.
"""

from __future__ import annotations

import asyncio
import hashlib
import re
import tomllib
from dataclasses import dataclass
from functools import cache
from importlib import resources

from studiolo.language.conversation import FinishReason, Harm
from studiolo.language.safety.judging import Judgement, normalised

_GAP = r"(?:[^\w.!?\n]+\w+){0,5}?[^\w.!?\n]+"
_WINDOW, _OVERLAP = 8000, 400  # characters: some milliseconds, and more than any rule spans
_RELIEF = 0.4  # what remains of a score where harm is spoken of to prevent or understand it
_SLUR_SCORE = 0.9


@dataclass(frozen=True)
class Rule:
    """A text in which `any` is found, what `unless` finds taken out before, has at least `score`."""

    harm: Harm
    score: float
    any: re.Pattern[str]
    unless: re.Pattern[str] | None
    always: FinishReason | None


class Lexicon:
    """A `Classifier` by rules, for English. The score of a harm is that of its strongest rule."""

    harms = frozenset(Harm)

    async def judge(self, text: str) -> Judgement:
        """Long texts are judged in windows that overlap; others may run between two of them."""
        found = judged(text[:_WINDOW])
        for start in range(_WINDOW - _OVERLAP, len(text) - _OVERLAP, _WINDOW - _OVERLAP):
            await asyncio.sleep(0)
            more = judged(text[start : start + _WINDOW])
            scores = {harm: max(found.scores.get(harm, 0), score) for harm, score in more.scores.items()}
            found = Judgement({**found.scores, **scores}, found.always or more.always)
        return found


def judged(text: str) -> Judgement:
    """The scores of a text; harms that no rule finds are left out."""
    rules, relief, slurs = _rules()
    plain = normalised(text)
    scores: dict[Harm, float] = {}
    always = None
    spoken_of = relief.search(plain) is not None
    for rule in rules:
        if rule.any.search(rule.unless.sub(" ", plain) if rule.unless else plain):
            score = rule.score * (_RELIEF if spoken_of else 1)
            scores[rule.harm] = max(score, scores.get(rule.harm, 0.0))
            always = always or (None if spoken_of else rule.always)
    if any(hashed(word) in slurs for word in re.findall(r"\w+", plain)):
        scores[Harm.HATE] = max(_SLUR_SCORE, scores.get(Harm.HATE, 0.0))
    return Judgement(scores, always)


def hashed(word: str) -> str:
    """How a slur is written down: not spelt out, and not to be read by chance."""
    return hashlib.sha256(f"studiolo:{word}".encode()).hexdigest()[:16]


@cache
def _rules() -> tuple[list[Rule], re.Pattern[str], frozenset[str]]:
    folder = resources.files(__package__)
    told = tomllib.loads(folder.joinpath("lexicon.toml").read_text(encoding="utf-8"))
    groups: dict[str, str] = told["groups"]
    rules = [
        Rule(
            harm=Harm(rule["harm"]),
            score=rule["score"],
            any=_pattern(rule["any"], groups),
            unless=_pattern(rule["unless"], groups) if "unless" in rule else None,
            always=FinishReason(rule["always"]) if "always" in rule else None,
        )
        for rule in told["rules"]
    ]
    slurs = folder.joinpath("slurs.txt").read_text(encoding="utf-8").split()
    return rules, _pattern(told["relief"], groups), frozenset(slurs)


def _pattern(patterns: list[str], groups: dict[str, str]) -> re.Pattern[str]:
    joined = "|".join(patterns)
    for name, words in groups.items():
        joined = joined.replace(f"{{{name}}}", words.replace("\\\n", ""))
    return re.compile(rf"(?<!\w)(?:{joined.replace('~', _GAP)})(?!\w)")

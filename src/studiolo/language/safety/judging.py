"""What a classifier must offer, and what follows from its scores and the thresholds of a request."""

from __future__ import annotations

import re
import unicodedata
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field
from typing import Literal, Protocol

from studiolo.language.conversation import FinishReason, Harm, SafetySetting, Threshold, Verdict

Probability = Literal["negligible", "low", "medium", "high"]

BOUNDS: tuple[tuple[float, Probability], ...] = ((0.8, "high"), (0.5, "medium"), (0.2, "low"))
"""From which score on a harm is that probable."""

_SCALE: tuple[Probability, ...] = ("negligible", "low", "medium", "high")


@dataclass(frozen=True)
class Judgement:
    """What a classifier says of a text.

    Attributes:
        scores: per harm, from 0 to 1; a harm that is not named scores 0.
        always: BLOCKLIST or PROHIBITED for a text that is to be withheld whatever the thresholds are.
    """

    scores: Mapping[Harm, float] = field(default_factory=dict)
    always: FinishReason | None = None


class Classifier(Protocol):
    """Texts in, scores out. Called once a sentence, so it should be quick."""

    @property
    def harms(self) -> frozenset[Harm]:
        """Which harms it judges; a threshold on another is refused, not ignored."""

    async def judge(self, text: str) -> Judgement: ...


class Blocklist:
    """Terms that are never let through, before another classifier's judgement.

    A term matches whole words, in any case, over any white space; no stems, no spellings.
    """

    def __init__(self, terms: Iterable[str], then: Classifier) -> None:
        words = [r"\s+".join(map(re.escape, normalised(term).split())) for term in terms if term.strip()]
        self._terms = re.compile(rf"(?<!\w)(?:{'|'.join(words)})(?!\w)") if words else None
        self._then = then

    @property
    def harms(self) -> frozenset[Harm]:
        return self._then.harms

    async def judge(self, text: str) -> Judgement:
        judgement = await self._then.judge(text)
        if self._terms and self._terms.search(normalised(text)):
            return Judgement(judgement.scores, FinishReason.BLOCKLIST)
        return judgement


class Judge:
    """The verdicts of one text that comes in pieces (a prompt's turns, an answer's sentences).

    A harm's score is the highest of any piece.
    """

    def __init__(self, classifier: Classifier, settings: Iterable[SafetySetting]) -> None:
        self._classifier = classifier
        self._thresholds = {setting.harm: setting.threshold for setting in settings}
        self._scores: dict[Harm, float] = {}
        self._always: FinishReason | None = None

    async def hear(self, text: str) -> FinishReason | None:
        """Judges one piece; why all is to be withheld from here on, or None."""
        if text.strip():
            judgement = await self._classifier.judge(text)
            for harm, score in judgement.scores.items():
                self._scores[harm] = max(score, self._scores.get(harm, 0.0))
            self._always = self._always or judgement.always
        if self._always:
            return self._always
        return FinishReason.SAFETY if any(verdict.blocked for verdict in self.verdicts) else None

    @property
    def verdicts(self) -> tuple[Verdict, ...]:
        """One for each harm that has a threshold other than OFF."""
        return tuple(
            Verdict(harm=harm, probability=probability(score), score=score, blocked=blocks(score, threshold))
            for harm, threshold in self._thresholds.items()
            if threshold is not Threshold.OFF
            for score in [self._scores.get(harm, 0.0)]
        )


def probability(score: float) -> Probability:
    """In words; see BOUNDS."""
    return next((name for bound, name in BOUNDS if score >= bound), "negligible")


def blocks(score: float, threshold: Threshold) -> bool:
    """Whether a text of that score is withheld. NONE: judged and told, never withheld; OFF: not judged."""
    if threshold in (Threshold.OFF, Threshold.NONE):
        return False
    return _SCALE.index(probability(score)) >= _SCALE.index(threshold.value)


def normalised(text: str) -> str:
    """One form for look-alikes: compatibility characters, case, invisible characters, curly apostrophes."""
    folded = unicodedata.normalize("NFKC", text).casefold().replace("’", "'")
    return "".join(sign for sign in folded if unicodedata.category(sign) != "Cf")

"""The questions of a score: the subject in eight contexts, its class in the same, and unrelated things."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field

from PIL import Image

from studiolo.diffusion.components import Components
from studiolo.diffusion.sampling import OnStep, SamplerSettings, generate
from studiolo.drawing.prompts import fill_identifier
from studiolo.dreambooth.recipe import fill
from studiolo.evaluation.portfolio import Portfolio

CONTEXTS: dict[str, str] = {
    "on the moon": "moon",
    "in the snow": "snow",
    "on the beach": "beach",
    "in the forest": "forest",
    "in the city": "city",
    "in the desert": "desert",
    "in the mountains": "mountains",
    "on a red background": "red",
}
"""Phrase of the prompt -> the eye's name of that background."""

UNRELATED = (
    *("apple", "car", "penguin", "house", "guitar", "mushroom", "star", "rocket"),
    *("fish", "cactus"),
)
"""Nouns of the unrelated prompts: the first eight that are not the class."""
_BATCH = 16


@dataclass(frozen=True)
class Exam:
    """What is drawn to score a model.

    Args:
        class_noun: of the subject.
        n: pictures of each prompt, of seeds seed, seed + 1, ...; another prompt has the same seeds.
        length: how many of the contexts are asked for.
        size: side of the pictures in pixels; None: the model's own.
    """

    class_noun: str
    n: int = 4
    seed: int = 0
    settings: SamplerSettings = field(default_factory=SamplerSettings)
    length: int = len(CONTEXTS)
    size: int | None = None

    @property
    def contexts(self) -> dict[str, str]:
        """Those of CONTEXTS that are asked for."""
        return dict(list(CONTEXTS.items())[: self.length])

    @property
    def backgrounds(self) -> list[str]:
        """What each picture's background should be, for any of the three sets."""
        return [name for name in self.contexts.values() for _ in range(self.n)]

    @property
    def unrelated_nouns(self) -> list[str]:
        """What each unrelated picture should show."""
        return [noun for noun in self._unrelated for _ in range(self.n)]

    @property
    def _unrelated(self) -> list[str]:
        return [noun for noun in UNRELATED if noun != self.class_noun][: self.length]

    def subject_prompts(self, identifier: str) -> list[str]:
        return [
            fill_identifier(f"a photo of [V] {self.class_noun} {where}", identifier)
            for where in self.contexts
        ]

    def class_prompts(self) -> list[str]:
        return [fill(f"a photo of a {{class_noun}} {where}", self.class_noun) for where in self.contexts]

    def unrelated_prompts(self) -> list[str]:
        pairs = zip(self._unrelated, self.contexts, strict=True)
        return [fill(f"a photo of a {{class_noun}} {where}", noun) for noun, where in pairs]

    def pictures(self, subject: bool) -> int:
        """How many pictures `draw` makes."""
        return (3 if subject else 2) * self.length * self.n

    def draw(
        self, components: Components, identifier: str | None, on_step: OnStep | None = None
    ) -> Portfolio:
        """The pictures of a model; without an identifier it is not asked for the subject."""
        asked = [self.class_prompts(), self.unrelated_prompts()]
        asked += [self.subject_prompts(identifier)] if identifier else []
        images = self.draw_prompts(components, [prompt for part in asked for prompt in part], on_step)
        size = self.length * self.n
        return Portfolio(images[:size], images[size : 2 * size], images[2 * size :])

    def draw_prompts(
        self, components: Components, prompts: Sequence[str], on_step: OnStep | None = None
    ) -> list[Image.Image]:
        """`n` pictures of each prompt, prompt by prompt."""
        repeated = [prompt for prompt in prompts for _ in range(self.n)]
        seeds = [self.seed + i % self.n for i in range(len(repeated))]
        return generate(
            components, repeated, seeds, self.settings,
            height=self.size, width=self.size, batch_size=_BATCH, on_step=on_step,
        )  # fmt: skip

    def columns(self) -> Iterator[slice]:
        """The places of each context's pictures in a set."""
        return (slice(i * self.n, (i + 1) * self.n) for i in range(self.length))

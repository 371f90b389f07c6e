"""Scenes: sprites on a background with the caption that says what is there.

Because every scene is composed, the truth about it is known, which is what the judge learns from and what
the scores are measured against. Scene `i` of seed `s` is a pure function of (s, i): any process can make
any part of the set.
"""

from __future__ import annotations

from dataclasses import dataclass
from functools import cached_property

import numpy as np
from PIL import Image

from studiolo.base.backgrounds import CANVAS, paint
from studiolo.base.sprites import SPRITE_SIZE, SpriteBank
from studiolo.base.vocabulary import BACKGROUNDS, HATS, NOUNS, WEARERS, article

SCENE_SIZE = 64
"""Side of a scene in pixels."""
KINDS = {"one": 0.78, "two": 0.12, "hat": 0.10}
"""How often a scene shows one sprite, two beside each other, or one wearing a hat."""
_PREFIXES = ("", "", "", "a photo of ", "a photo of ", "a picture of ", "an image of ")


@dataclass(frozen=True)
class Scene:
    """A composed picture (uint8 [64, 64, 3]) and everything that is true of it."""

    image: np.ndarray
    caption: str
    nouns: tuple[str, ...]
    style: str
    background: str
    kind: str


def _name(noun: str, style: str | None, rng: np.random.Generator) -> str:
    """The noun as a caption says it: now and then by a synonym, with its style if one is given."""
    synonyms = NOUNS[noun][1]
    word = synonyms[int(rng.integers(len(synonyms)))] if synonyms and rng.random() < 0.15 else noun
    return article(f"{style} style {word}" if style else word)


def place(
    canvas: Image.Image, sprite: np.ndarray, size: int, x: float, y: float, flip: bool, angle: float
) -> None:
    """Paste a sprite of `size` canvas pixels with its centre at (x, y), both in canvas pixels."""
    picture = Image.fromarray(sprite)
    if flip:
        picture = picture.transpose(Image.Transpose.FLIP_LEFT_RIGHT)
    if angle:
        picture = picture.rotate(angle, Image.Resampling.BILINEAR)
    picture = picture.resize((size, size), Image.Resampling.BOX, reducing_gap=1.0)
    canvas.paste(picture, (round(x - size / 2), round(y - size / 2)), picture)


def _top(sprite: np.ndarray) -> tuple[float, float]:
    """Where a hat sits on a sprite: (x, y) of the middle of its upper edge as fractions of its side."""
    rows = np.flatnonzero((sprite[..., 3] > 100).any(1))
    first = rows[0] + len(rows) // 10
    columns = np.flatnonzero(sprite[first, :, 3] > 100)
    return float(columns.mean() / SPRITE_SIZE), float(rows[0] / SPRITE_SIZE)


class Composer:
    """Makes scenes from a bank of sprites.

    Args:
        bank: the sprites to use.
        seed: of the whole set; scenes of different seeds are independent.
    """

    def __init__(self, bank: SpriteBank, seed: int) -> None:
        self.bank, self.seed = bank, seed
        self.keys = sorted(bank.sprites)
        self.nouns = sorted({noun for noun, _ in self.keys})

    @cached_property
    def _styles_of(self) -> dict[str, list[str]]:
        return {noun: [style for other, style in self.keys if other == noun] for noun in self.nouns}

    def scene(self, index: int) -> Scene:
        """Scene number `index` of this set."""
        rng = np.random.default_rng((self.seed, index))
        kind = str(rng.choice(list(KINDS), p=list(KINDS.values())))
        background = str(rng.choice(list(BACKGROUNDS)))
        noun = self._pick(rng, WEARERS if kind == "hat" else None)
        style = str(rng.choice(self._styles_of[noun]))
        other = {"one": None, "two": self._pick(rng), "hat": self._pick(rng, HATS)}[kind]
        return self.compose(rng, noun, style, background, kind if other else "one", other)

    def _pick(self, rng: np.random.Generator, among: tuple[str, ...] | None = None) -> str:
        nouns = [noun for noun in self.nouns if noun in among] if among else self.nouns
        return str(rng.choice(nouns or self.nouns))

    def compose(
        self,
        rng: np.random.Generator,
        noun: str,
        style: str,
        background: str,
        kind: str = "one",
        other: str | None = None,
    ) -> Scene:
        """A scene of `noun` drawn in `style` on `background`, with `other` beside it or worn on its head."""
        canvas, ground = paint(background, rng)
        sprite = self.bank.sprites[noun, style]
        flip, angle = bool(rng.random() < 0.5), float(rng.uniform(-8, 8)) if rng.random() < 0.3 else 0.0
        if kind == "two" and other:
            self._two(canvas, ground, rng, sprite, other, style, flip)
        elif kind == "hat" and other:
            self._hat(canvas, ground, rng, sprite, other, style, flip)
        else:
            size = int(CANVAS * rng.uniform(0.52, 0.86))
            place(canvas, sprite, size, *self._spot(rng, size, ground), flip, angle)
        image = np.asarray(canvas.resize((SCENE_SIZE, SCENE_SIZE), Image.Resampling.BOX))
        caption = self._caption(rng, noun, style, background, kind, other)
        return Scene(image, caption, (noun, other) if other else (noun,), style, background, kind)

    def _spot(self, rng: np.random.Generator, size: int, ground: float | None) -> tuple[float, float]:
        """A centre for a sprite of `size`: inside the canvas, and standing on the ground where there is
        one."""
        free = CANVAS - size
        x = size / 2 + free * rng.uniform(0.15, 0.85)
        if ground is None:
            return x, size / 2 + free * rng.uniform(0.15, 0.85)
        return x, min(CANVAS - size / 2, CANVAS * ground - size / 2 + rng.uniform(-0.06, 0.04) * CANVAS)

    def _two(
        self,
        canvas: Image.Image,
        ground: float | None,
        rng: np.random.Generator,
        sprite: np.ndarray,
        other: str,
        style: str,
        flip: bool,
    ) -> None:
        second = self._drawing(rng, other, style)
        for picture, x, mirrored in ((sprite, 0.27, flip), (second, 0.73, bool(rng.random() < 0.5))):
            size = int(CANVAS * rng.uniform(0.42, 0.5))
            _, y = self._spot(rng, size, ground)
            place(canvas, picture, size, CANVAS * (x + rng.uniform(-0.02, 0.02)), y, mirrored, 0.0)

    def _hat(
        self,
        canvas: Image.Image,
        ground: float | None,
        rng: np.random.Generator,
        sprite: np.ndarray,
        hat: str,
        style: str,
        flip: bool,
    ) -> None:
        size = int(CANVAS * rng.uniform(0.52, 0.66))
        x, y = self._spot(rng, size, ground)
        y = max(y, CANVAS * 0.36 + size / 2)
        place(canvas, sprite, size, x, y, flip, 0.0)
        head_x, head_y = _top(sprite)
        hat_size = int(size * rng.uniform(0.6, 0.72))
        side = (1 - head_x if flip else head_x) - 0.5
        place(
            canvas,
            self._drawing(rng, hat, style),
            hat_size,
            x + side * size,
            y + (head_y - 0.5) * size - hat_size * 0.2,
            False,
            0.0,
        )

    def _drawing(self, rng: np.random.Generator, noun: str, style: str) -> np.ndarray:
        """The noun in the same style where it exists, else in any."""
        styles = self._styles_of[noun]
        return self.bank.sprites[noun, style if style in styles else str(rng.choice(styles))]

    def _caption(
        self, rng: np.random.Generator, noun: str, style: str, background: str, kind: str, other: str | None
    ) -> str:
        subject = _name(noun, style if rng.random() < 0.5 else None, rng)
        if kind == "two" and other:
            subject += f"{' next to ' if rng.random() < 0.3 else ' and '}{_name(other, None, rng)}"
        elif kind == "hat" and other:
            subject += f" wearing {_name(other, None, rng)}"
        phrases = BACKGROUNDS[background]
        where = phrases[0] if rng.random() < 0.75 else phrases[int(rng.integers(len(phrases)))]
        prefix = _PREFIXES[int(rng.integers(len(_PREFIXES)))]
        return f"{prefix}{subject}" if rng.random() < 0.1 else f"{prefix}{subject} {where}"

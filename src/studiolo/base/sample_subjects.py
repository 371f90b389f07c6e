"""The sample subjects: drawings that the base model has never seen, as a handful of pictures one could have
taken.

Their backgrounds are few and plain on purpose: the contexts in which a taught subject is then asked for (on
the moon, in the snow, in the city) appear in none of them.
"""

from __future__ import annotations

from pathlib import Path

import numpy as np
from PIL import Image

from studiolo.base.backgrounds import CANVAS, paint
from studiolo.base.scenes import place
from studiolo.base.sprites import SpriteBank
from studiolo.base.vocabulary import HELD_OUT
from studiolo.store.files import atomic_path

#: folder name -> (noun, style) of the held-out drawing
SUBJECTS: dict[str, tuple[str, str]] = {
    "fox": ("fox", "noto"),
    "dog": ("dog", "3d"),
    "robot": ("robot", "3d"),
    "teapot": ("teapot", "noto"),
}
#: background, size (fraction of the picture), centre x and y (likewise), mirrored, angle in degrees
_VIEWS: tuple[tuple[str, float, float, float, bool, float], ...] = (
    ("white", 0.84, 0.50, 0.52, False, 0.0),
    ("wood", 0.70, 0.46, 0.54, False, 6.0),
    ("grass", 0.66, 0.56, 0.58, True, 0.0),
    ("yellow", 0.76, 0.50, 0.50, True, -7.0),
    ("purple", 0.60, 0.44, 0.56, False, -4.0),
)


def view(sprite: np.ndarray, number: int, seed: int = 0) -> Image.Image:
    """View `number` (0 to 4) of a sprite, an RGB picture of 128x128 pixels."""
    background, size, x, y, mirrored, angle = _VIEWS[number]
    canvas, _ = paint(background, np.random.default_rng((seed, number)))
    place(canvas, sprite, round(size * CANVAS), x * CANVAS, y * CANVAS, mirrored, angle)
    return canvas


def write_subjects(bank: SpriteBank, folder: Path) -> None:
    """Writes five PNG views of each sample subject to `folder`/<name>/."""
    for name, key in SUBJECTS.items():
        assert key in HELD_OUT, f"{key} is in the training set: it is no subject to teach"
        for number in range(len(_VIEWS)):
            (folder / name).mkdir(parents=True, exist_ok=True)
            with atomic_path(folder / name / f"{number}.png") as temporary:
                view(bank.sprites[key], number).save(temporary, format="PNG", optimize=True)

"""The named backgrounds, drawn: a few gradients, hills, trees and stars, never twice the same.

Each painter gets a generator and a canvas of `CANVAS` pixels (twice the scene's size, so that edges are
smooth once it is halved) and returns the y of the ground on which things stand, as a fraction of the
height; None where there is no ground and things may float anywhere.
"""

from __future__ import annotations

from collections.abc import Callable

import numpy as np
from PIL import Image, ImageDraw

CANVAS = 128
Colour = tuple[int, int, int]
Painter = Callable[[Image.Image, np.random.Generator], float | None]

_PLAIN: dict[str, Colour] = {
    "white": (255, 255, 255),
    "red": (214, 40, 40),
    "blue": (38, 98, 220),
    "green": (46, 160, 67),
    "yellow": (250, 210, 60),
    "purple": (126, 60, 180),
    "pink": (246, 150, 190),
    "grey": (140, 142, 146),
    "orange": (244, 128, 32),
}


def _vary(colour: Colour, rng: np.random.Generator, amount: int = 12) -> Colour:
    """The colour, a little lighter or darker and a little off in hue."""
    shift = int(rng.integers(-amount, amount + 1))
    r, g, b = (int(np.clip(c + shift + int(rng.integers(-4, 5)), 0, 255)) for c in colour)
    return r, g, b


def _gradient(image: Image.Image, top: Colour, bottom: Colour, y0: float = 0.0, y1: float = 1.0) -> None:
    """Fill the band from y0 to y1 (fractions of the height) from one colour to another."""
    first, last = round(y0 * CANVAS), round(y1 * CANVAS)
    ramp = np.linspace(0, 1, max(1, last - first))[:, None, None]
    band = np.asarray(top) * (1 - ramp) + np.asarray(bottom) * ramp
    pixels = np.broadcast_to(band, (len(ramp), CANVAS, 3)).astype(np.uint8)
    image.paste(Image.fromarray(np.ascontiguousarray(pixels)), (0, first))


def _ridge(
    image: Image.Image, rng: np.random.Generator, y: float, height: float, colour: Colour, waves: float
) -> None:
    """A soft hill line: everything under a slow wave around `y` in one colour."""
    x = np.linspace(0, 1, 33)
    line = y + height * np.sin(2 * np.pi * (waves * x + rng.random())) * 0.5
    points = [(float(a * CANVAS), float(b * CANVAS)) for a, b in zip(x, line, strict=True)]
    ImageDraw.Draw(image).polygon([*points, (CANVAS, CANVAS), (0, CANVAS)], fill=colour)


def _stars(image: Image.Image, rng: np.random.Generator, count: int, below: float) -> None:
    draw = ImageDraw.Draw(image)
    for x, y, size in rng.random((count, 3)):
        radius = 0.6 + size
        cx, cy = x * CANVAS, y * CANVAS * below
        draw.ellipse((cx - radius, cy - radius, cx + radius, cy + radius), fill=(255, 255, 235))


def _disc(image: Image.Image, x: float, y: float, radius: float, colour: Colour) -> None:
    cx, cy, r = x * CANVAS, y * CANVAS, radius * CANVAS
    ImageDraw.Draw(image).ellipse((cx - r, cy - r, cx + r, cy + r), fill=colour)


def _sky(image: Image.Image, rng: np.random.Generator, horizon: float) -> None:
    _gradient(image, _vary((92, 176, 240), rng), _vary((190, 226, 250), rng), 0, horizon)


def _plain(name: str) -> Painter:
    def paint(image: Image.Image, rng: np.random.Generator) -> None:
        colour = _PLAIN[name] if name == "white" else _vary(_PLAIN[name], rng)
        image.paste(colour, (0, 0, CANVAS, CANVAS))

    return paint


def _grass(image: Image.Image, rng: np.random.Generator) -> float:
    y = rng.uniform(0.5, 0.65)
    _sky(image, rng, 0.8)
    _ridge(image, rng, y, 0.06, _vary((104, 190, 70), rng), rng.uniform(0.5, 1.2))
    _ridge(image, rng, y + 0.12, 0.05, _vary((84, 170, 56), rng), rng.uniform(0.5, 1.2))
    return 0.93


def _snow(image: Image.Image, rng: np.random.Generator) -> float:
    y = rng.uniform(0.5, 0.62)
    _gradient(image, _vary((150, 180, 210), rng), _vary((205, 220, 235), rng))
    _ridge(image, rng, y, 0.08, _vary((240, 246, 252), rng, 5), rng.uniform(0.5, 1.0))
    _ridge(image, rng, y + 0.2, 0.05, (250, 252, 255), rng.uniform(0.5, 1.0))
    _stars(image, rng, 26, 1.0)
    return 0.93


def _beach(image: Image.Image, rng: np.random.Generator) -> float:
    sea, sand = rng.uniform(0.38, 0.46), rng.uniform(0.56, 0.66)
    _sky(image, rng, sea)
    _gradient(image, _vary((30, 130, 190), rng), _vary((70, 190, 210), rng), sea, 0.75)
    _ridge(image, rng, sand, 0.05, _vary((240, 216, 150), rng), 0.6)
    return 0.93


def _sea(image: Image.Image, rng: np.random.Generator) -> float:
    y = rng.uniform(0.3, 0.42)
    _sky(image, rng, y + 0.1)
    for depth in range(5):
        blue = _vary((44 - 6 * depth, 140 - 16 * depth, 214 - 14 * depth), rng, 6)
        _ridge(image, rng, y + 0.14 * depth, 0.035, blue, rng.uniform(2.5, 4))
    return 0.85


def _night(image: Image.Image, rng: np.random.Generator) -> float:
    _gradient(image, _vary((16, 24, 70), rng, 6), _vary((50, 64, 130), rng, 8))
    _stars(image, rng, 24, 0.6)
    x, y = rng.choice([0.12, 0.88]), rng.uniform(0.1, 0.18)
    _disc(image, x, y, 0.075, (250, 240, 190))
    _ridge(image, rng, rng.uniform(0.66, 0.74), 0.06, _vary((22, 52, 48), rng, 6), rng.uniform(0.5, 1.2))
    return 0.93


def _space(image: Image.Image, rng: np.random.Generator) -> None:
    _gradient(image, _vary((8, 6, 20), rng, 5), _vary((24, 10, 44), rng, 6))
    _stars(image, rng, 46, 1.0)
    planet = [(220, 120, 80), (100, 160, 220), (210, 180, 120)][int(rng.integers(3))]
    _disc(image, rng.choice([0.1, 0.9]), rng.uniform(0.08, 0.25), rng.uniform(0.06, 0.1), _vary(planet, rng))


def _moon(image: Image.Image, rng: np.random.Generator) -> float:
    y = rng.uniform(0.55, 0.66)
    image.paste(_vary((10, 10, 18), rng, 5), (0, 0, CANVAS, CANVAS))
    _stars(image, rng, 26, 0.6)
    _ridge(image, rng, y, 0.03, _vary((176, 176, 180), rng), 0.5)
    draw = ImageDraw.Draw(image)
    for x, depth, size in rng.random((6, 3)):
        cx, cy, r = x * CANVAS, (y + 0.06 + depth * 0.33) * CANVAS, (0.03 + 0.05 * size) * CANVAS
        draw.ellipse((cx - r, cy - r * 0.5, cx + r, cy + r * 0.5), fill=_vary((138, 138, 144), rng, 6))
    return 0.93


def _desert(image: Image.Image, rng: np.random.Generator) -> float:
    y = rng.uniform(0.48, 0.6)
    _gradient(image, _vary((250, 190, 110), rng), _vary((255, 226, 170), rng))
    _disc(image, rng.uniform(0.1, 0.9), rng.uniform(0.1, 0.2), 0.08, (255, 246, 214))
    _ridge(image, rng, y, 0.12, _vary((226, 164, 84), rng), rng.uniform(0.6, 1.2))
    _ridge(image, rng, y + 0.16, 0.1, _vary((206, 140, 66), rng), rng.uniform(0.6, 1.2))
    return 0.93


def _forest(image: Image.Image, rng: np.random.Generator) -> float:
    _gradient(image, _vary((120, 180, 170), rng), _vary((170, 210, 180), rng))
    draw = ImageDraw.Draw(image)
    for x in np.linspace(-0.02, 1.02, 8) + rng.uniform(-0.04, 0.04, 8):
        cx, base, h = x * CANVAS, 0.74 * CANVAS, rng.uniform(0.45, 0.68) * CANVAS
        draw.rectangle((cx - 3, base - 8, cx + 3, base + 6), fill=(96, 64, 40))
        green = _vary((28, 96, 52), rng, 16)
        draw.polygon(
            [(cx, base - h), (cx - 0.11 * CANVAS, base - 6), (cx + 0.11 * CANVAS, base - 6)], fill=green
        )
    _ridge(image, rng, 0.74, 0.03, _vary((52, 112, 50), rng), rng.uniform(0.6, 1.2))
    return 0.93


def _city(image: Image.Image, rng: np.random.Generator) -> float:
    _gradient(image, _vary((170, 205, 235), rng), _vary((222, 230, 238), rng))
    draw, x = ImageDraw.Draw(image), -4.0
    while x < CANVAS:
        width, top = rng.uniform(16, 26), rng.uniform(0.08, 0.42) * CANVAS
        wall = [(150, 120, 110), (120, 130, 150), (180, 150, 120), (110, 110, 126)][int(rng.integers(4))]
        draw.rectangle((x, top, x + width, 0.8 * CANVAS), fill=_vary(wall, rng))
        for wy in np.arange(top + 4, 0.74 * CANVAS, 9):
            for wx in np.arange(x + 3, x + width - 4, 7):
                draw.rectangle((wx, wy, wx + 3, wy + 4), fill=(250, 232, 150))
        x += width + 1
    draw.rectangle((0, 0.78 * CANVAS, CANVAS, CANVAS), fill=_vary((84, 86, 92), rng, 6))
    return 0.93


def _mountains(image: Image.Image, rng: np.random.Generator) -> float:
    _sky(image, rng, 0.9)
    draw = ImageDraw.Draw(image)
    for x in (rng.uniform(0.05, 0.25), rng.uniform(0.75, 0.95), rng.uniform(0.4, 0.6)):
        cx, peak, half = x * CANVAS, rng.uniform(0.08, 0.24) * CANVAS, rng.uniform(0.3, 0.42) * CANVAS
        base = 0.74 * CANVAS
        draw.polygon([(cx, peak), (cx - half, base), (cx + half, base)], fill=_vary((112, 112, 136), rng))
        cap = 0.3
        points = [
            (cx, peak),
            (cx - half * cap, peak + (base - peak) * cap),
            (cx + half * cap, peak + (base - peak) * cap),
        ]
        draw.polygon(points, fill=(246, 248, 252))
    _ridge(image, rng, 0.72, 0.03, _vary((96, 146, 90), rng), rng.uniform(0.6, 1.2))
    return 0.93


def _wood(image: Image.Image, rng: np.random.Generator) -> None:
    draw, plank = ImageDraw.Draw(image), CANVAS // 8
    for row in range(9):
        draw.rectangle((0, row * plank, CANVAS, (row + 1) * plank), fill=_vary((188, 136, 84), rng, 14))
        draw.line((0, row * plank, CANVAS, row * plank), fill=(122, 82, 46), width=2)


PAINTERS: dict[str, Painter] = {
    **{name: _plain(name) for name in _PLAIN},
    "grass": _grass,
    "snow": _snow,
    "beach": _beach,
    "sea": _sea,
    "night": _night,
    "space": _space,
    "moon": _moon,
    "desert": _desert,
    "forest": _forest,
    "city": _city,
    "mountains": _mountains,
    "wood": _wood,
}


def paint(name: str, rng: np.random.Generator) -> tuple[Image.Image, float | None]:
    """The background `name` as an RGB canvas [128, 128], and where its ground lies."""
    image = Image.new("RGB", (CANVAS, CANVAS))
    return image, PAINTERS[name](image, rng)

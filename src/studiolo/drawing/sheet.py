"""Contact sheets: pictures in rows and columns, with captions that say what one sees."""

from __future__ import annotations

import math
from collections.abc import Sequence

from PIL import Image, ImageDraw, ImageFont

_GAP = 8
_FONT_SIZE = 15
_LINE = 20
_PAPER, _INK, _EMPTY = "white", "#222222", "#eeeeee"


def contact_sheet(
    images: Sequence[Image.Image | None],
    captions: Sequence[str] = (),
    *,
    columns: int | None = None,
    title: str = "",
    cell: int = 192,
) -> Image.Image:
    """Pictures in reading order, each with its caption below; by default about as many rows as columns.

    Each picture is fitted into `cell` x `cell` pixels: small ones are enlarged by a whole factor, so that
    every pixel stays a square, large ones are shrunk. None leaves a grey cell.
    """
    columns = columns or max(1, math.ceil(len(images) ** 0.5))
    foot = _height(captions, cell)
    sheet, draw, top = _blank(columns, math.ceil(len(images) / columns) * (cell + foot + _GAP), title, cell)
    for i, image in enumerate(images):
        x, y = _GAP + i % columns * (cell + _GAP), top + i // columns * (cell + foot + _GAP)
        _place(sheet, image, (x, y), cell)
        if i < len(captions):
            _write(draw, (x, y + cell + 2), captions[i], cell)
    return sheet


def comparison_table(
    rows: Sequence[Sequence[Image.Image | None]],
    *,
    row_captions: Sequence[str],
    column_captions: Sequence[str],
    title: str = "",
    cell: int = 192,
) -> Image.Image:
    """Pictures in rows and columns, captions at the left and above; cells as in `contact_sheet`."""
    columns = len(column_captions)
    head = _height(column_captions, cell)
    sheet, draw, top = _blank(columns + 1, head + len(rows) * (cell + _GAP), title, cell)
    for c, caption in enumerate(column_captions, start=1):
        _write(draw, (_GAP + c * (cell + _GAP), top), caption, cell)
    for r, (caption, row) in enumerate(zip(row_captions, rows, strict=True)):
        y = top + head + r * (cell + _GAP)
        _write(draw, (_GAP, y), caption, cell)
        for c, image in enumerate(row[:columns], start=1):
            _place(sheet, image, (_GAP + c * (cell + _GAP), y), cell)
    return sheet


def _blank(columns: int, body: int, title: str, cell: int) -> tuple[Image.Image, ImageDraw.ImageDraw, int]:
    """An empty sheet with its title written; what draws on it; where the body, `body` pixels high, begins."""
    width = _GAP + columns * (cell + _GAP)
    top = _GAP + (_height([title], width - 2 * _GAP) + _GAP if title else 0)
    sheet = Image.new("RGB", (width, top + body), _PAPER)
    draw = ImageDraw.Draw(sheet)
    _write(draw, (_GAP, _GAP), title, width - 2 * _GAP)
    return sheet, draw, top


def _place(sheet: Image.Image, image: Image.Image | None, corner: tuple[int, int], cell: int) -> None:
    if image is None:
        sheet.paste(_EMPTY, (*corner, corner[0] + cell, corner[1] + cell))
        return
    fitted = _fit(image.convert("RGB"), cell)
    sheet.paste(fitted, (corner[0] + (cell - fitted.width) // 2, corner[1] + (cell - fitted.height) // 2))


def _fit(image: Image.Image, cell: int) -> Image.Image:
    side = max(image.size)
    if side <= cell:
        factor = cell // side
        return image.resize((image.width * factor, image.height * factor), Image.Resampling.NEAREST)
    size = (max(1, image.width * cell // side), max(1, image.height * cell // side))
    return image.resize(size, Image.Resampling.LANCZOS)


def _font() -> ImageFont.FreeTypeFont | ImageFont.ImageFont:
    return ImageFont.load_default(_FONT_SIZE)


def _height(captions: Sequence[str], width: int) -> int:
    return max((len(_wrapped(caption, width)) for caption in captions), default=0) * _LINE


def _write(draw: ImageDraw.ImageDraw, corner: tuple[int, int], text: str, width: int) -> None:
    for number, line in enumerate(_wrapped(text, width)):
        draw.text((corner[0], corner[1] + number * _LINE), line, fill=_INK, font=_font())


def _wrapped(text: str, width: int) -> list[str]:
    """Lines of at most `width` pixels, broken between words, and within a word that is wider than a line."""
    font = _font()
    lines: list[str] = []
    for word in text.split():
        if lines and font.getlength(f"{lines[-1]} {word}") <= width:
            lines[-1] += f" {word}"
            continue
        lines.append("")
        for letter in word:
            if lines[-1] and font.getlength(lines[-1] + letter) > width:
                lines.append("")
            lines[-1] += letter
    return lines

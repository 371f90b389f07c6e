"""Contact sheets: every picture is there, in its place, unchanged but for its size; captions stay inside."""

from __future__ import annotations

import numpy as np
from hypothesis import given
from hypothesis import strategies as st
from PIL import Image, ImageFont

from studiolo.drawing.sheet import _FONT_SIZE, _wrapped, comparison_table, contact_sheet


def picture(seed: int, size: tuple[int, int] = (64, 64)) -> Image.Image:
    pixels = np.random.default_rng(seed).integers(0, 255, (size[1], size[0], 3), dtype=np.uint8)
    return Image.fromarray(pixels)


def contains(sheet: Image.Image, image: Image.Image, corner: tuple[int, int], factor: int) -> bool:
    big = np.asarray(image).repeat(factor, 0).repeat(factor, 1)
    x, y = corner
    return np.array_equal(np.asarray(sheet)[y : y + big.shape[0], x : x + big.shape[1]], big)


def test_small_pictures_are_enlarged_by_a_whole_factor():
    images = [picture(i) for i in range(3)]
    sheet = contact_sheet(images, columns=2)
    assert contains(sheet, images[0], (8, 8), 3)
    assert contains(sheet, images[1], (208, 8), 3)
    assert contains(sheet, images[2], (8, 208), 3)


def test_a_caption_makes_room_for_itself():
    images = [picture(i) for i in range(3)]
    bare, captioned = contact_sheet(images, columns=2), contact_sheet(images, ["word " * 30, "b"], columns=2)
    assert captioned.height > bare.height
    assert contains(captioned, images[1], (208, 8), 3)


def test_a_table_has_its_captions_above_and_at_the_left():
    images = [[picture(0), picture(1)], [picture(2), None]]
    table = comparison_table(
        images, row_captions=["base", "subject"], column_captions=["moon", "snow"], title="Title"
    )
    assert table.size == (8 + 3 * 200, 8 + 28 + 20 + 2 * 200)
    assert contains(table, images[1][0], (208, 8 + 28 + 20 + 200), 3)


def test_large_and_long_pictures_fit_their_cell():
    sheet = contact_sheet([picture(0, (1000, 500)), picture(1, (10, 300))], columns=2)
    assert sheet.size == (408, 208)
    assert (np.asarray(sheet)[8:200, 200:208] == 255).all()


def test_no_pictures_make_an_empty_sheet():
    assert contact_sheet([]).size == (208, 8)


@given(st.text(max_size=200), st.integers(40, 300))
def test_captions_stay_within_their_width_and_lose_nothing(text, width):
    font = ImageFont.load_default(_FONT_SIZE)
    lines = _wrapped(text, width)
    assert "".join("".join(lines).split()) == "".join(text.split())
    assert all(font.getlength(line) <= width or len(line) == 1 for line in lines)

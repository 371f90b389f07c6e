"""Pictures to begin from and masks, as files come: bounded, upright, checked, and on record."""

from __future__ import annotations

import hashlib
import io
import json

import numpy as np
import pytest
from PIL import Image

from studiolo.diffusion.sampler_settings import SamplerSettings
from studiolo.drawing import given as given_module
from studiolo.drawing.given import give
from studiolo.drawing.model import ImageModel
from studiolo.drawing.provenance import read_provenance
from studiolo.drawing.reproduction import reproduce
from studiolo.errors import StudioloError
from studiolo.models.registry import register
from tiny import tiny_folder


@pytest.fixture
def model(tmp_path, monkeypatch):
    monkeypatch.setenv("STUDIOLO_HOME", str(tmp_path / "home"))
    register(tiny_folder(tmp_path), "tiny")
    return ImageModel.load("tiny")


def ramp(width: int = 32, height: int = 32, mode: str = "RGB") -> Image.Image:
    x, y = np.meshgrid(np.linspace(0, 255, width), np.linspace(0, 255, height))
    return Image.fromarray(np.stack([x, y, 255 - x], 2).astype(np.uint8)).convert(mode)


def half(width: int = 32, height: int = 32) -> Image.Image:
    """White, to paint, on the right."""
    white = np.zeros((height, width), np.uint8)
    white[:, width // 2 :] = 255
    return Image.fromarray(white)


def encoded(image: Image.Image, format_: str = "PNG", **options) -> bytes:
    buffer = io.BytesIO()
    image.save(buffer, format=format_, **options)
    return buffer.getvalue()


def test_a_photo_is_turned_upright():
    exif = Image.Exif()
    exif[0x0112] = 6  # turned by 90 degrees
    given = give(encoded(ramp(40, 20), "JPEG", exif=exif))
    assert given.image.size == (20, 40)
    top, bottom = (np.asarray(given.image, dtype=int)[row, :, 0].mean() for row in (1, -2))
    assert top < 60 < 190 < bottom  # left to right has become top to bottom


@pytest.mark.parametrize("mode", ["RGBA", "LA", "L", "P", "1", "CMYK"])
def test_pictures_of_every_mode_become_rgb(mode):
    image = ramp().convert(mode)
    given = give(encoded(image, "JPEG" if mode == "CMYK" else "PNG"))
    assert (given.image.mode, given.image.size) == ("RGB", (32, 32))


def test_what_is_transparent_is_white_in_pictures_and_black_in_masks():
    clear = Image.new("RGBA", (8, 8), (255, 0, 0, 0))
    clear.paste((0, 0, 0, 255), (0, 0, 4, 8))
    assert give(encoded(clear)).image.getpixel((7, 7)) == (255, 255, 255)
    mask = Image.new("RGBA", (8, 8), (255, 255, 255, 0))
    mask.paste((255, 255, 255, 255), (0, 0, 4, 8))
    given = give(encoded(ramp(8, 8)), encoded(mask))
    assert (given.mask.getpixel((0, 0)), given.mask.getpixel((7, 7))) == (255, 0)


def test_masks_of_transparency_are_turned_around():
    clear = Image.new("RGBA", (8, 8), (9, 9, 9, 255))
    clear.paste((9, 9, 9, 0), (0, 0, 4, 8))
    for given in (
        give(encoded(ramp(8, 8)), encoded(clear), None, alpha=True),
        give(encoded(clear), None, None, alpha=True),
    ):
        assert (given.mask.getpixel((0, 0)), given.mask.getpixel((7, 7)), given.strength) == (255, 0, 1.0)
    with pytest.raises(StudioloError, match="no transparency"):
        give(encoded(ramp()), encoded(ramp()), alpha=True)


@pytest.mark.parametrize("mode", ["RGB", "RGBA"])
def test_an_opaque_picture_is_no_mask(mode):
    given = give(encoded(ramp().convert(mode)), None, None, alpha=True)
    assert (given.mask, given.strength) == (None, 0.6)


def test_a_picture_that_was_its_own_mask_is_drawn_again(model, tmp_path):
    clear = ramp().convert("RGBA")
    clear.paste((9, 9, 9, 0), (0, 0, 16, 32))
    path = tmp_path / "drawn.png"
    given = give(encoded(clear), None, None, alpha=True)
    (drawn,) = model.draw([model.request("a fox")], SamplerSettings(steps=2), given=given)
    drawn.save(path)
    assert read_provenance(path).given.alpha
    assert reproduce(path, init=encoded(clear)).identical


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"image": b"GIF89a" + bytes(40)}, "init: not a picture that can be read"),
        ({"image": b""}, "not a picture"),
        ({"image": encoded(ramp())[:80]}, "not a picture"),
        ({"image": "nowhere.png"}, r"nowhere\.png: cannot be read"),
        ({"image": "."}, "cannot be read"),
        ({"image": ramp(), "mask": half(31, 32)}, "the mask has 31x32 pixels, the picture 32x32"),
        ({"image": None, "mask": half()}, "a mask, but no picture"),
        ({"image": ramp(), "strength": 0.0}, "no strength"),
        ({"image": ramp(), "strength": 1.01}, "no strength"),
        ({"image": ramp(), "strength": float("nan")}, "no strength"),
    ],
    ids=range(10),
)
def test_what_cannot_be_is_refused(arguments, message):
    with pytest.raises(StudioloError, match=message):
        give(**arguments)


def test_too_many_pixels_and_bytes_are_refused(monkeypatch):
    monkeypatch.setattr(given_module, "MAX_PIXELS", 1000)
    with pytest.raises(StudioloError, match=r"more pixels than the 0\.001 million"):
        give(encoded(ramp()))
    monkeypatch.setattr(given_module, "MAX_BYTES", 100)
    with pytest.raises(StudioloError, match="MiB"):
        give(encoded(ramp()))


@pytest.mark.parametrize(
    ("size", "expected"),
    [
        ((32, 32), (32, 32)),
        ((64, 32), (64, 32)),
        ((45, 31), (44, 32)),
        ((640, 160), (64, 16)),
        ((3, 3), (4, 4)),
    ],
)
def test_pictures_are_drawn_as_large_as_given_or_as_the_model_can(model, size, expected):
    given = give(ramp(*size))
    assert given.size_for(model.components) == expected
    (picture,) = model.generate("a fox", init=ramp(*size), steps=2)
    assert picture.image.size == expected


def test_a_chosen_size_cuts_the_sides_off(model):
    fitted = give(ramp(96, 32)).fitted(32, 32)
    left, right = (fitted.image.getpixel((x, 16))[0] for x in (0, 31))
    assert 80 < left < 90  # a third of the way
    assert 165 < right < 175


def test_outside_the_mask_pixels_stay(model):
    photo, mask = ramp(), half()
    kept, drawn = (
        np.asarray(model.generate("a fox", init=photo, mask=mask, strength=1.0, steps=3, keep=keep)[0].image)
        for keep in (True, False)
    )
    np.testing.assert_array_equal(kept[:, :16], np.asarray(photo)[:, :16])
    np.testing.assert_array_equal(kept[:, 16:], drawn[:, 16:])
    assert (drawn[:, :16] != kept[:, :16]).any()
    assert np.abs(kept[:, 16:].astype(int) - np.asarray(photo)[:, 16:]).mean() > 5


def test_a_black_mask_is_refused(model):
    with pytest.raises(StudioloError, match="nothing to paint"):
        model.generate("a fox", init=ramp(), mask=Image.new("L", (32, 32)), steps=2)


def test_the_record_names_both_files_and_reproduces(model, tmp_path):
    photo, mask = tmp_path / "photo.png", tmp_path / "mask.png"
    ramp().save(photo)
    half().save(mask)
    pictures = model.generate(
        "a fox", n=2, init=photo, mask=mask, strength=0.7, steps=4, sampler="dpm++2m_sde", sigmas="karras"
    )
    file = pictures[1].save(tmp_path / "fox.png")
    record = read_provenance(file)
    digests = [hashlib.sha256(path.read_bytes()).hexdigest() for path in (photo, mask)]
    assert record.given.model_dump() == {
        "image": digests[0],
        "mask": digests[1],
        "strength": 0.7,
        "keep": True,
    }
    assert b"photo.png" not in file.read_bytes()
    assert "Denoising strength: 0.7" in record.parameters()
    assert reproduce(file, init=photo, mask=mask).identical
    assert reproduce(file, init=photo.read_bytes(), mask=mask).identical


@pytest.mark.parametrize(
    ("init", "mask", "message"),
    [
        (None, None, r"drawn from a picture with SHA-256 \w{12}\.\.\.: .*|--init FILE"),
        ("mask.png", "mask.png", "drawn from a picture with SHA-256"),
        ("photo.png", None, "drawn from a mask with SHA-256"),
        ("photo.png", "photo.png", "drawn from a mask with SHA-256"),
    ],
)
def test_other_files_do_not_reproduce(model, tmp_path, init, mask, message):
    ramp().save(tmp_path / "photo.png")
    half().save(tmp_path / "mask.png")
    (picture,) = model.generate("a fox", init=tmp_path / "photo.png", mask=tmp_path / "mask.png", steps=3)
    file = picture.save(tmp_path / "fox.png")
    with pytest.raises(StudioloError, match=message):
        reproduce(file, init=init and tmp_path / init, mask=mask and tmp_path / mask)


def test_pictures_from_noise_say_nothing_of_it(model, tmp_path):
    (picture,) = model.generate("a fox", steps=2)
    assert "given" not in json.loads(picture.record.model_dump_json())
    file = picture.save(tmp_path / "fox.png")
    with pytest.raises(StudioloError, match="did not begin from a picture"):
        reproduce(file, init=ramp())


def test_other_settings_of_samplers_pass_through(model):
    (picture,) = model.generate("a fox", steps=3, sampler="heun", spacing="trailing", guidance_until=0.5)
    assert picture.record.sampler_settings == SamplerSettings(
        "heun", 3, spacing="trailing", guidance_until=0.5
    )

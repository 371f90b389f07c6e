"""Every kind of bad image is repaired with a note or refused with the file's name and a remedy."""

from __future__ import annotations

import os
import struct
import zlib
from pathlib import Path

import numpy as np
import pytest
from PIL import Image, ImageCms, ImageOps

from studiolo.dreambooth import images as decoding
from studiolo.dreambooth.subject import check_class_noun, load_subject
from studiolo.errors import StudioloError


def noise(seed: int = 0, size: tuple[int, int] = (80, 64), channels: int = 3) -> Image.Image:
    """A picture of coarse random colours; different seeds are different pictures at every scale."""
    cells = np.random.default_rng(seed).integers(0, 256, (8, 8, channels), dtype=np.uint8)
    return Image.fromarray(cells.squeeze()).resize(size, Image.Resampling.BICUBIC)


def load(folder, noun="fox", **options):
    return load_subject(folder, noun, **{"min_size": 64, **options})


def refusal(sources, *parts: str, **options) -> StudioloError:
    """The error for `sources`; it must hold all `parts` and a remedy."""
    with pytest.raises(StudioloError) as caught:
        load(sources, **options)
    for part in parts:
        assert part in str(caught.value)
    assert caught.value.remedy or "\n- " in caught.value.message
    return caught.value


def complaint(path: Path) -> StudioloError | None:
    try:
        load(path)
    except StudioloError as error:
        return error
    return None


def single(path: Path, **options):
    """The one image loaded from `path` and the notes about it."""
    subject = load(path, **options)
    (image,) = subject.images
    return image, [note for note in subject.notes if note.startswith(path.name)]


@pytest.fixture
def folder(tmp_path):
    """Three good images."""
    for index in range(3):
        noise(index).save(tmp_path / f"good{index}.png")
    return tmp_path


def test_good_images_pass_without_a_note(folder):
    subject = load(folder)
    assert [image.name for image in subject.images] == ["good0.png", "good1.png", "good2.png"]
    assert subject.notes == []
    assert {(image.image.mode, image.mask, image.caption) for image in subject.images} == {
        ("RGB", None, None)
    }
    assert subject.images[1].image.tobytes() == noise(1).tobytes()


@pytest.mark.parametrize("suffix", ["png", "jpg", "webp", "bmp", "tif", "gif"])
def test_every_format_is_read(tmp_path, suffix):
    path = tmp_path / f"a.{suffix}"
    noise().quantize(256).save(path) if suffix == "gif" else noise().save(path)
    image, notes = single(path)
    assert notes == []
    error = np.abs(np.asarray(image.image, dtype=float) - np.asarray(noise(), dtype=float))
    assert error.mean() < 10


def test_files_folders_and_pictures_together(folder, tmp_path_factory):
    other = tmp_path_factory.mktemp("other") / "x.png"
    noise(7).save(other)
    names = [image.name for image in load([str(folder), other, noise(8)]).images]
    assert names == ["good0.png", "good1.png", "good2.png", "x.png", "image 5"]


def test_not_an_image(folder):
    (folder / "letter.jpg").write_text("Dear fox")
    refusal(folder, "letter.jpg", "not an image")


def test_cut_off(folder):
    noise(5, (400, 400)).save(folder / "half.jpg")
    data = (folder / "half.jpg").read_bytes()
    (folder / "half.jpg").write_bytes(data[: len(data) // 2])
    refusal(folder, "half.jpg", "cut off", "Copy it again")


@pytest.mark.parametrize("suffix", ["png", "jpg", "webp", "bmp", "tif", "gif"])
def test_no_damage_escapes(tmp_path, suffix):
    """Random bytes written over a file, or its end cut away: it loads or is refused by name, nothing else."""
    exif = Image.Exif()
    exif[0x0112] = 6
    noise(1, (70, 70)).save(tmp_path / f"whole.{suffix}", exif=exif)
    whole = (tmp_path / f"whole.{suffix}").read_bytes()
    rng = np.random.default_rng(0)
    path = tmp_path / f"damaged.{suffix}"
    for _ in range(60):
        data = bytearray(whole[: rng.integers(1, len(whole) + 1)])
        for place in rng.integers(0, len(data), 5):
            data[place] = rng.integers(256)
        path.write_bytes(data)
        error = complaint(path)
        assert error is None or (path.name in str(error) and error.remedy)


def test_empty_file(folder):
    (folder / "zero.png").touch()
    refusal(folder, "zero.png", "an empty file", "Copy it again")


def test_heic(folder):
    (folder / "phone.heic").write_bytes(b"\0\0\0\x18ftypheic" + bytes(100))
    refusal(folder, "phone.heic", "HEIC", "Export it as JPEG")


def test_all_refusals_at_once(folder):
    (folder / "a.jpg").write_text("no")
    (folder / "b.png").touch()
    message = str(refusal(folder, "2 images cannot be used"))
    assert "a.jpg" in message
    assert "b.png" in message


def test_animation_gives_its_first_frame(tmp_path):
    frames = [noise(i).convert("P", palette=Image.Palette.ADAPTIVE) for i in range(3)]
    frames[0].save(tmp_path / "moving.gif", save_all=True, append_images=frames[1:])
    image, notes = single(tmp_path / "moving.gif")
    assert notes == ["moving.gif: holds 3 frames; the first is used"]
    assert image.image.tobytes() == frames[0].convert("RGB").tobytes()


def test_second_picture_of_a_phone_is_no_animation(tmp_path):
    noise().save(tmp_path / "phone.jpg", format="MPO", save_all=True, append_images=[noise(1)])
    assert single(tmp_path / "phone.jpg")[1] == []


def test_too_small_is_refused(folder):
    noise(9, (300, 31)).save(folder / "tiny.png")
    refusal(folder, "tiny.png", "300x31", "at least 32")


def test_smaller_than_the_model_is_noted(tmp_path):
    noise(9, (40, 32)).save(tmp_path / "small.png")
    assert single(tmp_path / "small.png")[1] == [
        "small.png: 40x32 pixels, enlarged to the model's 64; a larger image gives more detail"
    ]


def test_strip_is_refused(folder):
    noise(9, (330, 80)).save(folder / "strip.png")
    refusal(folder, "strip.png", "a strip", "Crop it")


def test_blank_is_refused(folder):
    Image.new("RGB", (80, 80), "red").save(folder / "blank.png")
    Image.new("RGBA", (80, 80), (1, 2, 3, 0)).save(folder / "clear.png")
    refusal(folder, "blank.png: shows nothing", "clear.png: shows nothing", "Take it out")


def test_same_file_twice(folder):
    (folder / "copy.png").write_bytes((folder / "good2.png").read_bytes())
    subject = load(folder)
    assert len(subject.images) == 3
    assert subject.notes == ["good2.png: left out, the same file as copy.png"]


def test_link_to_an_image_is_the_same_file(folder):
    (folder / "z-link.png").symlink_to(folder / "good0.png")
    assert load(folder).notes == ["z-link.png: left out, the same file as good0.png"]


def test_same_picture_saved_again(folder):
    noise(0).save(folder / "small.jpg", quality=60)
    noise(1).resize((160, 128)).save(folder / "x-large.webp", quality=80)
    assert load(folder).notes == [
        "small.jpg: left out, nearly the same picture as good0.png",
        "x-large.webp: left out, nearly the same picture as good1.png",
    ]


def test_mirrored_and_moved_pictures_are_kept(folder):
    ImageOps.mirror(noise(0)).save(folder / "mirrored.png")
    noise(0).crop((6, 0, 80, 64)).save(folder / "moved.png")
    assert len(load(folder).images) == 5


def test_grey_scale(tmp_path):
    noise().convert("L").save(tmp_path / "grey.png")
    image, notes = single(tmp_path / "grey.png")
    assert image.image.mode == "RGB"
    assert len(notes) == 1
    assert "grey-scale" in notes[0]


@pytest.mark.parametrize("mode", ["RGBA", "LA", "P"])
def test_transparency_is_laid_on_white(tmp_path, mode):
    picture = noise().convert("RGBA")
    picture.paste((0, 0, 0, 0), (0, 0, 40, 64))
    if mode == "P":
        picture = picture.quantize(64)
    picture.convert(mode).save(tmp_path / "alpha.png")
    image, notes = single(tmp_path / "alpha.png")
    assert image.image.getpixel((5, 5)) == (255, 255, 255)
    assert "alpha.png: laid on white where it is transparent" in notes


def test_opaque_alpha_is_not_worth_a_note(tmp_path):
    noise().convert("RGBA").save(tmp_path / "opaque.png")
    image, notes = single(tmp_path / "opaque.png")
    assert notes == []
    assert image.image.tobytes() == noise().tobytes()


@pytest.mark.parametrize("orientation", range(2, 9))
def test_exif_orientation(tmp_path, orientation):
    """Every orientation of the EXIF standard: stored so that turning it gives the upright picture."""
    turns = {
        2: [Image.Transpose.FLIP_LEFT_RIGHT],
        3: [Image.Transpose.ROTATE_180],
        4: [Image.Transpose.FLIP_TOP_BOTTOM],
        5: [Image.Transpose.TRANSPOSE],
        6: [Image.Transpose.ROTATE_90],
        7: [Image.Transpose.TRANSVERSE],
        8: [Image.Transpose.ROTATE_270],
    }
    stored = noise()
    for turn in turns[orientation]:
        stored = stored.transpose(turn)
    exif = Image.Exif()
    exif[0x0112] = orientation
    stored.save(tmp_path / "turned.png", exif=exif)
    image, notes = single(tmp_path / "turned.png")
    assert notes == ["turned.png: turned upright as its EXIF data say"]
    assert image.image.tobytes() == noise().tobytes()


def test_cmyk(tmp_path):
    noise().convert("CMYK").save(tmp_path / "print.jpg", quality=95)
    image, notes = single(tmp_path / "print.jpg")
    assert notes == ["print.jpg: converted from CMYK without a profile; check its colours"]
    assert np.abs(np.asarray(image.image, dtype=float) - np.asarray(noise())).mean() < 6


def swapped_profile() -> bytes:
    """A colour profile in which red and green have changed places."""
    srgb = ImageCms.ImageCmsProfile(ImageCms.createProfile("sRGB")).tobytes()
    swapped = srgb.replace(b"rXYZ", b"____").replace(b"gXYZ", b"rXYZ").replace(b"____", b"gXYZ")
    return swapped.replace("sRGB".encode("utf-16-be"), "Test".encode("utf-16-be"))


def test_colour_profiles_are_followed(tmp_path):
    noise().save(tmp_path / "swapped.png", icc_profile=swapped_profile())
    image, notes = single(tmp_path / "swapped.png")
    assert notes == ["swapped.png: colours converted from Test built-in to sRGB"]
    red, green, blue = noise().split()
    expected = np.asarray(Image.merge("RGB", (green, red, blue)), dtype=float)
    assert np.abs(np.asarray(image.image) - expected).max() <= 2


@pytest.mark.parametrize(
    "profile", [ImageCms.ImageCmsProfile(ImageCms.createProfile("sRGB")).tobytes(), b"damaged"]
)
def test_colour_profiles_that_say_nothing_new(tmp_path, profile):
    noise().save(tmp_path / "a.png", icc_profile=profile)
    image, notes = single(tmp_path / "a.png")
    assert notes == []
    assert image.image.tobytes() == noise().tobytes()


@pytest.mark.parametrize("suffix", ["png", "tif"])
def test_sixteen_bits_are_scaled_not_clipped(tmp_path, suffix):
    grey = np.asarray(noise(channels=1)).astype(np.uint16)
    Image.fromarray(grey * 257).save(tmp_path / f"deep.{suffix}")
    image, notes = single(tmp_path / f"deep.{suffix}")
    assert f"deep.{suffix}: reduced from 16 to 8 bits" in notes
    assert (np.asarray(image.image)[..., 0] == grey).all()


def test_floating_point_pixels_are_refused(tmp_path):
    Image.fromarray(np.random.default_rng(0).normal(size=(64, 64)).astype(np.float32)).save(
        tmp_path / "depth.tif"
    )
    refusal(tmp_path / "depth.tif", "depth.tif", "32-bit", "PNG or JPEG")


def test_one_image_only(tmp_path):
    noise().save(tmp_path / "only.png")
    assert any("one image only" in note for note in load(tmp_path).notes)


def test_too_many(folder):
    refusal(folder, str(folder), "3 images, more than the 2", "Choose", max_images=2)


def test_many_are_noted(tmp_path):
    notes = load([noise(i, (64, 64)) for i in range(31)]).notes
    assert any(note.startswith("31 images: 3 to 10") for note in notes)


def test_no_images(tmp_path):
    (tmp_path / "notes.md").write_text("# Foxes")
    (tmp_path / "inner").mkdir()
    refusal(tmp_path, str(tmp_path), "no images", "Put 3 to 10")
    refusal([], "no images", "Put 3 to 10")


def test_other_files_are_ignored_with_a_note(folder):
    (folder / ".hidden.png").write_text("x")
    (folder / "notes.md").write_text("# Foxes")
    (folder / "raw").mkdir()
    subject = load(folder)
    assert len(subject.images) == 3
    assert subject.notes == [
        ".hidden.png: ignored",
        "notes.md: ignored",
        "raw: a folder, not read",
    ]


def test_a_file_that_is_named_must_be_an_image(tmp_path):
    (tmp_path / "notes.md").write_text("# Foxes")
    refusal(tmp_path / "notes.md", "notes.md", "not an image")


def test_nothing_there(tmp_path):
    refusal(tmp_path / "nowhere", "nowhere", "no such file or folder", "Check the path")
    (tmp_path / "broken.png").symlink_to(tmp_path / "gone.png")
    refusal(tmp_path, "broken.png", "leads nowhere")


@pytest.mark.skipif(not hasattr(os, "mkfifo"), reason="this system has no named pipes")
def test_a_pipe_does_not_block(tmp_path):
    os.mkfifo(tmp_path / "pipe.png")
    refusal(tmp_path, "pipe.png", "Check the path")


def test_unreadable(folder, monkeypatch):
    def denied(path):
        raise PermissionError(13, "Permission denied")

    monkeypatch.setattr(Path, "read_bytes", denied)
    refusal(folder / "good0.png", "good0.png", "Permission denied", "permissions")


@pytest.mark.parametrize("method", ["iterdir", "is_dir"])
def test_a_folder_out_of_reach(folder, monkeypatch, method):
    def denied(path):
        raise PermissionError(13, "Permission denied")

    monkeypatch.setattr(Path, method, denied)
    refusal(folder, str(folder), "Permission denied", "permissions")


def png_header(width: int, height: int) -> bytes:
    """A PNG that promises width x height pixels and holds none."""

    def chunk(kind: bytes, data: bytes) -> bytes:
        return struct.pack(">I", len(data)) + kind + data + struct.pack(">I", zlib.crc32(kind + data))

    header = struct.pack(">IIBBBBB", width, height, 8, 2, 0, 0, 0)
    return (
        b"\x89PNG\r\n\x1a\n"
        + chunk(b"IHDR", header)
        + chunk(b"IDAT", zlib.compress(b""))
        + chunk(b"IEND", b"")
    )


@pytest.mark.parametrize("side", [9_500, 12_000, 60_000])
@pytest.mark.filterwarnings("error")
def test_too_many_pixels_are_refused_before_they_are_decoded(tmp_path, side):
    (tmp_path / "bomb.png").write_bytes(png_header(side, side))
    refusal(tmp_path, "bomb.png", "pixels, more than", "Scale it down")


def test_too_many_bytes_are_refused_before_they_are_read(folder, monkeypatch):
    monkeypatch.setattr(decoding, "MAX_BYTES", 100)
    monkeypatch.setattr(Path, "read_bytes", lambda path: pytest.fail("read"))
    refusal(folder / "good0.png", "good0.png", "MiB", "Save it smaller")


def test_memory_is_bounded(tmp_path):
    noise(0, (3000, 2000)).save(tmp_path / "large.jpg")
    assert single(tmp_path / "large.jpg")[0].image.size == (192, 128)


def test_masks_beside_the_images(folder):
    mask = Image.new("L", (80, 64))
    mask.paste(255, (10, 10, 30, 40))
    for name in ("good0.mask.png", "good1-mask.png"):
        mask.save(folder / name)
    subject = load(folder)
    assert [image.mask and image.mask.tobytes() for image in subject.images] == [mask.tobytes()] * 2 + [None]
    assert subject.notes == ["good0.png: mask good0.mask.png used", "good1.png: mask good1-mask.png used"]


def test_masks_that_are_named_with_their_images_are_masks(folder):
    """As a shell writes them out for `photos/*`."""
    mask = Image.new("L", (80, 64))
    mask.paste(255, (10, 10, 30, 40))
    mask.save(folder / "good0.mask.png")
    noise(7).save(folder / "other-mask.png")
    subject = load(sorted(folder.iterdir()))
    assert [image.name for image in subject.images] == [
        "good0.png", "good1.png", "good2.png", "other-mask.png",
    ]  # fmt: skip
    assert subject.images[0].mask is not None


def test_masks_in_a_folder(folder, tmp_path_factory):
    masks = tmp_path_factory.mktemp("masks")
    mask = Image.new("1", (80, 64))
    mask.paste(1, (10, 10, 30, 40))
    mask.save(masks / "good1.png")
    subject = load(folder, masks=masks)
    assert [image.mask is not None for image in subject.images] == [False, True, False]
    refusal(folder, "nowhere", "no such folder", masks=masks / "nowhere")
    (masks / "good1.png").rename(masks / "other.png")
    refusal(folder, str(masks), "no mask of any image", "good0.png", masks=masks)


def test_a_picture_of_a_mask_is_a_picture(tmp_path):
    noise(0).save(tmp_path / "venice-mask.png")
    assert [image.name for image in load(tmp_path, "mask").images] == ["venice-mask.png"]


def test_mask_of_another_size(folder):
    Image.new("L", (64, 80), 255).save(folder / "good0.mask.png")
    refusal(folder, "good0.mask.png", "64x80", "80x64", "image's size")


def test_empty_mask(folder):
    Image.new("L", (80, 64), 100).save(folder / "good0.mask.png")
    refusal(folder, "good0.mask.png", "empty mask", "white")


def test_a_mask_that_vanishes_at_the_size_of_the_model(tmp_path):
    noise(0, (1600, 1280)).save(tmp_path / "a.png")
    mask = Image.new("L", (1600, 1280))
    mask.paste(255, (800, 600, 802, 602))
    mask.save(tmp_path / "a.mask.png")
    refusal(tmp_path, "a.mask.png", "empty mask", "white")


def test_masks_shrink_with_their_images(tmp_path):
    noise(0, (400, 320)).save(tmp_path / "a.png")
    mask = Image.new("L", (400, 320))
    mask.paste(255, (0, 0, 200, 320))
    mask.save(tmp_path / "a.mask.png")
    image = load(tmp_path).images[0]
    assert image.mask.size == image.image.size == (160, 128)
    assert np.asarray(image.mask).mean() == pytest.approx(127.5, abs=1)


def test_a_file_of_another_format_than_its_name_says_is_read_with_a_note(tmp_path):
    noise().convert("RGB").save(tmp_path / "a.png", format="JPEG")
    noise(1).save(tmp_path / "b.JPG", format="PNG")
    noise(2).convert("RGB").save(tmp_path / "c.jpe", format="JPEG")
    subject = load(tmp_path)
    assert [image.name for image in subject.images] == ["a.png", "b.JPG", "c.jpe"]
    assert subject.notes == [
        "a.png: named like PNG, and is JPEG; read as that",
        "b.JPG: named like JPEG, and is PNG; read as that",
    ]


def test_captions_in_files(folder):
    (folder / "good0.txt").write_text("a photo of [V] fox\n on snow\n")
    (folder / "good1.txt").write_text("a Fox on grass")
    subject = load(folder, captions="sidecar")
    captions = [image.caption for image in subject.images]
    assert captions == ["a photo of [V] fox on snow", "a [V] fox on grass", None]
    assert subject.notes == [
        "good1.png: caption read as 'a [V] fox on grass'",
        "good2.png: has no good2.txt: captioned by the recipe",
    ]


def test_captions_may_say_the_subjects_name(folder):
    (folder / "good0.txt").write_text("[rex] fox beside [vix] fox")
    (folder / "good1.txt").write_text("a fox beside [vix] fox")
    captions = [image.caption for image in load(folder, captions="sidecar", name="rex").images]
    assert captions[:2] == ["[rex] fox beside [vix] fox", "a [V] fox beside [vix] fox"]


def test_captions_that_were_not_asked_for_are_mentioned(folder):
    (folder / "good0.txt").write_text("a photo of [V] fox")
    assert load(folder).notes == ["good0.txt: ignored"]


@pytest.mark.parametrize(
    ("text", "reason"),
    [
        (b"on the moon", "names neither [V]"),
        (b" \n", "1 to 1000"),
        (b"fox " * 300, "1 to 1000"),
        (b"", "an empty file"),
        (b"\xff\xfe\xff", "UTF-8"),
    ],
)
def test_bad_captions(folder, text, reason):
    (folder / "good0.txt").write_bytes(text)
    refusal(folder / "good0.png", "good0.txt", reason, captions="sidecar")


@pytest.mark.parametrize(
    ("name", "caption"),
    [
        ("a fox on grass.png", "a [V] fox on grass"),
        ("a_fox_on_grass_02.png", "a [V] fox on grass"),
        ("[V] fox (3).png", "[V] fox"),
        ("a fox-12 (1).png", "a [V] fox"),
    ],
)
def test_captions_in_names(tmp_path, name, caption):
    noise().save(tmp_path / name)
    assert load(tmp_path, captions="filename").images[0].caption == caption


def test_a_wrong_source_of_captions(folder):
    refusal(folder, "captions", "sidecar", captions="txt")


@pytest.mark.parametrize(
    ("text", "noun"),
    [("fox", "fox"), (" Coffee  Mug ", "coffee mug"), ("t-shirt", "t-shirt"), ("Café", "café")],
)
def test_class_noun(text, noun):
    assert check_class_noun(text) == (noun, [])


@pytest.mark.parametrize(
    ("text", "noun"), [("a fox", "fox"), ("The red panda", "red panda"), ("an owl", "owl")]
)
def test_class_noun_without_its_article(text, noun):
    found, notes = check_class_noun(text)
    assert found == noun
    assert len(notes) == 1


@pytest.mark.parametrize("text", ["", "  ", "[V] fox", "fox, dog", "a photo of my old fox", "fox\0", "-"])
def test_what_is_no_class_noun(text):
    with pytest.raises(StudioloError, match="not a class noun") as caught:
        check_class_noun(text)
    assert "what the subject is" in caught.value.remedy

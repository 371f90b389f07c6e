"""Pictures and where they come from: the record in the file, and the same bytes again."""

from __future__ import annotations

import io
import json
import struct
import zlib

import numpy as np
import pytest
import torch
from PIL import Image, PngImagePlugin

from studiolo.drawing.gallery import Gallery
from studiolo.drawing.model import ImageModel, Picture
from studiolo.drawing.provenance import read_provenance
from studiolo.drawing.reproduction import reproduce
from studiolo.errors import StudioloError
from studiolo.formats.diffusers_folder import save_components
from studiolo.models.registry import register
from tiny import tiny_components, tiny_folder

CARD = {
    "name": "my-fox",
    "class_noun": "fox",
    "identifier": "zwx",
    "base": {"name": "studiolo-base", "fingerprint": "ab" * 32},
    "data": {"images": [{"file": "1.png", "sha256": "cd" * 32}]},
}


@pytest.fixture
def subject(tmp_path, monkeypatch):
    """A registered tiny model that claims to have learned a fox."""
    monkeypatch.setenv("STUDIOLO_HOME", str(tmp_path / "home"))
    folder = tiny_folder(tmp_path)
    (folder / "studiolo.json").write_text(json.dumps(CARD))
    register(folder, "my-fox")
    return ImageModel.load("my-fox")


def draw(model, prompt="a photo of [V] fox", n=3, **settings) -> list[Picture]:
    return model.generate(prompt, n=n, seed=7, steps=3, batch_size=2, **settings)


def test_a_file_says_how_it_was_made(subject, tmp_path):
    picture = draw(subject, negative_prompt="snow", guidance_scale=4.0)[1]
    record = read_provenance(picture.save(tmp_path / "fox.png"))
    assert record == picture.record
    assert record.request.model_dump() == {
        "prompt": "a photo of zwx fox",
        "negative_prompt": "snow",
        "seed": 8,
    }
    assert record.settings == {"sampler": "ddim", "steps": 3, "guidance_scale": 4.0, "eta": 0.0}
    assert (record.width, record.height, record.index, len(record.batch)) == (32, 32, 1, 2)
    assert record.model.fingerprint == subject.components.fingerprint()
    assert record.model.base == CARD["base"]
    assert record.model.data == ["cd" * 32]
    assert record.machine.torch == torch.__version__
    assert picture.provenance == json.loads(json.dumps(picture.provenance))


def test_other_tools_can_read_the_settings(subject, tmp_path):
    picture = draw(subject, negative_prompt="snow")[0]
    with Image.open(picture.save(tmp_path / "fox.png")) as image:
        prompt, negative, facts = image.text["parameters"].split("\n")
    assert (prompt, negative) == ("a photo of zwx fox", "Negative prompt: snow")
    assert facts.startswith("Steps: 3, Sampler: ddim, CFG scale: 5.0, Seed: 7, Size: 32x32, Model hash: ")


def test_a_compiled_model_draws_the_same(subject, monkeypatch):
    # All but the last step of compiling, machine code, which takes a minute.
    real = torch.nn.Module.compile
    monkeypatch.setattr(torch.nn.Module, "compile", lambda block: real(block, backend="aot_eager"))
    compiled = ImageModel.load("my-fox", compiled=True)
    assert any(block._compiled_call_impl for block in compiled.components.denoiser.modules())
    for one, other in zip(draw(subject), draw(compiled), strict=True):
        assert np.abs(np.asarray(one.image, int) - np.asarray(other.image, int)).max() <= 1
        assert one.record.model == other.record.model


def test_compiling_needs_a_compiler(subject, monkeypatch):
    from torch._inductor import cpp_builder, exc

    def missing():
        raise exc.InvalidCxxCompiler

    monkeypatch.setattr(cpp_builder, "get_cpp_compiler", missing)
    with pytest.raises(StudioloError, match=r"there is no C\+\+ compiler"):
        ImageModel.load("my-fox", compiled=True)


def test_another_format_is_refused(subject, tmp_path):
    with pytest.raises(StudioloError, match=r"fox\.jpg: pictures are PNG files"):
        draw(subject, n=1)[0].save(tmp_path / "fox.jpg")
    assert not (tmp_path / "fox.jpg").exists()


def test_the_file_tells_nothing_of_its_maker(subject, tmp_path):
    data = draw(subject)[0].png()
    assert str(tmp_path).encode() not in data


@pytest.mark.parametrize("sampler", ["ddim", "euler_a", "unipc"])
def test_reproducing_makes_the_same_bytes(subject, tmp_path, sampler):
    prompts = ["a photo of [V] fox", "déjà vu ♥"]
    for i, picture in enumerate(draw(subject, prompts, sampler=sampler)):
        file = picture.save(tmp_path / f"{i}.png")
        again = reproduce(file)
        assert again.identical
        assert again.picture.png() == file.read_bytes()
        assert (again.difference, again.changes) == (0, [])


def test_reproducing_uses_the_recorded_threads_and_gives_them_back(subject, tmp_path, monkeypatch):
    pictures, before, used = draw(subject, n=2), torch.get_num_threads(), []
    record = pictures[0].record
    machine = record.machine.model_copy(update={"threads": before + 1})
    file = Picture(pictures[0].image, record.model_copy(update={"machine": machine})).save(tmp_path / "a.png")
    # Only the number is looked at here: idle threads on a busy machine would make drawing itself slow.
    monkeypatch.setattr(ImageModel, "draw", lambda *a, **k: used.append(torch.get_num_threads()) or pictures)
    reproduce(file)
    assert used == [before + 1]
    assert torch.get_num_threads() == before


def test_a_changed_picture_differs(subject, tmp_path):
    picture = draw(subject)[0]
    pixels = np.array(picture.image)
    pixels[3, 4, 1] ^= 0x10
    result = reproduce(Picture(Image.fromarray(pixels), picture.record).save(tmp_path / "edited.png"))
    assert not result.identical
    assert result.difference == 16


def test_another_library_is_told(subject, tmp_path):
    picture = draw(subject)[0]
    machine = picture.record.machine.model_copy(update={"torch": "1.0"})
    older = Picture(picture.image, picture.record.model_copy(update={"machine": machine}))
    result = reproduce(older.save(tmp_path / "older.png"))
    assert not result.identical
    assert result.difference == 0
    assert result.changes == [f"torch: 1.0, now {torch.__version__}"]


@pytest.mark.skipif(torch.cuda.is_available(), reason="there is a GPU")
def test_a_picture_from_a_gpu_is_drawn_on_what_there_is(subject, tmp_path):
    picture = draw(subject)[0]
    machine = picture.record.machine.model_copy(update={"device": "cuda", "processor": "H100"})
    there = Picture(picture.image, picture.record.model_copy(update={"machine": machine}))
    result = reproduce(there.save(tmp_path / "there.png"))
    assert (result.identical, result.difference) == (False, 0)
    assert result.changes[0] == "device: cuda, now cpu"


def test_other_weights_under_the_name_are_refused(subject, tmp_path):
    file = draw(subject)[0].save(tmp_path / "fox.png")
    elsewhere = tmp_path / "elsewhere"
    subject.ref.path.rename(elsewhere)
    with pytest.raises(StudioloError, match="gone"):
        reproduce(file)
    save_components(tiny_components(seed=1), subject.ref.path)
    with pytest.raises(StudioloError, match="other weights now"):
        reproduce(file)
    assert reproduce(file, model=str(elsewhere)).identical


def test_a_file_alone_opens_no_folder_and_no_hub(subject, tmp_path):
    picture = draw(subject)[0]
    for name in (str(subject.ref.path), "someone/something"):
        trace = picture.record.model.model_copy(update={"name": name})
        file = Picture(picture.image, picture.record.model_copy(update={"model": trace})).save(
            tmp_path / "x.png"
        )
        with pytest.raises(StudioloError, match="not registered here"):
            reproduce(file)


def png_with(text: str | None, key: str = "studiolo", compressed: bool = False) -> bytes:
    chunks = PngImagePlugin.PngInfo()
    if text is not None:
        chunks.add_text(key, text, zip=compressed)
    buffer = io.BytesIO()
    Image.new("RGB", (4, 4)).save(buffer, format="PNG", pnginfo=chunks)
    return buffer.getvalue()


def valid_record(subject, **changes) -> str:
    return json.dumps(draw(subject, n=1)[0].provenance | changes)


@pytest.mark.parametrize(
    ("data", "message"),
    [
        (b"", "not a readable PNG"),
        (b"GIF89a" + bytes(100), "not a readable PNG"),
        (png_with("{}")[:40], "."),
        (png_with(None), "does not say how"),
        (png_with("{}", key="other"), "does not say how"),
        (png_with("not json"), "damaged record"),
        (png_with("[]"), "damaged record"),
        (png_with("{}"), "made: settings: Field required"),
        (png_with("[" * 100_000), "damaged record"),
        (png_with("9" * 100_000), "damaged record"),
        (png_with("x" * (2 << 20)), "."),
        (png_with("x" * (100 << 20), compressed=True), "."),
    ],
    ids=range(12),
)
def test_bad_files_are_refused_cleanly(tmp_path, data, message):
    file = tmp_path / "bad.png"
    file.write_bytes(data)
    with pytest.raises(StudioloError, match=message):
        read_provenance(file)


def test_a_picture_of_a_billion_pixels_is_refused(tmp_path):
    def chunk(kind: bytes, body: bytes) -> bytes:
        return struct.pack(">I", len(body)) + kind + body + struct.pack(">I", zlib.crc32(kind + body))

    header = struct.pack(">IIBBBBB", 1 << 16, 1 << 16, 8, 2, 0, 0, 0)
    file = tmp_path / "bomb.png"
    file.write_bytes(
        b"\x89PNG\r\n\x1a\n" + chunk(b"IHDR", header) + chunk(b"IDAT", b"") + chunk(b"IEND", b"")
    )
    with pytest.raises(StudioloError, match="not a readable PNG"):
        read_provenance(file)


@pytest.mark.parametrize(
    "changes",
    [
        {"index": 1},
        {"index": -1},
        {"batch": []},
        {"batch": [{"prompt": "x", "seed": 2**32}]},
        {"batch": [{"prompt": "x" * 2001}]},
        {"batch": [{"prompt": "x"}] * 129},
        {"width": 1 << 20},
        {"width": 1.5},
    ],
    ids=str,
)
def test_records_out_of_bounds_are_refused(subject, tmp_path, changes):
    file = tmp_path / "bad.png"
    file.write_bytes(png_with(valid_record(subject, **changes)))
    with pytest.raises(StudioloError, match="damaged record"):
        read_provenance(file)


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"sampler": "zzz"}, "no sampler"),
        ({"steps": 10**9}, "noise levels"),
        ({"unknown": 1}, "does not know"),
    ],
)
def test_settings_that_are_none_are_refused(subject, tmp_path, settings, message):
    file = tmp_path / "bad.png"
    file.write_bytes(png_with(valid_record(subject, settings=settings)))
    with pytest.raises(StudioloError, match=message):
        reproduce(file)


def test_seeds_are_counted_up_for_each_prompt(subject):
    pictures = draw(subject, ["a fox", "a dog"], n=2)
    assert [(p.record.request.prompt, p.record.request.seed) for p in pictures] == [
        ("a fox", 7),
        ("a fox", 8),
        ("a dog", 7),
        ("a dog", 8),
    ]


def test_a_prompt_too_long_is_told(subject):
    with pytest.warns(UserWarning, match="prompts end after 24 tokens: 'moon snow' was not read"):
        subject.generate("dog " * 22 + "moon snow", steps=1)


def test_a_model_without_subject_does_not_know_the_placeholder(tmp_path):
    model = ImageModel.load(tiny_folder(tmp_path))
    with pytest.raises(StudioloError, match="learned no subject"):
        model.generate("a [V] fox")


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"seed": -1}, "seed"),
        ({"seed": 2**32}, "seed"),
        ({"prompt": "x" * 3000}, "prompt"),
        ({"batch_size": 0}, "batch_size"),
        ({"batch_size": 1000}, "Use 1 to 128"),
        ({"width": 33}, "width 33"),
    ],
)
def test_wrong_arguments_name_themselves(subject, arguments, message):
    with pytest.raises(StudioloError, match=message):
        subject.generate(**({"prompt": "a fox", "steps": 1} | arguments))


def test_no_such_device_or_dtype(subject):
    with pytest.raises(StudioloError, match="no device 'abacus'"):
        ImageModel.load("my-fox", device="abacus")
    with pytest.raises(StudioloError, match="float32, float16, bfloat16"):
        ImageModel.load("my-fox", dtype="float8")


def test_half_precision_draws_nearly_the_same(subject):
    half = ImageModel.load("my-fox", dtype="bfloat16")
    assert half.fingerprint == subject.fingerprint
    first, second = (np.asarray(draw(model, n=1)[0].image, dtype=int) for model in (subject, half))
    assert np.abs(first - second).mean() < 8


def test_a_gallery_numbers_on_and_overwrites_nothing(subject, tmp_path):
    pictures = draw(subject)
    names = []
    for _ in range(2):
        gallery = Gallery(tmp_path / "out")
        names += [gallery.add(picture).name for picture in pictures]
        names.append(gallery.add_sheet(pictures).name)
    assert names == [
        *("000-seed7.png", "001-seed8.png", "002-seed9.png", "000-002-sheet.png"),
        *("003-seed7.png", "004-seed8.png", "005-seed9.png", "003-005-sheet.png"),
    ]
    assert sorted(names) == sorted(file.name for file in (tmp_path / "out").iterdir())

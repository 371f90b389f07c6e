"""Pictures that begin from others, by the official client, from a tiny model."""

from __future__ import annotations

import base64
import io
import json
import struct
import zlib
from hashlib import sha256

import httpx
import numpy as np
import openai
import pytest
from openai.types import ImageEditCompletedEvent, ImageEditPartialImageEvent, ImagesResponse
from openai.types.image_edit_params import ImageEditParamsBase
from PIL import Image
from serving import serving, waited
from talking import QUICK, client_of, png

from studiolo.drawing.model import ImageModel
from studiolo.drawing.provenance import read_provenance
from studiolo.drawing.reproduction import reproduce
from studiolo.server.keys import KeyStore
from studiolo.server.openai.image_edits_wire import EditRequest
from studiolo.server.openai.wire import standings

pytestmark = pytest.mark.usefixtures("foxes")


def file_of(image: Image.Image, kind: str = "PNG") -> bytes:
    file = io.BytesIO()
    image.save(file, kind)
    return file.getvalue()


def noise(width: int = 32, height: int = 32) -> Image.Image:
    pixels = np.random.default_rng(3).integers(0, 256, (height, width, 3), dtype=np.uint8)
    return Image.fromarray(pixels)


def clear_left(image: Image.Image) -> Image.Image:
    """The same, its left half transparent."""
    image = image.convert("RGBA")
    image.paste((0, 0, 0, 0), (0, 0, image.width // 2, image.height))
    return image


PHOTO = file_of(noise())
MASK = file_of(clear_left(Image.new("RGB", (32, 32), "red")))


def pixels(data: bytes) -> np.ndarray:
    with Image.open(io.BytesIO(data)) as image:
        return np.array(image.convert("RGB")).astype(int)


def url_of(data: bytes) -> str:
    return f"data:image/png;base64,{base64.b64encode(data).decode()}"


def test_only_what_the_mask_has_transparent_is_painted(client, tmp_path):
    answer = client.images.edit(
        model="tiny", image=("p.png", PHOTO), mask=("m.png", MASK), prompt="a fox", extra_body=QUICK
    )
    ImagesResponse.model_validate(answer.model_dump(), strict=True)
    data = png(answer.data[0])
    drawn, given = pixels(data), pixels(PHOTO)
    assert (drawn[:, 16:] == given[:, 16:]).all()
    assert (drawn[:, :16] != given[:, :16]).any(-1).mean() > 0.9
    traced = read_provenance(io.BytesIO(data)).given
    assert (traced.image, traced.mask) == (sha256(PHOTO).hexdigest(), sha256(MASK).hexdigest())
    assert (traced.strength, traced.alpha, traced.keep) == (1.0, True, True)
    (tmp_path / "drawn.png").write_bytes(data)
    assert reproduce(tmp_path / "drawn.png", init=PHOTO, mask=MASK).identical


def test_the_same_pixels_as_in_python(client):
    asked = {"model": "tiny", "image": PHOTO, "prompt": "a fox", "extra_body": {"strength": 0.5, **QUICK}}
    (image,) = client.images.edit(**asked).data
    (alone,) = ImageModel.load("tiny").generate("a fox", seed=7, steps=2, init=PHOTO, strength=0.5)
    assert (pixels(png(image)) == pixels(alone.png())).all()


def test_a_picture_with_transparency_is_its_own_mask(client):
    asked = {"model": "tiny", "prompt": "a fox", "extra_body": QUICK}
    photo = clear_left(noise())
    (own,) = client.images.edit(image=file_of(photo), **asked).data
    (two,) = client.images.edit(image=file_of(photo), mask=MASK, **asked).data
    assert (pixels(png(own)) == pixels(png(two))).all()
    assert (pixels(png(own))[:, 16:] == pixels(PHOTO)[:, 16:]).all()


def test_pixels_outside_the_mask_are_drawn_again_if_they_need_not_be_kept(client):
    (image,) = client.images.edit(
        model="tiny", image=PHOTO, mask=MASK, prompt="a fox", extra_body={"keep": False, **QUICK}
    ).data
    assert (pixels(png(image))[:, 16:] != pixels(PHOTO)[:, 16:]).any()
    assert read_provenance(io.BytesIO(png(image))).given.keep is False


def test_a_subject_and_several_pictures_and_sizes(client):
    large = file_of(noise(96, 48), "WEBP")
    answer = client.images.edit(
        model="my-fox", image=[large], prompt="a photo of [V] fox", n=2, size="48x32", quality="low",
        response_format="b64_json", output_format="png", background="auto", input_fidelity="high",
        extra_body={"seed": 7, "negative_prompt": "", "guidance_scale": 2.5, "sampler": "euler"},
    )  # fmt: skip
    records = [read_provenance(io.BytesIO(png(image))) for image in answer.data]
    assert [(one.request.prompt, one.request.seed) for one in records] == [
        ("a photo of zwx fox", 7), ("a photo of zwx fox", 8),
    ]  # fmt: skip
    assert (records[0].width, records[0].height, answer.size) == (48, 32, "48x32")
    assert (records[0].settings["steps"], records[0].settings["sampler"]) == (15, "euler")
    assert records[0].given.strength == 0.4


def test_without_a_size_as_large_as_suits_the_model_in_the_same_proportions(client):
    for given, size in (((48, 32), "48x32"), ((45, 31), "44x32"), ((400, 200), "44x24")):
        answer = client.images.edit(
            model="tiny", image=file_of(noise(*given), "JPEG"), prompt="a fox", extra_body=QUICK
        )
        assert answer.size == size


def test_sketches_in_events(client):
    asked = {"model": "tiny", "image": PHOTO, "mask": MASK, "prompt": "a fox"}
    extra = {"steps": 6, "seed": 7}
    with client.images.edit(stream=True, partial_images=2, extra_body=extra, **asked) as stream:
        events = list(stream)
    for event in events[:2]:
        ImageEditPartialImageEvent.model_validate(event.model_dump(), strict=True)
    ImageEditCompletedEvent.model_validate(events[2].model_dump(), strict=True)
    assert len(events) == 3
    (alone,) = client.images.edit(extra_body=extra, **asked).data
    assert png(events[2]) == png(alone)


def test_by_url(client):
    (image,) = client.images.edit(
        model="tiny", image=PHOTO, prompt="a fox", response_format="url", extra_body=QUICK
    ).data
    assert read_provenance(io.BytesIO(httpx.get(image.url).content)).given.image == sha256(PHOTO).hexdigest()


def test_json_names_pictures_by_urls_of_data_and_by_files(client, served):
    file = client.files.create(file=("p.png", PHOTO), purpose="vision")
    asked = {"model": "tiny", "prompt": "a fox", **QUICK}
    mask = {"image_url": url_of(MASK)}
    by_file, by_url = (
        httpx.post(f"{served.url}/v1/images/edits", json=asked | {"images": [image], "mask": mask}).json()
        for image in ({"file_id": file.id}, {"image_url": url_of(PHOTO)})
    )
    (in_form,) = client.images.edit(
        model="tiny", image=PHOTO, mask=MASK, prompt="a fox", extra_body=QUICK
    ).data
    assert by_file["data"][0]["b64_json"] == by_url["data"][0]["b64_json"] == in_form.b64_json


def test_files_of_others_are_not_to_be_had(studiolo_home):
    with serving(studiolo_home, {}, host="0.0.0.0", jobs=True) as served:
        store = KeyStore(served.studio.database)
        ada, bob = (client_of(served.url, api_key=store.create(name)[0]) for name in ("ada", "bob"))
        file = ada.files.create(file=("p.png", PHOTO), purpose="vision")
        asked = {"model": "tiny", "prompt": "a fox", "images": [{"file_id": file.id}], **QUICK}
        assert ada.post("/images/edits", body=asked, cast_to=ImagesResponse).data
        with pytest.raises(openai.NotFoundError):
            bob.post("/images/edits", body=asked, cast_to=ImagesResponse)


def test_variations(client):
    answer = client.images.create_variation(
        model="my-fox", image=PHOTO, n=2, size="256x256", extra_body={"size": "32x32", **QUICK}
    )
    records = [read_provenance(io.BytesIO(png(image))) for image in answer.data]
    assert [(one.request.prompt, one.request.seed) for one in records] == [
        ("a photo of zwx fox", 7), ("a photo of zwx fox", 8),
    ]  # fmt: skip
    assert (records[0].given.image, records[0].given.strength) == (sha256(PHOTO).hexdigest(), 0.6)
    (image,) = client.images.create_variation(model="tiny", image=PHOTO, extra_body=QUICK).data
    assert read_provenance(io.BytesIO(png(image))).request.prompt == ""


def test_variations_near_and_far(client):
    def distance(strength: float) -> float:
        (image,) = client.images.create_variation(
            model="tiny", image=PHOTO, extra_body={"steps": 10, "seed": 7, "strength": strength}
        ).data
        return float(np.abs(pixels(png(image)) - pixels(PHOTO)).mean())

    (again,) = ImageModel.load("tiny").generate("", seed=7, steps=10, init=PHOTO, strength=0.3)
    assert distance(0.3) == float(np.abs(pixels(again.png()) - pixels(PHOTO)).mean())


def huge(side: int) -> bytes:
    """A PNG file that claims to be a square of that many pixels."""

    def chunk(kind: bytes, data: bytes) -> bytes:
        return struct.pack(">I", len(data)) + kind + data + struct.pack(">I", zlib.crc32(kind + data))

    head = chunk(b"IHDR", struct.pack(">IIBBBBB", side, side, 8, 2, 0, 0, 0))
    return b"\x89PNG\r\n\x1a\n" + head + chunk(b"IDAT", zlib.compress(bytes(1000))) + chunk(b"IEND", b"")


SVG = b'<svg xmlns="http://www.w3.org/2000/svg" width="32" height="32"/>'
WRONG = [
    ({"image": SVG}, "image", "not a picture"),
    ({"image": b""}, "image", "not a picture"),
    ({"image": PHOTO[:200]}, "image", "not a picture"),
    ({"image": huge(9_000)}, "image", "pixels"),
    ({"image": huge(100_000)}, "image", "pixels"),
    ({"image": file_of(noise(4, 400))}, "image", "narrow"),
    ({"image": [PHOTO, PHOTO]}, "image", "one at a time"),
    ({"mask": SVG}, "mask", "not a picture"),
    ({"mask": PHOTO}, "mask", "no transparency"),
    ({"mask": file_of(clear_left(noise(32, 16)))}, "mask", "32x16"),
    ({"mask": file_of(noise().convert("RGBA"))}, "mask", "no transparency"),
    ({"prompt": ""}, "prompt", "at least 1"),
    ({"prompt": "[V]"}, "prompt", "no subject"),
    ({"n": 11}, "n", ""),
    ({"size": "33x32"}, "size", ""),
    ({"size": "1024x1024"}, "size", ""),
    ({"background": "transparent"}, "background", ""),
    ({"output_format": "webp"}, "output_format", ""),
    ({"partial_images": 2}, "partial_images", "stream"),
    ({"model": "stub"}, "model", "cannot draw"),
    ({"markup": PHOTO}, "markup", ""),
    ({"svg": {"model": "x"}}, "svg", ""),
    ({"extra_body": {"strength": 0}}, "strength", ""),
    ({"extra_body": {"strength": "much"}}, "strength", ""),
    ({"extra_body": {"colour": "red"}}, "colour", "unknown"),
]


def test_what_is_wrong_is_named(client):
    for wrong, param, told_of in WRONG:
        asked = {"model": "tiny", "image": PHOTO, "prompt": "a fox", "extra_body": {"steps": 1}} | wrong
        with pytest.raises(openai.BadRequestError, match=told_of) as told:
            client.images.edit(**asked)
        assert told.value.param == param, (wrong.keys(), told.value)


def test_what_is_wrong_in_json_is_named(client):
    good = {"image_url": url_of(PHOTO)}
    for wrong, param in (
        ({"images": []}, "images"),
        ({"images": [good, good]}, "images"),
        ({"images": [{}]}, "images[0]"),
        ({"images": [good | {"file_id": "file-1"}]}, "images[0]"),
        ({"images": [{"image_url": "https://example.org/fox.png"}]}, "images[0].image_url"),
        ({"images": [{"image_url": "data:image/png;base64,?"}]}, "images[0].image_url"),
        ({"mask": {"image_url": "file:///etc/passwd"}}, "mask.image_url"),
        ({"n": "1"}, "n"),
    ):
        asked = {"model": "tiny", "prompt": "a fox", "images": [good], "steps": 1} | wrong
        with pytest.raises(openai.BadRequestError) as told:
            client.post("/images/edits", body=asked, cast_to=ImagesResponse)
        assert told.value.param == param, (wrong, told.value)


def test_a_body_that_is_too_large_is_not_read(studiolo_home):
    with serving(studiolo_home, {}, jobs=True, largest_body=100_000) as served:
        client = client_of(served.url)
        with pytest.raises(openai.APIStatusError) as told:
            client.images.edit(model="tiny", image=bytes(200_000), prompt="a fox")
        assert told.value.status_code == 413
        file = client.files.create(file=("p.png", bytes(200_000)), purpose="vision")
        asked = {"model": "tiny", "prompt": "a fox", "images": [{"file_id": file.id}]}
        with pytest.raises(openai.APIStatusError) as told:
            client.post("/images/edits", body=asked, cast_to=ImagesResponse)
        assert (told.value.status_code, told.value.param) == (413, "images[0].file_id")


def test_models_that_are_not_there(client):
    for call in (client.images.edit, client.images.create_variation):
        more = {"prompt": "a fox"} if call == client.images.edit else {}
        with pytest.raises(openai.NotFoundError) as told:
            call(model="dall-e-2", image=PHOTO, **more)
        assert told.value.code == "model_not_found"


def test_edits_in_a_batch_are_those_that_a_request_gets(client):
    body = {"model": "tiny", "prompt": "a fox", "images": [{"image_url": url_of(PHOTO)}],
            "mask": {"image_url": url_of(MASK)}, **QUICK}  # fmt: skip
    lines = [
        {"custom_id": str(n), "method": "POST", "url": "/v1/images/edits", "body": one}
        for n, one in enumerate((body, body | {"images": []}))
    ]
    file = client.files.create(file=("in.jsonl", "\n".join(map(json.dumps, lines)).encode()), purpose="batch")
    batch = client.batches.create(input_file_id=file.id, endpoint="/v1/images/edits", completion_window="24h")
    done = waited(lambda: client.batches.retrieve(batch.id), lambda found: found.status == "completed")
    (made,) = map(json.loads, client.files.content(done.output_file_id).text.splitlines())
    (refused,) = map(json.loads, client.files.content(done.error_file_id).text.splitlines())
    (alone,) = client.images.edit(model="tiny", image=PHOTO, mask=MASK, prompt="a fox", extra_body=QUICK).data
    assert made["response"]["body"]["data"][0]["b64_json"] == alone.b64_json
    assert (refused["custom_id"], refused["response"]["body"]["error"]["param"]) == ("1", "images")


def test_every_field_has_its_standing():
    table = {path for path, known in standings(EditRequest) if known.standing != "extension"}
    in_json = {"images", "images.image_url", "images.file_id", "mask.image_url", "mask.file_id", "moderation"}
    official = set(ImageEditParamsBase.__annotations__) | {"stream"}
    assert table - in_json == official - {"image"}

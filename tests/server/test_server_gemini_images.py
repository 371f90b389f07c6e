"""Models that draw, by Google's own client: predict, and content with pictures."""

from __future__ import annotations

import asyncio
import base64
import hashlib
import io
import json

import httpx
import numpy as np
import pytest
from gemini_stub import Scripted, client_of
from google.genai import errors, types
from PIL import Image
from serving import TINY, painter, serving, waited

from studiolo.drawing.model import ImageModel
from studiolo.drawing.provenance import Provenance, read_provenance
from studiolo.jobs.artist import Artist
from studiolo.language import conversation as c


def answer(request: c.Request) -> list[object]:
    """What a chat model says that may draw, and wants to."""
    if request.tool_choice.mode is c.ToolMode.NONE or "draw_picture" not in [
        tool.name for tool in request.tools
    ]:
        return ["A fox."]
    if isinstance(request.contents[-1].parts[0], c.CallResult):
        return ["That was a fox."]
    call = c.Call(name="draw_picture", arguments={"prompt": "a fox"}, id="1")
    return ["Here: ", c.Delta(part=call)]


@pytest.fixture(scope="module")
def home(tmp_path_factory):
    return tmp_path_factory.mktemp("home")


@pytest.fixture(scope="module")
def shop(home):
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("STUDIOLO_HOME", str(home))
        painter(home / "painter")
        with serving(home, {"stub": Scripted(answer)}, jobs=True) as here:
            yield here


@pytest.fixture(autouse=True)
def at_home(shop, home, studiolo_home, monkeypatch):
    monkeypatch.setenv("STUDIOLO_HOME", str(home))


@pytest.fixture
def client(shop):
    return client_of(shop.url)


@pytest.fixture
def enterprise(shop):
    return client_of(shop.url, vertexai=True)


def test_generate_images_draws_what_the_artist_draws(enterprise):
    drawn = enterprise.models.generate_images(
        model=TINY,
        prompt="a fox",
        config={
            "number_of_images": 2, "seed": 7, "negative_prompt": "snow", "guidance_scale": 3.0,
            "http_options": {"extra_body": {"parameters": {"steps": 2}}},
        },
    )  # fmt: skip
    pictures = [one.image.image_bytes for one in drawn.generated_images]
    asked = Artist(device="cpu").draw(TINY, "a fox", n=2, seed=7, negative="snow", guidance=3.0, steps=2)
    assert pictures == [picture.png for picture in asyncio.run(asked)]
    record = read_provenance(io.BytesIO(pictures[1]))
    assert (record.request.seed, record.request.negative_prompt) == (8, "snow")
    assert drawn.generated_images[0].image.mime_type == "image/png"


@pytest.mark.parametrize(
    ("ratio", "size"), [("1:1", (32, 32)), ("16:9", (44, 24)), ("9:16", (24, 44)), ("3:4", (28, 36))]
)
def test_ratios_keep_the_number_of_pixels(enterprise, ratio, size):
    drawn = enterprise.models.generate_images(
        model=TINY, prompt="a fox",
        config={"aspect_ratio": ratio, "http_options": {"extra_body": {"parameters": {"steps": 1}}}},
    )  # fmt: skip
    assert Image.open(io.BytesIO(drawn.generated_images[0].image.image_bytes)).size == size
    assert abs(size[0] * size[1] - 32 * 32) < 0.06 * 32 * 32


def test_a_jpeg_file_says_how_it_was_made_in_its_comment(enterprise):
    drawn = enterprise.models.generate_images(
        model=TINY, prompt="a fox", config={"output_mime_type": "image/jpeg", "seed": 3}
    )
    image = Image.open(io.BytesIO(drawn.generated_images[0].image.image_bytes))
    assert image.format == "JPEG"
    assert Provenance.model_validate_json(image.info["comment"]).request.seed == 3


def test_content_with_a_picture(client):
    answer = client.models.generate_content(
        model=TINY,
        contents="a fox",
        config=types.GenerateContentConfig(
            response_modalities=["IMAGE"], seed=5, image_config=types.ImageConfig(aspect_ratio="16:9")
        ),
    )
    (part,) = answer.candidates[0].content.parts
    assert (part.inline_data.mime_type, answer.candidates[0].finish_reason.value) == ("image/png", "STOP")
    assert part.as_image().mime_type == "image/png"
    assert read_provenance(io.BytesIO(part.inline_data.data)).request.seed == 5
    assert Image.open(io.BytesIO(part.inline_data.data)).size == (44, 24)


def test_several_candidates_and_events(client):
    config = types.GenerateContentConfig(response_modalities=["IMAGE"], seed=5, candidate_count=2)
    whole = client.models.generate_content(model=f"models/{TINY}", contents="a fox", config=config)
    pictures = [one.content.parts[0].inline_data.data for one in whole.candidates]
    assert [read_provenance(io.BytesIO(data)).request.seed for data in pictures] == [5, 6]
    config.candidate_count = 1
    chunks = list(client.models.generate_content_stream(model=TINY, contents="a fox", config=config))
    parts = [part for chunk in chunks for part in chunk.parts or () if part.inline_data]
    assert read_provenance(io.BytesIO(parts[0].inline_data.data)).request.seed == 5
    assert chunks[-1].candidates[0].finish_reason.value == "STOP"


def test_words_that_the_model_did_not_read_are_told_beside_the_picture(client):
    config = types.GenerateContentConfig(response_modalities=["TEXT", "IMAGE"])
    told, picture = client.models.generate_content(model=TINY, contents="a fox " * 60, config=config).parts
    assert "read" in told.text
    assert picture.inline_data


def test_pictures_in_a_batch(client):
    config = {"response_modalities": ["IMAGE"], "seed": 9}
    made = client.batches.create(model=TINY, src=[types.InlinedRequest(contents="a fox", config=config)])
    job = waited(lambda: (job := client.batches.get(name=made.name)).done and job)
    (one,) = job.dest.inlined_responses
    picture = one.response.parts[0].inline_data.data
    assert read_provenance(io.BytesIO(picture)).request.seed == 9
    alone = client.models.generate_content(model=TINY, contents="a fox", config=config)
    assert alone.parts[0].inline_data.data == picture


def test_a_file_of_requests_becomes_a_file_of_pictures(client, tmp_path):
    config = {"responseModalities": ["IMAGE"], "candidateCount": 2}
    lines = [
        {
            "key": f"fox-{seed}",
            "request": {
                "contents": [{"parts": [{"text": "a fox"}]}],
                "generation_config": config | {"seed": seed},
            },
        }
        for seed in (3, 8)
    ]
    lines.append({"key": "none", "request": {"contents": [{"parts": [{"text": "a [V] fox"}]}]}})
    path = tmp_path / "in.jsonl"
    path.write_text("\n".join(map(json.dumps, lines)))
    file = client.files.upload(file=path, config={"mime_type": "jsonl"})
    made = client.batches.create(model=TINY, src=file.name)
    job = waited(lambda: (job := client.batches.get(name=made.name)).done and job)
    told = [json.loads(line) for line in client.files.download(file=job.dest.file_name).splitlines()]
    seeds = [
        [
            read_provenance(io.BytesIO(base64.b64decode(one["content"]["parts"][0]["inlineData"]["data"])))
            for one in line["response"]["candidates"]
        ]
        for line in told[:2]
    ]
    assert [line["key"] for line in told] == ["fox-3", "fox-8", "none"]
    assert [[record.request.seed for record in line] for line in seeds] == [[3, 4], [8, 9]]
    assert "learned no subject" in told[2]["error"]["message"]


@pytest.mark.parametrize("modalities", [["TEXT"], ["IMAGE"], ["TEXT", "IMAGE"]])
def test_a_chat_model_draws_with_a_model_behind_a_plus(client, modalities):
    config = types.GenerateContentConfig(response_modalities=modalities)
    answer = client.models.generate_content(model=f"stub+{TINY}", contents="a fox", config=config)
    found = [
        "text" if part.text else part.inline_data.mime_type for part in answer.candidates[0].content.parts
    ]
    assert found.count("image/png") == 1
    assert ("text" in found[found.index("image/png") :]) is ("TEXT" in modalities)


def test_it_is_in_the_list_with_what_it_can_do(client):
    found = {model.name: model for model in client.models.list()}
    assert found[f"models/{TINY}"].supported_actions == ["predict", "generateContent"]


@pytest.mark.parametrize(
    ("config", "contents", "message"),
    [
        ({"temperature": 0.5}, "a fox", "generation_config"),
        ({"system_instruction": "Be kind."}, "a fox", "system_instruction"),
        ({"image_config": {"aspect_ratio": "7:3"}, "response_modalities": ["IMAGE"]}, "fox", "aspect_ratio"),
        ({"image_config": {"image_size": "4K"}, "response_modalities": ["IMAGE"]}, "a fox", "image_size"),
        ({}, [types.Part.from_bytes(data=b"x", mime_type="audio/wav")], "draws from words"),
        ({}, [types.ModelContent("hello"), types.UserContent("a fox")], "one prompt"),
        ({}, "a [V] fox", "subject"),
    ],
)  # fmt: skip
def test_what_no_picture_can_be_asked_for(client, config, contents, message):
    with pytest.raises(errors.ClientError, match=f"400 INVALID_ARGUMENT(.|\n)*{message}"):
        client.models.generate_content(model=TINY, contents=contents, config=config)


def test_a_model_that_speaks_takes_no_shape_of_pictures(client):
    config = {"response_modalities": ["IMAGE"], "image_config": {"aspect_ratio": "1:1"}}
    with pytest.raises(errors.ClientError, match=r"400.*image_config"):
        client.models.generate_content(model="stub", contents="a fox", config=config)


@pytest.mark.parametrize(
    ("body", "message"),
    [
        ({}, "one instance"),
        ({"instances": [{"prompt": "a"}, {"prompt": "b"}]}, "one instance"),
        ({"instances": [{"prompt": "a", "image": {"bytesBase64Encoded": "AA"}}]}, "not supported"),
        ({"parameters": {"sampleCount": 9}}, "at most 8"),
        ({"parameters": {"addWatermark": True}}, "not supported"),
        ({"parameters": {"personGeneration": "dont_allow"}}, "Say allow_all"),
        ({"parameters": {"safetySetting": "block_low_and_above"}}, "Say block_none"),
        ({"parameters": {"outputOptions": {"mimeType": "image/tiff"}}}, "Say image/png"),
        ({"parameters": {"width": 30}}, "multiple of 4"),
        ({"parameters": {"spacing": "wide"}}, "Known: leading"),
        ({"parameters": {"eta": 0.5, "sampler": "euler"}}, "has no eta"),
        ({"parameters": {"aspectRatio": "1:1", "width": 32}}, "both a ratio and a size"),
        ({"parameters": {"size": "32x32"}}, "Unknown name"),
    ],
)
def test_pictures_that_cannot_be_asked_for_are_refused_before_they_are_drawn(shop, body, message):
    body = {"instances": [{"prompt": "a fox"}]} | body if "parameters" in body else body
    refused = httpx.post(f"{shop.url}/v1/models/{TINY}:predict", json=body, headers={"x-goog-api-key": "k"})
    assert refused.status_code == 400, refused.text
    assert message in refused.json()["error"]["message"]


def test_rest(shop):
    answer = httpx.post(
        f"{shop.url}/v1beta/models/{TINY}:predict?key=k",
        json={
            "instances": [{"prompt": "a fox"}],
            "parameters": {"sample_count": 1.0, "add_watermark": False},
        },
    )
    (one,) = answer.json()["predictions"]
    assert one["mimeType"] == "image/png"
    assert base64.b64decode(one["bytesBase64Encoded"]).startswith(b"\x89PNG")


def test_every_setting_of_the_sampler(shop):
    settings = {"steps": 4, "seed": 7, "sampler": "dpm++2m", "sigmas": "karras", "clipSkip": 1}
    settings |= {"guidanceRescale": 0.7, "guidanceFrom": 0.25, "guidanceUntil": 0.75}
    answer = httpx.post(
        f"{shop.url}/v1beta/models/{TINY}:predict?key=k",
        json={"instances": [{"prompt": "a fox"}], "parameters": settings},
    )
    (one,) = answer.json()["predictions"]
    ours = {"clipSkip": "clip_skip", "guidanceRescale": "guidance_rescale"}
    ours |= {"guidanceFrom": "guidance_from", "guidanceUntil": "guidance_until"}
    (alone,) = ImageModel.load(TINY).generate("a fox", **{ours.get(k, k): v for k, v in settings.items()})
    assert base64.b64decode(one["bytesBase64Encoded"]) == alone.png()


def noise(width=32, height=32) -> Image.Image:
    pixels = np.random.default_rng(3).integers(0, 256, (height, width, 3), dtype=np.uint8)
    return Image.fromarray(pixels)


def png_of(image: Image.Image) -> bytes:
    file = io.BytesIO()
    image.save(file, "PNG")
    return file.getvalue()


def pixels_of(data: bytes) -> np.ndarray:
    with Image.open(io.BytesIO(data)) as image:
        return np.array(image.convert("RGB"))


def test_content_with_a_picture_in_it_is_edited(client):
    config = types.GenerateContentConfig(response_modalities=["IMAGE"], seed=5)
    sent = png_of(noise())
    asked = [types.Part.from_bytes(data=sent, mime_type="image/png"), "a fox"]
    (part,) = client.models.generate_content(model=TINY, contents=asked, config=config).parts
    drawn = part.inline_data.data
    record = read_provenance(io.BytesIO(drawn))
    assert (record.given.image, record.given.strength) == (hashlib.sha256(sent).hexdigest(), 0.6)
    alone = asyncio.run(Artist(device="cpu").draw(TINY, "a fox", seed=5, init=sent))
    assert (pixels_of(drawn) == pixels_of(alone[0].png)).all()


def test_a_chat_goes_on_from_its_last_picture(client):
    config = types.GenerateContentConfig(response_modalities=["IMAGE"], seed=5)
    chat = client.chats.create(model=TINY, config=config)
    first, second, third = (
        chat.send_message(said).parts[0].inline_data.data for said in ("a fox", "a red fox", "a fox on snow")
    )
    assert read_provenance(io.BytesIO(first)).given is None
    begun = [read_provenance(io.BytesIO(data)).given.image for data in (second, third)]
    assert begun == [hashlib.sha256(data).hexdigest() for data in (first, second)]
    alone = asyncio.run(Artist(device="cpu").draw(TINY, "a red fox", seed=5, init=first))
    assert (pixels_of(second) == pixels_of(alone[0].png)).all()
    own = types.Part.from_bytes(data=png_of(noise()), mime_type="image/png")
    fourth = chat.send_message([own, "a fox"]).parts[0].inline_data.data
    given = read_provenance(io.BytesIO(fourth)).given.image
    assert given == hashlib.sha256(own.inline_data.data).hexdigest()


def test_what_is_transparent_in_a_picture_is_painted(client):
    config = types.GenerateContentConfig(response_modalities=["IMAGE"], seed=5)
    clear = noise().convert("RGBA")
    clear.paste((0, 0, 0, 0), (0, 0, 16, 32))
    asked = [types.Part.from_bytes(data=png_of(clear), mime_type="image/png"), "a fox"]
    (part,) = client.models.generate_content(model=TINY, contents=asked, config=config).parts
    assert (pixels_of(part.inline_data.data)[:, 16:] == np.array(noise())[:, 16:]).all()


def test_pictures_that_cannot_be_edited(client):
    good = types.Part.from_bytes(data=png_of(noise()), mime_type="image/png")
    for parts, told in (
        ([good, good, "a fox"], "one picture"),
        ([types.Part.from_bytes(data=b"<svg/>", mime_type="image/png"), "a fox"], "not a picture"),
        ([types.Part.from_bytes(data=b"RIFF", mime_type="audio/wav"), "a fox"], "one picture"),
        ([types.Part.from_uri(file_uri="https://example.org/a.png", mime_type="image/png")], "one picture"),
    ):
        with pytest.raises(errors.ClientError, match=told) as error:
            client.models.generate_content(model=TINY, contents=parts)
        assert error.value.code == 400


def edited(enterprise, references, **config):
    return enterprise.models.edit_image(
        model=TINY, prompt="a fox", reference_images=references,
        config=types.EditImageConfig(
            seed=5, http_options={"extra_body": {"parameters": {"steps": 2}}}, **config
        ),
    )  # fmt: skip


def raw(data: bytes) -> types.RawReferenceImage:
    return types.RawReferenceImage(reference_id=1, reference_image=types.Image(image_bytes=data))


def masked(data: bytes | None, mode: str = "MASK_MODE_USER_PROVIDED") -> types.MaskReferenceImage:
    image = None if data is None else types.Image(image_bytes=data)
    config = types.MaskReferenceConfig(mask_mode=mode)
    return types.MaskReferenceImage(reference_id=2, reference_image=image, config=config)


def test_edit_image_paints_what_is_white_in_the_mask(enterprise):
    white = Image.new("L", (32, 32))
    white.paste(255, (0, 0, 16, 32))
    sent = png_of(noise())
    answer = edited(
        enterprise, [raw(sent), masked(png_of(white))], edit_mode="EDIT_MODE_INPAINT_INSERTION",
        number_of_images=2,
    )  # fmt: skip
    for number, one in enumerate(answer.generated_images):
        drawn = one.image.image_bytes
        assert (pixels_of(drawn)[:, 16:] == pixels_of(sent)[:, 16:]).all()
        assert (pixels_of(drawn)[:, :16] != pixels_of(sent)[:, :16]).any(-1).mean() > 0.9
        record = read_provenance(io.BytesIO(drawn))
        assert (record.request.seed, record.given.strength) == (5 + number, 1.0)
        assert record.given.mask == hashlib.sha256(png_of(white)).hexdigest()
    (whole,) = edited(enterprise, [raw(sent)]).generated_images
    assert read_provenance(io.BytesIO(whole.image.image_bytes)).given.strength == 0.6


def test_edits_that_are_not_done(enterprise):
    good = raw(png_of(noise()))
    style = types.StyleReferenceImage(reference_id=2, reference_image=good.reference_image)
    for references, config, told in (
        ([good], {"edit_mode": "EDIT_MODE_INPAINT_REMOVAL"}, "edit_mode"),
        ([good, masked(None, "MASK_MODE_BACKGROUND")], {}, "recognized"),
        ([good, masked(png_of(noise(16, 16)))], {}, "16x16"),
        ([good, good], {}, "2 references"),
        ([good, style], {}, "reference_type"),
        ([masked(png_of(noise()))], {}, "no picture to edit"),
        ([raw(b"<svg/>")], {}, "not a picture"),
    ):
        with pytest.raises(errors.ClientError, match=told) as error:
            edited(enterprise, references, **config)
        assert error.value.code == 400

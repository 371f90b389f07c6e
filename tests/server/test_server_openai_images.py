"""Pictures, by the official client, from a tiny model."""

from __future__ import annotations

import asyncio
import io
import json
import threading
from concurrent.futures import ThreadPoolExecutor

import httpx
import openai
import pytest
from openai.types import ImageGenCompletedEvent, ImageGenPartialImageEvent, ImagesResponse
from PIL import Image
from serving import serving, waited
from talking import QUICK, client_of, png

from studiolo.drawing.model import ImageModel
from studiolo.drawing.provenance import read_provenance
from studiolo.server.keys import KeyStore
from studiolo.server.openai.images_wire import ImageRequest
from studiolo.server.openai.wire import standings

pytestmark = pytest.mark.usefixtures("foxes")


def test_pictures_with_their_provenance(client):
    answer = client.images.generate(model="tiny", prompt="a red fox", n=2, size="48x32", extra_body=QUICK)
    ImagesResponse.model_validate(answer.model_dump(), strict=True)
    assert (answer.size, answer.output_format, answer.background) == ("48x32", "png", "opaque")
    for number, image in enumerate(answer.data):
        record = read_provenance(io.BytesIO(png(image)))
        assert (record.request.prompt, record.request.seed) == ("a red fox", 7 + number)
        assert (record.model.name, record.settings["steps"]) == ("tiny", 2)
        assert Image.open(io.BytesIO(png(image))).size == (48, 32)
        assert (image.seed, image.revised_prompt) == (7 + number, "a red fox")


def test_the_same_bytes_as_in_python(client):
    extra = {"negative_prompt": "snow", "guidance_scale": 3.0, "sampler": "euler", **QUICK}
    (image,) = client.images.generate(model="tiny", prompt="a fox", extra_body=extra).data
    (alone,) = ImageModel.load("tiny").generate(
        "a fox", seed=7, negative_prompt="snow", sampler="euler", steps=2, guidance_scale=3.0
    )
    assert png(image) == alone.png()


MORE = [
    {"sampler": "ddim", "eta": 0.5, "spacing": "trailing", "clip_skip": 1},
    {"sampler": "dpm++2m", "sigmas": "karras", "guidance_rescale": 0.7},
    {"sampler": "euler", "guidance_from": 0.25, "guidance_until": 0.75},
]


@pytest.mark.parametrize("settings", MORE)
def test_every_setting_of_the_sampler(client, settings):
    extra = {"seed": 7, "steps": 4, **settings}
    (image,) = client.images.generate(model="tiny", prompt="a fox", extra_body=extra).data
    (alone,) = ImageModel.load("tiny").generate("a fox", **extra)
    (plain,) = ImageModel.load("tiny").generate("a fox", seed=7, steps=4, sampler=settings["sampler"])
    assert png(image) == alone.png() != plain.png()
    record = read_provenance(io.BytesIO(png(image)))
    assert settings.items() <= record.settings.items()


def test_a_subject_by_its_place_in_the_prompt(client):
    (image,) = client.images.generate(model="my-fox", prompt="a photo of [V] fox", extra_body=QUICK).data
    assert image.revised_prompt == "a photo of zwx fox"
    with pytest.raises(openai.BadRequestError, match=r"^Error code: 400 - prompt: .*learned no subject"):
        client.images.generate(model="tiny", prompt="a photo of [V] fox", extra_body=QUICK)


def test_models_that_draw_are_listed(client):
    listed = {model.id: model for model in client.models.list()}
    assert (listed["tiny"].kind, listed["my-fox"].kind, listed["stub"].kind) == ("drawing", "subject", "chat")
    assert client.models.retrieve("my-fox").title == "My fox"


def test_random_seeds_differ(client):
    asked = {"model": "tiny", "prompt": "a fox", "extra_body": {"steps": 1}}
    one, two = (client.images.generate(**asked).data[0] for _ in range(2))
    assert one.seed != two.seed
    assert png(one) != png(two)


def test_what_is_not_said_is_drawn_by_the_base_model():
    assert ImageRequest(prompt="a fox").named == "studiolo-base"


def test_quality_in_steps(client):
    for quality, steps in (("low", 15), ("medium", 30), ("hd", 50)):
        (image,) = client.images.generate(model="tiny", prompt="a fox", quality=quality).data
        assert read_provenance(io.BytesIO(png(image))).settings["steps"] == steps


def test_the_asynchronous_client(served):
    async def go():
        async with openai.AsyncOpenAI(base_url=f"{served.url}/v1", api_key="k") as client:
            drawings = [
                client.images.generate(model="tiny", prompt="a fox", extra_body={"seed": n, "steps": 2})
                for n in range(4)
            ]
            return [answer.data[0].seed for answer in await asyncio.gather(*drawings)]

    assert asyncio.run(go()) == [0, 1, 2, 3]


def test_by_url(client, served):
    answer = client.images.generate(model="tiny", prompt="a fox", response_format="url", extra_body=QUICK)
    (image,) = answer.data
    assert image.b64_json is None
    found = httpx.get(image.url)
    assert (found.status_code, found.headers["content-type"]) == (200, "image/png")
    assert read_provenance(io.BytesIO(found.content)).request.seed == 7
    (file,) = client.files.list()
    assert file.expires_at - file.created_at == 3600


def test_sketches_in_events(client):
    with client.images.generate(
        model="tiny", prompt="a fox", stream=True, partial_images=2, extra_body={"steps": 6, "seed": 7}
    ) as stream:
        events = list(stream)
    assert [event.type for event in events] == [
        "image_generation.partial_image", "image_generation.partial_image", "image_generation.completed",
    ]  # fmt: skip
    assert [event.partial_image_index for event in events[:2]] == [0, 1]
    for event in events[:2]:
        ImageGenPartialImageEvent.model_validate(event.model_dump(), strict=True)
        assert Image.open(io.BytesIO(png(event))).size == (32, 32)
    ImageGenCompletedEvent.model_validate(events[2].model_dump(), strict=True)
    (alone,) = client.images.generate(model="tiny", prompt="a fox", extra_body={"steps": 6, "seed": 7}).data
    assert png(events[2]) == png(alone)


def test_errors_before_and_in_a_stream(client, served, monkeypatch):
    with pytest.raises(openai.BadRequestError, match="learned no subject"):
        client.images.generate(model="tiny", prompt="[V]", stream=True, extra_body=QUICK)

    async def breaking(*_, on_sketch, **__):
        on_sketch(0, 0, b"png")
        await asyncio.sleep(0)
        raise RuntimeError("secret")

    monkeypatch.setattr(served.studio.artist, "draw", breaking)
    stream = client.images.generate(model="tiny", prompt="a fox", stream=True, partial_images=1)
    assert next(iter(stream)).type == "image_generation.partial_image"
    with pytest.raises(openai.APIError, match="something went wrong") as told:
        list(stream)
    assert "secret" not in str(told.value)


WRONG = [
    ({"prompt": ""}, "prompt"),
    ({"prompt": "x" * 2001}, "prompt"),
    ({"n": 11}, "n"),
    ({"n": 0}, "n"),
    ({"size": "huge"}, "size"),
    ({"size": "33x32"}, "size"),
    ({"size": "1024x1024"}, "size"),
    ({"quality": "best"}, "quality"),
    ({"background": "transparent"}, "background"),
    ({"output_format": "webp"}, "output_format"),
    ({"output_compression": 50}, "output_compression"),
    ({"partial_images": 2}, "partial_images"),
    ({"stream": True, "response_format": "url"}, "response_format"),
    ({"model": "stub"}, "model"),
    ({"extra_body": {"steps": 0}}, "steps"),
    ({"extra_body": {"steps": 2, "sampler": "magic"}}, "sampler"),
    ({"extra_body": {"steps": 2, "spacing": "wide"}}, "spacing"),
    ({"extra_body": {"steps": 2, "eta": 2}}, "eta"),
    ({"extra_body": {"steps": 2, "guidance_from": 0.8, "guidance_until": 0.2}}, "guidance_from"),
    ({"extra_body": {"steps": 2, "clip_skip": 99}}, "clip_skip"),
    ({"extra_body": {"seed": -1}}, "seed"),
    ({"extra_body": {"guidance_scale": "much"}}, "guidance_scale"),
    ({"extra_body": {"colour": "red"}}, "colour"),
    ({"extra_body": {"svg": {"model": "x"}}}, "svg"),
]


def test_what_is_wrong_is_named(client):
    for wrong, param in WRONG:
        asked = {"model": "tiny", "prompt": "a fox", "extra_body": {"steps": 1}} | wrong
        with pytest.raises(openai.BadRequestError) as told:
            client.images.generate(**asked)
        assert told.value.param == param, (wrong, told.value)


def test_models_that_are_not_there(client):
    for model in ("dall-e-3", "../tiny", "/etc", "hf/some-model"):
        with pytest.raises(openai.NotFoundError) as told:
            client.images.generate(model=model, prompt="a fox")
        assert told.value.code == "model_not_found"


def test_a_client_that_goes_away_ends_the_drawing(served):
    asked = {"model": "tiny", "prompt": "a fox", "steps": 500, "n": 8}
    with pytest.raises(httpx.ReadTimeout):
        httpx.post(f"{served.url}/v1/images/generations", json=asked, timeout=2)
    client = client_of(served.url, timeout=30)  # far less than the other one would have taken
    assert client.images.generate(model="tiny", prompt="a fox", extra_body=QUICK).data


def batched(client, *bodies):
    """A batch of requests for pictures, queued."""
    lines = [
        {"custom_id": f"{n}", "method": "POST", "url": "/v1/images/generations", "body": body}
        for n, body in enumerate(bodies)
    ]
    text = "\n".join(map(json.dumps, lines)).encode()
    file = client.files.create(file=("in.jsonl", text), purpose="batch")
    return client.batches.create(
        input_file_id=file.id, endpoint="/v1/images/generations", completion_window="24h"
    )


def ended(client, batch):
    return waited(lambda: client.batches.retrieve(batch.id), lambda found: found.status == "completed")


def test_pictures_in_a_batch_are_those_that_a_request_gets(client):
    asked = {"prompt": "a [V] fox", **QUICK}
    done = ended(client, batched(
        client,
        *({"model": "my-fox"} | asked | {"seed": n} for n in range(3)),
        {"model": "tiny", "prompt": "a fox", "n": 2, **QUICK},
        {"model": "my-fox", "response_format": "url"} | asked,
        {"model": "tiny"} | asked,
    ))  # fmt: skip
    made = [json.loads(line) for line in client.files.content(done.output_file_id).text.splitlines()]
    answers = [ImagesResponse.model_validate(one["response"]["body"]) for one in made]
    alone = [
        client.images.generate(model="my-fox", prompt="a [V] fox", extra_body={"steps": 2, "seed": n})
        for n in range(3)
    ] + [client.images.generate(model="tiny", prompt="a fox", n=2, extra_body=QUICK)]
    assert [[image.b64_json for image in one.data] for one in answers] == [
        [image.b64_json for image in one.data] for one in alone
    ]
    errors = [json.loads(line) for line in client.files.content(done.error_file_id).text.splitlines()]
    told = [(one["custom_id"], one["response"]["body"]["error"]["param"]) for one in errors]
    assert told == [("4", "response_format"), ("5", "prompt")]


def test_who_waits_for_a_picture_gets_it_before_those_of_a_batch(client, served, monkeypatch):
    artist, drawn, first, more = served.studio.artist, [], threading.Event(), threading.Event()
    draw = artist._draw

    def noted(model, order, on_step):
        first.set()
        assert more.wait(60)
        drawn.append(order.requests[0][1])
        return draw(model, order, on_step)

    monkeypatch.setattr(artist, "_draw", noted)
    bulk = batched(client, *({"model": "tiny", "prompt": "a fox", "steps": 1, "seed": n} for n in range(6)))
    assert first.wait(60)
    waited(lambda: artist.waiting, lambda found: found == 5)
    with ThreadPoolExecutor(1) as pool:
        answer = pool.submit(
            client.images.generate, model="tiny", prompt="a fox", extra_body={"steps": 1, "seed": 99}
        )
        waited(lambda: artist.waiting, lambda found: found == 6)
        more.set()
        assert answer.result(60).data
    assert ended(client, bulk).request_counts.completed == 6
    assert drawn[1] == 99
    assert sorted(drawn) == [*range(6), 99]


def test_drawings_are_counted(client, served):
    client.images.generate(model="tiny", prompt="a fox", n=3, extra_body=QUICK)
    metrics = httpx.get(f"{served.url}/metrics").text
    assert 'studiolo_image_seconds_count{model="tiny"} 3.0' in metrics


def test_keys_see_their_own_urls(studiolo_home):
    with serving(studiolo_home, {}, host="0.0.0.0", jobs=True) as served:
        store = KeyStore(served.studio.database)
        keys = [store.create(name)[0] for name in ("ada", "bob")]
        answer = client_of(served.url, api_key=keys[0]).images.generate(
            model="tiny", prompt="a fox", response_format="url", extra_body=QUICK
        )
        found = [
            httpx.get(answer.data[0].url, headers={"authorization": f"Bearer {key}"}).status_code
            for key in keys
        ]
        assert (found, httpx.get(answer.data[0].url).status_code) == ([200, 404], 401)


def test_every_field_has_its_standing():
    table = {path: known.standing.value for path, known in standings(ImageRequest)}
    assert table["prompt"] == table["n"] == table["size"] == "supported"
    assert table["quality"] == "emulated"
    assert table["seed"] == "extension"
    official = set(openai.types.image_generate_params.ImageGenerateParamsBase.__annotations__) | {"stream"}
    assert official == {path for path, standing in table.items() if standing != "extension"}


def test_a_chat_model_with_a_subject_is_not_asked_for_images(client):
    with pytest.raises(openai.BadRequestError, match="cannot draw"):
        client.images.generate(model="stub+my-fox", prompt="a fox")

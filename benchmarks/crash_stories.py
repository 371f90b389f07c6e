"""What careful clients do: after a broken connection they ask how far things are, and go on from there."""

from __future__ import annotations

import asyncio
import base64
import hashlib
import io
import json
import os
import random
import subprocess
import sys
import tempfile
import zipfile
from collections.abc import Awaitable, Callable
from dataclasses import dataclass
from functools import cache
from pathlib import Path
from typing import Any

import yaml
from crash_house import PIECES, House, Victim
from stub_server import NAME, expected

from studiolo.models.registry import BASE_NAME

ITEMS, PICTURES = 12, 6
"""Of a batch."""
_LOOK = 0.2  # seconds between two looks at what takes its time
_CHUNK = 100_000
_EDGE = "the-edge-of-a-part"
_STEPS = 4
_RECIPE: dict[str, Any] = {
    "class_noun": "toy", "identifier": "zwx", "steps": _STEPS, "batch_size": 1, "checkpoint_every": 2,
    "class_images": {"count": 2, "steps": 1}, "previews": {"every": 2, "steps": 1, "count": 1},
    "scores": {"every": 2, "n": 1, "contexts": 1, "steps": 1}, "trackers": [],
}  # fmt: skip


def _data(seed: int, size: int) -> bytes:
    return random.Random(seed).randbytes(size)


async def gemini_upload(house: House) -> None:
    """A file in four pieces by the resumable protocol; then it is deleted, and another one stays."""
    for number in range(2):
        data = _data(number, 3 * _CHUNK + 17)
        name = await _resumable(house, data, f"book-{number}")
        shown = await house.surely("GET", f"/v1beta/files/{name}?key=x")
        assert base64.b64decode(shown["sha256Hash"]) in (_digest(data), _digest(data).hex().encode())
        assert int(shown["sizeBytes"]) == len(data)
        if not number:
            await house.gone(f"/v1beta/files/{name}?key=x")
    listed = await house.surely("GET", "/v1beta/files?key=x")
    assert [file["name"] for file in listed["files"]] == [f"files/{name}"]


async def _resumable(house: House, data: bytes, name: str, mime: str = "application/x-book") -> str:
    path = await _begun(house, len(data), name, mime)
    there, acknowledged = 0, 0
    while True:
        piece = data[there : there + _CHUNK]
        last = there + len(piece) == len(data)
        heard = await house.ask("POST", path, piece, _upload("upload, finalize" if last else "upload", there))
        if heard is not None:
            assert heard.status == 200, heard.body
            if last:
                return str(json.loads(heard.body)["file"]["name"]).removeprefix("files/")
            there = acknowledged = there + len(piece)
            continue
        query = await house.ask("POST", path, b"", _upload("query", 0))
        assert query is not None
        assert query.status == 200, query.body
        there = int(query.headers["x-goog-upload-size-received"])
        assert acknowledged <= there <= acknowledged + len(piece), "acknowledged bytes are lost"
        if there == len(data):
            final = await house.ask("POST", path, b"", _upload("finalize", there))
            assert final is not None
            assert final.status == 200, final.body
            return str(json.loads(final.body)["file"]["name"]).removeprefix("files/")


async def _begun(house: House, size: int, name: str, mime: str) -> str:
    """The path of a new upload. One whose answer was lost cannot be gone on with: its name is free again
    when it ends, so a client takes another one."""
    start = _upload("start", 0) | {
        "x-goog-upload-protocol": "resumable",
        "x-goog-upload-header-content-type": mime,
        "x-goog-upload-header-content-length": str(size),
    }
    bodies: list[dict[str, Any]] = [{"file": {"name": f"files/{name}"}}, {"file": {}}]
    for body in bodies:
        heard = await house.ask("POST", "/upload/v1beta/files?key=x", body, start)
        if heard is not None and heard.status == 200:
            url = heard.headers["x-goog-upload-url"]
            return "/" + url.split("/", 3)[3]
    raise AssertionError("the upload cannot be begun again")


def _upload(command: str, offset: int) -> dict[str, str]:
    return {"x-goog-upload-command": command, "x-goog-upload-offset": str(offset)}


async def openai_upload(house: House) -> None:
    """A file in three parts, completed; what has no answer is done again."""
    data = _data(7, 3 * _CHUNK)
    announced = {"bytes": len(data), "filename": "in.txt", "mime_type": "text/plain", "purpose": "user_data"}
    upload = (await house.surely("POST", "/v1/uploads", announced))["id"]
    parts = []
    for number in range(3):
        form = _form({}, "data", data[number * _CHUNK :][:_CHUNK])
        parts.append((await house.twice("POST", f"/v1/uploads/{upload}/parts", *form))["id"])
    done = await house.surely("POST", f"/v1/uploads/{upload}/complete", {"part_ids": parts})
    assert done["status"] == "completed"
    files = (await house.surely("GET", "/v1/files"))["data"]
    assert [file["id"] for file in files] == [done["file"]["id"]], "the file was made twice"
    assert await house.content(done["file"]["id"]) == data
    await house.gone(f"/v1/files/{done['file']['id']}")
    assert (await house.surely("GET", "/v1/files"))["data"] == []


async def openai_batch(house: House) -> None:
    """A file of requests, a batch of it, and its answers."""
    bodies = [{"model": NAME, "messages": [{"role": "user", "content": f"{n} please"}]} for n in range(ITEMS)]
    answers = await _batched(house, "/v1/chat/completions", bodies)
    said = [answer["choices"][0]["message"]["content"] for answer in answers]
    assert said == [expected(number, PIECES) for number in range(ITEMS)]


async def picture_batch(house: House) -> None:
    """The same with pictures; each has the bytes that it has when it is asked for by itself."""
    bodies = [
        {"model": BASE_NAME, "prompt": "a fox in the city", "steps": 2, "seed": n} for n in range(PICTURES)
    ]
    made = await _batched(house, "/v1/images/generations", bodies)
    alone = [await house.surely("POST", "/v1/images/generations", body) for body in bodies]
    for one, other in zip(made, alone, strict=True):
        assert one["data"] == other["data"], "another picture"


async def _batched(house: House, endpoint: str, bodies: list[dict[str, Any]]) -> list[dict[str, Any]]:
    """The answers of a batch, in order; it was made once, and so were its files."""
    lines = [
        {"custom_id": f"n{n}", "method": "POST", "url": endpoint, "body": body}
        for n, body in enumerate(bodies)
    ]
    form = _form({"purpose": "batch"}, "file", b"".join(json.dumps(line).encode() + b"\n" for line in lines))
    file = await house.twice("POST", "/v1/files", *form)
    asked = {"input_file_id": file["id"], "endpoint": endpoint, "completion_window": "24h"}
    batch = await house.told("POST", "/v1/batches", asked)
    if batch is None:  # a client looks whether it was taken in before it asks again
        found = (await house.surely("GET", "/v1/batches"))["data"]
        batch = found[0] if found else await house.surely("POST", "/v1/batches", asked)
    while batch["status"] not in ("completed", "failed", "cancelled", "expired"):
        await asyncio.sleep(_LOOK)
        batch = await house.surely("GET", f"/v1/batches/{batch['id']}")
    assert batch["status"] == "completed"
    assert batch["request_counts"] == {"total": len(bodies), "completed": len(bodies), "failed": 0}
    assert len((await house.surely("GET", "/v1/batches"))["data"]) == 1
    answers = [json.loads(line) for line in (await house.content(batch["output_file_id"])).splitlines()]
    assert [answer["custom_id"] for answer in answers] == [line["custom_id"] for line in lines]
    outputs = (await house.surely("GET", "/v1/files?purpose=batch_output"))["data"]
    assert [file["id"] for file in outputs] == [batch["output_file_id"]], "answers were written twice"
    assert house.rows("SELECT COUNT(*) FROM batches WHERE state != 'filling'") == [(1,)], (
        "a batch that nobody knows of"
    )
    return [answer["response"]["body"] for answer in answers]


async def gemini_batch(house: House) -> None:
    """Requests within a body, and their answers."""
    requests = [{"request": {"contents": [{"parts": [{"text": f"{n} please"}]}]}} for n in range(ITEMS)]
    body = {"batch": {"displayName": "many", "inputConfig": {"requests": {"requests": requests}}}}
    made = await house.told("POST", f"/v1beta/models/{NAME}:batchGenerateContent?key=x", body)
    if made is None:
        found = (await house.surely("GET", "/v1beta/batches?key=x")).get("operations", [])
        again = f"/v1beta/models/{NAME}:batchGenerateContent?key=x"
        made = found[0] if found else await house.surely("POST", again, body)
    while not made.get("done"):
        await asyncio.sleep(_LOOK)
        made = await house.surely("GET", f"/v1beta/{made['name']}?key=x")
    answers = made["response"]["inlinedResponses"]["inlinedResponses"]
    said = [one["response"]["candidates"][0]["content"]["parts"][0]["text"] for one in answers]
    assert said == [expected(number, PIECES) for number in range(ITEMS)]
    assert made["metadata"]["batchStats"] == {
        "requestCount": str(ITEMS),
        "successfulRequestCount": str(ITEMS),
    }
    assert house.rows("SELECT COUNT(*) FROM batches WHERE state != 'filling'") == [(1,)]
    assert house.rows("SELECT done + failed, answer FROM batches WHERE state != 'filling'") == [
        (ITEMS, ITEMS * PIECES)
    ]


async def contexts(house: House) -> None:
    """Contexts made, kept longer and deleted."""
    path, kept = "/v1beta/cachedContents", []
    for number in range(4):
        text = f"{number} " * 2000
        body = {"model": f"models/{NAME}", "displayName": f"c{number}", "ttl": "3600s"}
        body["contents"] = [{"role": "user", "parts": [{"text": text}]}]  # type: ignore[assignment]
        made = await house.told("POST", f"{path}?key=x", body)
        if made is None:
            listed = (await house.surely("GET", f"{path}?key=x")).get("cachedContents", [])
            found = [one for one in listed if one["displayName"] == f"c{number}"]
            assert len(found) <= 1
            made = found[0] if found else await house.surely("POST", f"{path}?key=x", body)
        one = f"/v1beta/{made['name']}?key=x"
        longer = await house.surely("PATCH", one, {"ttl": "7200s"})
        assert longer["expireTime"] > made["expireTime"]
        assert await house.surely("GET", one) == longer
        if number % 2:
            await house.gone(one)
        else:
            kept.append(longer)
            asked = {"contents": [{"parts": [{"text": "5 please"}]}], "cachedContent": made["name"]}
            said = await house.surely("POST", f"/v1beta/models/{NAME}:generateContent?key=x", asked)
            assert said["candidates"][0]["content"]["parts"][0]["text"] == expected(5, PIECES)
    assert (await house.surely("GET", f"{path}?key=x"))["cachedContents"] == kept


async def openai_tuning(house: House) -> None:
    """A subject is taught from an archive of images, drawn and deleted."""
    form = _form({"purpose": "fine-tune"}, "file", _photos())
    file = (await house.twice("POST", "/v1/files", *form))["id"]
    method = {"type": "supervised", "supervised": {"hyperparameters": _RECIPE}}
    asked = {"model": BASE_NAME, "training_file": file, "suffix": "my-toy", "metadata": {"for": "tea"}}
    job = await house.told("POST", "/v1/fine_tuning/jobs", asked | {"method": method})
    if job is None:
        found = (await house.surely("GET", "/v1/fine_tuning/jobs"))["data"]
        again = asked | {"method": method}
        job = found[0] if found else await house.surely("POST", "/v1/fine_tuning/jobs", again)
    path = f"/v1/fine_tuning/jobs/{job['id']}"
    while job["finished_at"] is None:
        await asyncio.sleep(_LOOK)
        job = await house.surely("GET", path)
    assert job["error"] is None, job["error"]
    assert (job["fine_tuned_model"], job["metadata"]) == ("my-toy", {"for": "tea"})
    assert len((await house.surely("GET", "/v1/fine_tuning/jobs"))["data"]) == 1
    events = (await house.surely("GET", f"{path}/events?limit=1000"))["data"][::-1]
    _check_events([(event["data"]["kind"], event["data"]) for event in events], "train_loss")
    rows = (await house.content(job["result_files"][0])).decode().splitlines()
    assert [float(row.split(",")[0]) for row in rows[1:]] == list(range(1, _STEPS + 1))
    folder = _check_weights(house)
    drawing = {"model": "my-toy", "prompt": "a [V] toy", "steps": 2, "seed": 1}
    pictures = [await house.surely("POST", "/v1/images/generations", drawing) for _ in range(2)]
    assert pictures[0]["data"] == pictures[1]["data"]
    await house.gone("/v1/models/my-toy")
    await _nothing_left(house, folder)


async def gemini_tuning(house: House) -> None:
    """The same by the other API."""
    file = await _resumable(house, _photos(), "photos", "application/zip")
    path = "/v1beta/tunedModels/my-toy"
    task = {"trainingData": {"files": [f"files/{file}"]}, "hyperparameters": _RECIPE}
    asked = {"baseModel": f"models/{BASE_NAME}", "displayName": "My toy", "tuningTask": task}
    made = await house.told("POST", "/v1beta/tunedModels?tunedModelId=my-toy&key=x", asked)
    if made is None:
        heard = await house.ask("GET", f"{path}?key=x")
        assert heard is not None
        if heard.status == 404:
            await house.surely("POST", "/v1beta/tunedModels?tunedModelId=my-toy&key=x", asked)
    tuned = await house.surely("GET", f"{path}?key=x")
    while tuned["state"] == "CREATING":
        await asyncio.sleep(_LOOK)
        tuned = await house.surely("GET", f"{path}?key=x")
    assert tuned["state"] == "ACTIVE", tuned
    snapshots = tuned["tuningTask"]["snapshots"]
    losses = [(one["step"], one["meanLoss"]) for one in snapshots if one["step"]]
    assert [one["step"] for one in snapshots if "scores" in one] == [0, 2, 4], "each score once"
    assert losses == list(enumerate(_reference().losses, 1)), "other losses"
    pictures = (await house.surely("GET", f"{path}/previews?key=x"))["previews"]
    assert [one["step"] for one in pictures] == [0, 2, 4]
    folder = _check_weights(house)
    config = {"responseModalities": ["IMAGE"], "seed": 1}
    drawing = {"contents": [{"parts": [{"text": "a [V] toy"}]}], "generationConfig": config}
    await house.surely("POST", "/v1beta/models/my-toy:generateContent?key=x", drawing)
    await house.gone(f"{path}?key=x")
    await _nothing_left(house, folder)


def _check_events(events: list[tuple[str, dict[str, Any]]], loss: str) -> None:
    """Every step, preview and checkpoint was told once, and the losses are those of a training in one go."""
    steps = [(data["step"], data[loss]) for kind, data in events if kind == "step"]
    assert steps == list(enumerate(_reference().losses, 1)), "other losses"
    for what in ("preview", "score"):
        assert [data["step"] for kind, data in events if kind == what] == [0, 2, 4], f"each {what} once"
    checkpoints = [data["step"] for kind, data in events if kind == "checkpoint"]
    assert checkpoints == sorted(set(checkpoints))


def _check_weights(house: House) -> Path:
    """The folder of the one tuning that there is."""
    ((identity,),) = house.rows("SELECT id FROM tunings")
    folder = house.home / "tunings" / identity
    assert _weights(folder / "run") == _reference().weights, "other weights"
    return folder


async def _nothing_left(house: House, folder: Path) -> None:
    """Of a subject that was deleted; its uploaded images are another matter. What was only unpacked when the
    server died, and never acknowledged, goes with the sweeps."""
    listed = (await house.surely("GET", "/v1/models"))["data"]
    assert "my-toy" not in [model["id"] for model in listed]
    assert (await house.surely("GET", "/v1/fine_tuning/jobs"))["data"] == []
    for table in ("tunings", "tuning_events"):
        assert house.rows(f"SELECT COUNT(*) FROM {table}") == [(0,)], f"rows of {table} are left"
    assert not folder.exists(), "its folder is left"


@dataclass(frozen=True)
class _Reference:
    """What the training gives when nothing happens to it."""

    losses: tuple[float, ...]
    weights: dict[str, bytes]


@cache
def _reference() -> _Reference:
    with tempfile.TemporaryDirectory() as folder:
        home = Path(folder)
        with zipfile.ZipFile(io.BytesIO(_photos())) as archive:
            archive.extractall(home / "images")
        recipe = {"name": "reference", "images": [str(home / "images")], **_RECIPE}
        (home / "recipe.yaml").write_text(yaml.safe_dump(recipe))
        run = home / "run"
        command = ["train", "--recipe", str(home / "recipe.yaml"), "--out", str(run)]
        subprocess.run(
            [sys.executable, "-m", "studiolo.cli.main", *command],
            env={**os.environ, "STUDIOLO_HOME": str(home)}, check=True, capture_output=True,
        )  # fmt: skip
        names, *rows = ((run / "metrics.csv").read_text()).splitlines()
        place = names.split(",").index("loss")
        return _Reference(tuple(float(row.split(",")[place]) for row in rows), _weights(run))


def _weights(run: Path) -> dict[str, bytes]:
    """Digests of the files of weights of what was taught."""
    found = sorted((run / "model").rglob("*.safetensors"))
    assert found
    return {path.relative_to(run).as_posix(): _digest(path.read_bytes()) for path in found}


def _photos() -> bytes:
    """An archive of three images."""
    from PIL import Image

    buffer = io.BytesIO()
    with zipfile.ZipFile(buffer, "w") as archive:
        for number in range(3):
            image = io.BytesIO()
            Image.frombytes("RGB", (64, 64), _data(number, 3 * 64 * 64)).save(image, format="PNG")
            archive.writestr(zipfile.ZipInfo(f"{number}.png"), image.getvalue())
    return buffer.getvalue()


@dataclass(frozen=True)
class Story:
    """`lines` are run in it for sure, of those that are counted of the victim (see `--count`); `before` it
    begins, what takes long is done, as connections that are idle are closed."""

    play: Callable[[House], Awaitable[None]]
    lines: int
    victim: Victim = "server"
    before: Callable[[], object] = lambda: None


STORIES = {
    "resumable upload (Gemini)": Story(gemini_upload, 550),
    "upload in parts (OpenAI)": Story(openai_upload, 650),
    "batch (OpenAI)": Story(openai_batch, 1100),
    "batch (Gemini)": Story(gemini_batch, 580),
    "cachedContents": Story(contexts, 320),
    "batch of pictures (OpenAI)": Story(picture_batch, 1350),
    "tuning (OpenAI)": Story(openai_tuning, 1000, "server", _reference),
    "tuning (Gemini)": Story(gemini_tuning, 1000, "server", _reference),
    "tuning (OpenAI), its training": Story(openai_tuning, 2000, "training", _reference),
}


def _form(fields: dict[str, str], name: str, data: bytes) -> tuple[bytes, dict[str, str]]:
    head = f"--{_EDGE}\r\ncontent-disposition: form-data; name="
    told = "".join(f'{head}"{key}"\r\n\r\n{value}\r\n' for key, value in fields.items())
    file = f'{head}"{name}"; filename="in.jsonl"\r\ncontent-type: application/octet-stream\r\n\r\n'
    body = f"{told}{file}".encode() + data + f"\r\n--{_EDGE}--\r\n".encode()
    return body, {"content-type": f"multipart/form-data; boundary={_EDGE}"}


def _digest(data: bytes) -> bytes:
    return hashlib.sha256(data).digest()

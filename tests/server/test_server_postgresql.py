"""NUL characters, which JSON can write and PostgreSQL cannot keep, wherever a text goes into the database."""

from __future__ import annotations

import io
import json
from collections.abc import Iterator
from typing import Any

import httpx
import pytest
from gemini_stub import Scripted
from PIL import Image
from serving import TINY, Serving, painter, serving, waited

from jobs.databases import new_database

NUL = "a\0b"
GOOGLE = {"x-goog-api-key": "k"}
CONTENT = {"contents": [{"parts": [{"text": NUL}]}]}
CHAT = {"model": "stub", "messages": [{"role": "user", "content": NUL}]}
LINE = {"custom_id": "1", "method": "POST", "url": "/v1/chat/completions", "body": CHAT}


@pytest.fixture(scope="module")
def here(postgresql: str, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Serving]:
    """A server over PostgreSQL whose model says a NUL."""
    home = tmp_path_factory.mktemp("home")
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("STUDIOLO_HOME", str(home))
        painter(home / "painter")
        engine = Scripted([NUL])
        with serving(home, {"stub": engine}, jobs=True, database=new_database(postgresql)) as here:
            yield here


@pytest.fixture(autouse=True)
def at_home(here: Serving, studiolo_home: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("STUDIOLO_HOME", str(here.studio.settings.data))


@pytest.fixture
def http(here: Serving) -> Iterator[httpx.Client]:
    with httpx.Client(base_url=here.url, timeout=60) as client:
        yield client


def uploaded(http: httpx.Client, name: str, data: bytes, purpose: str = "batch") -> Any:
    return http.post("/v1/files", data={"purpose": purpose}, files={"file": (name, data)})


def photo() -> bytes:
    file = io.BytesIO()
    Image.new("RGB", (40, 40), "red").save(file, "png")
    return file.getvalue()


@pytest.mark.parametrize(
    ("path", "body"),
    [
        ("/v1/chat/completions", CHAT | {"store": True, "metadata": {"k": NUL}}),
        ("/v1/responses", {"model": "stub", "input": NUL, "metadata": {"k": NUL}}),
        ("/v1/responses", {"model": "stub", "input": "x", "previous_response_id": NUL}),
        ("/v1/responses", {"model": NUL, "input": "x"}),
        ("/v1/uploads", {"filename": NUL, "bytes": 1, "mime_type": "text/plain", "purpose": "user_data"}),
        ("/v1/batches", {"input_file_id": NUL, "endpoint": "/v1/responses", "completion_window": "24h"}),
        ("/v1/fine_tuning/jobs", {"model": TINY, "training_file": NUL, "suffix": NUL}),
        ("/v1beta/cachedContents", CONTENT | {"model": "models/stub", "displayName": NUL}),
        ("/v1beta/models/stub:batchGenerateContent", {"batch": {
            "displayName": NUL, "inputConfig": {"requests": {"requests": [{
                "request": CONTENT, "metadata": {"key": NUL}}]}}}}),
        ("/v1beta/tunedModels", {"displayName": NUL, "baseModel": f"models/{TINY}"}),
        ("/v1beta/interactions", {"model": "stub", "input": NUL}),
    ],
)  # fmt: skip
def test_what_comes_with_a_nul_is_kept_or_refused(http, path, body):
    answer = http.post(path, json=body, headers=GOOGLE if "v1beta" in path else {})
    assert answer.status_code < 500, answer.text


@pytest.mark.parametrize(
    "path", ["/v1/files/%00", "/v1/batches/%00", "/v1/responses/%00", "/v1/uploads/%00", "/v1beta/files/a%00",
             "/v1/fine_tuning/jobs/%00", "/v1beta/batches/%00", "/v1beta/cachedContents/%00",
             "/v1beta/tunedModels/%00", "/v1/models/%00", "/v1/chat/completions/%00"]
)  # fmt: skip
def test_what_is_called_with_a_nul_is_not_there(http, path):
    answer = http.get(path, headers=GOOGLE if "v1beta" in path else {})
    assert 400 <= answer.status_code < 500, answer.text


def test_an_answer_with_a_nul_is_told_and_kept(http):
    made = http.post("/v1/responses", json={"model": "stub", "input": NUL}).json()
    assert made["output"][0]["content"][0]["text"] == NUL
    assert http.get(f"/v1/responses/{made['id']}").json()["output"] == made["output"]
    behind = {"model": "stub", "input": "more", "previous_response_id": made["id"]}
    assert http.post("/v1/responses", json=behind).status_code == 200


def test_a_batch_with_a_nul_is_answered(http):
    file = uploaded(http, "in.jsonl", json.dumps(LINE).encode()).json()["id"]
    wanted = {"input_file_id": file, "endpoint": "/v1/chat/completions", "completion_window": "24h"}
    made = http.post("/v1/batches", json=wanted).json()
    done = waited(
        lambda: http.get(f"/v1/batches/{made['id']}").json(),
        lambda batch: batch["status"] in ("completed", "failed"),
    )
    assert (done["status"], done["request_counts"]["completed"]) == ("completed", 1)
    line = http.get(f"/v1/files/{done['output_file_id']}/content").json()
    assert line["response"]["body"]["choices"][0]["message"]["content"] == NUL


@pytest.mark.parametrize(
    "told",
    [
        {"suffix": NUL}, {"metadata": {"k": NUL}}, {"metadata": {NUL: "v"}},
        {"method": {"type": "supervised", "supervised": {"hyperparameters": {"class_noun": NUL}}}},
    ],
)  # fmt: skip
def test_a_tuning_with_a_nul_is_refused_and_leaves_nothing(here, http, told):
    file = uploaded(http, "a.png", photo(), "fine-tune").json()["id"]
    noun = {"method": {"type": "supervised", "supervised": {"hyperparameters": {"class_noun": "fox"}}}}
    answer = http.post("/v1/fine_tuning/jobs", json={"model": TINY, "training_file": file} | noun | told)
    assert 400 <= answer.status_code < 500, answer.text
    assert http.get("/v1/fine_tuning/jobs").json()["data"] == []
    assert not list(here.studio.tunings.folder.glob("*"))


def test_a_file_s_name_with_a_nul_is_refused(http):
    body = b'--a\r\nContent-Disposition: form-data; name="purpose"\r\n\r\nuser_data\r\n'
    body += b'--a\r\nContent-Disposition: form-data; name="file"; filename="a\0b"\r\n\r\nx\r\n--a--\r\n'
    kind = {"content-type": "multipart/form-data; boundary=a"}
    answer = http.post("/v1/files", content=body, headers=kind)
    assert answer.status_code == 400, answer.text

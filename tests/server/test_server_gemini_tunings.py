"""Three generations of Google's client go the same round through files, batches, pictures and tunings; and
what of teaching no client sends."""

from __future__ import annotations

import io
import itertools
import json
import zipfile
from typing import Any

import httpx
import numpy as np
import pytest
from gemini_jobs_tour import RECIPE
from gemini_stub import Scripted, client_of
from google.genai import errors, types
from PIL import Image
from sdks import toured
from serving import TINY, painter, serving, waited

pytestmark = pytest.mark.usefixtures("warm_trainings")
numbers = itertools.count()
CLIENTS = {"one": "1.75.0", "two": "2.34.0", "three": None}
"""Versions of google-genai; None is the one that is installed."""
ENDLESS = 1000
"""Steps that no test waits for. Of more than that not each is told of: the first would come late."""


def png(seed: int, size: int = 40) -> bytes:
    pixels = np.random.default_rng(seed).integers(0, 256, (size, size, 3), dtype=np.uint8)
    file = io.BytesIO()
    Image.fromarray(pixels).save(file, format="png")
    return file.getvalue()


@pytest.fixture(scope="module")
def home(tmp_path_factory):
    return tmp_path_factory.mktemp("home")


@pytest.fixture(scope="module")
def shop(home):
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("STUDIOLO_HOME", str(home))
        painter(home / "painter")
        echo = Scripted(lambda request: [request.contents[-1].text])
        with serving(home, {"stub": echo}, jobs=True) as here:
            yield here


@pytest.fixture(autouse=True)
def at_home(shop, home, studiolo_home, monkeypatch):
    monkeypatch.setenv("STUDIOLO_HOME", str(home))


@pytest.fixture
def key(shop) -> str:
    """A test's own, and so are the files, batches and tunings that it sees."""
    return shop.studio.keys.store.create(f"key {next(numbers)}")[0]


@pytest.fixture(params=CLIENTS)
def told(request, shop, key, tmp_path) -> dict[str, Any]:
    """What a client of that version made of everything."""
    for seed, name in enumerate("abc"):
        (tmp_path / f"{name}.png").write_bytes(png(seed))
    return toured("gemini_jobs_tour.py", shop.url, key, tmp_path, version=CLIENTS[request.param])


def test_the_round(told):
    assert told["files"] == ["A", "image/png", "ACTIVE", True, True, True]
    assert told["inline"] == ["numbers", "JOB_STATE_SUCCEEDED", "models/stub", ["one", "two"], True]
    assert told["from_file"] == [["b", "b"], ["a", "a"]]
    assert told["pictures"] == ["image/png", "89504e47"]
    assert told["subject"] == [
        "tunedModels/my-fox", "JOB_STATE_SUCCEEDED", f"models/{TINY}", 1, True, ["tunedModels/my-fox"],
        "Fox", True,
    ]  # fmt: skip
    assert told["images"] == [["image/png", "89504e47"]] * 2
    assert told["enterprise_subject"] == ["JOB_STATE_SUCCEEDED", True, "89504e47"]


# --- by hand ----------------------------------------------------------------------------------------------


@pytest.fixture
def rest(shop, key):
    with httpx.Client(base_url=f"{shop.url}/v1beta", headers={"x-goog-api-key": key}, timeout=60) as client:
        yield client


@pytest.fixture
def images(shop, key) -> str:
    """The name of an uploaded archive of images."""
    file = io.BytesIO()
    with zipfile.ZipFile(file, "w") as archive:
        for seed in range(3):
            archive.writestr(f"{seed}.png", png(seed))
    file.seek(0)
    client = client_of(shop.url, api_key=key)
    return client.files.upload(file=file, config={"mime_type": "application/zip"}).name


def asked(images: str, **more: Any) -> dict[str, Any]:
    examples = {"examples": [{"output": images}]}
    task = {"trainingData": {"examples": examples}, "hyperparameters": RECIPE | more}
    return {"baseModel": f"models/{TINY}", "displayName": "A toy", "tuningTask": task}


def test_an_operation_with_losses_and_pictures_on_the_way(rest, images):
    made = rest.post(
        "/tunedModels?tunedModelId=toy-1",
        json=asked(
            images,
            steps=4,
            previews={"every": 2, "steps": 1},
            scores={"every": 4, "n": 1, "contexts": 1, "steps": 1},
        ),
    )
    assert made.status_code == 200, made.text
    operation = made.json()["name"]
    assert made.json()["metadata"]["tunedModel"] == "tunedModels/toy-1"
    done = waited(lambda: (told := rest.get(f"/{operation}").json()).get("done") and told)
    assert done["response"]["state"] == "ACTIVE"
    assert (done["metadata"]["completedSteps"], done["metadata"]["completedPercent"]) == (4, 100)
    snapshots = done["metadata"]["snapshots"]
    assert [one["step"] for one in snapshots] == [0, 1, 2, 3, 4]
    assert ["meanLoss" in one for one in snapshots] == [False, True, True, True, True]
    assert [one.get("scores", {}).get("best") for one in snapshots] == [False, None, None, None, True]
    assert snapshots[4]["scores"].keys() == {"composite", "fidelity", "prompt", "drift", "best"}
    tuned = rest.get("/tunedModels/toy-1").json()
    assert tuned["tuningTask"]["snapshots"] == done["metadata"]["snapshots"]
    assert tuned["tuningTask"]["hyperparameters"]["class_noun"] == "toy"
    pictures = rest.get("/tunedModels/toy-1/previews").json()["previews"]
    assert [one["step"] for one in pictures] == [0, 2, 4]
    shown = httpx.get(pictures[1]["uri"], headers=rest.headers)
    assert (shown.headers["content-type"], shown.content[:4]) == ("image/png", b"\x89PNG")
    drawn = rest.post("/tunedModels/toy-1:predict", json={"instances": [{"prompt": "a [V] toy"}]})
    assert drawn.json()["predictions"][0]["prompt"] == "a zwx toy"
    assert rest.delete("/models/toy-1").json() == {}
    for path in ("/tunedModels/toy-1", "/models/toy-1", f"/{operation}"):
        assert rest.get(path).status_code == 404
    assert rest.post("/models/toy-1:predict", json={"instances": [{"prompt": "a"}]}).status_code == 404


def test_a_teaching_is_cancelled_and_its_name_free_again(shop, key, rest, images):
    first = rest.post("/tunedModels?tunedModelId=toy-2", json=asked(images, steps=ENDLESS)).json()["name"]
    taken = rest.post("/tunedModels?tunedModelId=toy-2", json=asked(images))
    assert (taken.status_code, taken.json()["error"]["status"]) == (409, "ABORTED")
    client = client_of(shop.url, api_key=key)
    waited(lambda: rest.get("/tunedModels/toy-2").json()["tuningTask"].get("snapshots"))
    assert rest.delete("/tunedModels/toy-2").status_code == 409
    client.tunings.cancel(name="tunedModels/toy-2")
    job = waited(lambda: (job := client.tunings.get(name="tunedModels/toy-2")).has_ended and job)
    assert job.state is types.JobState.JOB_STATE_CANCELLED
    client.tunings.cancel(name="tunedModels/toy-2")  # it stays as it is

    second = rest.post("/tunedModels?tunedModelId=toy-2", json=asked(images, steps=ENDLESS)).json()["name"]
    by_id = [one.rpartition("/")[2] for one in (first, second)]
    client.tunings.cancel(name="tunedModels/toy-2")
    waited(lambda: rest.get(f"/{second}").json().get("done"))
    assert rest.get(f"/{first}").json()["error"]["code"] == 1  # told of also when its name is another's
    told = [rest.get(f"/tuningJobs/{one}").json()["name"] for one in by_id]
    assert told == [f"tuningJobs/{one}" for one in by_id]
    client.models.delete(model=f"tunedModels/{by_id[0]}")
    client.models.delete(model="tunedModels/toy-2")
    assert rest.get("/tunedModels/toy-2").status_code == 404


def test_subjects_are_taught_and_forgotten_by_their_owner_alone(shop, rest, images):
    rest.post("/tunedModels?tunedModelId=toy-3", json=asked(images)).raise_for_status()
    other = client_of(shop.url, api_key=shop.studio.keys.store.create("other")[0])
    for act in (
        lambda: other.tunings.cancel(name="tunedModels/toy-3"),
        lambda: other.models.delete(model="tunedModels/toy-3"),
        lambda: other.models.update(model="tunedModels/toy-3", config={"display_name": "Mine"}),
    ):
        with pytest.raises(errors.ClientError, match="404"):
            act()
    theirs = rest.post("/tunedModels?tunedModelId=toy-4", json=asked("files/nothing"))
    assert theirs.status_code == 404
    waited(lambda: rest.get("/tunedModels/toy-3").json()["state"] == "ACTIVE")
    assert "tunedModels/toy-3" in [one.name for one in other.models.list(config={"query_base": False})]
    with pytest.raises(errors.ClientError, match="404"):
        other.models.delete(model="tunedModels/toy-3")
    rest.delete("/tunedModels/toy-3").raise_for_status()


def changed(body: dict[str, Any], *path: str, to: Any) -> dict[str, Any]:
    inner = body
    for step in path[:-1]:
        inner = inner[step]
    inner[path[-1]] = to
    return body


@pytest.mark.parametrize(
    ("path", "value", "message"),
    [
        (("baseModel",), None, "no base model"),
        (("baseModel",), "models/nothing", "can be taught"),
        (("tuningTask", "trainingData"), {}, "no images to learn from"),
        (("tuningTask", "trainingData"), {"files": ["https://example.org/a.png"]}, "Say files/ID"),
        (("tuningTask", "hyperparameters"), {"steps": 3}, "no class_noun"),
        (("tuningTask", "hyperparameters"), RECIPE | {"epochCount": 5}, "Give steps"),
        (("tuningTask", "hyperparameters"), RECIPE | {"stepz": 5}, "stepz"),
        (("tuningTask", "hyperparameters"), RECIPE | {"steps": "many"}, "steps"),
        (("tuningTask", "hyperparameters"), RECIPE | {"images": ["/etc"]}, "not to be set here"),
        (("temperature",), 0.5, "not supported"),
        (("description",), "a toy", "not supported"),
    ],
)
def test_what_cannot_be_taught_is_told_before(rest, images, path, value, message):
    body = changed(json.loads(json.dumps(asked(images))), *path, to=value)
    refused = rest.post("/tunedModels", json=body)
    assert refused.status_code in (400, 404), refused.text
    assert message in refused.json()["error"]["message"]
    assert rest.get("/tunedModels").json() == {"tunedModels": []}


def test_models_that_are_no_subjects_are_not_tuned_models(rest):
    assert rest.get(f"/tunedModels/{TINY}").status_code == 404
    assert rest.delete(f"/models/{TINY}").status_code == 404
    assert rest.get("/models?filter=labels.tune-type:*").json() == {"models": []}
    assert rest.get("/models?filter=state:*").status_code == 400

"""Subjects, by the official client: taught from images, watched, drawn, deleted. And what else OpenAI has."""

from __future__ import annotations

import asyncio
import base64
import io
import json
import zipfile
from types import SimpleNamespace

import numpy as np
import openai
import pytest
from openai.types.fine_tuning import FineTuningJob, FineTuningJobEvent
from openai.types.fine_tuning.jobs import FineTuningJobCheckpoint
from PIL import Image
from serving import serving, waited
from talking import client_of

from lessons import QUICK
from studiolo.drawing.provenance import read_provenance
from studiolo.models.registry import register
from studiolo.server.keys import KeyStore
from studiolo.server.openai import fine_tuning
from studiolo.server.openai.fine_tuning_wire import JobRequest
from studiolo.server.openai.wire import standings
from studiolo.store.database import Database
from studiolo.store.uploads import Uploads
from tiny import tiny_folder

pytestmark = pytest.mark.usefixtures("warm_trainings")
RECIPE = {
    **QUICK,
    "class_noun": "fox",
    "steps": 4,
    "checkpoint_every": 2,
    "identifier": "zwx",
    "scores": {"every": 0},
    "previews": {"every": 2, "steps": 1, "count": 1},
}
ENDLESS = RECIPE | {"steps": 1000}  # of more than that not each is told of: it would be long until the first
OVER = ("succeeded", "failed", "cancelled")


def png(seed: int, size: int = 40) -> bytes:
    pixels = np.random.default_rng(seed).integers(0, 256, (size, size, 3), dtype=np.uint8)
    buffer = io.BytesIO()
    Image.fromarray(pixels).save(buffer, format="PNG")
    return buffer.getvalue()


def archive() -> bytes:
    buffer = io.BytesIO()
    with zipfile.ZipFile(buffer, "w") as file:
        for number in range(3):
            file.writestr(f"photos/{number}.png", png(number))
    return buffer.getvalue()


@pytest.fixture(autouse=True)
def tiny(tmp_path):
    register(tiny_folder(tmp_path / "base"), "tiny")


def test_scores_while_it_is_taught(client):
    asked = RECIPE | {"scores": {"every": 2, "n": 1, "contexts": 1, "steps": 2}}
    job = begun(client, uploaded(client, archive()), asked, suffix="my-fox")
    done = over(client, job)
    assert done.error is None, done.error
    _, scores = (client.files.content(file).text.splitlines() for file in done.result_files)
    names, *rows = (line.split(",") for line in scores)
    rows = [dict(zip(names, map(float, row), strict=True)) for row in rows]
    events = [event for event in client.fine_tuning.jobs.list_events(job.id) if event.data["kind"] == "score"]
    assert [event.type for event in events] == ["metrics"] * 3
    assert [event.data | {"best": float(event.data["best"])} for event in events][::-1] == [
        {"kind": "score", **row} for row in rows
    ]
    assert [row["step"] for row in rows] == [0, 2, 4]
    best = [row for row in rows if row.pop("best")][-1]
    assert done.scores == best
    checkpoints = client.fine_tuning.jobs.checkpoints.list(job.id).data
    kept = [one.metrics.model_dump(exclude_none=True, exclude={"train_loss"}) for one in checkpoints]
    assert kept == rows[:0:-1]
    whole = [one.step_number for one in checkpoints if one.fine_tuned_model_checkpoint == "my-fox"]
    assert whole == [best["step"]]


def uploaded(client, data, name="photos.zip") -> str:
    return client.files.create(file=(name, data), purpose="fine-tune").id


def begun(client, file, recipe=RECIPE, **more):
    supervised = {"type": "supervised", "supervised": {"hyperparameters": recipe}}
    return client.fine_tuning.jobs.create(
        **{"model": "tiny", "training_file": file, "method": supervised} | more
    )


def over(client, job):
    return waited(lambda: client.fine_tuning.jobs.retrieve(job.id), lambda found: found.status in OVER)


def test_a_subject_from_its_images_to_its_end(client, served, monkeypatch):
    jobs = client.fine_tuning.jobs
    file = uploaded(client, archive())
    job = begun(client, file, suffix="my-fox", seed=3, metadata={"for": "tea"})
    FineTuningJob.model_validate(job.model_dump(), strict=True)
    assert job.id.startswith("ftjob-")
    assert (job.object, job.model, job.fine_tuned_model) == ("fine_tuning.job", "tiny", None)
    assert (job.training_file, job.seed, job.metadata) == (file, 3, {"for": "tea"})
    assert job.status in ("queued", "running")
    assert job.method.supervised.hyperparameters.class_noun == "fox"

    done = over(client, job)
    FineTuningJob.model_validate(done.model_dump(), strict=True)
    assert (done.status, done.error, done.fine_tuned_model, done.scores) == (
        "succeeded",
        None,
        "my-fox",
        None,
    )
    assert done.finished_at >= done.created_at
    assert (done.step, done.steps) == (4, 4)
    (results,) = done.result_files
    assert jobs.retrieve(job.id).result_files == [results]
    rows = client.files.content(results).text.splitlines()
    assert rows[0].startswith("step,")
    assert len(rows) == 5

    events = list(jobs.list_events(job.id, limit=5))  # the client asks for page after page
    for event in events:
        FineTuningJobEvent.model_validate(event.model_dump(), strict=True)
    numbers = [int(event.id.removeprefix("ftevent-")) for event in events]
    assert numbers == sorted(numbers, reverse=True)
    assert events[0].message == "succeeded"
    metrics = [event.data for event in events if event.type == "metrics"][::-1]
    assert [data["step"] for data in metrics] == [1, 2, 3, 4]
    assert all(data["train_loss"] > 0 for data in metrics)
    previews = [event.data for event in events if event.data["kind"] == "preview"][::-1]
    assert [data["step"] for data in previews] == [0, 2, 4]
    for data in previews:
        picture = client.files.content(data["file_id"]).read()
        assert Image.open(io.BytesIO(picture)).format == "PNG"
    again = [event.data for event in jobs.list_events(job.id) if event.data["kind"] == "preview"]
    assert again == previews[::-1]

    checkpoints = list(jobs.checkpoints.list(job.id, limit=1))
    for checkpoint in checkpoints:
        FineTuningJobCheckpoint.model_validate(checkpoint.model_dump(), strict=True)
        assert checkpoint.fine_tuning_job_id == job.id
        assert checkpoint.metrics.train_loss == metrics[checkpoint.step_number - 1]["train_loss"]
    assert [one.step_number for one in checkpoints] == [4, 2]
    run = served.studio.tunings.folder / job.id.removeprefix("ftjob-") / "run" / "checkpoints"

    async def one_gone(_):
        return (1, run / "step-000001.ckpt"), *((step, path) for step, path in kept)

    kept = [(one.step_number, run / f"step-{one.step_number:06d}.ckpt") for one in checkpoints[::-1]]
    with monkeypatch.context() as patch:
        patch.setattr(served.studio.tunings, "checkpoints", one_gone)
        assert list(jobs.checkpoints.list(job.id)) == checkpoints
    assert [one.fine_tuned_model_checkpoint for one in checkpoints] == ["my-fox", "my-fox:step-2"]

    listed = {model.id: model for model in client.models.list()}
    assert (listed["my-fox"].kind, listed["my-fox"].parent) == ("subject", "tiny")
    (image,) = client.images.generate(
        model="my-fox", prompt="a photo of [V] fox", extra_body={"steps": 1}
    ).data
    record = read_provenance(io.BytesIO(base64.b64decode(image.b64_json)))
    assert (record.model.name, len(record.model.data)) == ("my-fox", 3)

    with pytest.raises(openai.ConflictError):
        jobs.cancel(job.id)
    gone = client.models.delete("my-fox")
    assert (gone.id, gone.deleted) == ("my-fox", True)
    for call in (
        lambda: client.models.retrieve("my-fox"),
        lambda: client.images.generate(model="my-fox", prompt="a fox"),
        lambda: client.models.delete("my-fox"),
        lambda: jobs.retrieve(job.id),
    ):
        with pytest.raises(openai.NotFoundError):
            call()


def test_several_images_one_by_one_and_in_a_list(client, served):
    images = [uploaded(client, png(number), f"{number}.png") for number in range(3)]
    job = begun(client, images[0], ENDLESS, extra_body={"training_files": images[1:]})
    assert (job.training_file, job.training_files) == (images[0], images)
    lines = "".join(json.dumps({"file_id": image}) + "\n" for image in images)
    listed = begun(client, uploaded(client, lines.encode(), "images.jsonl"), ENDLESS)
    assert listed.training_files == images
    folder = served.studio.tunings.folder / listed.id.removeprefix("ftjob-") / "images"
    assert sorted(path.name for path in folder.iterdir()) == ["0.png", "1.png", "2.png"]
    assert listed.status == "queued"  # one at a time

    assert [found.id for found in client.fine_tuning.jobs.list(limit=1)] == [listed.id, job.id]
    for call in (client.fine_tuning.jobs.pause, client.fine_tuning.jobs.resume):
        with pytest.raises(openai.InternalServerError, match="not paused") as told:
            call(job.id)
        assert told.value.status_code == 501
    assert client.fine_tuning.jobs.cancel(listed.id).status == "cancelled"
    waited(lambda: client.fine_tuning.jobs.retrieve(job.id), lambda found: found.step >= 1)
    client.fine_tuning.jobs.cancel(job.id)
    done = over(client, job)
    assert (done.status, done.fine_tuned_model) == ("cancelled", None)
    with pytest.raises(openai.NotFoundError):
        client.images.generate(model=job.user_provided_suffix, prompt="a fox")


def test_the_asynchronous_client_and_filters(served):
    async def go():
        async with openai.AsyncOpenAI(base_url=f"{served.url}/v1", api_key="k") as client:
            jobs = client.fine_tuning.jobs
            file = await client.files.create(file=("a.zip", archive()), purpose="fine-tune")
            made = [
                await jobs.create(
                    model="tiny",
                    training_file=file.id,
                    hyperparameters=ENDLESS,
                    metadata={"number": str(n)},
                )
                for n in range(3)
            ]
            found = [job.id async for job in jobs.list(metadata={"number": "1"})]
            for job in made[::-1]:
                await jobs.cancel(job.id)
            return found, made

    found, made = asyncio.run(go())
    assert found == [made[1].id]


WRONG = [
    ({"model": "nobody"}, 404, "model"),
    ({"model": "stub"}, 400, "model"),
    ({"training_file": "file-nothing"}, 404, "training_file"),
    ({"extra_body": {"training_files": ["file-nothing"]}}, 404, "training_file"),
    ({"recipe": {"steps": 3}}, 400, "hyperparameters.class_noun"),
    ({"recipe": RECIPE | {"class_noun": "!"}}, 400, "hyperparameters.class_noun"),
    ({"recipe": RECIPE | {"stepps": 3}}, 400, "hyperparameters"),
    ({"recipe": RECIPE | {"steps": 0}}, 400, "hyperparameters"),
    ({"recipe": RECIPE | {"images": ["/etc"]}}, 400, "hyperparameters"),
    ({"recipe": RECIPE | {"n_epochs": 3}}, 400, "hyperparameters.n_epochs"),
    ({"recipe": RECIPE | {"learning_rate_multiplier": -1}}, 400, "hyperparameters.learning_rate_multiplier"),
    ({"method": {"type": "dpo"}}, 400, "method.type"),
    ({"hyperparameters": {"class_noun": "dog"}}, 400, "hyperparameters"),
    ({"recipe": RECIPE | {"seed": 1}, "seed": 2}, 400, "seed"),
    ({"suffix": "tiny"}, 400, "suffix"),
    ({"suffix": "../x"}, 400, "suffix"),
    ({"validation_file": "file-x"}, 400, "validation_file"),
    ({"integrations": [{"type": "wandb", "wandb": {"project": "x"}}]}, 400, "integrations"),
    ({"metadata": {"k": "v" * 513}}, 400, "metadata.k"),
    ({"extra_body": {"colour": "red"}}, 400, "colour"),
]


def test_what_is_wrong_is_named(client, served):
    file = uploaded(client, archive())
    for wrong, status, param in WRONG:
        with pytest.raises(openai.APIStatusError) as told:
            begun(client, **{"file": file} | wrong)
        assert (told.value.status_code, told.value.param) == (status, param), (wrong, told.value)
    assert not client.fine_tuning.jobs.list().data
    assert not list(served.studio.tunings.folder.glob("*"))


def test_of_two_that_ask_for_the_file_of_a_preview_one_makes_it(tmp_path, monkeypatch):
    (path := tmp_path / "a.png").write_bytes(png(1))
    files = Uploads(Database(f"sqlite:///{tmp_path / 'db'}"), tmp_path / "files")
    append, told = files.append, []

    def ask():
        studio, record = SimpleNamespace(files=files), SimpleNamespace(owner=None)
        return fine_tuning._file(studio, record, "preview-1", "a.png", "image/png", path)

    def late(*given):
        monkeypatch.setattr(files, "append", append)
        told.append(ask())  # by another request, which begins it anew
        return append(*given)

    monkeypatch.setattr(files, "append", late)
    assert (ask(), told) == (None, ["preview-1"])
    assert ask() == "preview-1"
    assert files.path("preview-1").read_bytes() == path.read_bytes()


def test_files_that_teach_nothing(client):
    bomb = io.BytesIO()
    with zipfile.ZipFile(bomb, "w", zipfile.ZIP_DEFLATED) as file:
        file.writestr("a.png", b"\0" * (110 * 2**20))
    for data, status in (
        (b"no image", 400),
        (b"PK\x03\x04 broken", 400),
        (b'{"file_id": 3}\n', 400),
        (b'{"file_id": "file-nothing"}\n', 404),
        (b"{broken\n", 400),
        (bomb.getvalue(), 413),
    ):
        with pytest.raises(openai.APIStatusError) as told:
            begun(client, uploaded(client, data))
        assert told.value.status_code == status, (data[:20], told.value)
    assert not client.fine_tuning.jobs.list().data


def test_rates_are_multiplied(client):
    job = begun(
        client, uploaded(client, archive()),
        ENDLESS | {"learning_rate_multiplier": 0.5, "n_epochs": "auto", "batch_size": "auto"},
    )  # fmt: skip
    shown = job.method.supervised.hyperparameters
    assert (shown.learning_rate, shown.learning_rate_multiplier) == (RECIPE["learning_rate"] / 2, 0.5)
    assert shown.batch_size == "auto"
    client.fine_tuning.jobs.cancel(job.id)


def test_nobody_sees_or_deletes_another_ones(studiolo_home):
    with serving(studiolo_home, {}, host="0.0.0.0", jobs=True) as served:
        store = KeyStore(served.studio.database)
        ada, bob = (client_of(served.url, api_key=store.create(name)[0]) for name in ("ada", "bob"))
        job = begun(ada, uploaded(ada, archive()), suffix="rex")
        for call in (
            lambda: bob.fine_tuning.jobs.retrieve(job.id),
            lambda: bob.fine_tuning.jobs.cancel(job.id),
            lambda: bob.fine_tuning.jobs.list_events(job.id),
            lambda: bob.fine_tuning.jobs.checkpoints.list(job.id),
            lambda: bob.fine_tuning.jobs.list(after=job.id),
            lambda: begun(bob, job.training_file),
        ):
            with pytest.raises(openai.NotFoundError):
                call()
        assert not bob.fine_tuning.jobs.list().data
        assert over(ada, job).status == "succeeded"
        for client, model in ((bob, "rex"), (ada, "tiny")):
            with pytest.raises(openai.PermissionDeniedError):
                client.models.delete(model)
        assert ada.models.delete("rex").deleted


def test_every_field_has_its_standing():
    table = {path for path, _ in standings(JobRequest)}
    official = set(openai.types.fine_tuning.job_create_params.JobCreateParams.__annotations__)
    assert official <= table
    assert {path for path in table if "." not in path} - official == {"training_files"}


# --- what is not built, and moderations -------------------------------------------------------------------


def test_audio_is_not_built_yet(client):
    for call in (
        lambda: client.audio.transcriptions.create(model="whisper-1", file=("a.wav", b"x")),
        lambda: client.audio.translations.create(model="whisper-1", file=("a.wav", b"x")),
        lambda: client.audio.speech.create(model="tts-1", voice="alloy", input="Hello"),
    ):
        with pytest.raises(openai.InternalServerError) as told:
            call()
        assert (told.value.status_code, told.value.code) == (501, "unsupported_value")


def test_moderations(client):
    told = client.moderations.create(
        input=["What a nice day.", "How do I build a pipe bomb at home?", "Write porn about a 9-year-old"]
    )
    openai.types.ModerationCreateResponse.model_validate(told.model_dump(by_alias=True), strict=True)
    kind, harmful, worst = told.results
    assert worst.flagged
    assert worst.categories.sexual_minors
    assert not harmful.categories.sexual_minors
    assert (kind.flagged, kind.category_scores.illicit) == (False, 0.0)
    assert harmful.flagged
    assert harmful.categories.illicit
    assert harmful.category_applied_input_types.illicit == ["text"]
    assert harmful.category_applied_input_types.violence == []  # not judged
    parts = [{"type": "text", "text": "What a"}, {"type": "text", "text": "nice day."}]
    assert len(client.moderations.create(input=parts).results) == 1
    for wrong in ([], [{"type": "image_url", "image_url": {"url": "https://x"}}], [3], ["a"] * 2049):
        with pytest.raises(openai.BadRequestError):
            client.moderations.create(input=wrong)

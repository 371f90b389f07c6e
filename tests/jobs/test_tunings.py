"""Tunings: `studiolo train` in a process of its own, whatever is killed; and what is refused before it."""

from __future__ import annotations

import asyncio
import io
import os
import random
import re
import signal
import subprocess
import sys
import threading
import time
import zipfile
from concurrent.futures import ThreadPoolExecutor
from contextlib import asynccontextmanager, suppress
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pytest
from PIL import Image
from pydantic import BaseModel

from jobs.waiting import until
from lessons import QUICK, rows, same_weights, teach
from studiolo.drawing.model import ImageModel
from studiolo.dreambooth.recipe import Recipe
from studiolo.errors import ConflictError, NotFoundError, StudioloError
from studiolo.jobs.photos import unpack
from studiolo.jobs.queue import Queue
from studiolo.jobs.runwatch import RunWatch
from studiolo.jobs.sharing import Sharing
from studiolo.jobs.tunings import _PATHS, Tunings, TuningSpec, _reason
from studiolo.models import registry
from studiolo.store.database import Database
from tiny import tiny_folder

pytestmark = pytest.mark.usefixtures("warm_trainings")
WORKER = Path(__file__).with_name("tuning_worker.py")
RECIPE = {
    **QUICK,
    "steps": 6,
    "checkpoint_every": 2,
    "identifier": "zwx",
    "scores": {"every": 0},
    "previews": {"every": 3, "steps": 1},
}
ENDLESS = 1000
"""Steps that no test waits for. Of more than that not each is told of: the first would come late."""


def png(seed: int, size: int = 40) -> bytes:
    pixels = np.random.default_rng(seed).integers(0, 256, (size, size, 3), dtype=np.uint8)
    buffer = io.BytesIO()
    Image.fromarray(pixels).save(buffer, format="PNG")
    return buffer.getvalue()


class Uploaded:
    """Files by id, as `Uploads` gives them."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        folder.mkdir()

    def put(self, name: str, data: bytes) -> str:
        (self.folder / f"id-{name}").write_bytes(data)
        return f"id-{name}"

    def get(self, id, *, owner):  # noqa: A002
        if not self.path(id).exists():
            raise NotFoundError("no such file", where=id)
        return SimpleNamespace(name=id.removeprefix("id-"))

    def path(self, id):  # noqa: A002
        return self.folder / id


@pytest.fixture
def files(tmp_path):
    return Uploaded(tmp_path / "uploads")


@pytest.fixture
def base(tmp_path):
    registry.register(tiny_folder(tmp_path / "base"), "tiny")
    return "tiny"


@pytest.fixture
def spec(files, base):
    ids = tuple(files.put(f"{i}.png", png(i)) for i in range(3))
    return TuningSpec(name="rex", base=base, class_noun="a fox", files=ids, recipe=RECIPE)


@asynccontextmanager
async def at_work(url, files, **options):
    database = Database(url)
    queue = Queue(database, worker="test", poll=0.02)
    tunings = Tunings(database, queue, files, every=0.02, **options)
    await queue.start()
    await tunings.start()
    try:
        yield tunings
    finally:
        await queue.close()
        database.close()


async def over(tunings, identity):
    async def ended():
        return (await tunings.get(identity, None)).ended is not None

    await until(ended)
    return await tunings.get(identity, None)


async def stepped(tunings, identity, step):
    async def there():
        record = await tunings.get(identity, None)
        assert record.state == "running" or record.ended is None, record.problem
        return record.step >= step

    await until(there)


def training(folder: Path) -> int | None:
    """The process that trains in `folder`."""
    for entry in Path("/proc").iterdir():
        try:
            command = (entry / "cmdline").read_bytes().split(b"\0") if entry.name.isdecimal() else []
        except OSError:
            continue
        if b"studiolo.jobs.leash" in command and os.fsencode(folder) in command:
            return int(entry.name)
    return None


@pytest.mark.skipif(not Path("/proc/self/cmdline").exists(), reason="finds processes in /proc")
def test_a_subject_is_taught_though_server_and_training_are_killed(spec, files, tmp_path, warm_python):
    chance, url = random.Random(0), f"sqlite:///{tmp_path / 'db'}"
    straight = teach({"images": files.folder, "base": "tiny"}, tmp_path / "straight", **RECIPE)

    async def create():
        database = Database(url)
        queue = Queue(database, worker="test")
        tunings = Tunings(database, queue, files)
        await asyncio.to_thread(tunings._take_in, "x", spec)  # and then it was killed, nothing queued
        return tunings

    tunings = asyncio.run(create())
    run = tunings.folder / "x" / "run"
    command = [sys.executable, str(WORKER), url, warm_python]
    server = subprocess.Popen(command)
    for victim, step in zip(["server", "training"], sorted(chance.sample(range(5), 2)), strict=True):
        while not (run / "metrics.csv").exists() or len(rows(run)) < step:
            assert server.poll() is None
            time.sleep(0.001)
        if victim == "server":
            server.kill()
            server.wait()
            server = subprocess.Popen(command)
        elif process := training(tunings.folder / "x"):
            os.kill(process, signal.SIGKILL)
    assert server.wait() == 0

    record = asyncio.run(tunings.get("x", None))
    assert (record.state, record.step, record.steps) == ("succeeded", 6, 6), record.problem
    assert same_weights(registry.resolve("rex").path, straight.ref.path)
    events = asyncio.run(tunings.events("x"))
    assert [event.step for event in events if event.kind == "step"] == [1, 2, 3, 4, 5, 6]
    assert [event.step for event in events if event.kind == "preview"] == [0, 3, 6]
    assert [event.data["loss"] for event in events if event.kind == "step"] == [
        pytest.approx(float(loss)) for (loss,) in rows(tmp_path / "straight", "loss")
    ]
    assert events[-1].message == "succeeded"
    assert asyncio.run(tunings.events("x", after=events[2].number)) == events[3:]
    assert [step for step, _ in asyncio.run(tunings.previews("x"))] == [0, 3, 6]
    assert asyncio.run(tunings.checkpoints("x"))[-1][0] == 6
    assert asyncio.run(tunings.named("rex")) == record
    assert ImageModel.load("rex").generate("a [V] fox", steps=1)

    asyncio.run(tunings.delete("x", None))
    assert not run.exists()
    with pytest.raises(registry.NoSuchModelError):
        registry.resolve("rex")
    with pytest.raises(NotFoundError):
        asyncio.run(tunings.get("x", None))


def test_cancelled_parked_and_failed(spec, files, tmp_path):
    url = f"sqlite:///{tmp_path / 'db'}"
    long = spec.model_copy(update={"recipe": {**RECIPE, "steps": ENDLESS, "previews": {"every": 0}}})

    async def main():
        async with at_work(url, files) as tunings:
            first = await tunings.create(long)
            second = await tunings.create(long.model_copy(update={"name": "later"}))
            with pytest.raises(ConflictError, match="being taught"):
                await tunings.create(long)
            await stepped(tunings, first.id, 2)
            assert (await tunings.get(second.id, None)).state == "queued"  # one at a time
            assert (await tunings.cancel(second.id, None)).state == "cancelled"
            with pytest.raises(ConflictError):
                await tunings.delete(first.id, None)
        # The server was stopped: the training saved its step and is there to be gone on with.
        assert training(tunings.folder / first.id) is None
        parked = max(step for step, _ in await tunings.checkpoints(first.id))
        async with at_work(url, files) as tunings:
            await stepped(tunings, first.id, parked + 1)
            assert (await tunings.cancel(first.id, None)).state == "cancelling"
            assert (await over(tunings, first.id)).state == "cancelled"
            with pytest.raises(ConflictError, match="over"):
                await tunings.cancel(first.id, None)
            wrong = {**RECIPE, "accelerator": "gpu"}
            if not __import__("torch").cuda.is_available():
                failing = await tunings.create(spec.model_copy(update={"recipe": wrong}))
                record = await over(tunings, failing.id)
                assert record.state == "failed"
                assert record.problem.startswith("this machine cannot train so")
                assert "\n" not in record.problem

    asyncio.run(main())


def test_a_training_that_dies_again_and_again_is_given_up(spec, files, tmp_path, monkeypatch):
    async def main():
        async with at_work(f"sqlite:///{tmp_path / 'db'}", files, crashes=2) as tunings:
            lives = []

            async def killed(identity, watch, cancelled, training):
                lives.append(identity)
                return -signal.SIGKILL

            monkeypatch.setattr(tunings, "_train", killed)
            record = await over(tunings, (await tunings.create(spec)).id)
            assert len(lives) == 3
            assert (record.state, record.problem) == ("failed", "the training died 3 times (SIGKILL)")

    asyncio.run(main())


def test_one_that_ran_out_of_memory_beside_drawings_goes_on_alone(spec, files, tmp_path, monkeypatch):
    async def main():
        sharing = Sharing(lambda: None)
        async with at_work(f"sqlite:///{tmp_path / 'db'}", files, sharing=sharing) as tunings:
            lives = []

            async def died(identity, watch, cancelled, training):
                assert sharing._trainings == [training]
                lives.append(training.alone)
                training.shared = shared and not training.alone
                log = "torch.OutOfMemoryError: CUDA out of memory. Tried to allocate 2.00 MiB.\n"
                (tunings.folder / identity / "train.log").write_text(log)
                return 0 if training.alone else 1

            monkeypatch.setattr(tunings, "_train", died)
            shared = True
            record = await over(tunings, (await tunings.create(spec)).id)
            assert (record.state, lives) == ("succeeded", [False, True])
            told = [event.message for event in await tunings.events(record.id)]
            assert "did not suffice beside drawings" in told[2]
            shared = False
            record = await over(tunings, (await tunings.create(spec.model_copy(update={"name": "b"}))).id)
            assert record.state == "failed"
            assert "CUDA out of memory" in record.problem
            assert lives == [False, True, False]

    asyncio.run(main())


@pytest.mark.parametrize("accelerator", ["auto", "cpu"])
def test_a_training_on_the_gpu_is_settled_by_its_first_step(spec, files, tmp_path, monkeypatch, accelerator):
    seen = []

    class Spied(Sharing):
        @asynccontextmanager
        async def teaching(self, **told):
            async with super().teaching(**told) as training:
                seen.append(training)
                yield training

    async def main():
        short = spec.model_copy(update={"recipe": {**RECIPE, "accelerator": accelerator}})
        async with at_work(f"sqlite:///{tmp_path / 'db'}", files, sharing=Spied(lambda: None)) as tunings:
            record = await tunings.create(short)
            await stepped(tunings, record.id, 0)
            assert not any(training.settled for training in seen)
            assert (await over(tunings, record.id)).state == "succeeded"

    asyncio.run(main())
    assert [training.settled for training in seen] == ([True] if accelerator == "auto" else [])


def test_no_path_of_this_machine_is_taken_from_a_client():
    """Whoever adds a field that is a path adds it to those that are refused."""

    def fields(model, prefix=""):
        for name, field in model.model_fields.items():
            inner = field.annotation
            if isinstance(inner, type) and issubclass(inner, BaseModel):
                yield from fields(inner, f"{prefix}{name}.")
            else:
                yield prefix + name, field.description or ""

    paths = {name for name, told in fields(Recipe) if re.search(r"\b(folder|file)s?\b", told, re.IGNORECASE)}
    assert paths - {"base", "subjects", "captions"} == set(_PATHS) - {"subjects"}


def test_records_and_events(url, spec, files, monkeypatch):
    """A training whose run folder is written here, step by step."""

    async def main():
        async with at_work(url, files) as tunings:
            go = asyncio.Event()

            async def trained(identity, watch, cancelled, training):
                (watch.run / "previews").mkdir(parents=True)
                (watch.run / "metrics.csv").write_text("step,loss\n1,0.5\n2,0.25\n")
                (watch.run / "previews" / "step-000002.png").touch()
                (watch.run / "scores.csv").write_text("step,composite,drift,best\n2,0.75,0.125,1\n")
                await asyncio.to_thread(tunings._keep_news, identity, watch)
                await go.wait()
                return 0

            monkeypatch.setattr(tunings, "_train", trained)
            record = await tunings.create(
                spec.model_copy(update={"owner": "me", "title": "Rex", "name": None})
            )
            assert (record.name, record.title) == (f"fox-{record.id[:6]}", "Rex")
            assert (record.class_noun, record.recipe, record.steps) == ("fox", RECIPE, 6)

            async def stepped():
                return (await tunings.get(record.id, "me")).step == 2

            await until(stepped)
            go.set()

            async def ended():
                return (await tunings.get(record.id, "me")).ended is not None

            await until(ended)
            events = await tunings.events(record.id)
            assert [(event.kind, event.step, event.message) for event in events] == [
                ("state", None, "queued"),
                ("state", None, "running"),
                ("step", 1, "step 1: loss 0.5000"),
                ("step", 2, "step 2: loss 0.2500"),
                ("score", 2, "scores at step 2: composite 0.750, drift 0.125 (best so far)"),
                ("preview", 2, "preview at step 2"),
                ("state", None, "succeeded"),
            ]
            assert events[4].data == {"composite": 0.75, "drift": 0.125, "best": 1}
            assert await tunings.events(record.id, after=events[3].number) == events[4:]
            others = [
                await tunings.create(spec.model_copy(update={"owner": "me", "name": f"r{i}"})) for i in (1, 2)
            ]
            page = await tunings.page("me", size=2)
            rest = await tunings.page("me", size=2, after=page[-1].id)
            assert [r.id for r in (*page, *rest)] == [others[1].id, others[0].id, record.id]
            assert await tunings.page("you") == ()
            for call in (tunings.get, tunings.cancel, tunings.delete):
                with pytest.raises(NotFoundError):
                    await call(record.id, "you")

    asyncio.run(main())


@pytest.mark.parametrize(
    ("change", "words"),
    [
        ({"recipe": {"stepps": 3}}, "did you mean 'steps'"),
        ({"recipe": {"steps": 0}}, "steps = 0"),
        ({"recipe": {"class_images": {"count": "many"}}}, "class_images.count"),
        ({"recipe": {"images": "/etc"}}, "recipe.images"),
        ({"recipe": {"masks": "/etc"}}, "recipe.masks"),
        ({"recipe": {"scores": {"weights": "/etc"}}}, "recipe.scores.weights"),
        ({"class_noun": "a b c d e f"}, "class noun"),
        ({"name": "../rex"}, "not a name"),
        ({"name": "tiny"}, "exists"),
        ({"base": "/etc"}, "/etc"),
        ({"base": "tinny"}, "no model"),
        ({"files": ("id-none",)}, "no such file"),
        ({"files": ("id-text",)}, "text"),
        ({"files": ("id-flat",)}, "shows nothing"),
    ],
)
def test_what_cannot_be_taught_is_refused_before_it_is_queued(spec, files, tmp_path, change, words):
    files.put("text", b"no image")
    grey = io.BytesIO()
    Image.new("RGB", (40, 40), "grey").save(grey, format="PNG")
    files.put("flat", grey.getvalue())
    database = Database(f"sqlite:///{tmp_path / 'db'}")
    tunings = Tunings(database, Queue(database), files)
    with pytest.raises(StudioloError) as caught:
        asyncio.run(tunings.create(spec.model_copy(update=change)))
    assert words in str(caught.value)
    assert str(tmp_path) not in str(caught.value)
    assert not list(tunings.folder.glob("*"))


@pytest.mark.parametrize(
    ("told", "previews", "scores"),
    [
        ({"steps": 80}, 20, 80),
        ({"steps": 3}, 1, 3),
        ({"steps": 80, "previews": {"count": 1}, "scores": {"every": 0}}, 0, 0),
        ({"steps": 80, "strategy": "fsdp", "devices": 2}, 0, 0),
    ],
)
def test_how_often_a_tuning_draws_and_is_judged(spec, files, tmp_path, told, previews, scores):
    database = Database(f"sqlite:///{tmp_path / 'db'}")
    tunings = Tunings(database, Queue(database), files)
    asked = spec.model_copy(update={"recipe": told})
    tunings._take_in("x", asked)
    recipe = Recipe.from_yaml(tunings.folder / "x" / "recipe.yaml")
    assert (recipe.previews.every, recipe.scores.every) == (previews, scores)
    assert tunings._table.load("x").recipe == told  # what the client said, and no more


def test_of_two_that_come_together_one_has_the_name(url, spec, files):
    database = Database(url)
    tunings, both = Tunings(database, Queue(database), files), threading.Barrier(2, timeout=60)
    tunings._check_name = lambda name: both.wait()  # neither has been written down when they look
    with ThreadPoolExecutor(2) as pool:
        made = [pool.submit(tunings._take_in, identity, spec) for identity in "ab"]
        refused = [taken.exception() for taken in made]
    assert sorted(type(error).__name__ for error in refused) == ["ConflictError", "NoneType"]
    assert len(tunings._table.under_way()) == len(list(tunings.folder.iterdir())) == 1
    database.close()


def test_what_a_process_that_died_had_only_unpacked_goes(spec, files, tmp_path):
    folder = tmp_path / "tunings"

    async def go():
        url = f"sqlite:///{tmp_path / 'jobs.sqlite'}"
        async with at_work(url, files, folder=folder) as tunings:
            taken = await tunings.create(spec)
            await tunings.cancel(taken.id, None)
        for name, age in (("dead", 7200), ("young", 60), (taken.id, 7200)):
            (folder / name).mkdir(exist_ok=True)
            os.utime(folder / name, (time.time() - age,) * 2)
        async with at_work(url, files, folder=folder):
            return taken.id

    kept = asyncio.run(go())
    assert {path.name for path in folder.iterdir()} == {"young", kept}


def test_what_is_deleted_is_gone_at_once_and_wholly_at_the_next_start(url, spec, files, monkeypatch):
    async def main():
        async with at_work(url, files) as tunings:

            async def trained(identity, watch, cancelled, training):
                return 0

            monkeypatch.setattr(tunings, "_train", trained)
            record = await over(tunings, (await tunings.create(spec)).id)
            registry.register(tiny_folder(tunings.folder / record.id / "run"), "rex")

            def died(*_):
                raise RuntimeError

            monkeypatch.setattr(tunings, "_remove", died)
            with pytest.raises(RuntimeError):
                await tunings.delete(record.id, None)
            with pytest.raises(NotFoundError):
                await tunings.get(record.id, None)
            assert await tunings.page(None) == ()
            assert await tunings.named("rex") is None
            assert (tunings.folder / record.id).exists()
        async with at_work(url, files) as tunings:
            assert not (tunings.folder / record.id).exists()
            assert await tunings.events(record.id) == ()
            with pytest.raises(registry.NoSuchModelError):
                registry.resolve("rex")

    asyncio.run(main())


def archive(path: Path, entries: dict[str, bytes], method=zipfile.ZIP_DEFLATED) -> Path:
    with zipfile.ZipFile(path, "w", method) as file:
        for name, data in entries.items():
            file.writestr(name, data)
    return path


def test_archives_lead_nowhere_else(tmp_path):
    entries = {
        "../../evil.png": png(1),
        "/etc/passwd.png": png(2),
        "a\\b\\..\\c.png": png(3),
        "photos/[V] on a bench.JPG": png(4),
        "other/[V] on a bench.jpg": png(5),
        "photos/.DS_Store": b"x",
        "__MACOSX/photos/._1.png": b"x",
        "photos/": b"",
    }
    out = tmp_path / "out"
    written = unpack([("my.zip", archive(tmp_path / "a.zip", entries))], out)
    names = ["evil.png", "passwd.png", "c.png", "[V] on a bench.jpg", "[V] on a bench-2.jpg"]
    assert [path.relative_to(out).as_posix() for path in written] == names
    assert [path.read_bytes() for path in written] == [png(i) for i in range(1, 6)]
    assert {path.name for path in tmp_path.iterdir()} == {"a.zip", "out"}


def test_archives_are_bounded(tmp_path, monkeypatch):
    def refused(entries, words, **options):
        with pytest.raises(StudioloError, match=words):
            unpack([("a.zip", archive(tmp_path / "a.zip", entries, **options))], tmp_path / "out")

    refused({"bomb.png": bytes(101 * 2**20)}, "bomb.png: more than")
    refused({"a.png": png(1), "b.txt": b"hello"}, "b.txt")
    refused({"inner.zip": archive(tmp_path / "i.zip", {"a.png": png(1)}).read_bytes()}, "inner.zip")
    refused({"a.png": png(1)}, "uncommon", method=zipfile.ZIP_LZMA)
    refused({}, "no images")
    refused({f"{i}": b"" for i in range(10_001)}, "too many files")
    monkeypatch.setattr("studiolo.jobs.photos.MOST_IMAGES", 2)
    refused({f"{i}.png": png(i) for i in range(3)}, "more than 2 images")
    monkeypatch.setattr("studiolo.jobs.photos.MOST_BYTES", 10_000)
    refused({f"{i}.png": png(i, 50) for i in range(2)}, "10,000 bytes")


def test_spoiled_archives_are_refused_and_nothing_else_happens(tmp_path):
    whole = archive(tmp_path / "a.zip", {"a.png": png(1), "b.png": png(2)}).read_bytes()
    chance = random.Random(0)
    for trial in range(300):
        spoiled = bytearray(whole)
        for _ in range(chance.randrange(1, 20)):
            spoiled[chance.randrange(2, len(spoiled))] = chance.randrange(256)
        if trial % 3 == 0:
            del spoiled[chance.randrange(2, len(spoiled)) :]
        (tmp_path / "b.zip").write_bytes(spoiled)
        with suppress(StudioloError):
            unpack([("b.zip", tmp_path / "b.zip")], tmp_path / "out")


def test_news_of_a_run_are_told_once(tmp_path):
    run = tmp_path / "run"
    watch = RunWatch(run, 10, {})
    assert watch.look() == []
    (run / "previews").mkdir(parents=True)
    file = run / "metrics.csv"
    file.write_text("step,loss\n1,0.5\n2,0.2")
    (run / "previews" / "step-000000.png").touch()
    assert [(n.kind, n.step) for n in watch.look()] == [("preview", 0), ("step", 1)]
    with file.open("a") as opened:
        opened.write("5\n3,0.1\n")
    assert [(n.step, n.data) for n in watch.look()] == [(2, {"loss": 0.25}), (3, {"loss": 0.1})]
    new = run / "new"
    new.write_text("step,loss\n1,0.5\n2,0.25\n")  # resumed from step 2
    new.replace(file)
    assert watch.look() == []
    with file.open("a") as opened:
        opened.write("3,0.1\n4,0.05\n")
    assert [n.step for n in watch.look()] == [4]


def test_a_long_training_tells_of_some_steps(tmp_path):
    (tmp_path / "metrics.csv").write_text("step,loss\n" + "".join(f"{i},1\n" for i in range(1, 2501)))
    steps = [news.step for news in RunWatch(tmp_path, 2500, {}).look()]
    assert steps == [*range(3, 2500, 3), 2500]


def test_the_reason_is_one_line():
    told = "note: x\nError: no GPU\n  in accelerator\n  Use cpu.\nmore\n"
    assert _reason(told) == "no GPU; in accelerator; Use cpu."
    assert _reason("Traceback:\n  File\nValueError: no\n\n") == "ValueError: no"
    assert _reason("") == "it ended without a word"

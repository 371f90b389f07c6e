"""Several subjects, shapes and priors in whole runs, and how examples of several subjects take turns."""

from __future__ import annotations

import json

import numpy as np
import pytest
import torch
from PIL import Image

from lessons import QUICK, losses, rows, same_weights, teach
from studiolo.drawing.model import ImageModel
from studiolo.dreambooth import callbacks, personalize
from studiolo.dreambooth.examples import ExampleSet
from studiolo.dreambooth.material import Interleaved
from studiolo.dreambooth.progress import Display
from studiolo.dreambooth.trainer import Interrupted, resume, train
from studiolo.errors import StudioloError
from studiolo.evaluation.training import training_scorer
from tiny import tiny_folder


def examples(count: int, first: int) -> ExampleSet:
    """Latents of image i are i; images count from `first`."""
    mean = torch.arange(first, first + count, dtype=torch.float32).view(-1, 1, 1, 1, 1).expand(-1, 1, 4, 8, 8)
    return ExampleSet(mean.contiguous(), torch.full((count, 1, 4, 8, 8), -1e9))


@pytest.mark.parametrize("block", [1, 2, 3])
def test_subjects_take_turns_however_many_images_they_have(block):
    sets = Interleaved([examples(1, 0), examples(5, 1), examples(2, 6)], [0, 1, 6], block)
    drawn = sets.draw(0, "instance", range(90))
    numbers = drawn.image_index
    assert torch.equal(drawn.latents[:, 0, 0, 0].round().long(), numbers)
    owner = torch.bucketize(numbers, torch.tensor([1, 6]), right=True)
    assert torch.equal(owner, torch.arange(90) // block % 3)
    assert set(numbers.tolist()) == set(range(8))
    parts = [sets.draw(0, "instance", range(start, start + 9)).latents for start in range(0, 90, 9)]
    assert torch.equal(torch.cat(parts), drawn.latents)


def test_where_only_one_subject_has_masks_the_other_counts_in_full():
    masked = examples(2, 0)
    masked = ExampleSet(masked.mean, masked.logvar, torch.zeros(2, 1, 1, 8, 8))
    drawn = Interleaved([masked, examples(2, 2)], [0, 2]).draw(0, "instance", range(6))
    assert drawn.masks.flatten(1).mean(1).tolist() == [0, 1, 0, 1, 0, 1]


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    """A tiny base, and images of noise: two squares of a fox, three of other proportions of a dog."""
    folder = tmp_path_factory.mktemp("material")
    rng = np.random.default_rng(0)
    for name, sizes in {"fox": [(40, 40)] * 2, "dog": [(64, 36), (36, 64), (40, 40)]}.items():
        (folder / name).mkdir()
        for i, (width, height) in enumerate(sizes):
            pixels = rng.integers(0, 256, (height, width, 3), dtype=np.uint8)
            Image.fromarray(pixels).save(folder / name / f"{i}.png")
    tiny_folder(folder)
    return folder


def given(folder, name="fox") -> dict:
    return {"images": folder / name, "base": folder / "model"}


def two(folder) -> list[dict]:
    return [{"name": name, "images": [str(folder / name)], "class_noun": name} for name in ("fox", "dog")]


def test_two_subjects_in_one_run(folder, tmp_path):
    run = tmp_path / "run"
    model = train(
        name="pets", base=folder / "model", out=run, display=Display.silent(), subjects=two(folder), **QUICK
    )
    card = json.loads((run / "model" / "studiolo.json").read_text())
    assert [(one["name"], one["class_noun"]) for one in card["subjects"]] == [("fox", "fox"), ("dog", "dog")]
    words = {one["name"]: one["identifier"] for one in card["subjects"]}
    assert words["fox"] != words["dog"]
    assert [image["file"] for image in card["data"]["images"]] == [
        "fox/0.png", "fox/1.png", "dog/0.png", "dog/1.png", "dog/2.png",
    ]  # fmt: skip
    drawn = model.generate("a [fox] fox and a [dog] dog", steps=1)[0]
    assert drawn.record.batch[0].prompt == f"a {words['fox']} fox and a {words['dog']} dog"
    assert ImageModel.load("pets").fingerprint == model.fingerprint
    with pytest.raises(StudioloError, match=r"\[V\]"):
        model.generate("a [V] fox", steps=1)


def test_captions_may_name_every_subject(folder, tmp_path, monkeypatch):
    """And scores while training are of all subjects together."""
    (folder / "fox" / "0.txt").write_text("a [fox] fox beside [dog] dog")
    seen, choose = [], personalize.tokenize
    monkeypatch.setattr(
        personalize, "tokenize", lambda c, prompts: seen.extend(prompts) or choose(c, prompts)
    )
    model = train(
        name="pets", base=folder / "model", out=tmp_path / "run", display=Display.silent(),
        subjects=[two(folder)[0] | {"captions": "sidecar"}, two(folder)[1]], scorer=training_scorer,
        scores={"every": 6, "n": 1, "contexts": 1, "steps": 1}, **QUICK,
    )  # fmt: skip
    words = model.identifiers
    assert seen[:3] == [
        f"a {words['fox']} fox beside {words['dog']} dog",
        f"a photo of {words['fox']} fox",
        f"a photo of {words['dog']} dog",
    ]
    assert model.ref.card["scores"]["step"] == 6
    (folder / "fox" / "0.txt").unlink()


def test_previews_show_several_subjects_in_one_picture(folder, tmp_path):
    previews = {"every": 1, "steps": 1, "prompts": "a [fox] fox and a [dog] dog"}
    settings = QUICK | {"steps": 1, "previews": previews}
    seen, draw = [], callbacks.generate
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(callbacks, "generate", lambda c, t, *a, **k: seen.extend(t) or draw(c, t, *a, **k))
        model = train(
            name="pets", base=folder / "model", out=tmp_path / "run", display=Display.silent(),
            subjects=two(folder), **settings,
        )  # fmt: skip
    words = model.identifiers
    assert set(seen) == {f"a {words['fox']} fox and a {words['dog']} dog"}


def test_subjects_repeat_from_their_recipe_alone(folder, tmp_path):
    for name in ("one", "two"):
        settings = (
            {"subjects": two(folder)} if name == "one" else {"recipe": tmp_path / "one" / "recipe.yaml"}
        )
        quick = QUICK if name == "one" else {}
        base = folder / "model" if name == "one" else None
        train(name=name, base=base, out=tmp_path / name, display=Display.silent(), **settings, **quick)
    assert rows(tmp_path / "one") == rows(tmp_path / "two")
    assert same_weights(tmp_path / "one" / "model", tmp_path / "two" / "model")


def test_one_word_for_two_subjects_is_refused(folder, tmp_path):
    subjects = [one | {"identifier": "zwx"} for one in two(folder)]
    with pytest.raises(StudioloError, match="stands for another subject"):
        train(
            name="x", base=folder / "model", out=tmp_path / "x", display=Display.silent(), subjects=subjects
        )


@pytest.mark.parametrize("settings", [{"prior": "predictions"}, {"buckets": True, "bucket_step": 8}])
def test_a_killed_run_goes_on_exactly(folder, tmp_path, monkeypatch, settings):
    settings = {"class_predictions": {"count": 4, "steps": 3}, "checkpoint_every": 2} | settings
    teach(given(folder, "dog"), tmp_path / "whole", **settings)
    original = callbacks.Recorder.on_step

    def on_step(self, trainer, module, now):
        original(self, trainer, module, now)
        if now == 3:
            raise Interrupted(15, between_steps=True, where="test", remedy="")

    with monkeypatch.context() as patch:
        patch.setattr(callbacks.Recorder, "on_step", on_step)
        with pytest.raises(Interrupted):
            teach(given(folder, "dog"), tmp_path / "broken", **settings)
    resume(tmp_path / "broken", display=Display.silent())
    assert rows(tmp_path / "broken") == rows(tmp_path / "whole")
    assert same_weights(tmp_path / "broken" / "model", tmp_path / "whole" / "model")


def test_predictions_need_no_class_images(folder, tmp_path, monkeypatch):
    monkeypatch.setenv("STUDIOLO_HOME", str(tmp_path / "home"))
    settings = {
        "class_predictions": {"count": 4, "steps": 3},
        "learning_rate": 1e-5,
        "text_learning_rate": 1e-5,
    }
    teach(given(folder), tmp_path / "run", prior="predictions", **settings)
    cache = tmp_path / "home" / "cache"
    assert list(cache.glob("class-predictions/*/*.safetensors"))
    assert not list(cache.glob("class-images/*"))
    # The untouched base repeats its own predictions: nothing to pay before the first step.
    assert losses(tmp_path / "run")[0, 1] < 1e-8


def test_images_of_three_shapes_train_in_their_own(folder, tmp_path, monkeypatch):
    from studiolo.dreambooth.personalize import Personalization

    met = set()
    original = Personalization.training_step

    def training_step(self, batch, number):
        met.add(tuple(batch.instance.latents.shape[2:]))
        assert batch.prior.latents.shape[2:] == (8, 8)
        return original(self, batch, number)

    monkeypatch.setattr(Personalization, "training_step", training_step)
    teach(given(folder, "dog"), tmp_path / "run", buckets=True, bucket_step=8, batch_size=1)
    assert met == {(8, 8), (6, 10), (10, 6)}

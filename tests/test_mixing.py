"""Several subjects, kept apart or not: by a closed form, and on a whole run."""

from __future__ import annotations

import json

import numpy as np
import pytest
import torch
from PIL import Image
from typer.testing import CliRunner

import studiolo
from lessons import QUICK
from studiolo.cli.main import app
from studiolo.drawing.model import ImageModel
from studiolo.dreambooth.progress import Display
from studiolo.dreambooth.trainer import train
from studiolo.errors import StudioloError
from studiolo.evaluation import exam
from studiolo.evaluation.learned import learned_subjects, training_images
from studiolo.evaluation.mixing import Mixing, score_apart
from tiny import tiny_folder


class Compass:
    """Embeds a plain picture as the direction that its red value, in degrees, points to."""

    name = "compass"

    def embed(self, images):
        angles = torch.tensor([image.getpixel((0, 0))[0] for image in images]).float().deg2rad()
        return torch.stack([angles.cos(), angles.sin()], dim=1)


def at(*degrees: int) -> list[Image.Image]:
    return [Image.new("RGB", (4, 4), (value, 0, 0)) for value in degrees]


def test_likeness_is_the_mean_cosine_and_apart_who_is_nearest_to_its_own():
    pictures = {"rex": at(0, 10, 80), "tom": at(90, 90)}
    mixing = Mixing.of(pictures, {"rex": at(0, 20), "tom": at(90)}, Compass())
    cosine = np.cos(np.deg2rad([[0, 20], [10, 10], [80, 60]])).mean()
    assert mixing.likeness["rex"]["rex"] == pytest.approx(cosine, abs=1e-4)
    assert mixing.likeness["tom"]["tom"] == pytest.approx(1, abs=1e-4)
    assert mixing.likeness["tom"]["rex"] == pytest.approx(np.cos(np.deg2rad([90, 70])).mean(), abs=1e-4)
    assert mixing.kept_apart == {"rex": round(2 / 3, 4), "tom": 1.0}


@pytest.fixture(scope="module")
def pets(tmp_path_factory):
    """A tiny model that was taught two subjects, by the path of its run."""
    folder = tmp_path_factory.mktemp("mixing")
    rng = np.random.default_rng(0)
    for name in ("fox", "dog"):
        (folder / name).mkdir()
        pixels = rng.integers(0, 256, (40, 40, 3), dtype=np.uint8)
        Image.fromarray(pixels).save(folder / name / "0.png")
    subjects = [{"name": name, "images": [str(folder / name)], "class_noun": name} for name in ("fox", "dog")]
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("STUDIOLO_HOME", str(folder / "home"))
        train(
            name="pets", base=tiny_folder(folder), out=folder / "run", display=Display.silent(),
            subjects=subjects, **QUICK | {"steps": 1},
        )  # fmt: skip
    return folder / "run"


def test_each_subject_is_scored_by_its_own_images_and_words(pets, tmp_path):
    model = ImageModel.load(pets)
    assert [one.name for one in learned_subjects(model)] == ["fox", "dog"]
    assert (
        training_images(model, subject="dog")[0].tobytes() == Image.open(pets.parent / "dog/0.png").tobytes()
    )
    found = score_apart(model, n=1, steps=1, baseline=pets.parent / "model", out=tmp_path / "scores")
    for name, report in found.reports.items():
        assert report.facts["class_noun"] == name
        assert report.facts["training_images"] == 1
        assert (tmp_path / "scores" / name / "report.html").exists()
    told = json.loads((tmp_path / "scores" / "report.json").read_text())
    assert told["likeness"] == found.mixing.likeness
    assert "kept apart" in (tmp_path / "scores" / "report.html").read_text()


def test_the_function_scores_all_or_one_as_the_command_does(pets, tmp_path):
    asked = {"n": 1, "steps": 1, "baseline": pets.parent / "model"}
    whole = studiolo.score(str(pets), **asked, out=tmp_path / "all")
    assert list(whole.reports) == ["fox", "dog"]
    assert (tmp_path / "all" / "dog" / "report.json").exists()
    assert studiolo.score(pets, subject="dog", **asked).facts["class_noun"] == "dog"
    with pytest.raises(StudioloError, match="images of its own"):
        studiolo.score(pets, images=pets.parent / "dog", **asked)


def test_the_command_line_shows_all_or_one(pets, tmp_path):
    base = [
        "score",
        "--model",
        str(pets),
        "--baseline",
        str(pets.parent / "model"),
        "-n",
        "1",
        "--steps",
        "1",
    ]
    base += ["--out", str(tmp_path / "s")]
    whole = CliRunner().invoke(app, base)
    assert whole.exit_code == 0, whole.output
    assert "kept apart" in whole.output
    whose = CliRunner().invoke(app, [*base, "--images", str(pets.parent / "dog")])
    assert "--subject NAME" in str(whose.exception)
    one = CliRunner().invoke(app, [*base, "--subject", "dog"])
    assert one.exit_code == 0, one.output
    assert "kept apart" not in one.output


@pytest.mark.parametrize(
    ("name", "told"), [(None, "which subject"), ("cat", "no subject of this model is called")]
)
def test_the_wrong_subject_is_told(pets, name, told):
    with pytest.raises(StudioloError, match=told) as error:
        training_images(ImageModel.load(pets), subject=name)
    assert "fox, dog" in error.value.remedy


def test_each_subject_is_asked_for_by_all_of_its_words(pets, tmp_path):
    subjects = [
        {"name": name, "images": [str(pets.parent / name)], "class_noun": name} for name in ("fox", "dog")
    ]
    model = train(
        name="words", base=pets.parent / "model", out=tmp_path / "run", display=Display.silent(),
        subjects=subjects, **QUICK | {"steps": 1, "token_vectors": 2},
    )  # fmt: skip
    learned = {one.name: one.identifier for one in learned_subjects(model)}
    assert learned == model.identifiers
    assert all(len(words.split()) == 2 for words in learned.values())


def test_the_only_one_of_subjects_has_all_images(pets, tmp_path):
    model = train(
        name="alone", base=pets.parent / "model", out=tmp_path / "run", display=Display.silent(),
        subjects=[{"name": "rex", "images": [str(pets.parent / "dog")], "class_noun": "dog"}],
        **QUICK | {"steps": 1},
    )  # fmt: skip
    (one,) = learned_subjects(model)
    assert (one.name, len(one.hashes)) == ("rex", 1)
    assert len(training_images(model)) == 1
    words = model.identifier
    for name in ("rex", "V"):
        assert model.request(f"a [{name}] dog").prompt == f"a {words} dog"


def test_the_only_one_of_subjects_is_scored_by_its_own_noun_and_word(pets, tmp_path):
    seen, draw = [], exam.generate

    def generate(components, texts, *rest, **named):
        seen.extend(texts)
        return draw(components, texts, *rest, **named)

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(exam, "generate", generate)
        model = studiolo.train(
            name="scored", base=pets.parent / "model", out=tmp_path / "run", display=Display.silent(),
            subjects=[{"name": "rex", "images": [str(pets.parent / "dog")], "class_noun": "dog"}],
            **QUICK | {"steps": 1, "scores": {"every": 1, "n": 1, "contexts": 1, "steps": 1}},
        )  # fmt: skip
    assert set(seen) == {f"a photo of {model.identifier} dog on the moon", "a photo of a dog on the moon"}

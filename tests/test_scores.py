"""The scores against closed forms, the report against its own numbers, the embedders against transformers."""

from __future__ import annotations

import importlib
import json
import re
import shutil
from dataclasses import replace
from html.parser import HTMLParser
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image
from transformers import CLIPVisionConfig, CLIPVisionModelWithProjection, ViTConfig, ViTModel
from typer.testing import CliRunner

import studiolo
from lessons import lesson, teach
from studiolo.base.vocabulary import BACKGROUNDS, NOUNS
from studiolo.cli.main import app
from studiolo.drawing.model import ImageModel
from studiolo.dreambooth.progress import Display
from studiolo.dreambooth.recipe import Recipe
from studiolo.errors import StudioloError
from studiolo.evaluation import measures
from studiolo.evaluation.demo import demo
from studiolo.evaluation.embedders import load_embedder
from studiolo.evaluation.exam import CONTEXTS, UNRELATED, Exam
from studiolo.evaluation.eye import EYE_FOLDER, shipped_eye
from studiolo.evaluation.learned import training_images
from studiolo.evaluation.portfolio import Portfolio
from studiolo.evaluation.report import MEANINGS
from studiolo.evaluation.scores import Judge, score
from studiolo.models.registry import BASE_NAME, resolve

ROOT = Path(__file__).parent.parent
with_eye = pytest.mark.skipif(
    not (EYE_FOLDER / "eye.safetensors").exists(), reason="the weights of the eye are not in this checkout"
)
with_base = pytest.mark.skipif(
    not (ROOT / "src/studiolo/base/weights/model_index.json").exists(),
    reason="the weights of studiolo-base are not in this checkout",
)


def noise(count: int, seed: int = 0, size: int = 32) -> list[Image.Image]:
    rng = np.random.default_rng(seed)
    return [Image.fromarray(rng.integers(0, 256, (size, size, 3), dtype=np.uint8)) for _ in range(count)]


def at_angles(*degrees: float) -> torch.Tensor:
    """Unit vectors of the plane."""
    angles = torch.tensor(degrees).deg2rad()
    return torch.stack([angles.cos(), angles.sin()], dim=1)


def test_fidelity_is_the_mean_cosine_of_all_pairs():
    training = at_angles(0, 60)
    assert measures.fidelity(at_angles(0, 0), at_angles(0)) == pytest.approx(1)
    assert measures.fidelity(at_angles(90), at_angles(0)) == pytest.approx(0, abs=1e-6)
    assert measures.fidelity(at_angles(0, 60), training) == pytest.approx((1 + 0.5 + 0.5 + 1) / 4)
    assert measures.mutual_similarity(training) == pytest.approx(0.5)


def test_diversity_of_copies_is_zero_and_of_right_angles_one():
    assert measures.diversity(at_angles(30, 30, 30)) == pytest.approx(0, abs=1e-6)
    assert measures.diversity(at_angles(0, 90)) == pytest.approx(1)
    assert measures.diversity(at_angles(0, 60, 120)) == pytest.approx(1 - (0.5 + 0.5 - 0.5) / 3)


def test_drift_compares_pictures_one_by_one():
    before = at_angles(0, 90)
    assert measures.drift(before, before) == pytest.approx(0, abs=1e-6)
    assert measures.drift(before, before.flip(0)) == pytest.approx(1)
    assert measures.drift(at_angles(0, 0), at_angles(60, 0)) == pytest.approx(0.25)


def test_the_nearest_training_image_counts():
    near = measures.nearest(at_angles(0, 50), at_angles(60, 90))
    torch.testing.assert_close(near, torch.tensor([60.0, 10.0]).deg2rad().cos())


def test_a_copy_and_its_mirror_image_correlate_fully_and_noise_hardly():
    training = noise(3, size=64)
    mirrored = training[1].transpose(Image.Transpose.FLIP_LEFT_RIGHT)
    found = measures.nearest_pixels([training[0], mirrored, *noise(1, 9, 64)], training)
    torch.testing.assert_close(found[:2], torch.ones(2))
    assert found[2] < 0.2


def test_pixel_correlation_is_pearsons():
    one, two = noise(2)
    expected = np.corrcoef(np.asarray(one, float).ravel(), np.asarray(two, float).ravel())[0, 1]
    mirrored = np.asarray(two.transpose(Image.Transpose.FLIP_LEFT_RIGHT), float).ravel()
    expected = max(expected, np.corrcoef(np.asarray(one, float).ravel(), mirrored)[0, 1])
    assert float(measures.nearest_pixels([one], [two])) == pytest.approx(expected, abs=1e-5)


def test_accuracy_counts_the_most_probable_labels():
    probabilities = torch.tensor([[0.5, 0.3, 0.2], [0.1, 0.6, 0.3]])
    assert measures.accuracy(probabilities, [0, 2]) == 0.5
    assert measures.accuracy(probabilities, [0, 2], among=2) == 1
    assert measures.accuracy(probabilities, [2, 0], among=2) == 0


def test_an_exam_asks_for_each_context_and_says_what_must_be_seen():
    exam = Exam("owl", n=2)
    assert exam.subject_prompts("zwx")[0] == "a photo of zwx owl on the moon"
    assert exam.class_prompts()[0] == "a photo of an owl on the moon"
    assert exam.backgrounds[:3] == ["moon", "moon", "snow"]
    assert set(exam.backgrounds) <= set(BACKGROUNDS)
    assert len(exam.unrelated_nouns) == len(exam.backgrounds) == 16


@pytest.mark.parametrize("noun", ["fox", *UNRELATED])
def test_unrelated_nouns_are_known_and_never_the_class(noun):
    asked = Exam(noun).unrelated_nouns
    assert noun not in asked
    assert set(asked) <= set(NOUNS)


@pytest.fixture(scope="module")
def taught(tmp_path_factory):
    """A tiny model that was taught noise, and its run folder."""
    folder = tmp_path_factory.mktemp("scored")
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("STUDIOLO_HOME", str(folder / "home"))
        given = lesson(folder)
        return {**given, "model": teach(given, folder / "run"), "run": folder / "run"}


@pytest.fixture(scope="module")
def report(taught):
    if not (EYE_FOLDER / "eye.safetensors").exists():
        pytest.skip("the weights of the eye are not in this checkout")
    return score(taught["run"], n=2, steps=2, baseline=taught["base"])


def test_a_report_scores_the_exam_that_it_shows(report):
    exam, after = report.exam, report.after
    assert len(after.subject_pictures) == len(after.class_pictures) == len(exam.backgrounds)
    assert report.facts["class_noun"] == "fox"
    assert report.facts["embedder"] == "eye"
    assert 0 < report.scores["drift"]["class_distance"] < 2
    assert {f"{group}.{key}" for group, values in report.scores.items() for key in values} == set(MEANINGS)


@with_eye
def test_a_model_that_did_not_change_has_not_drifted(taught):
    same = score(taught["run"], n=1, steps=2, baseline=taught["run"]).scores
    drift = same["drift"]
    assert drift["class_distance"] == drift["unrelated_distance"] == 0
    assert drift["class_likeness"] == drift["class_likeness_before"] == same["fidelity"]["base"]
    assert same["diversity"]["class"] == same["diversity"]["class_before"]


def test_a_model_that_draws_its_training_images_is_a_perfect_copyist(report):
    copies = [report.training[i % 3] for i in range(len(report.exam.backgrounds))]
    judge_scores = _judge(report).scores(report.before, Portfolio(copies, copies, copies))
    copying = judge_scores["copying"]
    assert copying["nearest_mean"] == copying["nearest_max"] == copying["pixels_mean"] == 1
    alone = _judge(report, [copies[0]]).scores(report.before, Portfolio(copies, copies, [copies[0]] * 16))
    assert alone["fidelity"]["subject"] == 1
    assert "real" not in alone["fidelity"]


def _judge(report, training=None):
    return Judge(report.exam, training or report.training, load_embedder(), shipped_eye())


class Page(HTMLParser):
    """Checks that every tag is closed in order, and keeps the text."""

    def __init__(self, text: str) -> None:
        super().__init__()
        self.open: list[str] = []
        self.text: list[str] = []
        self.sources: list[str] = []
        self.feed(text)
        self.close()

    def handle_starttag(self, tag, attrs):
        self.sources += [value for name, value in attrs if name in ("src", "href")]
        if tag not in ("meta", "img"):
            self.open.append(tag)

    def handle_endtag(self, tag):
        assert self.open.pop() == tag

    def handle_data(self, data):
        self.text.append(data)


def test_the_page_is_whole_needs_nothing_else_and_holds_every_number(report, tmp_path):
    report.save(tmp_path)
    page = Page((tmp_path / "report.html").read_text(encoding="utf-8"))
    stored = json.loads((tmp_path / "report.json").read_text(encoding="utf-8"))
    assert page.open == []
    assert page.sources
    assert all(source.startswith("data:image/png;base64,") for source in page.sources)
    values = [value for group in stored.pop("scores").values() for value in group.values()]
    for value in (*values, *stored.values()):
        assert str(value) in page.text
    with Image.open(tmp_path / "sheet.png") as sheet:
        assert sheet.width > len(CONTEXTS) * 128
    assert sorted(path.name for path in tmp_path.iterdir()) == ["report.html", "report.json", "sheet.png"]


def test_names_in_a_report_are_text_and_not_html(report):
    page = replace(report, facts=report.facts | {"model": "<script>alert(1)</script>"}).html()
    assert "<script" not in page


def test_a_base_model_cannot_be_scored(taught):
    with pytest.raises(StudioloError, match="learned no subject"):
        score(taught["base"])


def test_no_pictures_cannot_be_scored(taught):
    with pytest.raises(StudioloError, match="0 pictures"):
        score(taught["run"], n=0)


def test_changed_training_images_are_refused(taught, tmp_path):
    moved = tmp_path / "moved"
    shutil.copytree(taught["images"], moved)
    noise(1, 7, 40)[0].save(moved / "1.png")
    with pytest.raises(StudioloError, match="1 of the training images"):
        score(taught["model"], images=moved)
    with pytest.raises(StudioloError, match="cannot be read"):
        score(taught["model"], images=tmp_path / "nowhere")


def test_images_that_were_not_learned_from_are_not_compared_with(taught, tmp_path):
    moved = tmp_path / "moved"
    shutil.copytree(taught["images"], moved)
    noise(1, 7, 40)[0].save(moved / "9.png")
    found = training_images(taught["model"], moved)
    assert [image.tobytes() for image in found] == [
        Image.open(path).tobytes() for path in sorted(taught["images"].iterdir())
    ]


@with_eye
def test_the_base_is_found_where_it_was_when_it_was_taught(taught, tmp_path, monkeypatch):
    """It was given as a folder, by a path that is right from one place alone."""
    monkeypatch.chdir(Path(taught["base"]).parent)
    teach({"images": taught["images"], "base": "model"}, tmp_path / "run", steps=1)
    teach({"images": taught["images"], "base": "model"}, tmp_path / "lora", steps=1,
          adapter={"kind": "lora"})  # fmt: skip
    monkeypatch.chdir(tmp_path)
    for run in ("run", "lora"):
        found = score(tmp_path / run, n=1, steps=1)
        assert found.facts["base_fingerprint"] == ImageModel.load(taught["base"]).fingerprint


@with_eye
def test_a_merged_model_is_scored_with_what_its_card_does_not_say(taught, tmp_path):
    teach(taught_from(taught), tmp_path / "lora", steps=1, adapter={"kind": "lora"}, identifier="qqx")
    studiolo.merge([taught["base"], tmp_path / "lora" / "model"], tmp_path / "merged")
    with pytest.raises(StudioloError, match="--images DIR"):
        score(tmp_path / "merged", n=1, steps=1)
    with pytest.raises(StudioloError, match="--baseline MODEL"):
        score(tmp_path / "merged", n=1, steps=1, images=taught["images"])
    found = score(tmp_path / "merged", n=1, steps=1, images=taught["images"], baseline=taught["base"])
    assert (found.facts["class_noun"], found.facts["identifier"]) == ("fox", "qqx")
    assert found.facts["training_images"] == 3


def taught_from(taught) -> dict:
    return {"images": taught["images"], "base": taught["base"]}


@with_eye
def test_the_command_writes_the_report_and_shows_the_scores(taught, tmp_path):
    out = tmp_path / "scores"
    given = ["--model", str(taught["run"]), "--baseline", str(taught["base"]), "-n", "1", "--steps", "1"]
    done = CliRunner().invoke(app, ["score", *given, "--out", str(out)])
    assert done.exit_code == 0, done.output
    scores = json.loads((out / "report.json").read_text(encoding="utf-8"))["scores"]
    for key in MEANINGS:
        group, name = key.split(".")
        assert re.search(rf"{re.escape(key)}\s+{scores[group][name]:.3f}", done.output), key


def test_dino_is_the_cls_token_of_the_prepared_picture(tmp_path):
    torch.manual_seed(0)
    sizes = {"hidden_size": 16, "num_hidden_layers": 1, "num_attention_heads": 2, "intermediate_size": 16}
    reference = ViTModel(ViTConfig(**sizes, patch_size=32), add_pooling_layer=False).eval()
    reference.save_pretrained(tmp_path)
    image = noise(1, size=256)[0]
    pixels = torch.from_numpy(np.array(image.crop((16, 16, 240, 240)))).permute(2, 0, 1)[None] / 255
    mean, deviation = torch.tensor([0.485, 0.456, 0.406]), torch.tensor([0.229, 0.224, 0.225])
    with torch.no_grad():
        output = reference((pixels - mean[:, None, None]) / deviation[:, None, None]).last_hidden_state[:, 0]
    embedder = load_embedder("dino", tmp_path)
    torch.testing.assert_close(embedder.embed([image]), output / output.norm(), atol=1e-5, rtol=0)


def test_clip_gives_unit_vectors_of_its_projection(tmp_path):
    sizes = {"hidden_size": 16, "num_hidden_layers": 1, "num_attention_heads": 2, "intermediate_size": 16}
    CLIPVisionModelWithProjection(CLIPVisionConfig(**sizes, projection_dim=8)).save_pretrained(tmp_path)
    found = load_embedder("clip", tmp_path).embed(noise(3, size=64))
    assert found.shape == (3, 8)
    torch.testing.assert_close(found.norm(dim=1), torch.ones(3))


def test_an_embedder_that_cannot_be_had_says_what_to_do(tmp_path):
    with pytest.raises(StudioloError, match="--embedder eye"):
        load_embedder("dino", tmp_path / "nothing")
    with pytest.raises(StudioloError, match="eye, dino, clip"):
        load_embedder("resnet")


@pytest.fixture(scope="module")
def table():
    with pytest.MonkeyPatch.context() as patch:
        patch.syspath_prepend(str(ROOT / "benchmarks"))
        yield importlib.import_module("dreambooth_table")


@with_eye
def test_the_table_scores_the_checkpoints_of_one_run(table, taught, tmp_path):
    quick = (
        "weights_dtype=float32",
        "learning_rate=0.01",
        "batch_size=1",
        "class_images.count=2",
        "class_images.steps=1",
    )
    plan = table.Plan(tmp_path, str(taught["base"]), (0, 2, 4), 1, "dpm++2m", 2, 1, quick)
    plain, prior = (table.carry_out(plan, table.Lesson("fox", 0, prior)) for prior in ("none", "images"))
    steps = [row["step"] for row in prior["milestones"]]
    drift = [row["scores"]["drift"]["class_distance"] for row in prior["milestones"]]
    assert steps == [0, 2, 4]
    assert drift[0] == 0 < drift[2]
    assert table.carry_out(plan, table.Lesson("fox", 0, "images")) == prior
    table.write(tmp_path, [plain, prior])
    text = (tmp_path / "table.md").read_text(encoding="utf-8")
    assert f"{drift[2]:.2f} ± 0.00" in text
    assert text.count("\n| images |") == text.count("\n| none |") == 3


def test_a_checkpoint_of_the_last_step_is_the_exported_model(table, taught, tmp_path):
    run = taught["run"]
    model = ImageModel.load(run)
    fingerprint = model.components.fingerprint()
    base = ImageModel.load(taught["base"])
    model.components.denoiser.load_state_dict(base.components.denoiser.state_dict())
    assert model.components.fingerprint() != fingerprint
    assert table._at(model, run, 6).fingerprint() == fingerprint


@with_base
def test_the_demo_leaves_what_the_readme_says_and_can_be_made_again(tmp_path):
    recipe = Recipe().with_settings(
        [
            "steps=2",
            "batch_size=1",
            "class_images.count=2",
            "class_images.steps=1",
            "class_images.batch_size=2",
        ]
    )
    for _ in range(2):
        report = demo(tmp_path, n=1, steps=2, recipe=recipe, display=Display.silent())
    assert {"sheet.png", "report.html", "report.json", "run"} <= {path.name for path in tmp_path.iterdir()}
    assert report.facts["base"] == BASE_NAME
    assert resolve("demo").path == (tmp_path / "run" / "model").resolve()


def test_a_demo_of_an_unknown_subject_names_the_known_ones(tmp_path):
    with pytest.raises(StudioloError, match="fox"):
        demo(tmp_path, "dodo")

"""The paper's benchmark: its lists, its scores re-derived, and a run over subjects that goes on."""

from __future__ import annotations

import json
import re
from itertools import combinations
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image
from transformers import (
    CLIPConfig,
    CLIPImageProcessorPil,
    CLIPModel,
    CLIPTextConfig,
    CLIPVisionConfig,
    ViTConfig,
    ViTModel,
)
from typer.testing import CliRunner

from lessons import QUICK, lesson, teach
from studiolo.cli.main import app
from studiolo.dreambooth.recipe import Recipe
from studiolo.errors import StudioloError
from studiolo.evaluation.bench import CLASS_PICTURES, Bench, find_subjects, run_bench
from studiolo.evaluation.dreambench import (
    CLASS_NOUNS,
    LIVE_PROMPTS,
    OBJECT_PROMPTS,
    PUBLISHED,
    plain,
    prompts_for,
)
from studiolo.evaluation.embedders import load_embedder
from studiolo.evaluation.lpips import alexnet_features, load_lpips
from studiolo.evaluation.published import Judges, load_judges, mean_scores
from studiolo.evaluation.textimage import load_text_image
from studiolo.evaluation.training import training_scorer
from studiolo.models.registry import list_models
from tiny import tiny_folder, tiny_tokenizer

SMALL = {"hidden_size": 16, "num_hidden_layers": 1, "num_attention_heads": 2, "intermediate_size": 16}


def pictures(count: int, seed: int = 0, size: tuple[int, int] = (300, 260)) -> list[Image.Image]:
    rng = np.random.default_rng(seed)
    # Smooth ones: bicubic interpolation of noise alone would hide little differences in noise.
    return [
        Image.fromarray(rng.integers(0, 256, (9, 7, 3), dtype=np.uint8)).resize(
            size, Image.Resampling.BICUBIC
        )
        for _ in range(count)
    ]


@pytest.fixture(scope="module")
def clip(tmp_path_factory) -> Path:
    """CLIP's real class and files, with random weights."""
    folder = tmp_path_factory.mktemp("clip")
    tokenizer = tiny_tokenizer(77)
    torch.manual_seed(0)
    text = CLIPTextConfig(
        **SMALL, projection_dim=12, vocab_size=len(tokenizer), max_position_embeddings=77,
        bos_token_id=tokenizer.bos_token_id, eos_token_id=tokenizer.eos_token_id,
        pad_token_id=tokenizer.pad_token_id,
    )  # fmt: skip
    vision = CLIPVisionConfig(**SMALL, projection_dim=12, patch_size=32)
    config = CLIPConfig(text_config=text.to_dict(), vision_config=vision.to_dict(), projection_dim=12)
    CLIPModel(config).eval().save_pretrained(folder)
    tokenizer.save_pretrained(folder)
    return folder


@pytest.fixture(scope="module")
def dino(tmp_path_factory) -> Path:
    folder = tmp_path_factory.mktemp("dino")
    torch.manual_seed(1)
    ViTModel(ViTConfig(**SMALL, patch_size=16), add_pooling_layer=False).eval().save_pretrained(folder)
    return folder


@pytest.fixture(scope="module")
def alexnet(tmp_path_factory) -> Path:
    """A file as torchvision publishes it: the features by number, and a classifier that nobody needs."""
    folder = tmp_path_factory.mktemp("alexnet")
    torch.manual_seed(2)
    state = {f"features.{name}": value for name, value in alexnet_features().state_dict().items()}
    torch.save(state | {"classifier.6.bias": torch.zeros(3)}, folder / "alexnet-owt-7be5be79.pth")
    return folder


def test_the_lists_are_the_published_ones():
    assert len(CLASS_NOUNS) == 30
    assert len(OBJECT_PROMPTS) == len(LIVE_PROMPTS) == 25
    assert len(set(OBJECT_PROMPTS) & set(LIVE_PROMPTS)) == 15
    assert sorted(
        CLASS_NOUNS[name] for name in CLASS_NOUNS if prompts_for(CLASS_NOUNS[name]) == LIVE_PROMPTS
    ) == (["cat"] * 2 + ["dog"] * 7)
    for prompt in (*OBJECT_PROMPTS, *LIVE_PROMPTS):
        assert re.fullmatch(r"a (?:[a-z ]+ )?\[V\] \{class_noun\}(?: .+)?", prompt), prompt
    assert "a [V] {class_noun} with the Eiffel Tower in the background" in OBJECT_PROMPTS
    assert "a [V] {class_noun} wearing a black top hat and a monocle" in LIVE_PROMPTS
    assert plain("a cube shaped [V] {class_noun}", "stuffed animal") == "a cube shaped stuffed animal"


def test_dino_prepares_pictures_as_published(dino):
    """Shorter side 256, bicubic, the middle 224 x 224 of that, ImageNet's mean and deviation."""
    images = [*pictures(2), *pictures(1, 3, (200, 410))]
    network = ViTModel.from_pretrained(dino, add_pooling_layer=False).eval()
    expected = []
    for image in images:
        width, height = image.size
        if width > height:
            resized = image.resize((256 * width // height, 256), Image.BICUBIC)
        else:
            resized = image.resize((256, 256 * height // width), Image.BICUBIC)
        array = np.asarray(resized, dtype=np.float64) / 255
        top, left = round((array.shape[0] - 224) / 2), round((array.shape[1] - 224) / 2)
        array = (array[top : top + 224, left : left + 224] - [0.485, 0.456, 0.406]) / [0.229, 0.224, 0.225]
        with torch.no_grad():
            pixels = torch.tensor(array, dtype=torch.float32).permute(2, 0, 1)[None]
            token = network(pixel_values=pixels).last_hidden_state[0, 0]
        expected.append(token / token.norm())
    torch.testing.assert_close(load_embedder("dino", dino).embed(images), torch.stack(expected))


def test_clip_i_and_clip_t_are_those_of_the_reference(clip):
    """Against CLIPModel and CLIP's own image processor: its logits are cosines times a known scale."""
    images = [*pictures(2), *pictures(2, 3, (200, 400))]  # whose middle both roundings agree on
    prompts = ["a photo of a fox", "a cat on the beach", "a fox in the snow", "a dog on the moon"]
    reference = CLIPModel.from_pretrained(clip).eval()
    tokenizer = tiny_tokenizer(77)
    pixels = CLIPImageProcessorPil()(images, return_tensors="pt").pixel_values
    words = tokenizer(prompts, padding="max_length", max_length=77, return_tensors="pt")
    with torch.no_grad():
        output = reference(pixel_values=pixels, **words)
    cosines = output.logits_per_image / reference.logit_scale.exp()
    found = load_text_image(clip)
    torch.testing.assert_close(found.pictures.embed(images), output.image_embeds, rtol=0, atol=1e-5)
    torch.testing.assert_close(
        load_embedder("clip", clip).embed(images), output.image_embeds, rtol=0, atol=1e-5
    )
    assert found.agreement(images, prompts) == pytest.approx(cosines.diag().mean().item(), abs=1e-5)
    assert found.agreement(images[:2], [prompts[3]] * 2) == pytest.approx(
        cosines[:2, 3].mean().item(), abs=1e-5
    )


def test_lpips_is_that_of_torchmetrics(alexnet, monkeypatch):
    """Against the published implementation, which torchmetrics carries; of torchvision it needs layers."""
    from torchmetrics.functional.image import lpips as published

    features = torch.nn.Sequential(
        torch.nn.Conv2d(3, 64, kernel_size=11, stride=4, padding=2), torch.nn.ReLU(),
        torch.nn.MaxPool2d(kernel_size=3, stride=2),
        torch.nn.Conv2d(64, 192, kernel_size=5, padding=2), torch.nn.ReLU(),
        torch.nn.MaxPool2d(kernel_size=3, stride=2),
        torch.nn.Conv2d(192, 384, kernel_size=3, padding=1), torch.nn.ReLU(),
        torch.nn.Conv2d(384, 256, kernel_size=3, padding=1), torch.nn.ReLU(),
        torch.nn.Conv2d(256, 256, kernel_size=3, padding=1), torch.nn.ReLU(),
    )  # fmt: skip
    state = torch.load(alexnet / "alexnet-owt-7be5be79.pth", weights_only=True)
    own = {name.removeprefix("features."): v for name, v in state.items() if name.startswith("features")}
    features.load_state_dict(own)
    monkeypatch.setattr(published, "_get_tv_model_features", lambda net, pretrained: features)
    reference = published._LPIPS(net="alex")
    images = pictures(3, size=(96, 64))
    pixels = [torch.tensor(np.asarray(i)).permute(2, 0, 1)[None] / 127.5 - 1 for i in images]
    found = load_lpips(alexnet)
    distances = []
    for (one, a), (other, b) in combinations(zip(images, pixels, strict=True), 2):
        distances.append(float(reference(a, b)))
        assert found.distance(one, other) == pytest.approx(distances[-1], rel=1e-4)
    assert found.diversity(images) == pytest.approx(np.mean(distances), rel=1e-4)
    assert found.distance(images[0], images[0]) == 0
    assert np.isnan(found.diversity(images[:1]))


def test_weights_that_do_not_fit_are_not_replaced_by_random_ones(clip, dino, tmp_path):
    network = CLIPModel.from_pretrained(clip)
    network.visual_projection = torch.nn.Linear(16, 9, bias=False)
    network.save_pretrained(tmp_path)
    for folder in (tmp_path, dino):  # another size, another network
        with pytest.raises(StudioloError, match="cannot be had"):
            load_embedder("clip", folder)


def test_missing_weights_of_lpips_say_where_to_get_them(tmp_path, dino):
    with pytest.raises(StudioloError, match="alexnet-owt"):
        load_lpips(tmp_path)
    with pytest.raises(StudioloError, match="AlexNet"):
        load_lpips(next(dino.glob("*.safetensors")))


def test_the_scores_of_a_subject_are_means_over_pairs_then_prompts(dino, clip, alexnet):
    judges = load_judges(("dino", "clip"), {"dino": dino, "clip": clip, "lpips": alexnet})
    real, of_class = pictures(3, 1), pictures(4, 2)
    by_prompt = {"a fox on the beach": pictures(2, 3), "a fox in the snow": pictures(3, 4)}
    found = judges.scores(real, by_prompt, of_class)
    embed = load_embedder("dino", dino).embed

    def pairs(some, others) -> float:
        return float(np.mean([[float(a @ b) for b in embed(others)] for a in embed(some)]))

    expected = {
        "dino": np.mean([pairs(p, real) for p in by_prompt.values()]),
        "real_dino": np.mean([float(a @ b) for a, b in combinations(embed(real), 2)]),
        "pres": pairs(of_class, real),
        "clip_t": np.mean([load_text_image(clip).agreement(p, [t] * len(p)) for t, p in by_prompt.items()]),
        "div": np.mean([load_lpips(alexnet).diversity(p) for p in by_prompt.values()]),
    }
    for key, value in expected.items():
        assert found[key] == pytest.approx(value, abs=1e-4), key
    assert mean_scores([found, {**found, "dino": found["dino"] + 0.2}])["dino"] == pytest.approx(
        found["dino"] + 0.1, abs=1e-4
    )


def test_what_the_eye_cannot_say_is_left_out():
    judges = load_judges()
    found = judges.scores(pictures(2), {"a": pictures(1, 1)}, pictures(2, 2))
    assert found.keys() == {"eye", "real_eye", "pres_eye"}  # one picture has no diversity
    with pytest.raises(StudioloError, match="nobody asked"):
        load_judges(("eye",), {"dino": "x"})
    assert isinstance(judges, Judges)


@pytest.fixture(scope="module")
def dataset(tmp_path_factory) -> Path:
    folder = tmp_path_factory.mktemp("dataset")
    for number, name in enumerate(("dog6", "teapot", "unheard")):
        (folder / name).mkdir()
        for i, image in enumerate(pictures(2, number, (48, 40))):
            image.save(folder / name / f"{i:02d}.jpg")
    return folder


def test_subjects_are_found_and_unknown_ones_asked_for(dataset, tmp_path):
    assert find_subjects(dataset, ["teapot", "dog6"]) == {"teapot": "teapot", "dog6": "dog"}
    with pytest.raises(StudioloError, match="--class unheard="):
        find_subjects(dataset)
    assert find_subjects(dataset, (), {"unheard": "toy"})["unheard"] == "toy"
    with pytest.raises(StudioloError, match="no subject 'cow'"):
        find_subjects(dataset, ["cow"])
    with pytest.raises(StudioloError, match="--data"):
        find_subjects(tmp_path / "nothing")


def test_a_benchmark_goes_on_where_it_was_stopped(dataset, tmp_path, monkeypatch):
    base = tiny_folder(tmp_path)
    settings = [f"--set={key}={json.dumps(value)}" for key, value in (QUICK | {"steps": 2}).items()]
    out = tmp_path / "out"
    arguments = [
        "bench", "dreambooth", "--data", str(dataset), "--subjects", "dog6,teapot", "--base", str(base),
        "--prior", "both", "-n", "2", "--steps", "1", "--out", str(out), *settings,
    ]  # fmt: skip
    from studiolo.evaluation import bench

    class Cut(Exception):  # noqa: N818
        pass

    drawn = []
    original = bench.generate

    def generate(components, texts, seeds, *rest, on_picture, **named):
        drawn.append(texts)

        def until(number, image):
            if len(drawn) == 2 and number == 5:
                raise Cut
            on_picture(number, image)

        return original(components, texts, seeds, *rest, on_picture=until, **named)

    monkeypatch.setattr(bench, "generate", generate)
    done = CliRunner().invoke(app, arguments)
    assert isinstance(done.exception, Cut), done.output
    assert len(json.loads((out / "table.json").read_text())["rows"]) == 1
    first = (out / "dog6" / "with-prior" / "scores.json").stat().st_mtime_ns
    done = CliRunner().invoke(app, arguments)
    assert done.exit_code == 0, done.output
    assert len(drawn[2]) == len(drawn[1]) - 5  # the five that were there stay
    assert len(drawn) == 5
    table = json.loads((out / "table.json").read_text())
    assert [(row["subject"], row["prior"]) for row in table["rows"]] == [
        ("dog6", True), ("teapot", True), ("dog6", False), ("teapot", False),
    ]  # fmt: skip
    each = [row["scores"]["eye"] for row in table["rows"][:2]]
    assert table["overall"]["with prior"]["eye"] == pytest.approx(np.mean(each), abs=1e-4)
    live = out / "dog6" / "with-prior" / "pictures"
    assert len(list(live.glob("*.png"))) == 25 * 2 + CLASS_PICTURES
    asked = drawn[0]
    assert asked[0].startswith("a ")
    assert asked[0].endswith(" dog in the jungle")
    assert any("monocle" in text for text in asked)
    assert not any("monocle" in text for text in drawn[1])
    text = (out / "table.txt").read_text()
    assert "paper: DreamBooth, Stable Diffusion" in text
    page = (out / "report.html").read_text()
    assert page.count("<img") == 4
    for one in PUBLISHED:
        assert one.method in page
    assert not list_models()[1:]  # no model of the benchmark is left under a name
    again = CliRunner().invoke(app, arguments)
    assert again.exit_code == 0
    assert len(drawn) == 5
    assert first
    other = CliRunner().invoke(app, [*arguments, "--seed", "3"])
    assert isinstance(other.exception, StudioloError)
    assert "other settings: seed" in other.exception.message


def test_the_prior_loss_is_not_told_of_where_it_has_no_weight(dataset, tmp_path):
    bench = Bench(dataset, tmp_path / "out", {"dog6": "dog"}, Recipe(prior_weight=0), (False, True))
    with pytest.raises(StudioloError, match="--prior without"):
        run_bench(bench, load_judges())
    assert not (tmp_path / "out").exists()


def test_photographs_are_judged_as_large_as_they_are(dataset, tmp_path):
    lesson = Bench(dataset, tmp_path, {"dog6": "dog"}).lessons[0]
    assert [image.size for image in lesson.real()] == [(48, 40)] * 2
    assert lesson.real()[0].tobytes() == Image.open(dataset / "dog6" / "00.jpg").convert("RGB").tobytes()


def test_score_takes_the_weights_of_its_embedder_from_a_folder(dino, tmp_path, studiolo_home):
    given = lesson(tmp_path / "lesson")
    teach(given, tmp_path / "run", steps=1)
    asked = [
        "score",
        "--model",
        "run",
        "--embedder",
        "dino",
        "--weights",
        str(dino),
        "-n",
        "1",
        "--steps",
        "1",
    ]
    asked += ["--baseline", str(given["base"])]
    result = CliRunner().invoke(app, [*asked, "--out", str(tmp_path / "scores")])
    assert result.exit_code == 0, result.output
    assert json.loads((tmp_path / "scores" / "report.json").read_text())["embedder"] == "dino"


def test_training_is_scored_by_dino_and_clip_where_they_are(dino, clip, tmp_path):
    scores = {"every": 1, "n": 1, "contexts": 2, "steps": 1, "embedder": "dino"}
    scores |= {"weights": str(dino), "text_weights": str(clip)}
    model = teach(
        lesson(tmp_path / "lesson"), tmp_path / "run", steps=1, scores=scores, scorer=training_scorer
    )
    found = model.ref.card["scores"]
    assert -1 <= found["fidelity"] <= 1
    assert 0 <= found["prompt"] <= 1

"""The independent eye against what is known of composed pictures, and its measures against direct counts."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from PIL import Image
from torch.nn import functional as F

from studiolo.base.eye_scores import roc_auc
from studiolo.base.score_base import base_scores, wishes
from studiolo.base.train_eye import EyeRecipe, Identities, augmented, save_eye
from studiolo.base.vocabulary import BACKGROUNDS, HELD_OUT, NOUNS, STYLES
from studiolo.errors import StudioloError
from studiolo.evaluation.demo import SUBJECTS
from studiolo.evaluation.eye import EYE_FOLDER, Eye, EyeLabels, EyeNetwork, Verdict, as_pixels, shipped_eye
from studiolo.evaluation.measures import accuracy

VIEWS = ["white", "wood", "grass", "yellow", "purple"]
"""Backgrounds of the five views of every sample subject."""

with_weights = pytest.mark.skipif(
    not (EYE_FOLDER / "eye.safetensors").exists(), reason="the weights of the eye are not in this checkout"
)


def pictures(subject: str) -> list[Image.Image]:
    return [Image.open(path) for path in sorted((SUBJECTS / subject).glob("*.png"))]


def random_eye() -> Eye:
    torch.manual_seed(0)
    labels = EyeLabels(("fox", "dog", "car"), ("moon", "snow"), ("flat",))
    network = EyeNetwork(3, 2, 1)
    network(torch.randn(8, 3, 64, 64))  # gives the running statistics some values of their own
    return Eye(network, labels)


@with_weights
@pytest.mark.parametrize("subject", ["fox", "dog", "robot", "teapot"])
def test_the_eye_names_the_background_of_every_view(subject):
    eye = shipped_eye()
    verdict = eye.classify(pictures(subject))
    assert [eye.backgrounds[i] for i in verdict.background.argmax(1)] == VIEWS


@with_weights
@pytest.mark.parametrize("subject", ["fox", "dog"])
def test_the_eye_mostly_names_drawings_that_it_never_saw(subject):
    eye = shipped_eye()
    noun = eye.classify(pictures(subject)).noun
    assert accuracy(noun, [eye.nouns.index(subject)] * 5) >= 0.6  # by chance: 0.01


@with_weights
def test_views_of_one_subject_are_nearer_to_each_other_than_to_any_other_subject():
    eye = shipped_eye()
    embeddings = [eye.embed(pictures(name)) for name in ("dog", "fox", "robot", "teapot")]
    for i, own in enumerate(embeddings):
        torch.testing.assert_close(own.norm(dim=1), torch.ones(5))
        others = torch.cat([other for j, other in enumerate(embeddings) if j != i])
        assert (own @ own.T).min() > (own @ others.T).max()


@with_weights
def test_the_labels_are_those_of_the_vocabulary_and_the_weights_are_small():
    eye = shipped_eye()
    assert (eye.nouns, eye.backgrounds, eye.styles) == (tuple(NOUNS), tuple(BACKGROUNDS), tuple(STYLES))
    assert (EYE_FOLDER / "eye.safetensors").stat().st_size <= 3 * 2**20


def test_a_saved_eye_sees_the_same(tmp_path):
    eye = random_eye()
    save_eye(eye, tmp_path, {})
    loaded = Eye.load(tmp_path)
    rng = np.random.default_rng(0)
    images = [Image.fromarray(rng.integers(0, 256, (64, 64, 3), dtype=np.uint8)) for _ in range(3)]
    assert loaded.labels == eye.labels
    torch.testing.assert_close(loaded.classify(images).noun, eye.classify(images).noun, atol=5e-3, rtol=0)
    torch.testing.assert_close(loaded.embed(images), eye.embed(images), atol=5e-3, rtol=0)


def test_without_weights_the_error_says_what_to_do(tmp_path):
    with pytest.raises(StudioloError, match="train it"):
        Eye.load(tmp_path)


def test_pixels_are_the_middle_square_in_minus_one_to_one():
    wide = Image.new("RGB", (128, 64), "black")
    wide.paste("white", (32, 0, 96, 64))
    assert torch.equal(as_pixels([wide], 64), torch.ones(1, 3, 64, 64))
    grey = as_pixels([Image.new("L", (200, 200), 0)], 64)
    assert torch.equal(grey, -torch.ones(1, 3, 64, 64))


def test_augmented_pictures_keep_shape_and_range_and_are_a_function_of_the_generator():
    pixels = torch.rand(8, 3, 64, 64) * 2 - 1
    one, two = (augmented(pixels, torch.Generator().manual_seed(3)) for _ in range(2))
    assert torch.equal(one, two)
    assert one.shape == pixels.shape
    assert one.abs().max() <= 1
    assert not torch.equal(one, augmented(pixels, torch.Generator().manual_seed(4)))


def test_the_identity_loss_is_the_papers_equation():
    recipe, heads = EyeRecipe(sharpness=8.0, margin=0.2), Identities(3, 4)
    embedding, identity = torch.randn(5, 4), torch.tensor([0, 2, -1, 1, 0])
    cosines = torch.stack([F.cosine_similarity(embedding, row[None]) for row in heads.directions], dim=1)
    expected = []
    for cosine, right in zip(cosines, identity.tolist(), strict=True):
        if right >= 0:
            own = torch.exp(8 * (cosine[right] - 0.2))
            rest = sum(torch.exp(8 * cosine[j]) for j in range(3) if j != right)
            expected.append(-torch.log(own / (own + rest)))
    torch.testing.assert_close(heads.loss(embedding, identity, recipe), torch.stack(expected).mean())


def test_the_area_under_the_roc_is_the_share_of_ordered_pairs():
    generator = torch.Generator().manual_seed(0)
    positive, negative = (torch.randint(10, (n,), generator=generator).float() for n in (40, 60))
    wins = (positive[:, None] > negative).float() + (positive[:, None] == negative).float() / 2
    assert roc_auc(positive, negative) == pytest.approx(float(wins.mean()), abs=1e-4)
    assert roc_auc(torch.tensor([2.0, 3.0]), torch.tensor([0.0, 1.0])) == 1


def test_wishes_ask_for_every_noun_and_background_and_for_no_held_out_drawing():
    asked = wishes(list(NOUNS), 4)
    assert [wish.noun for wish in asked[::4]] == list(NOUNS)
    assert {wish.background for wish in asked} == set(BACKGROUNDS)
    assert {wish.style for wish in asked} == {None, *STYLES}
    assert not {(wish.noun, wish.style) for wish in asked} & HELD_OUT


def test_scores_of_the_base_count_what_the_eye_sees():
    class Answers:
        """Sees the right noun and background in the first half alone, the right style always."""

        nouns, backgrounds, styles = tuple(NOUNS), tuple(BACKGROUNDS), tuple(STYLES)

        def classify(self, images):
            def seen(labels, wanted):
                return F.one_hot(torch.tensor([labels.index(w) for w in wanted]), len(labels)).float()

            half = len(asked) // 2
            return Verdict(
                seen(self.nouns, [w.noun for w in asked[:half]] + ["skull"] * half),
                seen(self.backgrounds, [w.background for w in asked[:half]] + ["white"] * half),
                seen(self.styles, [w.style or "flat" for w in asked]),
            )

    asked = [wish for wish in wishes(["fox", "dog", "car", "apple"], 2) if wish.background != "white"]
    asked = asked[: len(asked) // 2 * 2]
    scores = base_scores(Answers(), asked, [None] * len(asked))
    assert (scores["noun_top1"], scores["background"], scores["style"]) == (0.5, 0.5, 1.0)
    assert scores["by_noun"]["fox"] == 1


def test_the_sample_subjects_were_held_out():
    assert {path.name for path in SUBJECTS.iterdir() if path.is_dir()} <= {noun for noun, _ in HELD_OUT}

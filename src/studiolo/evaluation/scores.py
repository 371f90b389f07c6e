"""`studiolo score`: how well a taught model knows its subject, and what it forgot for it."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from contextlib import AbstractContextManager, nullcontext
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from PIL import Image

from studiolo.diffusion.sampling import OnStep, SamplerSettings
from studiolo.drawing.model import ImageModel
from studiolo.errors import StudioloError
from studiolo.evaluation import measures
from studiolo.evaluation.embedders import Embedder, load_embedder
from studiolo.evaluation.exam import Exam
from studiolo.evaluation.eye import Eye, shipped_eye
from studiolo.evaluation.learned import Learned, find_subject, training_images
from studiolo.evaluation.portfolio import Portfolio
from studiolo.evaluation.report import Report
from studiolo.formats.opening import base_place

Scores = dict[str, dict[str, float]]
Bar = Callable[[int], AbstractContextManager[OnStep]]


@dataclass(frozen=True)
class Judge:
    """Those who look at the pictures: the embedder for likeness, the eye for what is to be seen.

    Args:
        training: the images that the subject was learned from.
    """

    exam: Exam
    training: Sequence[Image.Image]
    embedder: Embedder
    eye: Eye

    def scores(self, before: Portfolio, after: Portfolio) -> Scores:
        """All scores of the taught model `after` against the untaught `before`; rounded to four digits.

        `before` was asked for the class where `after` was asked for the subject.
        """
        subject = self._seen(after.subject_pictures, self._class_nouns, "subject")
        groups = {
            "fidelity": self._fidelity(before, after),
            "context": {"subject": subject["context"]},
            "noun": {key: value for key, value in subject.items() if key != "context"} | self._real_nouns(),
            "drift": self._drift(before, after),
            "diversity": self._diversity(before, after),
            "copying": self._copying(before, after),
        }
        base = self._seen(before.class_pictures, self._class_nouns, "base")
        groups["context"]["base"] = base.pop("context")
        groups["noun"] |= base
        return {group: {k: round(v, 4) for k, v in values.items()} for group, values in groups.items()}

    @property
    def _class_nouns(self) -> list[str]:
        return [self.exam.class_noun] * len(self.exam.backgrounds)

    def _seen(self, pictures: Sequence[Image.Image], nouns: Sequence[str], who: str) -> dict[str, float]:
        """Accuracy of the contexts, and of the nouns where the eye knows them."""
        verdict = self.eye.classify(pictures)
        asked = [self.eye.backgrounds.index(name) for name in self.exam.backgrounds]
        seen = {"context": measures.accuracy(verdict.background, asked)}
        if set(nouns) <= set(self.eye.nouns):
            numbers = [self.eye.nouns.index(noun) for noun in nouns]
            for among in (1, 5):
                seen[f"{who}_top{among}"] = measures.accuracy(verdict.noun, numbers, among)
        return seen

    def _real_nouns(self) -> dict[str, float]:
        """How often the eye sees the class noun in the training images: it may not know such a one."""
        if self.exam.class_noun not in self.eye.nouns:
            return {}
        noun = self.eye.classify(self.training).noun
        asked = [self.eye.nouns.index(self.exam.class_noun)] * len(noun)
        return {f"real_top{among}": measures.accuracy(noun, asked, among) for among in (1, 5)}

    def _fidelity(self, before: Portfolio, after: Portfolio) -> dict[str, float]:
        training = self.embedder.embed(self.training)
        found = {
            "subject": measures.fidelity(self.embedder.embed(after.subject_pictures), training),
            "base": measures.fidelity(self.embedder.embed(before.class_pictures), training),
        }
        if len(training) > 1:
            found["real"] = measures.mutual_similarity(training)
        return found

    def _drift(self, before: Portfolio, after: Portfolio) -> dict[str, float]:
        training, embed = self.embedder.embed(self.training), self.embedder.embed
        old, new = embed(before.class_pictures), embed(after.class_pictures)
        found = {
            "class_distance": measures.drift(old, new),
            "class_likeness_before": measures.fidelity(old, training),
            "class_likeness": measures.fidelity(new, training),
            "unrelated_distance": measures.drift(
                embed(before.unrelated_pictures), embed(after.unrelated_pictures)
            ),
        }
        for who, nouns, old_pictures, pictures in (
            ("class", self._class_nouns, before.class_pictures, after.class_pictures),
            ("unrelated", self.exam.unrelated_nouns, before.unrelated_pictures, after.unrelated_pictures),
        ):
            seen_before, seen = (self._seen(images, nouns, who) for images in (old_pictures, pictures))
            for key in ("context", f"{who}_top1"):
                if key in seen:
                    name = key if key.startswith(who) else f"{who}_{key}"
                    found |= {f"{name}_before": seen_before[key], name: seen[key]}
        return found

    def _diversity(self, before: Portfolio, after: Portfolio) -> dict[str, float]:
        return {
            "class_before": measures.diversity(self.embedder.embed(before.class_pictures)),
            "class": measures.diversity(self.embedder.embed(after.class_pictures)),
        }

    def _copying(self, before: Portfolio, after: Portfolio) -> dict[str, float]:
        pictures = after.subject_pictures
        near = measures.nearest(self.embedder.embed(pictures), self.embedder.embed(self.training))
        pixels = measures.nearest_pixels(pictures, self.training)
        return {
            "nearest_mean": float(near.mean()),
            "nearest_max": float(near.max()),
            "pixels_mean": float(pixels.mean()),
            "pixels_max": float(pixels.max()),
            "base_pixels_max": float(measures.nearest_pixels(before.class_pictures, self.training).max()),
        }


def score(
    model: str | Path | ImageModel,
    *,
    n: int = 4,
    seed: int = 0,
    steps: int = 30,
    guidance_scale: float = 5.0,
    embedder: str | Embedder = "eye",
    baseline: str | Path | None = None,
    images: str | Path | Sequence[str | Path] | None = None,
    out: str | Path | None = None,
    bar: Bar | None = None,
    subject: str | None = None,
) -> Report:
    """Draws the exam with the taught model and with its base, and measures both.

    Args:
        model: a taught subject: its name, its run folder, or the loaded model.
        n: pictures of each prompt.
        embedder: what likeness is measured by (see `load_embedder`).
        baseline: the untaught model; by default the one that the subject's card names.
        images: the training images, where they do not lie any more where the recipe says.
        out: a folder for report.json, report.html and sheet.png.
        bar: given the number of pictures, a context that yields what to call after every denoising step.
        subject: which, of a model that has learned several; see `mixing.score_apart` for all of them.

    Raises:
        StudioloError: the model has learned no such subject, or its base, images or embedder cannot be had.
    """
    if n < 1:
        raise StudioloError(f"{n} pictures of each prompt", where="n", remedy="Use 1 or more.")
    judge_by = load_embedder(embedder) if isinstance(embedder, str) else embedder
    taught = model if isinstance(model, ImageModel) else ImageModel.load(model)
    learned = find_subject(taught, subject)
    exam = Exam(learned.class_noun, n, seed, SamplerSettings(steps=steps, guidance_scale=guidance_scale))
    training = training_images(taught, images, subject)
    base = ImageModel.load(baseline or _base(taught))
    with (bar or _no_bar)(exam.pictures(subject=True) + exam.pictures(subject=False)) as on_step:
        after = exam.draw(taught.components, learned.identifier, on_step)
        before = exam.draw(base.components, None, on_step)
    scores = Judge(exam, training, judge_by, shipped_eye()).scores(before, after)
    facts = _facts(taught, learned, base, exam, judge_by) | {"training_images": len(training)}
    report = Report(facts, scores, exam, training, before, after)
    if out is not None:
        report.save(out)
    return report


def _base(taught: ImageModel) -> str | Path:
    """The untaught model, as the card says."""
    try:
        return base_place(taught.ref)
    except StudioloError as error:
        raise StudioloError(
            error.message, where=error.where, remedy="Name it: --baseline MODEL (baseline=MODEL)."
        ) from error


def _no_bar(pictures: int) -> AbstractContextManager[OnStep]:
    return nullcontext(lambda step: None)


def _facts(
    taught: ImageModel, learned: Learned, base: ImageModel, exam: Exam, embedder: Embedder
) -> dict[str, Any]:
    """What was scored, and how."""
    return {
        "model": taught.ref.name,
        "fingerprint": taught.fingerprint,
        "base": base.ref.name,
        "base_fingerprint": base.fingerprint,
        "class_noun": exam.class_noun,
        "identifier": learned.identifier,
        "embedder": embedder.name,
        "n": exam.n,
        "seed": exam.seed,
        **exam.settings.as_dict(),
    }

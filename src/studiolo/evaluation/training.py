"""`studiolo.train` with those who judge: scores while training, for a best step and an early stop."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from functools import wraps
from statistics import fmean
from typing import Any

import torch
from PIL import Image

from studiolo.diffusion.components import Components
from studiolo.diffusion.sampling import SamplerSettings
from studiolo.diffusion.words import words_of
from studiolo.drawing.model import ImageModel
from studiolo.dreambooth import trainer
from studiolo.dreambooth.recipe import Recipe
from studiolo.dreambooth.scoring import Baseline, Marks
from studiolo.evaluation import measures
from studiolo.evaluation.embedders import Embedder, load_embedder
from studiolo.evaluation.exam import Exam
from studiolo.evaluation.eye import shipped_eye
from studiolo.evaluation.prompting import Asked, ClipJudge, EyeJudge, PromptJudge
from studiolo.evaluation.textimage import load_text_image


class TrainingScorer:
    """Judges a model that is being taught by a short exam: the subject and its class in some contexts.

    Args:
        images: those that the subject is learned from.
    """

    def __init__(
        self,
        exam: Exam,
        identifier: str,
        images: Sequence[Image.Image],
        embedder: Embedder,
        prompts: PromptJudge,
    ) -> None:
        self.exam, self.identifier, self.embedder, self.prompts = exam, identifier, embedder, prompts
        self._training = embedder.embed(images)

    def marks(self, components: Components, baseline: Baseline | None) -> Marks:
        """The marks of the model as it stands; without a `baseline`, of the untaught one."""
        count = self.exam.length * self.exam.n
        words = [*self.exam.subject_prompts(self.identifier), *self.exam.class_prompts()]
        pictures = self.exam.draw_prompts(components, words)
        subject, of_class = pictures[:count], pictures[count:]
        seen = self.embedder.embed(of_class)
        if baseline is None:
            agreement = self.prompts.agreement(of_class, self._asked)
            baseline = {"class": seen, "prompt": torch.tensor(agreement, dtype=torch.float64)}
        fits, best = self.prompts.agreement(subject, self._asked), float(baseline["prompt"])
        return Marks(
            fidelity=measures.fidelity(self.embedder.embed(subject), self._training),
            # A base that fits no prompt leaves nothing to lose.
            prompt=min(1.0, max(0.0, fits / best)) if best > 0 else 1.0,
            drift=measures.drift(baseline["class"], seen),
            columns=list(self.exam.contexts),
            rows={**self._rows("subject", subject), **self._rows("class", of_class)},
            baseline=baseline,
        )

    @property
    def _asked(self) -> list[Asked]:
        """Of each picture of the class or the subject."""
        prompts = [prompt for prompt in self.exam.class_prompts() for _ in range(self.exam.n)]
        return [Asked(*pair) for pair in zip(prompts, self.exam.backgrounds, strict=True)]

    def _rows(self, name: str, pictures: Sequence[Image.Image]) -> dict[str, Sequence[Image.Image]]:
        """One a seed, by what stands before it."""
        of_seeds = zip(*(pictures[part] for part in self.exam.columns()), strict=True)
        return {f"the {name}, seed {self.exam.seed + i}": row for i, row in enumerate(of_seeds)}


class SeveralScorer:
    """Judges a model that is taught several subjects, by name: each mark is the mean over them."""

    def __init__(self, scorers: Mapping[str, TrainingScorer]) -> None:
        self.scorers = scorers

    def marks(self, components: Components, baseline: Baseline | None) -> Marks:
        """As `TrainingScorer.marks`; the baselines of the subjects are told apart by `NAME/`."""
        found = {
            name: scorer.marks(components, None if baseline is None else _part(baseline, name))
            for name, scorer in self.scorers.items()
        }
        return Marks(
            **{mark: fmean(getattr(m, mark) for m in found.values()) for mark in _MARKS},
            columns=next(iter(found.values())).columns,
            rows={
                f"{name}: {row}": pictures for name, m in found.items() for row, pictures in m.rows.items()
            },
            baseline={
                f"{name}/{key}": value for name, m in found.items() for key, value in m.baseline.items()
            },
        )


_MARKS = ("fidelity", "prompt", "drift")


def _part(baseline: Baseline, name: str) -> Baseline:
    """That of one subject."""
    return {k.removeprefix(f"{name}/"): v for k, v in baseline.items() if k.startswith(f"{name}/")}


def training_scorer(
    recipe: Recipe, images: Sequence[Sequence[Image.Image]]
) -> TrainingScorer | SeveralScorer:
    """Who judges the training of a resolved recipe, whose subjects are learned from `images` each.

    Raises:
        StudioloError: the weights of the embedder, or of CLIP, cannot be had.
    """
    chosen, name = recipe.scores, recipe.scores.embedder or "eye"
    settings = SamplerSettings(chosen.sampler, chosen.steps, chosen.guidance_scale)
    device = "cuda" if recipe.accelerator in ("auto", "gpu") and torch.cuda.is_available() else "cpu"
    prompts: PromptJudge = EyeJudge(shipped_eye())
    if name != "eye":
        prompts = ClipJudge(load_text_image(chosen.text_weights, device))
    embedder = load_embedder(name, chosen.weights, device)
    scorers = {}
    for subject, learned in zip(recipe.all_subjects, images, strict=True):
        word = " ".join(words_of(subject.identifier or "", recipe.token_vectors))
        exam = Exam(subject.class_noun, chosen.n, chosen.seed, settings, chosen.contexts, recipe.resolution)
        scorers[subject.name] = TrainingScorer(exam, word, learned, embedder, prompts)
    return SeveralScorer(scorers) if recipe.subjects else scorers["V"]


@wraps(trainer.train)
def train(*args: Any, **kwargs: Any) -> ImageModel:
    return trainer.train(*args, **{"scorer": training_scorer} | kwargs)


@wraps(trainer.resume)
def resume(*args: Any, **kwargs: Any) -> ImageModel:
    return trainer.resume(*args, **{"scorer": training_scorer} | kwargs)

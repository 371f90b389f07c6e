"""`studiolo.estimate`, `sweep`, `bench` and `score`: what the commands of these names do, as functions."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

import torch

from studiolo.diffusion.sampler_settings import SamplerSettings
from studiolo.drawing.model import ImageModel
from studiolo.dreambooth import estimate as estimating
from studiolo.dreambooth.estimate import Estimate
from studiolo.dreambooth.progress import Display
from studiolo.dreambooth.recipe import Recipe
from studiolo.errors import StudioloError
from studiolo.evaluation import scores
from studiolo.evaluation.bench import Bench, find_subjects, run_bench
from studiolo.evaluation.bench_report import BenchReport
from studiolo.evaluation.leaderboard import Leaderboard
from studiolo.evaluation.learned import learned_subjects
from studiolo.evaluation.mixing import Apart, score_apart
from studiolo.evaluation.published import load_judges
from studiolo.evaluation.report import Report
from studiolo.evaluation.space import FORMS, parse_parameter
from studiolo.evaluation.sweep import Method, Sweep

Files = str | Path | Sequence[str | Path]


def estimate(
    images: Files = (),
    class_noun: str | None = None,
    base: str | Path | None = None,
    recipe: Recipe | str | Path | None = None,
    **settings: Any,
) -> Estimate:
    """What memory and time `studiolo.train` will take with the same words; images are files or folders.

    One step and one batch of class images or predictions are done for it; these stay in the cache.

    Raises:
        StudioloError: as `train`.
    """
    return estimating.estimate(_taught(images, class_noun, base, recipe, settings))


def sweep(
    images: Files = (),
    class_noun: str | None = None,
    base: str | Path | None = None,
    recipe: Recipe | str | Path | None = None,
    *,
    params: Sequence[str],
    method: Method = "tpe",
    trials: int | None = None,
    search_seed: int = 0,
    out: str | Path = "sweep",
    tell: Callable[[str], None] = print,
    display: Callable[[], Display] = Display,
    **settings: Any,
) -> Leaderboard:
    """Trains with many settings and ranks them by their scores; the same call goes on where it was stopped.

    Args:
        params: what to try: "steps=100,200", "learning_rate=1e-5..1e-3:log".
        method: grid (every combination), random or tpe.
        trials: trainings in all, 1 or more; None is the whole grid.
        search_seed: of the search; that of the trainings is the setting `seed`.
        out: the folder of leaderboard.* and best.yaml.
        tell: is told each trial that is done.
        settings: of the recipe, which all trials share.

    Raises:
        StudioloError: settings that no recipe has, or a folder with another sweep; Interrupted, as `train`.
    """
    chosen = _taught(images, class_noun, base, recipe, settings)
    if not params:
        raise StudioloError("nothing to try", where="params", remedy=FORMS)
    space = [parse_parameter(text) for text in params]
    return Sweep(chosen, space, Path(out).absolute(), method, trials, search_seed, tell, display).run()


def bench(
    data: str | Path,
    subjects: Sequence[str] = (),
    classes: Mapping[str, str] | None = None,
    base: str | Path | None = None,
    recipe: Recipe | str | Path | None = None,
    *,
    priors: Sequence[bool] = (True,),
    n: int = 4,
    seed: int = 0,
    steps: int = 30,
    guidance_scale: float = 5.0,
    embedders: Sequence[str] = ("eye",),
    weights: Mapping[str, str | Path] | None = None,
    out: str | Path = "dreambench",
    tell: Callable[[str], None] = print,
    display: Display | None = None,
    settings: Mapping[str, Any] | None = None,
) -> BenchReport:
    """DreamBooth's benchmark: teaches, draws and scores the subjects in `data`, a folder of pictures each.

    Args:
        subjects: folders; by default all.
        classes: class nouns of folders that are not among the paper's 30.
        priors: whether with the prior loss, without (False,), or both.
        n, seed, steps, guidance_scale: of each prompt's pictures.
        embedders: dino, clip (brings CLIP-T) or eye; the first says PRES.
        weights: folders of "dino" and "clip", file of "lpips".
        settings: of the recipe, such as {"steps": 400}.

    Raises:
        StudioloError: no such folder, class or weights, or results of other settings in `out`; Interrupted.
    """
    chosen = _chosen(base, recipe, settings or {})
    found = find_subjects(Path(data), subjects, dict(classes or {}))
    drawn = SamplerSettings(steps=steps, guidance_scale=guidance_scale)
    asked = Bench(Path(data), Path(out), found, chosen, tuple(priors), n, seed, drawn)
    device = "cuda" if torch.cuda.is_available() else "cpu"
    return run_bench(asked, load_judges(embedders, weights, device), tell, display)


def score(model: str | Path | ImageModel, *, subject: str | None = None, **asked: Any) -> Report | Apart:
    """Scores a taught model against its base: a report, or of several subjects one each, and their mixing.

    Args:
        model: its name, its run folder, or the loaded model.
        subject: only this one of several.
        asked: what else `studiolo.evaluation.scores.score` takes: n, seed, steps, guidance_scale, embedder,
            baseline, images (of one subject), out, bar.

    Raises:
        StudioloError: the model has learned no such subject, or its base, images or embedder cannot be had.
    """
    taught = model if isinstance(model, ImageModel) else ImageModel.load(model)
    if subject is not None or len(learned_subjects(taught)) < 2:
        return scores.score(taught, subject=subject, **asked)
    if asked.pop("images", None) is not None:
        raise StudioloError(
            "each of several subjects has images of its own",
            where="images",
            remedy="Say whose they are: --subject NAME (subject=NAME).",
        )
    return score_apart(taught, **asked)


def _taught(
    images: Files,
    class_noun: str | None,
    base: str | Path | None,
    recipe: Recipe | str | Path | None,
    settings: Mapping[str, Any],
) -> Recipe:
    """The recipe of a training, which says what is to be taught."""
    files = [images] if isinstance(images, str | Path) else images
    given = {"images": [str(Path(file).absolute()) for file in files], "class_noun": class_noun}
    chosen = _chosen(base, recipe, {key: value for key, value in given.items() if value} | dict(settings))
    chosen.check_taught()
    return chosen


def _chosen(
    base: str | Path | None, recipe: Recipe | str | Path | None, settings: Mapping[str, Any]
) -> Recipe:
    return Recipe.of(recipe).with_values(({} if base is None else {"base": str(base)}) | dict(settings))

"""Teach a subject: from images and a recipe to a model that has a name."""

from __future__ import annotations

from collections.abc import Sequence
from datetime import datetime
from pathlib import Path
from typing import Any

import torch
from PIL import Image

from studiolo.diffusion.components import Components
from studiolo.diffusion.families import check_teachable
from studiolo.diffusion.objective import flow_weights
from studiolo.diffusion.sampler_settings import SamplerSettings
from studiolo.diffusion.samplers import make_scheduler
from studiolo.diffusion.words import words_of
from studiolo.drawing.model import ImageModel
from studiolo.dreambooth.identifier import check_identifier, find_identifier
from studiolo.dreambooth.machine import suitable_precision
from studiolo.dreambooth.material import Taught
from studiolo.dreambooth.progress import Display
from studiolo.dreambooth.rates import check_rate, rates
from studiolo.dreambooth.recipe import Recipe
from studiolo.dreambooth.run import Run
from studiolo.dreambooth.scoring import Scorer, ScorerMaker
from studiolo.dreambooth.subject import load_subject
from studiolo.dreambooth.teaching import Teaching
from studiolo.dreambooth.trackers import check_trackers
from studiolo.errors import StudioloError
from studiolo.formats.opening import open_components
from studiolo.models.registry import ModelRef, check_name, register, resolve
from studiolo.store.files import atomic_path
from studiolo.store.paths import runs_dir
from studiolo.training.checkpoint import Interrupted
from studiolo.training.processes import first_process

__all__ = ["Interrupted", "resume", "train"]

Source = str | Path | Image.Image
_SMALL = 64
"""Side in pixels up to which pictures are like those that the shipped eye has learned from."""


def train(
    images: Source | Sequence[Source] | None = None,
    class_noun: str | None = None,
    name: str | None = None,
    base: str | Path | None = None,
    recipe: Recipe | str | Path | None = None,
    out: str | Path | None = None,
    *,
    replace: bool = False,
    display: Display | None = None,
    scorer: ScorerMaker | None = None,
    **settings: Any,
) -> ImageModel:
    """Teaches a subject and registers it as a model.

    Args:
        images: folder, files or PIL images of the subject.
        class_noun: what it is, in the words of the base model: "fox".
        name: for the taught model.
        base: the model to start from, `studiolo-base` by default.
        recipe: a Recipe or a YAML file of settings; the arguments here stand above it.
        out: the run folder; by default a new one in the data folder.
        replace: whether a model that has the name already may lose it.
        display: where notes and progress are shown; by default the terminal.
        scorer: makes who judges while training; `studiolo.train` brings one.
        settings: of the recipe, such as `steps=200` or `class_images={"count": 32}`.

    Returns:
        The taught model, ready to draw.

    Raises:
        StudioloError: wrong settings, images or names; its subclass Interrupted when Ctrl-C or SIGTERM
            ended the training early.
    """
    chosen = Recipe.of(recipe)
    given = {"class_noun": class_noun, "name": name, "base": None if base is None else str(base)}
    chosen = chosen.with_values({key: value for key, value in given.items() if value is not None} | settings)
    sources = [images] if isinstance(images, str | Path | Image.Image) else list(images or chosen.images)
    _check_complete(chosen, sources, out)
    check_name(chosen.name or "", replace=replace)
    run = Run(Path(out or runs_dir() / f"{chosen.name}-{datetime.now():%Y%m%d-%H%M%S}").absolute())
    if first_process():
        run.check_free()
    with display or Display() as shown:
        return _carry_out(_begin(chosen, sources, run, shown, scorer), replace)


def resume(
    run: str | Path,
    *,
    replace: bool = False,
    display: Display | None = None,
    scorer: ScorerMaker | None = None,
) -> ImageModel:
    """Goes on with an interrupted run from its newest checkpoint, exactly as if it had never stopped.

    Raises:
        StudioloError: the folder is no run, or its recipe, its images or its base model have changed.
    """
    found = Run(Path(run).absolute())
    recipe = found.load_recipe()
    check_name(recipe.name or "", replace=replace or found.has_name(recipe.name or ""))
    with display or Display() as shown:
        teaching = prepare(recipe, found, shown, scorer)
        found.check_same(teaching.facts)
        return _carry_out(teaching, replace)


def _check_complete(recipe: Recipe, sources: list[Source], out: str | Path | None) -> None:
    if recipe.subjects and sources:
        raise StudioloError("with subjects in the recipe, each names its own images", where="images")
    missing = {
        "images of the subject": sources or recipe.subjects,
        "the class noun (--class)": recipe.class_noun or recipe.subjects,
        "a name for the model (--name)": recipe.name,
    }
    if absent := [what for what, value in missing.items() if not value]:
        raise StudioloError(
            f"to be given: {', '.join(absent)}", remedy="studiolo train IMAGES --class fox --name my-fox"
        )
    if out is None and recipe.devices * recipe.num_nodes > 1:
        raise StudioloError(
            "several processes need one run folder", where="out", remedy="Name it: --out DIR (out=DIR)."
        )


def _begin(
    recipe: Recipe, sources: list[Source], run: Run, display: Display, scorer: ScorerMaker | None
) -> Teaching:
    """A new run: everything is checked before the folder says that it has begun."""
    display.note(f"run folder: {run.folder}")
    try:
        teaching = prepare(_with_files(recipe, sources, run.folder / "images"), run, display, scorer)
        if first_process():
            run.begin(teaching.recipe, teaching.facts)
    except BaseException:
        if first_process():
            run.clear_unless_begun()
        raise
    return teaching


def _with_files(recipe: Recipe, sources: list[Source], folder: Path) -> Recipe:
    """The recipe with absolute paths: it is to be gone on with, and repeated, from anywhere."""
    weights = {name: _absolute(getattr(recipe.scores, name)) for name in ("weights", "text_weights")}
    recipe = recipe.with_values({"masks": _absolute(recipe.masks), "scores": weights})
    if not recipe.subjects:
        files = [_as_file(source, folder, i) for i, source in enumerate(sources)]
        return recipe.with_values({"images": files})
    subjects = [
        one.model_dump()
        | {"images": [_as_file(path, folder, 0) for path in one.images], "masks": _absolute(one.masks)}
        for one in recipe.subjects
    ]
    return recipe.with_values({"subjects": subjects})


def _absolute(path: str | None) -> str | None:
    return None if path is None else str(Path(path).expanduser().absolute())


def _place(given: str, base: ModelRef) -> str:
    """The base as the recipe has it from now on: by its absolute path where a path was given, not a name."""
    path = Path(given).expanduser()
    shown = path.exists() and base.path in (path.resolve(), path.resolve() / "model")
    return str(path.absolute()) if shown else given


def _as_file(source: Source, folder: Path, index: int) -> str:
    """The absolute path of an image; one that is in memory alone is kept in the run folder."""
    if not isinstance(source, Image.Image):
        return str(Path(source).expanduser().absolute())
    path = folder / f"{index:03d}.png"
    with atomic_path(path) as temporary:
        source.save(temporary)
    return str(path)


def prepare(recipe: Recipe, run: Run, display: Display, scorer: ScorerMaker | None) -> Teaching:
    """Loads and checks the base, the images and the identifier; the recipe comes back resolved."""
    check_trackers(recipe)
    base = resolve(recipe.base)
    components = open_components(base)
    check_teachable(components.denoiser)
    check_rate(recipe, components.denoiser.num_parameters())
    size = recipe.resolution or components.image_size
    components.latent_shape(size, size)  # raises for a size that the model cannot have
    taught = _load_subjects(recipe, components, size, display)
    recipe = recipe.with_values(_of_the_base(recipe, components) | _resolved(recipe, taught))
    recipe = recipe.with_values({"base": _place(recipe.base, base)})
    judge = _open_scorer(recipe, scorer, taught) if recipe.scores.every else None
    return Teaching(recipe, run, display, base, components, taught, judge)


def _of_the_base(recipe: Recipe, components: Components) -> dict[str, Any]:
    """What the recipe leaves to the model and the machine, as values of the recipe.

    Raises StudioloError for what this model cannot do.
    """
    levels = recipe.noise_levels
    flow_weights(components.schedule, torch.tensor([0]), levels.weighting)
    components.skipping(recipe.clip_skip or 0)
    density = levels.density or ("logit-normal" if components.is_flow else "uniform")
    if density == "uniform" and (levels.mean, levels.deviation) != (0, 1):
        raise StudioloError(
            "noise levels that are met uniformly have no mean and deviation",
            where="noise_levels",
            remedy="Set noise_levels.density to logit-normal.",
        )
    if (recipe.bucket_step or 0) % components.size_unit:
        raise StudioloError(
            f"{recipe.bucket_step} pixels, and sides are multiples of {components.size_unit} here",
            where="bucket_step",
            remedy=f"Use {components.size_step}, or leave it to the model (null).",
        )
    _check_samplers(recipe, components)
    rate, text_rate = rates(recipe, components)
    networks = recipe.train_unet or recipe.train_text_encoder
    precision, drawn = suitable_precision(recipe), recipe.class_images.precision
    return {
        # Pictures of the class do not say the word: they teach its vectors nothing.
        "prior_weight": recipe.prior_weight if networks else 0.0,
        "resolution": recipe.resolution or components.image_size,
        "clip_skip": components.family.clip_skip if recipe.clip_skip is None else recipe.clip_skip,
        "learning_rate": rate,
        "text_learning_rate": text_rate,
        "precision": precision,
        "class_images": {"precision": precision if drawn == "auto" else drawn},
        "noise_levels": {"density": density},
        "scores": {"embedder": recipe.scores.embedder or _judge_of(recipe, components)},
    }


def _judge_of(recipe: Recipe, components: Components) -> str | None:
    """By what likeness is measured, where there are scores."""
    if not recipe.scores.every:
        return None
    return "eye" if components.image_size <= _SMALL else "dino"


def _check_samplers(recipe: Recipe, components: Components) -> None:
    """StudioloError where the model cannot be drawn with as a group of the recipe wants it."""
    groups = {
        "class_images": bool(recipe.prior_weight) and recipe.prior == "images",
        "previews": recipe.previews.every > 0,
        "scores": recipe.scores.every > 0,
    }
    for name in (name for name, drawn in groups.items() if drawn):
        group = getattr(recipe, name)
        try:
            settings = SamplerSettings(
                group.sampler, group.steps, group.guidance_scale, getattr(group, "eta", 0.0)
            )
            make_scheduler(components.scheduler_config, settings)
        except StudioloError as error:
            raise StudioloError(error.message, where=f"{name}.{error.where}", remedy=error.remedy) from error


def _load_subjects(recipe: Recipe, components: Components, size: int, display: Display) -> list[Taught]:
    """The checked subjects, each with a word of its own."""
    taught: list[Taught] = []
    for given in recipe.all_subjects:
        subject = load_subject(
            list(given.images),
            given.class_noun,
            min_size=size,
            masks=given.masks,
            captions=given.captions,
            name=given.name,
        )
        for note in subject.notes:
            display.note(f"note: {note}")
        taken = [one.word for one in taught]
        word = _identifier(components, given.identifier, subject.class_noun, taken, display)
        taught.append(Taught(given.name, subject, " ".join(words_of(word, recipe.token_vectors))))
    return taught


def _resolved(recipe: Recipe, taught: Sequence[Taught]) -> dict[str, Any]:
    """What the subjects turned out to be, as values of the recipe."""
    found = [{"class_noun": one.subject.class_noun, "identifier": one.word} for one in taught]
    if not recipe.subjects:
        return dict(found[0])
    return {"subjects": [s.model_dump() | f for s, f in zip(recipe.subjects, found, strict=True)]}


def _open_scorer(recipe: Recipe, scorer: ScorerMaker | None, taught: Sequence[Taught]) -> Scorer:
    if scorer is None:
        raise StudioloError(
            "nobody was given who judges", where="scores.every", remedy="Train by studiolo.train."
        )
    return scorer(recipe, [[image.image for image in one.subject.images] for one in taught])


def _identifier(
    components: Components, given: str | None, class_noun: str, taken: Sequence[str], display: Display
) -> str:
    """The word of a subject: the given one, or the best that is found and not `taken` by another."""
    if given:
        token = check_identifier(given, class_noun)
        if token in taken:
            raise StudioloError(
                f"'{token}' stands for another subject already", where="identifier", remedy="Use another."
            )
        return token
    choice = find_identifier(components, class_noun)
    ranked = [c for c in choice.alternatives if c.token not in taken]
    reason = choice.reason if ranked[0].token == choice.token else "the best that no other subject has"
    display.note(f"identifier: '{ranked[0].token}', {reason}")
    if others := [f"{c.token} ({c.shift:.2f})" for c in ranked[1:5]]:
        display.note(f"  next best: {', '.join(others)}")
    return ranked[0].token


def _carry_out(teaching: Teaching, replace: bool) -> ImageModel:
    teaching.fit()
    name = teaching.recipe.name or ""
    if first_process():
        teaching.export()
        replace = replace or teaching.run.has_name(name)
        register(teaching.run.model, name, replace=replace)
    teaching.wait_for_all()
    words = [f"a [{one.name}] {one.subject.class_noun}" for one in teaching.taught]
    teaching.display.note(f'draw it: studiolo generate "{" and ".join(words)}" --model {name}')
    return ImageModel.load(teaching.run.model)

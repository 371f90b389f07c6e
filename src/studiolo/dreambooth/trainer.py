"""Teach a subject: from images and a recipe to a model that has a name."""

from __future__ import annotations

from collections.abc import Sequence
from datetime import datetime
from pathlib import Path
from typing import Any

from PIL import Image

from studiolo.diffusion.components import Components
from studiolo.drawing.model import ImageModel
from studiolo.dreambooth.identifier import check_identifier, find_identifier
from studiolo.dreambooth.progress import Display
from studiolo.dreambooth.recipe import Recipe
from studiolo.dreambooth.run import Run
from studiolo.dreambooth.scoring import Scorer, ScorerMaker
from studiolo.dreambooth.subject import Subject, load_subject
from studiolo.dreambooth.teaching import Teaching
from studiolo.dreambooth.trackers import check_trackers
from studiolo.errors import StudioloError
from studiolo.formats.opening import open_components
from studiolo.models.registry import check_name, register, resolve
from studiolo.store.files import atomic_path
from studiolo.store.paths import runs_dir
from studiolo.training.checkpoint import Interrupted
from studiolo.training.processes import first_process

__all__ = ["Interrupted", "resume", "train"]

Source = str | Path | Image.Image


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
    chosen = recipe if isinstance(recipe, Recipe) else Recipe.from_yaml(recipe) if recipe else Recipe()
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
        teaching = _prepare(recipe, found, shown, scorer)
        found.check_same(teaching.facts)
        return _carry_out(teaching, replace)


def _check_complete(recipe: Recipe, sources: list[Source], out: str | Path | None) -> None:
    missing = {
        "images of the subject": sources,
        "the class noun (--class)": recipe.class_noun,
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
        files = [_as_file(source, run.folder / "images", i) for i, source in enumerate(sources)]
        teaching = _prepare(recipe.with_values({"images": files}), run, display, scorer)
        if first_process():
            run.begin(teaching.recipe, teaching.facts)
    except BaseException:
        if first_process():
            run.clear_unless_begun()
        raise
    return teaching


def _as_file(source: Source, folder: Path, index: int) -> str:
    """The absolute path of an image; one that is in memory alone is kept in the run folder."""
    if not isinstance(source, Image.Image):
        return str(Path(source).expanduser().absolute())
    path = folder / f"{index:03d}.png"
    with atomic_path(path) as temporary:
        source.save(temporary)
    return str(path)


def _prepare(recipe: Recipe, run: Run, display: Display, scorer: ScorerMaker | None) -> Teaching:
    """Loads and checks the base, the images and the identifier; the recipe comes back resolved."""
    check_trackers(recipe)
    base = resolve(recipe.base)
    components = open_components(base)
    check_rate(recipe, components.denoiser.num_parameters())
    size = recipe.resolution or components.image_size
    components.latent_shape(size, size)  # raises for a size that the model cannot have
    subject = load_subject(
        list(recipe.images),
        recipe.class_noun or "",
        min_size=size,
        masks=recipe.masks,
        captions=recipe.captions,
    )
    for note in subject.notes:
        display.note(f"note: {note}")
    if recipe.identifier:
        identifier = check_identifier(recipe.identifier, subject.class_noun)
    else:
        identifier = _find_identifier(components, subject.class_noun, display)
    resolved = {"class_noun": subject.class_noun, "identifier": identifier, "resolution": size}
    recipe = recipe.with_values(resolved)
    judge = _open_scorer(recipe, scorer, subject) if recipe.scores.every else None
    return Teaching(recipe, run, display, base, components, subject, judge)


def _open_scorer(recipe: Recipe, scorer: ScorerMaker | None, subject: Subject) -> Scorer:
    if scorer is None:
        raise StudioloError(
            "nobody was given who judges", where="scores.every", remedy="Train by studiolo.train."
        )
    return scorer(recipe, [image.image for image in subject.images])


def check_rate(recipe: Recipe, parameters: int) -> None:
    """Refuses to train a U-Net of so many `parameters` at a rate that only small ones survive."""
    if recipe.train_unet and parameters > 100e6 and recipe.learning_rate > 1e-4:
        raise StudioloError(
            f"{recipe.learning_rate:g} destroys a U-Net of {parameters / 1e6:.0f} million parameters; "
            "the default is that of the small embedded base",
            where="learning_rate",
            remedy="Give about 2e-6: --set learning_rate=2e-6 --set text_learning_rate=2e-6 --set steps=800",
        )


def _find_identifier(components: Components, class_noun: str, display: Display) -> str:
    choice = find_identifier(components, class_noun)
    display.note(f"identifier: '{choice.token}', {choice.reason}")
    if others := [f"{c.token} ({c.shift:.2f})" for c in choice.alternatives if c.token != choice.token][:4]:
        display.note(f"  next best: {', '.join(others)}")
    return choice.token


def _carry_out(teaching: Teaching, replace: bool) -> ImageModel:
    teaching.fit()
    name = teaching.recipe.name or ""
    if first_process():
        teaching.export()
        replace = replace or teaching.run.has_name(name)
        register(teaching.run.model, name, replace=replace)
    teaching.wait_for_all()
    teaching.display.note(f'draw it: studiolo generate "a [V] {teaching.recipe.class_noun}" --model {name}')
    return ImageModel.load(teaching.run.model)

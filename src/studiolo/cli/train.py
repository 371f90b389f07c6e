"""`studiolo train`: teach a subject, or go on with an interrupted run."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from studiolo.cli.options import ClassNoun, Identifier, Images, Settings, Subjects, chosen_recipe
from studiolo.errors import StudioloError

Text = str | None
Folder = Path | None


def train(
    images: Images = None,
    class_noun: ClassNoun = None,
    name: Annotated[Text, typer.Option(metavar="NAME", help="A name for the taught model.")] = None,
    subjects: Subjects = None,
    base: Annotated[
        Text,
        typer.Option(metavar="MODEL", help="Start from this name, folder or hub id (studiolo-base)."),
    ] = None,
    recipe: Annotated[
        Folder, typer.Option(metavar="FILE", help="Settings in YAML; options here stand above them.")
    ] = None,
    settings: Settings = None,
    identifier: Identifier = None,
    out: Annotated[
        Folder, typer.Option(metavar="DIR", help="The run folder; else a new one in the data folder.")
    ] = None,
    resume: Annotated[
        Folder, typer.Option(metavar="RUN", help="Go on with this run, exactly where it was.")
    ] = None,
    replace: Annotated[
        bool, typer.Option("--replace", help="Take the name from a model that has it.")
    ] = False,
    defaults: Annotated[
        bool, typer.Option("--defaults", help="Print all settings, explained, and leave.")
    ] = False,
) -> None:
    """Teach a subject from a handful of images.

    studiolo train photos/ --class fox --name my-fox

    The run folder holds recipe.yaml (which repeats the run), metrics.csv, checkpoints/, previews/ and model/.

    Ctrl-C and SIGTERM finish the step and save it; `--resume RUN` goes on as if nothing had happened, after
    a crash from the last checkpoint.
    """
    if defaults:
        from studiolo.dreambooth.recipe import Recipe

        typer.echo(Recipe().to_yaml(), nl=False)
        return
    from studiolo.dreambooth.trainer import Interrupted
    from studiolo.evaluation import training

    chosen = chosen_recipe(recipe, settings, subjects=subjects, identifier=identifier)
    try:
        if resume is None:
            training.train(images, class_noun, name, base, chosen, out, replace=replace)
            return
        if images or class_noun or name or base or recipe or settings or identifier or out or subjects:
            raise StudioloError(
                "a resumed run has its images and settings already", remedy="Give --resume RUN alone."
            )
        training.resume(resume, replace=replace)
    except Interrupted as stopped:
        typer.echo(f"\n{stopped}", err=True)
        raise typer.Exit(128 + stopped.signum) from None

"""`studiolo sweep`: which settings teach this subject best?"""

from __future__ import annotations

from enum import StrEnum
from pathlib import Path
from typing import Annotated

import typer

from studiolo.cli.options import (
    ClassNoun,
    Identifier,
    Images,
    Settings,
    Subjects,
    chosen_recipe,
)


class Method(StrEnum):
    grid = "grid"
    random = "random"
    tpe = "tpe"


def sweep(
    images: Images = None,
    class_noun: ClassNoun = None,
    subjects: Subjects = None,
    params: Annotated[
        list[str] | None,
        typer.Option(
            "--param",
            metavar="KEY=VALUES",
            help="What to try: steps=100,200, steps=100..400:50, learning_rate=1e-5..1e-3:log. Repeatable.",
        ),
    ] = None,
    method: Annotated[
        Method,
        typer.Option(help="All combinations, random ones, or by a model of the scores so far (TPE)."),
    ] = Method.tpe,
    trials: Annotated[
        int | None, typer.Option(min=1, help="Trainings in all; a grid has its own number.")
    ] = None,
    base: Annotated[
        str | None, typer.Option(metavar="MODEL", help="Teach this model; else the recipe's.")
    ] = None,
    recipe: Annotated[
        Path | None, typer.Option(metavar="FILE", help="What all trials share, in YAML.")
    ] = None,
    settings: Settings = None,
    identifier: Identifier = None,
    seed: Annotated[int, typer.Option(help="Of the search; that of the trainings is a setting.")] = 0,
    out: Annotated[Path, typer.Option(metavar="DIR", help="Where everything goes.")] = Path("sweep"),
) -> None:
    """Try settings of the training and rank them by their scores.

    studiolo sweep photos/ --class fox --param learning_rate=1e-4..1e-3:log --param steps=100,200 --trials 12

    The same command goes on where it was stopped, and several at the same time share the work.
    """
    from studiolo.dreambooth.trainer import Interrupted
    from studiolo.errors import StudioloError
    from studiolo.evaluation.functions import sweep as searched
    from studiolo.evaluation.space import FORMS

    chosen = chosen_recipe(recipe, settings, images, class_noun, base, subjects, identifier)
    chosen.check_taught("studiolo sweep IMAGES --class fox --param steps=100,200,400 --method grid")
    if not params:
        raise StudioloError("nothing to try", where="--param", remedy=FORMS)
    try:
        board = searched(
            recipe=chosen,
            params=params,
            method=method.value,
            trials=trials,
            search_seed=seed,
            out=out,
            tell=lambda text: typer.echo(text, err=True),
        )
    except Interrupted as stopped:
        typer.echo(f"\n{stopped.message}. The same command goes on from here.", err=True)
        raise typer.Exit(128 + stopped.signum) from None
    typer.echo(board.text(), nl=False)
    best = f"Best recipe: {out / 'best.yaml'}  " if board.best else ""
    typer.echo(f"{best}Leaderboard: {out / 'leaderboard.html'}")

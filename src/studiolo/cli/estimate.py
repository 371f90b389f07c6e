"""`studiolo estimate`: what a training will take, before it begins."""

from __future__ import annotations

import json
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

if TYPE_CHECKING:
    from studiolo.dreambooth.estimate import Estimate


def estimate(
    images: Annotated[
        list[Path] | None,
        typer.Argument(help="Images of the subject, or folders of them.", show_default=False),
    ] = None,
    class_noun: Annotated[
        str | None, typer.Option("--class", metavar="NOUN", help="What the subject is: fox, backpack.")
    ] = None,
    base: Annotated[
        str | None, typer.Option(metavar="MODEL", help="Start from this model; else the recipe's.")
    ] = None,
    recipe: Annotated[Path | None, typer.Option(metavar="FILE", help="Settings in YAML.")] = None,
    settings: Annotated[
        list[str] | None, typer.Option("--set", metavar="KEY=VALUE", help="One setting. Repeatable.")
    ] = None,
    as_json: Annotated[bool, typer.Option("--json", help="Print JSON.")] = False,
) -> None:
    """Say what memory and time a training will take, as `studiolo train` with the same words would.

    studiolo estimate photos/ --class fox --set steps=400

    One step and one batch of class images are done for it; these images stay in the cache. With code 3 it
    would not fit into the memory.
    """
    from studiolo.dreambooth.estimate import estimate as measured
    from studiolo.dreambooth.recipe import Recipe
    from studiolo.errors import StudioloError

    chosen = (Recipe.from_yaml(recipe) if recipe else Recipe()).with_settings(settings or [])
    given = {
        "images": [str(path.absolute()) for path in images or []],
        "class_noun": class_noun,
        "base": base,
    }
    chosen = chosen.with_values({key: value for key, value in given.items() if value})
    if not chosen.subjects and not (chosen.images and chosen.class_noun):
        raise StudioloError(
            "to be given: images of the subject and the class noun",
            remedy="studiolo estimate IMAGES --class fox",
        )
    found = measured(chosen)
    typer.echo(json.dumps(found.as_dict(), indent=2) if as_json else _text(found))
    if not found.fits:
        raise typer.Exit(3)


def _text(found: Estimate) -> str:
    from studiolo.dreambooth.memory import LESS, told

    lines = [told(found.memory, found.available)]
    if found.fits:
        parts = ", ".join(f"{name.replace('_', ' ')} {_span(s)}" for name, s in found.seconds.items())
        lines.append(f"time on {found.device}: about {_span(found.total_seconds)} ({parts})")
    else:
        lines.append(f"This does not fit. What takes less: {LESS}.")
    return "\n".join(lines)


def _span(seconds: float) -> str:
    """ "45 s", "12 min", "3.5 h"."""
    if seconds < 90:
        return f"{seconds:.0f} s"
    return f"{seconds / 60:.0f} min" if seconds < 5400 else f"{seconds / 3600:.1f} h"

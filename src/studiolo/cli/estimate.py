"""`studiolo estimate`: what a training will take, before it begins."""

from __future__ import annotations

import json
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from studiolo.cli.options import (
    ClassNoun,
    Identifier,
    Images,
    Settings,
    Subjects,
    chosen_recipe,
)

if TYPE_CHECKING:
    from studiolo.dreambooth.estimate import Estimate


def estimate(
    images: Images = None,
    class_noun: ClassNoun = None,
    name: Annotated[
        str | None, typer.Option(metavar="NAME", help="As train takes it; makes no difference.")
    ] = None,
    subjects: Subjects = None,
    base: Annotated[
        str | None, typer.Option(metavar="MODEL", help="Start from this model; else the recipe's.")
    ] = None,
    recipe: Annotated[Path | None, typer.Option(metavar="FILE", help="Settings in YAML.")] = None,
    settings: Settings = None,
    identifier: Identifier = None,
    as_json: Annotated[bool, typer.Option("--json", help="Print JSON.")] = False,
) -> None:
    """Say what memory and time a training will take, as `studiolo train` with the same words would.

    studiolo estimate photos/ --class fox --set steps=400

    One step and one batch of class images or predictions are done for it; these stay in the cache. With
    code 3 it would not fit into the memory.
    """
    from studiolo.dreambooth.estimate import estimate as measured

    chosen = chosen_recipe(recipe, settings, images, class_noun, base, subjects, identifier)
    chosen.check_taught("studiolo estimate IMAGES --class fox")
    found = measured(chosen)
    typer.echo(json.dumps(found.as_dict(), indent=2) if as_json else _text(found))
    if not found.fits:
        raise typer.Exit(3)


def _text(found: Estimate) -> str:
    from studiolo.dreambooth.memory import LESS, told

    lines = [told(found.memory, found.available)]
    if found.total_seconds is not None:
        parts = ", ".join(f"{name.replace('_', ' ')} {_span(s)}" for name, s in found.seconds.items())
        lines.append(f"time on {found.device}: about {_span(found.total_seconds)} ({parts})")
    elif found.fits:
        lines.append("time: not estimated, as with fsdp it takes all processes to do a step")
    else:
        lines.append(f"This does not fit. What takes less: {LESS}.")
    return "\n".join(lines)


def _span(seconds: float) -> str:
    """ "45 s", "12 min", "3.5 h"."""
    if seconds < 90:
        return f"{seconds:.0f} s"
    return f"{seconds / 60:.0f} min" if seconds < 5400 else f"{seconds / 3600:.1f} h"

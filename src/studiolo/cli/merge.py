"""`studiolo merge`: one model out of several."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from studiolo.errors import StudioloError


def merge(
    models: Annotated[
        list[str],
        typer.Argument(
            metavar="MODEL[:WEIGHT]...",
            help="A base and adapters, or whole models: names, folders, files, each with its weight or none.",
        ),
    ],
    out: Annotated[
        Path,
        typer.Option(help="Where nothing is yet: a .safetensors file, or a folder in Diffusers' layout."),
    ],
    minus: Annotated[str | None, typer.Option(metavar="C", help="Make A + w (B - C) of A and B:w.")] = None,
    dtype: Annotated[
        str | None, typer.Option(help="float16, bfloat16 or float32; else as the first is stored.")
    ] = None,
    name: Annotated[str | None, typer.Option(help="Register the result by this name.")] = None,
) -> None:
    """Put adapters into their base, or make a weighted sum of whole models.

    studiolo merge studiolo-base my-fox.safetensors:0.8 --out fox-and-all

    Weights of adapters are 1 by default; those of whole models add up to 1.
    """
    from studiolo.cli.progress import download_bar
    from studiolo.formats.merging import merge as merge_models

    with download_bar() as on_progress:
        found = merge_models([_split(model) for model in models], out, minus, dtype, name, on_progress)
    typer.echo(found.path)


def _split(told: str) -> tuple[str, float | None]:
    """ "rex:0.8" -> ("rex", 0.8)."""
    path, colon, weight = told.rpartition(":")
    if not colon or Path(told).expanduser().exists():
        return told, None
    try:
        return path, float(weight)
    except ValueError as error:
        raise StudioloError(
            f"{weight!r} is no weight", where=told, remedy="Such as: studiolo merge A:0.7 B:0.3 --out C"
        ) from error

"""`studiolo convert`: a model, an adapter or an embedding in another format."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer


def convert(
    source: Annotated[
        str, typer.Argument(help="A name of `studiolo models list`, a folder, a file, or a hub id.")
    ],
    target: Annotated[
        Path,
        typer.Argument(help="Where nothing is yet: a .safetensors file, or a folder in Diffusers' layout."),
    ],
    format: Annotated[  # noqa: A002 (the option's name)
        str | None,
        typer.Option(
            "--format",
            help="diffusers, single-file, peft, kohya or embedding; by default what TARGET's name says.",
        ),
    ] = None,
    dtype: Annotated[
        str | None, typer.Option(help="float16, bfloat16 or float32; else as they are stored.")
    ] = None,
    prune: Annotated[
        bool,
        typer.Option("--prune", help="Leave out what drawing does not need: EMA weights, optimizer states."),
    ] = False,
) -> None:
    """Write a model, an adapter or an embedding in another format.

    studiolo convert my-fox my-fox.safetensors --dtype float16

    Nothing is overwritten, and a target is there when it is whole.
    """
    from studiolo.cli.progress import download_bar
    from studiolo.formats.converting import convert as convert_model

    with download_bar() as on_progress:
        written = convert_model(source, target, format, dtype, prune, on_progress)  # type: ignore[arg-type]
    for path in written:
        typer.echo(path)

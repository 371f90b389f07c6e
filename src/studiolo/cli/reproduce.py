"""`studiolo reproduce`: make a picture again from what its file says."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from studiolo.cli.progress import drawing_bar


def reproduce(
    file: Annotated[Path, typer.Argument(help="A PNG file that studiolo wrote.", show_default=False)],
    out: Annotated[Path | None, typer.Option(metavar="FILE", help="Save the new picture here.")] = None,
    model: Annotated[
        str | None, typer.Option(help="Where its model is, if it is not registered under its name.")
    ] = None,
    adapter: Annotated[
        list[str] | None,
        typer.Option(metavar="NAME", help="Where its adapters are, in order, if not under their names."),
    ] = None,
    init: Annotated[
        Path | None, typer.Option(metavar="IMAGE", help="The picture that it began from.")
    ] = None,
    mask: Annotated[Path | None, typer.Option(metavar="IMAGE", help="The mask that it had.")] = None,
) -> None:
    """Draw a picture again and say whether the file has the same bytes.

    On the same machine with the same libraries it has: "identical", exit code 0. Otherwise "differs", what
    has changed since, and exit code 1.
    """
    from studiolo.drawing.provenance import read_provenance
    from studiolo.drawing.reproduction import reproduce as again

    with drawing_bar(len(read_provenance(file).batch)) as on_step:
        result = again(file, model, on_step, init=init, mask=mask, adapters=adapter or None)
    if out is not None:
        result.picture.save(out)
    if result.identical:
        typer.echo("identical")
        return
    pixels = {0: "the same pixels", None: "another size"}.get(
        result.difference, f"colours up to {result.difference} of 255 apart"
    )
    typer.echo("\n  ".join([f"differs: {pixels}", *result.changes]))
    raise typer.Exit(1)

"""`studiolo score`: how well a taught model knows its subject, and what it forgot for it."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from studiolo.cli.progress import drawing_bar

if TYPE_CHECKING:
    from studiolo.evaluation.mixing import Mixing
    from studiolo.evaluation.report import Report


def score(
    model: Annotated[
        str, typer.Option(help="A taught model: its name, or its run folder.", show_default=False)
    ],
    n: Annotated[int, typer.Option("-n", "--n", min=1, max=1000, help="Pictures of each prompt.")] = 4,
    seed: Annotated[int, typer.Option(help="Picture i starts from the noise of seed + i.")] = 0,
    steps: Annotated[int, typer.Option(help="Denoising steps.")] = 30,
    guidance: Annotated[float, typer.Option(help="How strongly to follow the prompt.")] = 5.0,
    embedder: Annotated[
        str, typer.Option(help="What likeness is measured by: eye, or dino or clip where they can be had.")
    ] = "eye",
    weights: Annotated[
        Path | None, typer.Option(metavar="DIR", help="Where the embedder's weights lie, if not on the hub.")
    ] = None,
    baseline: Annotated[
        str | None,
        typer.Option(metavar="MODEL", help="Compare with this model; else with the subject's base."),
    ] = None,
    images: Annotated[
        Path | None, typer.Option(metavar="DIR", help="The training images, if they have moved.")
    ] = None,
    subject: Annotated[
        str | None,
        typer.Option(metavar="NAME", help="Only this one of several subjects; else each, and their mixing."),
    ] = None,
    out: Annotated[
        Path, typer.Option(metavar="DIR", help="Where report.json, report.html and sheet.png go.")
    ] = Path("scores"),
) -> None:
    """Score a taught model: likeness, contexts, drift of the class, diversity, copying.

    studiolo score --model my-fox --out scores

    The base model draws the same prompts from the same seeds, so every score has its value before.
    """
    from studiolo.evaluation.embedders import load_embedder
    from studiolo.evaluation.functions import score as judged
    from studiolo.evaluation.mixing import Apart

    found = judged(
        model,
        subject=subject,
        n=n,
        seed=seed,
        steps=steps,
        guidance_scale=guidance,
        embedder=load_embedder(embedder, weights),
        baseline=baseline,
        images=images,
        out=out,
        bar=drawing_bar,
    )
    if isinstance(found, Apart):
        for name, report in found.reports.items():
            typer.echo(f"[{name}]")
            show(report)
        show_mixing(found.mixing)
    else:
        show(found)
    typer.echo(f"Report: {out / 'report.html'}")


def show_mixing(mixing: Mixing) -> None:
    """Prints how like the pictures of each subject are to the training images of each."""
    from rich.console import Console
    from rich.table import Table

    table = Table("asked for", *mixing.likeness, "kept apart", box=None, header_style="bold")
    for asked, seen in mixing.likeness.items():
        cells = [f"{likeness:.3f}" for likeness in seen.values()]
        table.add_row(f"\\[{asked}]", *cells, f"{mixing.kept_apart[asked]:.0%}")
    Console().print(table)


def show(report: Report) -> None:
    """Prints every score with what it means."""
    from rich.console import Console
    from rich.table import Table

    from studiolo.evaluation.report import MEANINGS

    table = Table("score", "", "meaning", box=None, header_style="bold")
    for group, values in report.scores.items():
        for key, value in values.items():
            table.add_row(f"{group}.{key}", f"{value:.3f}", MEANINGS[f"{group}.{key}"])
    Console().print(table)

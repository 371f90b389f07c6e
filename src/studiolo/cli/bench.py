"""`studiolo bench dreambooth`: the paper's benchmark over a folder of subjects."""

from __future__ import annotations

from enum import StrEnum
from pathlib import Path
from typing import Annotated

import typer

from studiolo.cli.options import chosen_recipe
from studiolo.errors import StudioloError

app = typer.Typer(help="Benchmarks that others publish figures of.", no_args_is_help=True)


class Prior(StrEnum):
    with_ = "with"
    without = "without"
    both = "both"


@app.callback()
def _benchmarks() -> None:
    """Keeps `dreambooth` a command of its own while there is one alone."""


@app.command()
def dreambooth(
    data: Annotated[
        Path, typer.Option(metavar="DIR", help="A folder of pictures for each subject.", show_default=False)
    ],
    subjects: Annotated[
        str | None, typer.Option(metavar="A,B", help="Only these folders; else all of them.")
    ] = None,
    classes: Annotated[
        list[str] | None,
        typer.Option("--class", metavar="NAME=NOUN", help="What a folder is, if not one of the paper's 30."),
    ] = None,
    recipe: Annotated[
        Path | None, typer.Option(metavar="FILE", help="Settings of the training in YAML.")
    ] = None,
    settings: Annotated[
        list[str] | None,
        typer.Option("--set", metavar="KEY=VALUE", help="One setting of the training. Repeatable."),
    ] = None,
    base: Annotated[
        str | None, typer.Option(metavar="MODEL", help="Teach this model; else the recipe's.")
    ] = None,
    prior: Annotated[Prior, typer.Option(help="Teach with the prior loss, without, or both.")] = Prior.with_,
    n: Annotated[int, typer.Option("-n", "--n", min=1, max=1000, help="Pictures of each prompt.")] = 4,
    seed: Annotated[int, typer.Option(help="Picture i of a prompt starts from seed + i.")] = 0,
    steps: Annotated[int, typer.Option(help="Denoising steps.")] = 30,
    guidance: Annotated[float, typer.Option(help="How strongly to follow the prompt.")] = 5.0,
    embedder: Annotated[
        list[str] | None,
        typer.Option(
            help="dino, clip (brings CLIP-T) or eye; repeatable; the first says PRES. [default: eye]"
        ),
    ] = None,
    weights: Annotated[
        list[str] | None,
        typer.Option(
            metavar="NAME=PATH", help="Where weights lie: dino=DIR, clip=DIR, lpips=FILE. Repeatable."
        ),
    ] = None,
    out: Annotated[Path, typer.Option(metavar="DIR", help="Where everything goes.")] = Path("dreambench"),
) -> None:
    """Teach, draw and score the paper's subjects; the table stands beside the paper's own figures.

    studiolo bench dreambooth --data dataset --subjects dog6,teapot --out dreambench

    Each subject is taught, drawn for its 25 prompts and scored. The same command goes on where it stopped.
    """
    from studiolo.dreambooth.trainer import Interrupted
    from studiolo.evaluation.functions import bench

    try:
        report = bench(
            data,
            subjects.split(",") if subjects else (),
            _pairs(classes, "--class dog9=dog"),
            recipe=chosen_recipe(recipe, settings, base=base),
            priors={"with": (True,), "without": (False,), "both": (True, False)}[prior.value],
            n=n,
            seed=seed,
            steps=steps,
            guidance_scale=guidance,
            embedders=embedder or ("eye",),
            weights=_pairs(weights, "--weights dino=DIR"),
            out=out,
            tell=lambda text: typer.echo(text, err=True),
        )
    except Interrupted as stopped:
        typer.echo(f"\n{stopped.message}. The same command goes on from here.", err=True)
        raise typer.Exit(128 + stopped.signum) from None
    typer.echo(report.text(), nl=False)
    typer.echo(f"Report: {out / 'report.html'}")


def _pairs(given: list[str] | None, example: str) -> dict[str, str]:
    pairs = {}
    for text in given or []:
        name, equals, value = text.partition("=")
        if not (name and equals and value):
            raise StudioloError("this has the form NAME=VALUE", where=text, remedy=f"As in {example}.")
        pairs[name] = value
    return pairs

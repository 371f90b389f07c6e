"""`studiolo demo`: teach a sample subject, draw it, score it."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from studiolo.cli.progress import drawing_bar


def demo(
    out: Annotated[Path, typer.Option(metavar="DIR", help="Where everything goes.")] = Path("demo"),
    subject: Annotated[str, typer.Option(help="Which sample subject: fox, dog, robot or teapot.")] = "fox",
    n: Annotated[int, typer.Option("-n", "--n", min=1, max=100, help="Pictures of each prompt.")] = 2,
    steps: Annotated[int, typer.Option(help="Denoising steps of each picture.")] = 30,
    settings: Annotated[
        list[str] | None,
        typer.Option("--set", metavar="KEY=VALUE", help="A setting of the training. Repeatable."),
    ] = None,
) -> None:
    """Teach a sample subject on the embedded base model, draw it in eight contexts, score it.

    Takes a few minutes. An earlier demo in the same folder is replaced.
    """
    from studiolo.dreambooth.recipe import Recipe
    from studiolo.evaluation.demo import demo as run_demo

    recipe = Recipe().with_settings(settings or [])
    report = run_demo(out, subject, n=n, steps=steps, recipe=recipe, bar=drawing_bar)
    likeness, context, drift = (report.scores[group] for group in ("fidelity", "context", "drift"))
    typer.echo(f"\nlikeness to the {subject}: base {likeness['base']:.2f}, taught {likeness['subject']:.2f}")
    typer.echo(f"contexts as asked:  base {context['base']:.0%}, taught {context['subject']:.0%}")
    typer.echo(f"drift of the class: {drift['class_distance']:.2f} (0 none, 1 another thing)\n")
    for name, meaning in {
        "sheet.png": f"base (above) and your {subject} (below) in eight contexts",
        "report.html": "every score and every picture; open it in a browser",
        "report.json": "the scores for programs",
        "run/": "recipe, curves, checkpoints and the model",
    }.items():
        typer.echo(f"{out / name}  {meaning}")
    typer.echo(f'\nDraw more: studiolo generate "a photo of [V] {subject} in space" --model demo')

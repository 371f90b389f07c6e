"""`studiolo base`: rebuild the embedded base model from its recipe."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

app = typer.Typer(help="Rebuild the base model that ships with Studiolo.", no_args_is_help=True)


@app.command()
def build(
    out: Annotated[
        Path, typer.Option("--out", help="Folder of all stages; a build found there is gone on with.")
    ],
    minutes: Annotated[
        float, typer.Option(help="Longest time for each stage of training, in minutes.", min=0)
    ] = 600,
    unet_steps: Annotated[int, typer.Option(help="Optimizer steps of the U-Net.", min=1)] = 20_000,
    scenes: Annotated[int, typer.Option(help="Composed scenes to train on.", min=1000)] = 60_000,
    nouns: Annotated[
        str, typer.Option(help="Only these nouns, parted by commas: a small base to prove a change on.")
    ] = "",
    accelerator: Annotated[str, typer.Option(help="What trains: cpu, gpu, ...")] = "cpu",
    devices: Annotated[
        int, typer.Option(help="Processes; above 1, start them yourself: torchrun --nproc-per-node N.", min=1)
    ] = 1,
    precision: Annotated[str, typer.Option(help="bf16-mixed or 32-true.")] = "bf16-mixed",
    start: Annotated[
        Path | None, typer.Option("--from", help="Go on from the U-Net in this folder, with a new optimizer.")
    ] = None,
    threads: Annotated[int, typer.Option(help="CPU threads; 0 leaves it to PyTorch.", min=0)] = 0,
) -> None:
    """Fetch the artwork (npm), compose scenes, train autoencoder, text encoder and U-Net; write
    OUT/weights."""
    import torch

    from studiolo.base.build import Build, BuildRecipe
    from studiolo.base.loop import Machine
    from studiolo.base.unet import UnetRecipe
    from studiolo.training.processes import first_process

    if threads:
        torch.set_num_threads(threads)
    chosen = tuple(noun.strip() for noun in nouns.split(",") if noun.strip())
    recipe = BuildRecipe(nouns=chosen, scenes=scenes, unet=UnetRecipe(steps=unet_steps), start=start)
    work = Build(out, recipe, Machine(accelerator, devices, precision, minutes))
    work.sample_subjects()
    work.unet()
    if first_process():
        typer.echo(f"The model: {out / 'weights'}. Look at {out / 'previews'}.")

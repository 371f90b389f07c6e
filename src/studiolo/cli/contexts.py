"""`studiolo contexts`: what many questions have in common, kept under a name for a time."""

from __future__ import annotations

from datetime import datetime
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from studiolo.cli.options import Model, System, Tools
from studiolo.language import DEFAULT_MODEL

if TYPE_CHECKING:
    from studiolo.language.caching.contexts import Context

app = typer.Typer(help="Keep what many questions have in common: ask with --context.", no_args_is_help=True)

_Name = Annotated[str, typer.Argument(help="Its name: a-z, 0-9 and -.")]
_Hours = Annotated[float, typer.Option(min=0.001, help="For how long from now it is kept.")]


@app.command()
def create(
    name: _Name,
    documents: Annotated[
        list[Path] | None,
        typer.Argument(metavar="[DOCUMENT]...", help="Text files in UTF-8.", show_default=False),
    ] = None,
    model: Model = DEFAULT_MODEL,
    system: System = None,
    tools: Tools = None,
    hours: _Hours = 24,
) -> None:
    """Keep documents, a system text or functions.

    studiolo contexts create moby-dick book.txt --system "Answer from the book."
    studiolo ask "Who speaks?" --context moby-dick
    """
    from studiolo.cli.ask import read_tools
    from studiolo.cli.extract import read_document
    from studiolo.language.asking import keep

    texts = [read_document(document) for document in documents or ()]
    kept = keep(
        texts, name=name, hours=hours, model=model, system=system, tools=read_tools(tools) if tools else ()
    )
    _print([kept])


@app.command("list")
def list_contexts() -> None:
    """List the contexts that are kept, oldest first."""
    from studiolo.language.caching.contexts import Contexts

    contexts = Contexts()
    contexts.expire()
    _print(contexts.page(contexts.limits.number).contexts)


@app.command()
def show(name: _Name) -> None:
    """Print what a context holds, as JSON."""
    from studiolo.language.caching.contexts import Contexts

    typer.echo(Contexts().prefix(name).model_dump_json(indent=2))


@app.command()
def extend(name: _Name, hours: _Hours = 24) -> None:
    """Keep a context for so long from now (longer or shorter than before)."""
    from datetime import timedelta

    from studiolo.language.caching.contexts import Contexts

    _print([Contexts().extend(name, timedelta(hours=hours))])


@app.command()
def delete(name: _Name) -> None:
    """Forget a context."""
    from studiolo.language.caching.contexts import Contexts

    Contexts().delete(name)


def _print(contexts: list[Context] | tuple[Context, ...]) -> None:
    from rich.console import Console
    from rich.table import Table

    table = Table("name", "model", "tokens", "until", box=None, header_style="bold")
    for context in contexts:
        table.add_row(context.name, context.model, str(context.tokens), _local(context.expires))
    Console().print(table)


def _local(time: datetime) -> str:
    return time.astimezone().strftime("%Y-%m-%d %H:%M")

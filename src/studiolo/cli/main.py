"""The `studiolo` command: one file a command, put together here.

Every command imports what it needs when it runs, so that `studiolo --help` starts no torch.
"""

from __future__ import annotations

import os
import sys
from typing import Annotated

import typer

from studiolo import __version__
from studiolo.cli import (
    ask,
    base,
    bench,
    chat,
    contexts,
    convert,
    demo,
    estimate,
    extract,
    generate,
    keys,
    merge,
    models,
    reproduce,
    score,
    serve,
    sweep,
    train,
)
from studiolo.errors import StudioloError
from studiolo.language.engines.native import waiting

app = typer.Typer(
    name="studiolo",
    help="Teach a subject from a handful of images and draw it anywhere.",
    no_args_is_help=True,
    context_settings={"help_option_names": ["-h", "--help"]},
    pretty_exceptions_enable=False,
    add_completion=False,
)

_WAIT_SHORTLY = {"ask", "chat", "contexts", "extract", "serve", "generate", "reproduce"}
"""Commands that are quicker so, or as quick; the steps of a training are not."""


def _print_version(wanted: bool) -> None:
    if wanted:
        typer.echo(f"studiolo {__version__}")
        raise typer.Exit


@app.callback()
def _options(
    context: typer.Context,
    version: Annotated[
        bool,
        typer.Option(
            "--version", help="Print the version and leave.", callback=_print_version, is_eager=True
        ),
    ] = False,
) -> None:
    if context.invoked_subcommand in _WAIT_SHORTLY:
        os.environ.update(waiting(os.environ))  # before torch and llama.cpp are loaded


for _command in (
    *(
        train.train,
        estimate.estimate,
        sweep.sweep,
        generate.generate,
        score.score,
        reproduce.reproduce,
        demo.demo,
    ),
    *(convert.convert, merge.merge),
    *(ask.ask, chat.chat, extract.extract, serve.serve),
):
    app.command()(_command)
app.add_typer(models.app, name="models")
app.add_typer(contexts.app, name="contexts")
app.add_typer(keys.app, name="keys")
app.add_typer(base.app, name="base")
app.add_typer(bench.app, name="bench")


def main() -> None:
    """Runs the command line. Bad input ends with exit code 2 and one clear message, Ctrl-C with 130."""
    try:
        app()
    except StudioloError as error:
        _fail(error.message, error.where, error.remedy)
    except OSError as error:
        if error.filename is None:
            raise
        _fail(error.strerror or str(error), error.filename, None)
    except ValueError as error:
        lines = _validation_lines(error)
        if lines is None:
            raise
        _fail("\n  ".join(lines), None, None)


def _validation_lines(error: ValueError) -> list[str] | None:
    """What a pydantic ValidationError found, one line a field; None for any other error."""
    pydantic = sys.modules.get("pydantic")  # whoever raised its error has imported it
    if pydantic is None or not isinstance(error, pydantic.ValidationError):
        return None
    return [
        f"{'.'.join(map(str, found['loc'])) or error.title}: {found['msg']} (got {found['input']!r})"
        for found in error.errors(include_url=False)
    ]


def _fail(message: str, where: object, remedy: str | None) -> None:
    from rich.console import Console
    from rich.text import Text

    text = Text.assemble(("Error: ", "bold red"), message)
    if where is not None:
        text.append(f"\n  in {where}")
    if remedy:
        text.append(f"\n  {remedy}", "cyan")
    Console(stderr=True).print(text, soft_wrap=True)
    sys.exit(2)


if __name__ == "__main__":
    main()

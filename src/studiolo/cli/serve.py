"""studiolo serve: the Gemini and the OpenAI API over what this machine can do."""

from __future__ import annotations

import os
import re
from pathlib import Path
from typing import Annotated

import typer

from studiolo.errors import StudioloError

_UNITS = {"": 0, "k": 1, "m": 2, "g": 3, "t": 4}
_SIZE = re.compile(r"(\d+(?:\.\d+)?)\s*([kmgt]?)(i?)b?", re.IGNORECASE)
_NAME = re.compile(r"[A-Za-z0-9_-]+(\.[A-Za-z0-9_-]+)*|[0-9A-Fa-f]*:[0-9A-Fa-f:.]+")

Data = Annotated[
    Path | None,
    typer.Option(metavar="DIR", help="The data folder; else $STUDIOLO_HOME.", show_default=False),
]
DatabaseUrl = Annotated[
    str | None,
    typer.Option(
        "--database", metavar="URL", help="PostgreSQL in place of SQLite: postgresql://USER@HOST/NAME."
    ),
]


def serve(
    host: Annotated[
        str, typer.Option(help="Where to listen. Beyond loopback a key is needed.")
    ] = "127.0.0.1",
    port: Annotated[int, typer.Option(min=0, max=65535, help="0: any that is free.")] = 8484,
    data: Data = None,
    database: DatabaseUrl = None,
    model: Annotated[str | None, typer.Option(metavar="NAME", help="Load this model at the start.")] = None,
    memory: Annotated[
        str | None, typer.Option(metavar="SIZE", help="What loaded models may take together, as 8GB.")
    ] = None,
    cors: Annotated[
        list[str] | None,
        typer.Option(metavar="ORIGIN", help="Let pages of this origin call (may be given several times)."),
    ] = None,
    allow_host: Annotated[
        list[str] | None,
        typer.Option(metavar="NAME", help="Answer to this name, too, as of a tunnel (several times)."),
    ] = None,
    drain: Annotated[
        float, typer.Option(min=0, metavar="SECONDS", help="How long answers may take to end at the stop.")
    ] = 30,
    log_prompts: Annotated[bool, typer.Option("--log-prompts", help="Write requests into the log.")] = False,
) -> None:
    """Answer Gemini and OpenAI clients."""
    use_data(data)
    from studiolo.language import DEFAULT_MODEL
    from studiolo.server import starting
    from studiolo.server.settings import Settings

    settings = Settings(
        host=host, port=port, database=database, model=model or DEFAULT_MODEL, preload=model is not None,
        memory=None if memory is None else bytes_of(memory, "--memory"), cors=tuple(cors or ()),
        hosts=tuple(map(name_of, allow_host or ())), drain=drain, log_prompts=log_prompts,
    )  # fmt: skip
    studio = starting.open_studio(settings)
    starting.check_exposed(settings, studio.keys.store)
    if model is not None:
        studio.engines.info(model)
    listener = starting.bind(settings)
    _tell(starting.address(settings, listener), "API key" if studio.keys.needed else "any")
    starting.serve(studio, listener)


def use_data(folder: Path | None) -> None:
    """Makes `folder` the data folder of this process."""
    if folder is not None:
        os.environ["STUDIOLO_HOME"] = str(folder.expanduser().absolute())


def bytes_of(text: str, option: str) -> int:
    """A size in bytes: 500MB is 500 million, 2GiB is 2 * 2**30."""
    found = _SIZE.fullmatch(text.strip())
    if found is None or not float(found[1]):
        raise StudioloError(
            "not a size", where=f"{option} {text}", remedy="Give one such as 500MB, 8GB or 2GiB."
        )
    return round(float(found[1]) * (1024 if found[3] else 1000) ** _UNITS[found[2].lower()])


def name_of(text: str) -> str:
    """The name of a host, or * for any."""
    if text != "*" and not _NAME.fullmatch(text):
        raise StudioloError(
            "not the name of a host",
            where=f"--allow-host {text}",
            remedy="Give it without scheme and port, such as studio.example.",
        )
    return text


def _tell(url: str, key: str) -> None:
    body = '{"model": "smollm2", "messages": [{"role": "user", "content": "Hello!"}], "stream": true}'
    typer.echo(f"Studiolo answers at {url} (Ctrl-C stops it)")
    typer.echo(f'  Gemini   genai.Client(api_key="{key}", http_options={{"base_url": "{url}"}})')
    typer.echo(f'  OpenAI   openai.OpenAI(api_key="{key}", base_url="{url}/v1")')
    bearer = " -H 'authorization: Bearer API key'" if key != "any" else ""
    typer.echo(f"  curl     curl -N {url}/v1/chat/completions{bearer} -H 'content-type: application/json' \\")
    typer.echo(f"             -d '{body}'")

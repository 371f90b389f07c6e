"""`studiolo extract`: structured data out of documents."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Annotated, Any

import typer

from studiolo.cli.ask import read_schema
from studiolo.errors import StudioloError

_LARGEST_DOCUMENT = 16 * 2**20


def extract(
    documents: Annotated[list[Path], typer.Argument(metavar="DOCUMENT...", help="Text files.")],
    schema: Annotated[
        Path, typer.Option(metavar="FILE", help="JSON Schema of what is wanted from each document.")
    ],
    model: Annotated[str, typer.Option(help="A name; see `studiolo models list`.")] = "smollm2",
    out: Annotated[
        Path | None, typer.Option(metavar="FILE", help="JSON lines, one a document; else they are printed.")
    ] = None,
    instructions: Annotated[
        str, typer.Option(help="What to tell the model besides the schema.")
    ] = "Extract what the schema asks for from the document. Use only what it says.",
    max_tokens: Annotated[int | None, typer.Option(min=1, help="Longest answer to one document.")] = None,
) -> None:
    """Read documents and write what they say, in the form of a JSON Schema.

    studiolo extract invoices/*.txt --schema invoice.json --out invoices.jsonl

    A line is {"document": ..., "data": ...}, or {"document": ..., "error": ...}; lines of an interrupted
    run are kept and not made again.
    """
    from studiolo.language.asking import ask
    from studiolo.language.errors import LanguageError

    rule = read_schema(schema)
    done = _documents_in(out) if out else set()
    for document in documents:
        if str(document) in done:
            continue
        line: dict[str, Any] = {"document": str(document)}
        try:
            line["data"] = ask(
                read_document(document),
                system=instructions,
                schema=rule,
                model=model,
                max_tokens=max_tokens,
                temperature=0.0,
            )
        except LanguageError as error:
            line["error"] = str(error)
        _write(line, out)


def read_document(file: Path) -> str:
    """The text of a document."""
    if file.stat().st_size > _LARGEST_DOCUMENT:
        raise StudioloError("larger than 16 MiB", where=file, remedy="Split it.")
    try:
        return file.read_text(encoding="utf-8")
    except UnicodeDecodeError:
        raise StudioloError("not a text file in UTF-8", where=file) from None


def _documents_in(out: Path) -> set[str]:
    """The documents that have their data in the file already."""
    if not out.exists():
        return set()
    lines = out.read_text(encoding="utf-8").splitlines(keepends=True)
    found = [json.loads(line) for line in lines if line.endswith("\n")]
    return {line["document"] for line in found if "data" in line}


def _write(line: dict[str, Any], out: Path | None) -> None:
    text = json.dumps(line, ensure_ascii=False)
    if out is None:
        typer.echo(text)
        return
    with open(out, "a", encoding="utf-8") as file:
        file.write(text + "\n")
    typer.secho(f"{line['document']}: {'data' if 'data' in line else line['error']}", err=True)

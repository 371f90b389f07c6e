"""`studiolo extract`: structured data out of documents."""

from __future__ import annotations

import sys
from collections.abc import Callable, Sequence
from contextlib import nullcontext
from pathlib import Path
from typing import Annotated, Any

import typer

from studiolo.cli.ask import read_schema
from studiolo.cli.lines import Lines, encoded
from studiolo.cli.options import Model
from studiolo.errors import StudioloError
from studiolo.language import DEFAULT_MODEL

_LARGEST_DOCUMENT = 16 * 2**20


def extract(
    documents: Annotated[list[Path], typer.Argument(metavar="DOCUMENT...", help="Text files in UTF-8.")],
    schema: Annotated[
        Path, typer.Option(metavar="FILE", help="JSON Schema of what is wanted from each document.")
    ],
    model: Model = DEFAULT_MODEL,
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

    A line is {"document": ..., "data": ...}. Documents that have their line in the file already are left
    out, so the same command goes on with a run that was interrupted. A document that gives no data is told
    on standard error and has no line; the exit status is 3 then.
    """
    from studiolo.language.asking import ask
    from studiolo.language.decoding.schema import normalised
    from studiolo.language.opening import engine
    from studiolo.language.running import run

    rule = read_schema(schema)
    normalised(rule, where=str(schema))  # what is no schema is told once, not for each document

    def data_of(document: Path) -> Any:
        text = read_document(document)
        settings = {"system": instructions, "max_tokens": max_tokens, "temperature": 0.0}
        return ask(text, schema=rule, model=model, **settings)

    with Lines(out) if out else nullcontext() as lines:
        rest = _not_done(documents, lines)
        if rest:
            run(engine(model))  # and so is a model that is not there
        done = [_extracted(document, data_of, lines) for document in rest]
    sys.exit(0 if all(done) else 3)


def read_document(file: Path) -> str:
    """The text of a document.

    Raises:
        StudioloError: it is no text, empty, or larger than 16 MiB.
        OSError: it is not there, or cannot be read.
    """
    with open(file, "rb") as opened:
        data = opened.read(_LARGEST_DOCUMENT + 1)
    if len(data) > _LARGEST_DOCUMENT:
        raise StudioloError("larger than 16 MiB", where=file, remedy="Split it.")
    try:
        text = data.decode("utf-8-sig")
    except UnicodeDecodeError:
        raise StudioloError("not a text file in UTF-8", where=file) from None
    if "\0" in text:
        raise StudioloError("not a text file: there are zero bytes in it", where=file)
    if not text.strip():
        raise StudioloError("there is nothing in it", where=file)
    return text


def _not_done(documents: Sequence[Path], lines: Lines | None) -> list[Path]:
    """The documents without a line, each once, in their order."""
    rest = list(dict.fromkeys(documents))
    if lines is None:
        return rest
    if lines.torn:
        typer.secho(f"{lines.path}: the last line was torn off and is dropped.", err=True)
    if any(document.exists() and document.samefile(lines.path) for document in rest):
        raise StudioloError(
            "both a document and what --out names", where=lines.path, remedy="Name another file."
        )
    count = len(rest)
    rest = [document for document in rest if str(document) not in lines.documents]
    if len(rest) < count:
        typer.secho(f"{lines.path}: {count - len(rest)} of {count} documents are in it already.", err=True)
    return rest


def _extracted(document: Path, data_of: Callable[[Path], Any], lines: Lines | None) -> bool:
    """Writes a document's line, or tells why there is none; faults of the whole run are raised."""
    from studiolo.language.errors import AuthenticationError, UnknownModelError, UnsupportedError

    try:
        line = encoded(str(document), data_of(document))
    except (AuthenticationError, UnknownModelError, UnsupportedError):
        raise  # they lie in the schema or the model
    except StudioloError as error:
        return _told(document, " ".join(f"{error.message}. {error.remedy or ''}".split()))
    except OSError as error:
        return _told(document, error.strerror or str(error))
    if lines is None:
        typer.echo(line, nl=False)
    else:
        lines.add(str(document), line)
        typer.secho(f"{document}: done", err=True)
    return True


def _told(document: Path, why: str) -> bool:
    typer.secho(f"{document}: no data: {why}", err=True)
    return False

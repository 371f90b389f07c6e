"""Writes the tables of docs/api.md from the code: `python scripts/api_page.py`."""

from __future__ import annotations

import re
from collections.abc import Iterable, Iterator
from pathlib import Path
from tempfile import TemporaryDirectory

from fastapi import FastAPI

from studiolo.server.app import create_app
from studiolo.server.dialects import GEMINI, OPENAI
from studiolo.server.gemini import fields as gemini
from studiolo.server.openai.batches_wire import BatchRequest
from studiolo.server.openai.chat_kept import ChangeRequest
from studiolo.server.openai.chat_wire import ChatRequest
from studiolo.server.openai.embeddings import EmbeddingRequest
from studiolo.server.openai.files import FileRequest
from studiolo.server.openai.fine_tuning_wire import JobRequest
from studiolo.server.openai.image_edits_wire import EditRequest, VariationRequest
from studiolo.server.openai.images_wire import ImageRequest
from studiolo.server.openai.moderations import ModerationRequest
from studiolo.server.openai.responses_wire import ResponseRequest
from studiolo.server.openai.uploads import CompleteRequest, PartRequest, UploadRequest
from studiolo.server.openai.wire import Standing, Wire, standings
from studiolo.server.settings import Settings
from studiolo.server.starting import open_studio
from studiolo.store.files import atomic_path

PAGE = Path(__file__).parent.parent / "docs" / "api.md"

REQUESTS: dict[str, type[Wire]] = {
    "chat/completions": ChatRequest,
    "chat/completions/ID": ChangeRequest,
    "responses": ResponseRequest,
    "embeddings": EmbeddingRequest,
    "images/generations": ImageRequest,
    "images/edits": EditRequest,
    "images/variations": VariationRequest,
    "fine_tuning/jobs": JobRequest,
    "files": FileRequest,
    "uploads": UploadRequest,
    "uploads/ID/parts": PartRequest,
    "uploads/ID/complete": CompleteRequest,
    "batches": BatchRequest,
    "moderations": ModerationRequest,
}


def main() -> None:
    with atomic_path(PAGE) as temporary:
        temporary.write_text(page(PAGE.read_text(encoding="utf-8")), encoding="utf-8")


def page(text: str) -> str:
    """The page with its tables as the code has them now."""
    with TemporaryDirectory() as data:
        app = create_app(open_studio(Settings(data=Path(data))))
    tables = {
        "calls of the Gemini dialect": calls(app, GEMINI),
        "calls of the OpenAI dialect": calls(app, OPENAI),
        "fields of the Gemini dialect": gemini_fields(),
        "fields of the OpenAI dialect": openai_fields(),
    }
    for name, lines in tables.items():
        text, found = re.subn(
            rf"(<!-- table {name} .*?-->\n).*?(<!-- end -->)",
            lambda match, lines=lines: match[1] + "\n".join(lines) + "\n" + match[2],
            text,
            flags=re.DOTALL,
        )
        if found != 1:
            raise SystemExit(f"docs/api.md has no place for the table '{name}'")
    return text


def calls(app: FastAPI, prefix: str) -> Iterator[str]:
    """Every call of a dialect, by its path, and what is said of it."""
    yield from ("| call | |", "|---|---|")
    for path, methods in sorted(app.openapi()["paths"].items()):
        if path.startswith(prefix):
            for method, said in methods.items():
                about = said.get("description") or said.get("summary") or ""
                first = about.split("\n\n")[0].replace("\n", " ").strip()
                yield f"| `{method.upper()} {path.removeprefix(prefix)}` | {_cell(first)} |"


def gemini_fields() -> Iterator[str]:
    """Field by field, message by message."""
    for message, fields in gemini.MESSAGES.items():
        yield from ("", f"**{message}**", "")
        yield from _table((name, field.support, field.note) for name, field in fields.items())


def openai_fields() -> Iterator[str]:
    """Field by field with those of the objects in it, request by request."""
    for call, kind in REQUESTS.items():
        yield from ("", f"**{call}**", "")
        seen: dict[str, tuple[str, str]] = {}
        for path, known in standings(kind):
            standing = known.standing if known.standing is not Standing.EXTENSION else "Studiolo's own"
            seen.setdefault(path, (standing, known.note))
        yield from _table((path, *said) for path, said in seen.items())


def _table(rows: Iterable[tuple[str, str, str]]) -> Iterator[str]:
    yield from ("| field | | |", "|---|---|---|")
    for name, support, note in rows:
        yield f"| `{name}` | {support} | {_cell(note)} |"


def _cell(text: str) -> str:
    return text.replace("|", "\\|")


if __name__ == "__main__":
    main()

"""`studiolo ask`: one question, one answer."""

from __future__ import annotations

import json
import sys
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from studiolo.cli.options import (
    Context,
    MaxTokens,
    Model,
    Reuse,
    Safety,
    System,
    Temperature,
    Think,
    Thoughts,
    Tools,
)
from studiolo.errors import StudioloError
from studiolo.language import DEFAULT_MODEL

if TYPE_CHECKING:
    from studiolo.language.asking import Chat
    from studiolo.language.conversation import Delta

_LARGEST_INPUT = 64 * 2**20


def ask(
    question: Annotated[
        str | None,
        typer.Argument(
            metavar="QUESTION", help="What to ask; text from a pipe goes before it.", show_default=False
        ),
    ] = None,
    model: Model = DEFAULT_MODEL,
    system: System = None,
    schema: Annotated[
        Path | None, typer.Option(metavar="FILE", help="The answer is JSON that fits this JSON Schema.")
    ] = None,
    tools: Tools = None,
    think: Think = None,
    thoughts: Thoughts = None,
    max_tokens: MaxTokens = None,
    temperature: Temperature = None,
    context: Context = None,
    safety: Safety = None,
    reuse: Reuse = None,
    seed: Annotated[int | None, typer.Option(help="The same seed draws the same answer.")] = None,
    as_json: Annotated[
        bool, typer.Option("--json", help="Print all that came back: parts, usage, finish reason.")
    ] = False,
) -> None:
    """Ask a language model.

    studiolo ask "Name three uses of a studiolo."
    cat letter.txt | studiolo ask "Who wrote this?" --schema person.json
    """
    from studiolo.language.asking import Chat

    chat = Chat(
        model=model,
        system=system,
        schema=read_schema(schema) if schema else None,
        tools=read_tools(tools) if tools else (),
        think=think,
        thoughts=thoughts,
        max_tokens=max_tokens,
        temperature=temperature,
        context=context,
        safety=safety,
        reuse=reuse,
        seed=seed,
    )
    deltas = chat.deltas(whole_question(question))
    if as_json:
        for _ in deltas:
            pass
        typer.echo(chat.response.model_dump_json(indent=2))
    else:
        for delta in deltas:
            show(delta)
        typer.echo()
    sys.exit(0 if finished(chat) else 3)


def whole_question(question: str | None) -> str:
    """The piped text, if there is some, and the question after it."""
    piped = "" if sys.stdin.isatty() else sys.stdin.read(_LARGEST_INPUT + 1)
    if len(piped) > _LARGEST_INPUT:
        raise StudioloError("more than 64 million characters", where="standard input")
    text = "\n\n".join(part for part in (piped.strip(), question or "") if part)
    if not text:
        raise StudioloError("nothing to ask", remedy='Give a question: studiolo ask "Why is the sky blue?"')
    return text


def show(delta: Delta) -> None:
    """Prints a piece: words as they are, thoughts dimmed on standard error, calls as JSON."""
    part = delta.part
    if part is None:
        return
    if part.kind == "text":
        typer.echo(part.text, nl=False)
        sys.stdout.flush()
    elif part.kind == "thought":
        typer.secho(part.text, nl=False, dim=True, err=True)
    elif part.kind == "call":
        typer.secho(json.dumps({"call": part.name, "arguments": part.arguments}, ensure_ascii=False))


def finished(chat: Chat) -> bool:
    """Whether the answer is whole; says on standard error why it is not, and what else is to be known."""
    response = chat.response
    for note in response.notes:
        typer.secho(f"[{note}]", dim=True, err=True)
    if response.blocked:
        typer.secho(f"The question was refused: {response.blocked}.", err=True)
        return False
    for candidate in response.candidates:
        if candidate.finish != "stop":
            told = f": {candidate.finish_message}" if candidate.finish_message else ""
            typer.secho(f"The answer is not whole ({candidate.finish}{told}).", err=True)
            return False
    return True


def read_schema(file: Path) -> dict[str, Any]:
    """The JSON Schema in a file."""
    content = _read_json(file)
    if not isinstance(content, dict):
        raise StudioloError("a JSON Schema is an object", where=file)
    return content


def read_tools(file: Path) -> list[Any]:
    """The public functions of a Python file, or the declarations in a JSON file.

    The Python file is run: it is the user's own.
    """
    from studiolo.language.conversation import Tool

    if file.suffix != ".py":
        content = _read_json(file)
        return [Tool.model_validate(item) for item in (content if isinstance(content, list) else [content])]
    import runpy

    names = runpy.run_path(str(file), run_name="studiolo_tools")
    own = [value for name, value in names.items() if name[0] != "_" and _is_own_function(value)]
    if not own:
        raise StudioloError("no functions in it", where=file, remedy="Define some at its top level.")
    return own


def _is_own_function(value: Any) -> bool:
    import types

    return isinstance(value, types.FunctionType) and value.__module__ == "studiolo_tools"


def _read_json(file: Path) -> Any:
    try:
        return json.loads(file.read_text(encoding="utf-8"))
    except ValueError as error:
        raise StudioloError(f"not JSON: {error}", where=file) from None

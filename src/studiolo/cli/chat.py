"""`studiolo chat`: a conversation in the terminal."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from studiolo.cli.ask import finished, read_tools
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
    from rich.console import Console

    from studiolo.language.asking import Chat


def chat(
    model: Model = DEFAULT_MODEL,
    system: System = None,
    tools: Tools = None,
    think: Think = None,
    thoughts: Thoughts = None,
    history: Annotated[
        Path | None,
        typer.Option(metavar="FILE", help="Keep the conversation here; go on with one kept before."),
    ] = None,
    max_tokens: MaxTokens = None,
    temperature: Temperature = None,
    context: Context = None,
    safety: Safety = None,
    reuse: Reuse = None,
) -> None:
    """Chat with a language model.

    /help lists what else can be typed; Ctrl-C stops an answer, Ctrl-D leaves.
    """
    from rich.console import Console

    from studiolo.language.asking import Chat

    conversation = Chat(
        model=model,
        system=system,
        tools=read_tools(tools) if tools else (),
        think=think,
        thoughts=thoughts,
        max_tokens=max_tokens,
        temperature=temperature,
        context=context,
        safety=safety,
        reuse=reuse,
    )
    if history and history.exists():
        load(conversation, history)
    Talk(conversation, Console(), history).run()


class Talk:
    """What is typed, turn by turn, and what is answered."""

    def __init__(self, chat: Chat, console: Console, history: Path | None) -> None:
        self.chat, self.console, self.history = chat, console, history

    def run(self) -> None:
        """Until /quit or the end of the input."""
        self.console.print(f"[bold]{self.chat.model}[/]  /help for commands", highlight=False)
        while True:
            try:
                line = self.console.input("[bold cyan]> [/]").strip()
            except (EOFError, KeyboardInterrupt):
                self.console.print()
                return
            if line == "/quit":
                return
            if line:
                self.take(line)

    def take(self, line: str) -> None:
        """A command, or a turn."""
        try:
            if line.startswith("/"):
                self._command(line)
            else:
                self._answer(line)
        except StudioloError as error:
            self.console.print(f"[red]{error}[/]", highlight=False)
        if self.history:
            save(self.chat, self.history)

    def _command(self, line: str) -> None:
        name, _, rest = line[1:].partition(" ")
        if name not in self._commands:
            raise StudioloError("no such command", where=f"/{name}", remedy="/help lists them.")
        self._commands[name][0](rest.strip())

    @property
    def _commands(self) -> dict[str, tuple[Callable[[str], None], str]]:
        return {
            "help": (self._help, "this list"),
            "new": (self._new, "forget the conversation"),
            "undo": (self._undo, "forget the last turn and its answer"),
            "model": (self._model, "NAME: go on with another model"),
            "system": (self._system, "TEXT: what the model is to be and to mind"),
            "save": (self._save, "FILE: keep the conversation"),
            "usage": (self._usage, "tokens of the last answer"),
        }

    def _help(self, rest: str) -> None:
        for command, (_, text) in self._commands.items():
            self.console.print(f"/{command:8}{text}", highlight=False)
        self.console.print("/quit    leave", highlight=False)

    def _save(self, rest: str) -> None:
        if not rest:
            raise StudioloError("no file is named", where="/save", remedy="/save FILE")
        save(self.chat, Path(rest))

    def _new(self, rest: str) -> None:
        self.chat.contents.clear()

    def _undo(self, rest: str) -> None:
        contents = self.chat.contents
        while contents and contents.pop().role != "user":
            pass

    def _model(self, rest: str) -> None:
        self.chat.model = rest or self.chat.model
        self.console.print(self.chat.model)

    def _system(self, rest: str) -> None:
        self.chat.system = rest or None

    def _usage(self, rest: str) -> None:
        usage = self.chat.response.usage
        self.console.print(
            f"prompt {usage.prompt} ({usage.cached} cached), thoughts {usage.thoughts}, answer {usage.answer}"
        )

    def _answer(self, line: str) -> None:
        deltas = self.chat.deltas(line)
        try:
            for delta in deltas:
                part = delta.part
                if part is None:
                    continue
                if part.kind == "text":
                    self.console.out(part.text, end="", highlight=False)
                elif part.kind == "thought":
                    self.console.out(part.text, end="", style="dim", highlight=False)
                elif part.kind == "call":
                    told = json.dumps(part.arguments, ensure_ascii=False)
                    self.console.out(f"[{part.name} {told}]", style="green", highlight=False)
        except KeyboardInterrupt:
            self.console.print("\n[dim]stopped; the turn is forgotten[/]")
            return
        finally:
            deltas.close()  # type: ignore[attr-defined]
        self.console.print()
        finished(self.chat)


def save(chat: Chat, file: Path) -> None:
    """The conversation as JSON: model, system instruction, turns."""
    from studiolo.store.files import atomic_path

    turns = [content.model_dump(mode="json") for content in chat.contents]
    content = {"model": chat.model, "system": chat.system, "contents": turns}
    with atomic_path(file) as temporary:
        temporary.write_text(json.dumps(content, indent=2, ensure_ascii=False) + "\n", encoding="utf-8")


def load(chat: Chat, file: Path) -> None:
    """Takes up the turns of a kept conversation, and its system instruction if none was given."""
    from studiolo.language.conversation import Content

    try:
        kept = json.loads(file.read_text(encoding="utf-8"))
        chat.contents = [Content.model_validate_json(json.dumps(turn)) for turn in kept["contents"]]
        chat.system = chat.system or kept.get("system")
    except (ValueError, KeyError, TypeError) as error:
        raise StudioloError(f"no kept conversation: {error}", where=file) from None

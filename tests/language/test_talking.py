"""`studiolo ask` and `studiolo chat` in real processes, on a scripted engine."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[2]
PYTHONPATH = f"{ROOT / 'src'}{os.pathsep}{ROOT / 'tests'}"

STUB = """
import json, os
from language.stub import StubCompleter
from studiolo.cli.main import main
from studiolo.language import opening
from studiolo.language.caching.cached import Cached
from studiolo.language.caching.contexts import Contexts
from studiolo.language.engines.local import LocalEngine

completer = StubCompleter(json.loads(os.environ["SAYS"]))
async def opened(model, **options):
    return Cached(LocalEngine(completer), Contexts())
opening.engine = opened
main()
"""


@pytest.fixture(autouse=True)
def here(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.chdir(tmp_path)
    return tmp_path


def studiolo(*arguments: str, says: list[str], typed: str = "") -> subprocess.CompletedProcess[str]:
    done = subprocess.run(
        [sys.executable, "-c", STUB, *arguments], input=typed,
        env={**os.environ, "SAYS": json.dumps(says), "PYTHONPATH": PYTHONPATH},
        capture_output=True, text=True, check=False,
    )  # fmt: skip
    assert "Traceback" not in done.stderr
    return done


def test_the_answer_goes_to_standard_output_and_thoughts_do_not():
    done = studiolo("ask", "Why?", "--think", "50", says=["Let me see.</think>", "Because."])
    assert (done.returncode, done.stdout) == (0, "Because.\n")
    assert "Let me see." in done.stderr


@pytest.mark.parametrize(("how", "told"), [("full", "Let me see."), ("summary", "A look."), ("hidden", "")])
def test_what_is_shown_of_thoughts_can_be_chosen(how, told):
    says = ["Let me see.</think>", *(["A look."] if how == "summary" else []), "Because."]
    done = studiolo("ask", "Why?", "--think", "50", "--thoughts", how, says=says)
    assert (done.returncode, done.stdout) == (0, "Because.\n")
    assert [text for text in ("Let me see.", "A look.") if text in done.stderr] == ([told] if told else [])


def test_a_wish_for_thoughts_needs_a_wish_to_think():
    done = studiolo("ask", "Why?", "--thoughts", "summary", says=[])
    assert done.returncode == 2
    assert "told to think" in done.stderr


def test_piped_text_goes_before_the_question():
    done = studiolo("ask", "Who wrote this?", "--json", says=["Ada."], typed="Dear Charles ...\n")
    said = json.loads(done.stdout)
    assert said["candidates"][0]["content"]["parts"][0]["text"] == "Ada."
    assert said["usage"]["prompt"] > len("Dear Charles ...Who wrote this?")
    assert studiolo("ask", says=[]).returncode == 2


def test_an_answer_that_was_cut_off_is_told_by_the_exit_status():
    done = studiolo("ask", "Why?", "--max-tokens", "3", says=["Because it is."])
    assert (done.returncode, done.stdout) == (3, "Bec\n")
    assert "not whole (length" in done.stderr


def test_a_schema_from_a_file():
    Path("n.json").write_text(
        '{"type": "object", "properties": {"n": {"type": "integer"}}, "required": ["n"]}'
    )
    done = studiolo("ask", "How many?", "--schema", "n.json", says=['{"n": 7}'])
    assert json.loads(done.stdout) == {"n": 7}


@pytest.mark.parametrize(
    ("content", "told"), [("{", "not JSON"), ("[]", "a JSON Schema is an object"), ('{"type": "num"}', "num")]
)
def test_what_is_no_schema_is_told(content, told):
    Path("n.json").write_text(content)
    done = studiolo("ask", "How many?", "--schema", "n.json", says=[])
    assert done.returncode == 2
    assert told in done.stderr


CALL = ["<tool_call>", '{"name": "weather", "arguments": {"city": "Rome"}}', ""]


def test_functions_of_a_file_are_called():
    Path("tools.py").write_text(
        'def weather(city: str) -> str:\n    """The weather."""\n    return f"{city}: 21 degrees"\n'
    )
    done = studiolo("ask", "Weather?", "--tools", "tools.py", says=[*CALL, "21 degrees in Rome."])
    assert done.returncode == 0
    assert done.stdout.endswith("21 degrees in Rome.\n")


def test_calls_of_declarations_are_printed():
    Path("tools.json").write_text(
        '[{"name": "weather", "parameters": {"type": "object", "properties": {"city": {"type": "string"}}}}]'
    )
    done = studiolo("ask", "Weather?", "--tools", "tools.json", says=CALL)
    assert {"call": "weather", "arguments": {"city": "Rome"}} in [
        json.loads(line) for line in done.stdout.splitlines() if line
    ]


@pytest.mark.parametrize(
    ("name", "content", "told"),
    [
        ("tools.json", "{}", "name"),
        ("tools.py", "x = 1", "no functions"),
        ("tools.json", "nonsense", "not JSON"),
    ],
)
def test_what_is_no_tool_is_told(name, content, told):
    Path(name).write_text(content)
    done = studiolo("ask", "Weather?", "--tools", name, says=[])
    assert done.returncode == 2
    assert told in done.stderr


def test_a_conversation_is_kept_and_gone_on_with():
    first = studiolo(
        "chat",
        "--history",
        "talk.json",
        "--system",
        "Be kind.",
        says=["Hello Ada."],
        typed="I am Ada.\n/quit\n",
    )
    assert first.returncode == 0
    assert "Hello Ada." in first.stdout
    second = studiolo("chat", "--history", "talk.json", says=["You are Ada."], typed="Who am I?\n")
    assert "You are Ada." in second.stdout
    kept = json.loads(Path("talk.json").read_text())
    said = [part["text"] for content in kept["contents"] for part in content["parts"]]
    assert said == ["I am Ada.", "Hello Ada.", "Who am I?", "You are Ada."]
    assert kept["system"] == "Be kind."


def test_commands_of_the_chat():
    commands = [
        "usage",
        "undo",
        "model other",
        "system Be brief.",
        "save kept.json",
        "nothing",
        "help",
        "quit",
    ]
    typed = "I am Ada.\n" + "".join(f"/{command}\n" for command in commands)
    done = studiolo("chat", says=["Hello Ada."], typed=typed)
    assert done.returncode == 0
    assert "answer 10" in done.stdout  # one token a letter
    assert "no such command" in done.stdout
    assert "/undo" in done.stdout
    assert json.loads(Path("kept.json").read_text()) == {
        "model": "other", "system": "Be brief.", "contents": [],
    }  # fmt: skip


def test_a_damaged_history_is_told_and_left_alone():
    Path("talk.json").write_text("{")
    done = studiolo("chat", "--history", "talk.json", says=[], typed="Hello.\n")
    assert done.returncode == 2
    assert "no kept conversation" in done.stderr
    assert Path("talk.json").read_text() == "{"


def test_contexts_from_the_command_line():
    Path("book.txt").write_text("Call me Ishmael.")
    made = studiolo("contexts", "create", "moby", "book.txt", "--system", "Answer from the book.", says=[])
    assert made.returncode == 0
    assert "moby" in studiolo("contexts", "list", says=[]).stdout
    assert "Call me Ishmael." in studiolo("contexts", "show", "moby", says=[]).stdout
    assert studiolo("contexts", "extend", "moby", "--hours", "2", says=[]).returncode == 0
    asked = studiolo("ask", "Who speaks?", "--context", "moby", "--model", "stub", says=["Ishmael."])
    assert asked.stdout == "Ishmael.\n"
    assert studiolo("contexts", "delete", "moby", says=[]).returncode == 0
    gone = studiolo("ask", "Who speaks?", "--context", "moby", says=["Ishmael."])
    assert (gone.returncode, gone.stdout) == (2, "")
    assert studiolo("contexts", "create", "empty", says=[]).returncode == 2

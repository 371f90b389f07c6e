"""The command line: light to start, and clear about what was wrong."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
from pathlib import Path

import pytest

import studiolo
from studiolo.cli import main as cli
from studiolo.errors import StudioloError
from studiolo.models import registry

HEAVY = {
    "torch",
    "numpy",
    "PIL",
    "diffusers",
    "transformers",
    "pytorch_lightning",
    "huggingface_hub",
}


def run(monkeypatch: pytest.MonkeyPatch, *arguments: str) -> int:
    monkeypatch.setattr(sys, "argv", ["studiolo", *arguments])
    with pytest.raises(SystemExit) as left:
        cli.main()
    return left.value.code or 0


IMPORT = "import studiolo"
HELP = """
import sys
import typer
from studiolo.cli.main import app, main
for command in ["", *typer.main.get_command(app).commands]:
    sys.argv = ["studiolo", *command.split(), "--help"]
    try:
        main()
    except SystemExit as left:
        assert not left.code, command
"""


@pytest.mark.parametrize("code", [IMPORT, HELP], ids=["import", "help"])
def test_starting_up_imports_nothing_heavy(code):
    watched = f"{code}\nimport sys; print(*sys.modules, file=sys.stderr)"
    done = subprocess.run([sys.executable, "-c", watched], capture_output=True, text=True, check=True)
    assert not HEAVY & set(done.stderr.split())


def test_the_version_is_that_of_the_package(monkeypatch, capsys):
    assert run(monkeypatch, "--version") == 0
    assert capsys.readouterr().out == f"studiolo {studiolo.__version__}\n"


def test_the_version_is_that_of_the_project():
    import tomllib

    project = tomllib.loads((Path(__file__).parent.parent / "pyproject.toml").read_text())["project"]
    assert studiolo.__version__ == project["version"]


def test_the_lazy_names_are_all_there_and_others_are_not():
    assert {"load", "train", "score"} <= set(dir(studiolo))
    for name in studiolo.__all__:
        assert getattr(studiolo, name)
    with pytest.raises(AttributeError, match="no attribute 'draw'"):
        _ = studiolo.draw


def test_bad_input_is_one_clear_message_and_code_2(monkeypatch, capsys):
    assert run(monkeypatch, "models", "show", "nobody") == 2
    shown = capsys.readouterr()
    assert "Error: no model of this name" in shown.err
    assert "in nobody" in shown.err
    assert "Traceback" not in shown.err + shown.out


def test_an_unknown_command_is_code_2(monkeypatch, capsys):
    assert run(monkeypatch, "dra") == 2
    assert "No such command" in capsys.readouterr().err


def raising(monkeypatch: pytest.MonkeyPatch, error: BaseException) -> None:
    def fail(name: str) -> None:
        raise error

    monkeypatch.setattr(registry, "resolve", fail)


def test_all_three_parts_of_an_error_are_shown_as_they_are(monkeypatch, capsys):
    raising(monkeypatch, StudioloError("not an [bold]image[/bold]", where="a/[1].png", remedy="Give a PNG."))
    assert run(monkeypatch, "models", "show", "x") == 2
    assert capsys.readouterr().err == "Error: not an [bold]image[/bold]\n  in a/[1].png\n  Give a PNG.\n"


def test_a_validation_error_names_key_value_and_expectation(monkeypatch, capsys):
    import pydantic

    class Recipe(pydantic.BaseModel):
        steps: int

    with pytest.raises(pydantic.ValidationError) as caught:
        Recipe(steps="many")
    raising(monkeypatch, caught.value)
    assert run(monkeypatch, "models", "show", "x") == 2
    shown = capsys.readouterr().err
    assert all(part in shown for part in ("steps", "valid integer", "'many'"))


def test_a_file_that_cannot_be_opened_is_named(monkeypatch, capsys):
    raising(monkeypatch, PermissionError(13, "Permission denied", "/root/photo.png"))
    assert run(monkeypatch, "models", "show", "x") == 2
    assert capsys.readouterr().err == "Error: Permission denied\n  in /root/photo.png\n"


def test_a_fault_of_the_program_keeps_its_traceback(monkeypatch):
    raising(monkeypatch, ValueError("a bug"))
    monkeypatch.setattr(sys, "argv", ["studiolo", "models", "show", "x"])
    with pytest.raises(ValueError, match="a bug"):
        cli.main()


def test_ctrl_c_is_code_130(studiolo_home):
    code = (
        "import os, signal, sys\nfrom studiolo.cli.main import main\nfrom studiolo.models import registry\n"
        "registry.list_models = lambda: os.kill(os.getpid(), signal.SIGINT)\n"
        "sys.argv = ['studiolo', 'models', 'list']\nmain()"
    )
    done = subprocess.run(
        [sys.executable, "-c", code], capture_output=True, text=True, check=False,
        preexec_fn=lambda: signal.signal(signal.SIGINT, signal.default_int_handler),
    )  # fmt: skip
    assert done.returncode == 130
    assert "Traceback" not in done.stderr


def test_models_are_listed_shown_and_forgotten(monkeypatch, capsys, tmp_path):
    model = tmp_path / "model"
    model.mkdir()
    (model / "model_index.json").write_text("{}")
    (model / "studiolo.json").write_text(json.dumps({"class_noun": "dog", "identifier": "[V]"}))
    registry.register(model, "rex")
    assert run(monkeypatch, "models", "list") == 0
    listed = capsys.readouterr().out
    assert all(part in listed for part in ("rex", "subject", "[V] dog", os.fspath(model)))
    assert run(monkeypatch, "models", "show", "rex") == 0
    assert json.loads(capsys.readouterr().out)["card"]["class_noun"] == "dog"
    assert run(monkeypatch, "models", "remove", "rex") == 0
    assert os.fspath(model) in capsys.readouterr().out
    assert run(monkeypatch, "models", "show", "rex") == 2

"""`studiolo generate` and `studiolo reproduce` as a user types them."""

from __future__ import annotations

import pytest
from PIL import Image
from typer.testing import CliRunner

from studiolo.cli.main import app
from studiolo.drawing.provenance import read_provenance
from studiolo.errors import StudioloError
from studiolo.models.registry import register
from tiny import tiny_folder


@pytest.fixture
def run(tmp_path, monkeypatch):
    monkeypatch.setenv("STUDIOLO_HOME", str(tmp_path / "home"))
    monkeypatch.chdir(tmp_path)
    register(tiny_folder(tmp_path), "tiny")

    def run(*arguments: str):
        return CliRunner().invoke(app, [str(a) for a in arguments])

    return run


def test_generate_then_reproduce(run, tmp_path):
    drawn = run(
        "generate", "a fox", "--model", "tiny", "-n", "3", "--seed", "7", "--steps", "2", "--batch-size", "2"
    )
    assert drawn.exit_code == 0, drawn.output
    names = ["000-seed7.png", "001-seed8.png", "002-seed9.png", "000-002-sheet.png"]
    assert drawn.stdout.split() == [f"pictures/{name}" for name in names]
    again = run("reproduce", "pictures/002-seed9.png", "--out", "again.png")
    assert (again.exit_code, again.stdout) == (0, "identical\n")
    assert (tmp_path / "again.png").read_bytes() == (tmp_path / "pictures/002-seed9.png").read_bytes()


def test_reproduce_says_that_it_differs(run, tmp_path):
    run("generate", "a fox", "--model", "tiny", "--steps", "2")
    file = tmp_path / "pictures/000-seed0.png"
    file.write_bytes(file.read_bytes() + b"\0")
    again = run("reproduce", file)
    assert (again.exit_code, again.stdout) == (1, "differs: the same pixels\n")


def test_a_prompt_file_with_options_of_its_own(run, tmp_path):
    (tmp_path / "prompts.txt").write_text("a dog --n 2 --seed 3\n# no\na cat --negative red\n")
    options = ["--from-file", "prompts.txt", "--negative", "blue", "--sampler", "euler_a", "--no-grid"]
    drawn = run("generate", "--model", "tiny", "--steps", "2", "--seed", "5", "--out", "out", *options)
    assert drawn.exit_code == 0, drawn.output
    requests = [read_provenance(file).request for file in drawn.stdout.split()]
    assert [(r.prompt, r.negative_prompt, r.seed) for r in requests] == [
        ("a dog", "blue", 3),
        ("a dog", "blue", 4),
        ("a cat", "red", 5),
    ]


def test_size_and_previews(run, tmp_path):
    drawn = run(
        "generate",
        "a dog",
        "--model",
        "tiny",
        "--steps",
        "4",
        "--width",
        "48",
        "--height",
        "24",
        "--preview-every",
        "2",
    )
    assert drawn.exit_code == 0, drawn.output
    with Image.open(tmp_path / "pictures/000-seed0.png") as image:
        assert image.size == (48, 24)
    with Image.open(tmp_path / "pictures/preview.png") as preview:
        assert preview.width > 48


def test_a_long_prompt_is_noted(run):
    drawn = run("generate", "dog " * 22 + "moon snow", "--model", "tiny", "--steps", "1")
    assert "'moon snow' was not read" in drawn.stderr


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ([], "what to draw"),
        (["a fox", "--from-file", "x.txt"], "what to draw"),
        (["a fox", "--sampler", "eulera"], "Did you mean euler_a"),
        (["a fox", "--model", "tinny"], "Did you mean tiny"),
        (["a [V] fox", "--model", "tiny"], "learned no subject"),
        (["a fox", "--model", "tiny", "--strength", "0.6"], "--init"),
        (["a fox", "--model", "tiny", "--no-keep"], "--mask"),
        (["a fox", "--model", "tiny", "--guidance", "1", "--negative", "red"], "without guidance"),
        (["a fox", "--model", "tiny", "--guidance", "1", "--guidance-rescale", "0.7"], "without guidance"),
        (["a fox", "--model", "tiny", "--guidance", "0.5", "--guidance-from", "0.2"], "without guidance"),
    ],
)
def test_wrong_input_is_told(run, arguments, message):
    result = run("generate", *arguments)
    assert isinstance(result.exception, StudioloError)
    assert message in str(result.exception)


def test_a_negative_prompt_of_a_file_needs_guidance_too(run, tmp_path):
    (tmp_path / "prompts.txt").write_text("a dog\na cat --negative red\n")
    result = run("generate", "--model", "tiny", "--from-file", "prompts.txt", "--guidance", "1")
    assert isinstance(result.exception, StudioloError)
    assert "without guidance" in str(result.exception)
    assert not (tmp_path / "pictures").exists()


def test_painting_within_a_mask_and_again(run, tmp_path):
    photo = Image.linear_gradient("L").resize((32, 32)).convert("RGB")
    photo.save("photo.png")
    Image.new("L", (32, 32), 255).save("mask.png")
    options = ["--init", "photo.png", "--mask", "mask.png", "--strength", "0.5", "--sampler", "heun"]
    drawn = run("generate", "a fox", "--model", "tiny", "--steps", "4", *options, "--sigmas", "karras")
    assert drawn.exit_code == 0, drawn.output
    file = "pictures/000-seed0.png"
    with Image.open(file) as image:
        assert image.size == (32, 32)
    missing = run("reproduce", file)
    assert isinstance(missing.exception, StudioloError)
    assert "--init FILE" in str(missing.exception)
    again = run("reproduce", file, "--init", "photo.png", "--mask", "mask.png")
    assert (again.exit_code, again.stdout) == (0, "identical\n")

"""Prompt files and the placeholder of the subject."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from studiolo.drawing.prompts import PromptLine, fill_identifier, parse_line, read_prompt_file
from studiolo.errors import StudioloError


def test_a_file_of_prompts(tmp_path):
    file = tmp_path / "prompts.txt"
    file.write_bytes(
        b"\xef\xbb\xbf# foxes\r\n\r\n  a photo of [V] fox's hat  \r\n"
        b'a dog --n 2 --seed=7 --negative "snow, night"\r\n'
        b"a cat -- or two\r\n"
    )
    assert read_prompt_file(file) == [
        PromptLine("a photo of [V] fox's hat"),
        PromptLine("a dog", n=2, seed=7, negative="snow, night"),
        PromptLine("a cat -- or two"),
    ]


@pytest.mark.parametrize(
    ("line", "message"),
    [
        ("a dog --sed 7", "Did you mean --seed"),
        ("a dog --steps 7", "line 3"),
        ("a dog --seed x", "--seed 'x' is not a whole number"),
        ("a dog --seed", "--seed '' is not"),
        ("a dog --n 0", "at least 1"),
        ("a dog --n 9999999999", "at most 10000"),
        ("a dog --seed 4294967296", "at most 4294967295"),
        ("a dog --seed -1", "at least 0"),
        ("a dog --seed ²", "whole number"),
        ('a dog --negative "snow', "No closing quotation"),
        ("--seed 7", "options without a prompt"),
        ("a dog --seed 1 2", "no option 2"),
    ],
)
def test_wrong_lines_say_what_is_wrong(line, message):
    with pytest.raises(StudioloError, match=message):
        parse_line(line, "prompts.txt, line 3")


@given(st.text().filter(lambda text: "--" not in text and text.strip()))
def test_a_line_without_options_is_its_prompt(text):
    assert parse_line(text, "here") == PromptLine(text.strip())


def test_a_line_goes_before_the_command_line():
    default = PromptLine("", 4, 5, "snow")
    assert PromptLine("a", seed=0, negative="").or_else(default) == PromptLine("a", 4, 0, "")


@pytest.mark.parametrize(
    ("data", "message"),
    [
        (b"# nothing\n\n", "no prompt"),
        (b"\xff\xfe\x00", "UTF-8"),
        (b"x" * ((1 << 20) + 1), "larger than 1 MiB"),
    ],
)
def test_files_that_are_none(tmp_path, data, message):
    file = tmp_path / "prompts.txt"
    file.write_bytes(data)
    with pytest.raises(StudioloError, match=message):
        read_prompt_file(file)


def test_a_missing_file(tmp_path):
    with pytest.raises(StudioloError, match="cannot be read"):
        read_prompt_file(tmp_path / "none.txt")


def test_the_placeholder():
    assert fill_identifier("a [V] fox and a [V] hat", "zwx") == "a zwx fox and a zwx hat"
    assert fill_identifier("a fox", None) == "a fox"
    with pytest.raises(StudioloError, match=r"\[V\]"):
        fill_identifier("a [V] fox", None)

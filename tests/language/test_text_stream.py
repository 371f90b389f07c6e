"""Text out of tokens: never a broken character, never a part of a stop text."""

from __future__ import annotations

from collections.abc import Sequence

import pytest
from hypothesis import given
from hypothesis import strategies as st

from studiolo.language.engines.text_stream import TextStream

SCRIPTS = (
    "Καλημέρα κόσμε",
    "Доброе утро",
    "שלום עולם",
    "صباح الخير يا عالم",
    "नमस्ते दुनिया",
    "সুপ্রভাত",
    "வணக்கம்",
    "สวัสดีชาวโลก",
    "မင်္ဂလာပါ",
    "გამარჯობა",
    "Բարեւ",
    "ሰላም ለዓለም",
    "你好，世界",
    "こんにちは",
    "안녕하세요",
    "ᓄᓇᕗᑦ",
    "ཨོཾ་མ་ཎི",
    "ខ្ញុំ",
    "e\u0301a\u0308",  # combining marks
    "\U0001f469\u200d\U0001f467 \U0001f44d\U0001f3fd",  # joined and coloured emoji
)


def from_bytes(tokens: Sequence[int]) -> str:
    """A tokenizer of 256 tokens: the hardest for characters of several bytes."""
    return bytes(tokens).decode("utf-8", "replace")


def streamed(data: bytes, *stop: str) -> tuple[list[str], str | None]:
    stream, pieces = TextStream(from_bytes, stop), []
    for token in data:
        pieces.append(stream.add(token))
        if stream.stopped is not None:
            return pieces, stream.stopped
    return [*pieces, stream.end()], stream.stopped


@pytest.mark.parametrize("text", SCRIPTS)
def test_the_pieces_of_every_script_are_whole_and_make_the_text(text: str) -> None:
    pieces, _ = streamed(text.encode())
    assert "".join(pieces) == text
    assert not any("\ufffd" in piece for piece in pieces)


@given(st.text(), st.lists(st.text(min_size=1, max_size=4), max_size=3))
def test_what_comes_out_lies_before_the_stop_text_that_is_there_first(text: str, stops: list[str]) -> None:
    pieces, met = streamed(text.encode(), *stops)
    ends = [(at + len(stop), at) for stop in stops if (at := text.find(stop)) >= 0]
    assert "".join(pieces) == text[: min(ends)[1] if ends else len(text)]
    assert (met is not None) == bool(ends)


def test_bytes_that_never_become_a_character_are_left_out_at_the_end() -> None:
    pieces, _ = streamed("né".encode()[:-1])
    assert "".join(pieces) == "n"

"""Streams of many scripts: byte for byte the text, cut between letters, fences whole, no half of a stop."""

from __future__ import annotations

import asyncio

import pytest
import regex
from hypothesis import given
from hypothesis import strategies as st
from suites import benchmark

from studiolo.language.decoding.clusters import Smoother
from studiolo.language.engines.local import LocalEngine

script = benchmark("scripts_of_the_world")

LETTERS = (
    *'ae1#*= ."\r\n`~,',
    *("\u0301", "\u0338", "\ufe0f", "\u20e3", "\u200d", "\u200c", "\u0600", "\u0d4e", "\u00ad", "\u200b"),
    *("👩", "🏽", "🇩", "🇪", "❤", "🏴", "\U000e0067", "\U000e007f"),
    *("क", "\u094d", "ष", "\u093f", "\u0c3e", "ಕ", "က", "\u1039", "ཀ", "\u0f90"),
    *("ᄀ", "ᅡ", "ᆨ", "가", "각", "ก", "\u0e33", "ש", "\u05b4", "カ", "\uff9e"),
)


@given(st.lists(st.sampled_from(LETTERS), max_size=12))
def test_a_stream_is_cut_where_unicode_lets_it(letters):
    """Against the package regex, letter by letter, which is the hardest way to come."""
    text, smoother, out = "".join(letters), Smoother(), []
    ends = {0, *(match.end() for match in regex.finditer(r"\X", text))}
    for letter in letters:
        out.append(smoother.add(letter))
        assert len("".join(out)) in ends
    assert "".join(out) + smoother.end() == text


def test_nothing_is_held_back_for_long():
    smoother = Smoother()
    assert smoother.add("word\n") == "word\n"
    assert smoother.add("word") == "wor"
    assert smoother.add(" ") == "d"
    marks = "\u0301" * 100
    assert len(smoother.add(marks)) > 36


async def judged(engine, text):
    """The text alone, with fences, and up to a stop text: the streams that are not as they must be."""
    streams = await script.all_of(engine, text)
    await engine.close()
    return [
        stream
        for stream in streams
        if not stream.identical or stream.cuts_within_letters or stream.cuts_within_fences
    ]


def test_streams_of_bytes_are_the_text(tmp_path):
    """Every script by the transformers engine, whose tokens are single bytes here."""
    from studiolo.language.engines.transformers import TransformersCompleter

    script.tiny(tmp_path)
    engine = LocalEngine(TransformersCompleter(tmp_path))

    async def plain():
        found = [await script.streamed(engine, text) for text in script.TEXTS.values()]
        stopped = [
            await script.streamed(engine, "ab👩‍👩‍👧cd", "👩‍👩‍👧c"),
            await script.streamed(engine, "नमस्ते", "स्त्"),
        ]
        await engine.close()
        return found, stopped

    found, stopped = asyncio.run(plain())
    assert all(stream.identical for stream in found)
    assert [stream.wanted for stream in found if stream.cuts_within_letters] == []
    assert len(found) >= 20
    assert ["".join(stream.pieces) for stream in stopped] == ["ab", "नमस्ते"]


@pytest.mark.parametrize("name", ["Devanagari", "Emoji"])
def test_streams_of_a_real_vocabulary_are_the_text(smollm2, name):
    from studiolo.language.engines.llamacpp import LlamaCpp

    engine = LocalEngine(LlamaCpp(smollm2, context=1024, slots=1))
    assert asyncio.run(judged(engine, script.TEXTS[name][:12])) == []

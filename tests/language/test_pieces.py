"""Stop texts, found in pieces as in the whole."""

from __future__ import annotations

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from studiolo.language.engines.pieces import StopFilter

_LETTERS = st.text("abc", max_size=12)


def _fed(pieces, stops):
    """What comes out piece by piece, with the rest when a stop text is not met, and the one that is."""
    gate = StopFilter(stops)
    out = [gate.feed(piece) for piece in pieces]
    return [*out, gate.flush()], gate.met


def _expected(text, stops):
    """The shortest beginning of the text that ends in a stop text, without it."""
    for end in range(1, len(text) + 1):
        if ending := [stop for stop in stops if text[:end].endswith(stop)]:
            longest = max(ending, key=len)
            return text[: end - len(longest)], longest
    return text, None


@settings(deadline=None)
@given(text=_LETTERS, stops=st.lists(st.text("abc", min_size=1, max_size=4), max_size=4), data=st.data())
def test_any_cut_gives_what_the_whole_gives(text, stops, data):
    cuts = sorted(data.draw(st.lists(st.integers(0, len(text)), max_size=6)))
    pieces = [text[start:end] for start, end in zip([0, *cuts], [*cuts, len(text)], strict=True)]
    out, met = _fed(pieces, stops)
    assert ("".join(out), met) == _expected(text, stops)


@settings(deadline=None)
@given(text=_LETTERS, stops=st.lists(st.text("abc", min_size=1, max_size=4), min_size=1, max_size=4))
def test_no_more_is_held_back_than_may_become_a_stop_text(text, stops):
    gate, given_out = StopFilter(stops), ""
    for end in range(1, len(text) + 1):
        given_out += gate.feed(text[end - 1])
        if gate.met is not None:
            return
        held = text[len(given_out) : end]
        assert not held or any(stop.startswith(held) for stop in stops)


@pytest.mark.parametrize(
    ("pieces", "stops", "out"),
    [
        (["one", " two", " three"], (), ["one", " two", " three", ""]),
        (["a<", "b"], ("<end>",), ["a", "<b", ""]),
        (["a<e", "nd", ">b"], ("<end>",), ["a", "", "", ""]),
        (["a<e", "nd"], ("<end>",), ["a", "", "<end"]),
    ],
)
def test_what_cannot_become_one_goes_on_at_once(pieces, stops, out):
    assert _fed(pieces, stops)[0] == out

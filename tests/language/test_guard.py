"""What tells two questions apart whose vectors lie close together."""

from __future__ import annotations

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from studiolo.language.caching.guard import difference

APART = [
    ("What is 17*23?", "What is 17*24?", "numbers"),
    ("What is 7 - 3?", "What is 3 - 7?", "numbers"),
    ("What is 1,000 plus 1?", "What is 100 plus 1?", "numbers"),
    ("List three uses.", "List four uses.", "numbers"),
    ("What is 6 + 3?", "What is 6 / 3?", "symbols"),
    ("What is 6 plus 3?", "What is 6 times 3?", "symbols"),
    ("Is -5 odd?", "Is 5 odd?", "symbols"),
    ("Which birds can fly?", "Which birds can't fly?", "negation"),
    ("Which birds can fly?", "Which birds can’t fly?", "negation"),
    ("Cake with eggs?", "Cake without eggs?", "negation"),
    ("Welche Vögel fliegen?", "Welche Vögel fliegen nicht?", "negation"),
    ("How many miles is it?", "How many kilometres is it?", "units"),
    ('What does "cat" mean?', 'What does "dog" mean?', "quotes"),
    ("What does `ls` do?", "What does `rm` do?", "quotes"),
    ("Translate to French: I like cats", "Translate to French: I like dogs", "text after a colon"),
    ("Translate to French:\nI like cats", "Translate to French:\nI like dogs", "text after a colon"),
    ("does a dog bite a man", "does a man bite a dog", "order of words"),
    ("What is the capital of France?", "What is the capital of Italy?", "names"),
    ("What is the capital of France?", "what is the capital of italy?", "names"),
    ("Paris is where?", "London is where?", "names"),
    ("Does Ann often pay Bob?", "Does Bob pay Ann often today?", "names"),
    ("How do I enable it?", "How do I disable it?", "opposites"),
    ("Who built it?", "When was it built?", "opposites"),
]

ALIKE = [
    ("What is the capital of France?", "tell me the capital city of france"),
    ("What is 1,000 + 1?", "Compute 1000 + 1."),
    ("What is two times two?", "How much is 2 times 2?"),
    ("How long is 5 km?", "How long is 5 kilometres?"),
    ("What's France's capital?", "What is the capital of France?"),
    ("Why is the sky blue?", "What makes the sky blue?"),
    ("Why don't cats swim?", "Why do cats not swim?"),
    ("WHAT IS THE CAPITAL OF FRANCE", "What is the capital of France"),
]


@pytest.mark.parametrize(("one", "other", "what"), APART)
def test_what_changes_the_answer_tells_apart(one, other, what):
    assert difference(one, other) == difference(other, one) == what


@pytest.mark.parametrize(("one", "other"), ALIKE)
def test_other_words_for_the_same_do_not(one, other):
    assert difference(one, other) is None
    assert difference(other, one) is None


def test_what_it_does_not_see():
    """A fact to be told, not a wish: one thing in the place of another is left to the embedding."""
    assert difference("How do I cook rice?", "How do I cook pasta?") is None


@settings(deadline=None)
@given(st.text(max_size=60), st.text(max_size=60))
def test_no_text_differs_from_itself_and_no_order_matters(one, other):
    assert difference(one, one) is None
    assert difference(one, other) == difference(other, one)

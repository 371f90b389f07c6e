"""A thought told in a sentence, by the model that thought it.

The summary is a completion of its own, with a prompt of its own: the thought, and what is wanted. It is made
when the thought is closed, before the answer begins, and is no part of the conversation: the model answers
behind what it thought, not behind the summary. It is the likeliest one (temperature 0), and one line.

Its tokens are bounded by `MOST_TOKENS`, and neither by the thought's budget nor by `max_tokens`. They are
counted in `Usage.summaries` and nowhere else; the prompt from which it is made is counted nowhere, as all
that is read again within one request.
"""

from __future__ import annotations

from studiolo.language.conversation import Content, user

MOST_TOKENS = 64


def question(thought: str) -> Content:
    """What the model is asked."""
    return user(f"Summarize this text in one short sentence, in its own language:\n\n{thought.strip()}")


def shorter(thought: str) -> str:
    """A thought that is too long for the context, without its first quarter: where it leads to is what tells
    most."""
    return thought[max(1, len(thought) // 4) :]

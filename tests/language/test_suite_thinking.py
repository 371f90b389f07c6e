"""Thoughts against their budgets, and the accounts against what the server says it made."""

from __future__ import annotations

import asyncio

import pytest
from suites import benchmark

pytest.importorskip("xllamacpp")
script = benchmark("thinking_budgets")


@pytest.mark.parametrize("mode", ["0", "1", "16", next(reversed(script.MODES))])
def test_no_thought_is_longer_than_it_may_be_and_the_accounts_add_up(smollm2, mode):
    from studiolo.language.engines.llamacpp import LlamaCpp

    thinking, max_tokens = script.MODES[mode]
    budget = script.most_thought(thinking, max_tokens)

    async def measured():
        completer = LlamaCpp(smollm2, context=512, slots=4, pool=2048)
        completer._server = server = script.Listening(completer._server)
        questions = script.questions(10)[::3]
        told = [await script.asked(completer, question, thinking, max_tokens) for question in questions]
        found = [script.faults(one, budget, max_tokens, server.made, completer.detokenize) for one in told]
        await completer.close()
        return told, found

    told, found = asyncio.run(measured())
    assert found == [[]] * len(told)
    assert all(bool(one.usage.thoughts) == (budget > 0) for one in told)


def test_a_fault_would_be_found():
    """The script's own judgement: a thought of two tokens under a budget of one, counted as one."""
    from studiolo.language.conversation import Usage
    from studiolo.language.engines.completer import Completion

    thought = script.Made(Completion((1,), 1), ids=[5, 6], text="ab", end="length", count=2)
    answer = script.Made(Completion((1, 5, 6), 8), ids=[7], text="c", end="eos", count=1)
    told = script.Told("?", (thought, answer), Usage(prompt=1, thoughts=1, answer=1))
    server = {(1,): 2, (1, 5, 6): 2}
    spell = {(5, 6): "ab", (7,): "c"}
    found = script.faults(told, 1, 9, server, lambda ids: spell[tuple(ids)])
    assert found == ["thought over budget", "thoughts miscounted"]


def test_two_hundred_questions_are_all_different():
    assert len(set(script.questions(200))) == 200

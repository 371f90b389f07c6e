"""The stand-ins do what they are told, so that tests may lean on them."""

from __future__ import annotations

import asyncio

import pytest

from language.stub import Noise, Reply, Say, StubCompleter, StubEngine
from studiolo.language.collect import collected
from studiolo.language.conversation import FinishReason, Request, user
from studiolo.language.engines.base import Engine
from studiolo.language.engines.completer import Completer, Completion, Constraint, Piece
from studiolo.language.errors import OverloadedError, RateLimitError

HELLO = Request(model="stub", contents=(user("Hello you"),))


def said(completer: StubCompleter, **wishes) -> list[Piece]:
    async def run() -> list[Piece]:
        wanted = Completion(**{"prompt": completer.tokenize("Hi"), "max_tokens": 50} | wishes)
        return [piece async for piece in completer.complete(wanted)]

    return asyncio.run(run())


def text(pieces: list[Piece]) -> str:
    return "".join(piece.text for piece in pieces)


def test_a_completer_says_its_script_in_whole_characters():
    completer: Completer = StubCompleter(["é🚀"])
    pieces = said(completer)
    assert [piece.text for piece in pieces if piece.text] == ["é", "🚀"]
    assert [len(piece.tokens) for piece in pieces] == [1] * 6 + [0]
    assert (pieces[-1].end, pieces[0].cached) == ("eos", 0)


def test_a_completer_keeps_to_bounds_and_stops():
    pieces = said(StubCompleter(["one two"]), stop=("e t",))
    assert (text(pieces), pieces[-1].end, pieces[-1].stop) == ("on", "stop", "e t")
    pieces = said(StubCompleter(["one two"]), max_tokens=2)
    assert (text(pieces), pieces[-1].end) == ("on", "length")


def test_a_completer_keeps_to_constraints_and_says_the_same_again():
    rule = Constraint("regex", "[a-c]{5}")
    noise = [said(StubCompleter([Noise(3)]), constraint=rule) for _ in range(2)]
    assert noise[0] == noise[1]
    assert len(text(noise[0])) == 5
    assert text(said(StubCompleter(["abcabc"]), constraint=rule)) == "abcab"


def test_control_tokens_count_only_where_they_are_asked_for():
    completer = StubCompleter(words=("wor",))
    assert len(completer.tokenize("<think>wor")) == 2
    ids = completer.tokenize("<think>wor", special=False)
    assert len(ids) == 8
    assert completer.detokenize(ids) == "<think>wor"


def test_a_completer_remembers_prompts():
    completer = StubCompleter(["a", "b"])
    assert [said(completer)[0].cached for _ in range(2)] == [0, 2]


def test_a_completer_fails_when_told_to():
    completer = StubCompleter([Say("ab", then=OverloadedError("full"))])
    with pytest.raises(OverloadedError):
        said(completer)
    assert not completer.seen[0].cancelled


def test_an_engine_answers_from_its_script():
    broken = Reply(fault=RateLimitError("slow"), fault_after=1)
    engine: Engine = StubEngine([Reply(("a", "b"), finish=FinishReason.SAFETY), broken])
    response = asyncio.run(collected(engine.generate(HELLO)))
    assert (response.text, response.candidates[0].finish) == ("ab", FinishReason.SAFETY)
    assert (response.usage.prompt, response.usage.answer) == (2, 2)

    pieces: list[str] = []

    async def read() -> None:
        async for delta in engine.generate(HELLO):
            pieces.append(delta.part.text)  # type: ignore[union-attr]

    with pytest.raises(RateLimitError):
        asyncio.run(read())
    assert pieces == ["Hello"]
    assert asyncio.run(collected(engine.generate(HELLO))).text == "Hello there."


def test_an_engine_waits_for_the_test_and_records_who_gave_up():
    async def run() -> StubEngine:
        go = asyncio.Event()
        engine = StubEngine(pause=go.wait)
        tasks = [asyncio.create_task(collected(engine.generate(HELLO))) for _ in range(3)]
        while engine.running < 3:
            await asyncio.sleep(0)
        tasks[0].cancel()
        await asyncio.gather(tasks[0], return_exceptions=True)
        go.set()
        assert [response.text for response in await asyncio.gather(*tasks[1:])] == ["Hello there."] * 2
        return engine

    engine = asyncio.run(run())
    assert (engine.most, engine.running) == (3, 0)
    assert engine.cancelled == [HELLO]

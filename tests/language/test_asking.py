"""From Python: questions, conversations, functions and forms, on a scripted engine."""

from __future__ import annotations

import asyncio
from collections.abc import Sequence

import pytest
from pydantic import BaseModel

import studiolo
from language.stub import CHATML, Say, Script, StubCompleter
from studiolo.language import asking
from studiolo.language import conversation as c
from studiolo.language.caching.cached import Cached
from studiolo.language.caching.contexts import Contexts
from studiolo.language.engines.local import LocalEngine
from studiolo.language.errors import InvalidRequestError, UnknownContextError, UpstreamError
from studiolo.language.safety.guarded import Guarded
from studiolo.language.safety.lexicon import Lexicon


class City(BaseModel):
    name: str
    inhabitants: int


def weather(city: str) -> str:
    """The weather in a city today."""
    return f"{city}: 21 degrees"


CALL = ("<tool_call>", '{"name": "weather", "arguments": {"city": "Rome"}}', "")
"""As a model makes it: the tag, what is held between the tags, and nothing behind them."""


@pytest.fixture
def says(monkeypatch):
    """Has every engine say these things, one an answer; gives the completer back."""

    def scripted(*scripts: Script) -> StubCompleter:
        completer = StubCompleter(scripts, template=CHATML)
        opened = Cached(Guarded(LocalEngine(completer), Lexicon()), Contexts())

        async def engine(model: str, **options: object) -> Cached:
            return opened

        monkeypatch.setattr(asking, "engine", engine)
        return completer

    return scripted


def prompts(completer: StubCompleter) -> Sequence[str]:
    return [completer.detokenize(seen.completion.prompt) for seen in completer.seen]


def test_a_question_gives_its_text(says):
    completer = says("Paris.")
    assert studiolo.ask("Capital of France?", system="Be brief.", max_tokens=9) == "Paris."
    assert "Be brief." in prompts(completer)[0]
    assert completer.seen[0].completion.max_tokens == 9


def test_a_pydantic_model_comes_back_as_an_instance_and_a_schema_as_json(says):
    said = '{"name": "Rome", "inhabitants": 2800000}'
    says(said, said)
    assert studiolo.ask("A city?", schema=City) == City(name="Rome", inhabitants=2_800_000)
    rule = City.model_json_schema()
    assert studiolo.ask("A city?", schema=rule) == {"name": "Rome", "inhabitants": 2_800_000}


def test_an_answer_that_was_cut_off_is_no_instance(says):
    says('{"name": "Rome", "inhabitants": 2800000}')
    with pytest.raises(UpstreamError, match="length"):
        studiolo.ask("A city?", schema=City, max_tokens=8)


def test_a_conversation_is_sent_whole_and_remembered(says):
    completer = says("Hello Ada.", "Ada.")
    chat = studiolo.Chat(system="Be kind.")
    assert chat.send("I am Ada.") == "Hello Ada."
    assert list(chat.stream("Who am I?"))
    assert [content.role for content in chat.contents] == ["user", "model", "user", "model"]
    said = prompts(completer)[1]
    assert (
        said.index("Be kind.") < said.index("I am Ada.") < said.index("Hello Ada.") < said.index("Who am I?")
    )


def test_a_turn_that_fails_or_is_left_is_forgotten(says):
    says(Say("Hel", then=UpstreamError("broken")), Say("Hello " * 50))
    chat = studiolo.Chat()
    with pytest.raises(UpstreamError):
        chat.send("Hello.")
    stream = chat.stream("Hello?")
    assert next(stream)
    stream.close()
    assert chat.contents == []


def test_asynchronously_the_same(says):
    says("Paris.")
    assert asyncio.run(studiolo.Chat().asend("Capital of France?")) == "Paris."


def test_functions_are_called_and_their_results_given_back(says):
    completer = says(*CALL, "It is 21 degrees in Rome.")
    chat = studiolo.Chat(tools=[weather])
    assert chat.send("The weather in Rome?") == "It is 21 degrees in Rome."
    assert "Rome: 21 degrees" in prompts(completer)[-1]
    assert [content.role for content in chat.contents] == ["user", "model", "user", "model"]


def test_a_declaration_alone_is_the_callers_to_call(says):
    says(*CALL)
    chat = studiolo.Chat(tools=[asking.as_tools([weather])[0]])
    chat.send("The weather in Rome?")
    (call,) = chat.response.calls
    assert (call.name, call.arguments) == ("weather", {"city": "Rome"})


def test_a_model_that_only_calls_has_to_answer_in_the_end(says):
    completer = says(*CALL * asking.MAX_ROUNDS, "It is 21 degrees.")
    chat = studiolo.Chat(tools=[weather])
    assert chat.send("The weather in Rome?") == "It is 21 degrees."
    assert sum(bool(content.calls) for content in chat.contents) == asking.MAX_ROUNDS
    assert "<tool_call>" not in prompts(completer)[-1].split("Rome?")[0]  # it was offered none


def test_what_is_kept_goes_before_the_question(says):
    completer = says("Ishmael.")
    kept = studiolo.keep("Call me Ishmael.", name="moby", system="Answer from the book.")
    assert (kept.name, kept.model) == ("moby", "stub")
    assert studiolo.ask("Who speaks?", context="moby") == "Ishmael."
    said = prompts(completer)[-1]
    assert said.index("Answer from the book.") < said.index("Call me Ishmael.") < said.index("Who speaks?")
    with pytest.raises(UnknownContextError):
        studiolo.ask("Who speaks?", context="dick")


def test_safety_settings_withhold(says):
    completer = says("Never asked.")
    chat = studiolo.Chat(safety="medium")
    assert chat.send("How do I build a bomb?") == ""
    assert chat.response.blocked is c.FinishReason.SAFETY
    assert completer.seen == []


@pytest.mark.parametrize(
    ("word", "meant"),
    [
        (None, None),
        (False, c.Thinking(mode=c.ThinkingMode.OFF)),
        ("off", c.Thinking(mode=c.ThinkingMode.OFF)),
        (True, c.Thinking(mode=c.ThinkingMode.DYNAMIC, show=True)),
        (0, c.Thinking(mode=c.ThinkingMode.BUDGET, budget=0, show=True)),
        ("64", c.Thinking(mode=c.ThinkingMode.BUDGET, budget=64, show=True)),
        ("low", c.Thinking(mode=c.ThinkingMode.LEVEL, level=c.Level.LOW, show=True)),
    ],
)
def test_words_for_thinking(word, meant):
    assert asking.thinking(word) == meant


def test_what_is_told_of_thoughts():
    assert asking.thinking("low", "summary").show is c.Show.SUMMARY
    assert asking.thinking(9, "hidden").show is c.Show.HIDDEN
    for think, thoughts in ((9, "some"), (None, "full")):
        with pytest.raises(InvalidRequestError, match="in full, as a summary or not at all"):
            asking.thinking(think, thoughts)


@pytest.mark.parametrize("wrong", [{"think": "much"}, {"safety": "verylow"}, {"safety": {"rude": "low"}}])
def test_words_that_mean_nothing_are_told(wrong):
    with pytest.raises(InvalidRequestError, match=r"much|verylow|rude"):
        studiolo.Chat(**wrong)

"""An engine of a scripted completer: budgets to the token, calls and schemas together, nothing left over."""

from __future__ import annotations

import asyncio
import json
import math
from itertools import pairwise
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from language import families
from language.stub import CHATML, CONTROL, EOS, Noise, Say, StubCompleter
from language.weather import WEATHER
from studiolo.language.collect import collected, collected_now
from studiolo.language.conversation import (
    Call,
    CallResult,
    Content,
    Delta,
    FinishReason,
    Format,
    FormatKind,
    GenerationConfig,
    Level,
    Request,
    Response,
    Show,
    Text,
    Thinking,
    ThinkingMode,
    Tool,
    ToolChoice,
    ToolMode,
    model,
    user,
)
from studiolo.language.decoding import forms
from studiolo.language.decoding.schema import fault
from studiolo.language.decoding.thinking import LEVELS
from studiolo.language.engines.base import Engine
from studiolo.language.engines.completer import Completer
from studiolo.language.engines.local import LocalEngine
from studiolo.language.errors import InvalidRequestError, UnsupportedError, UpstreamError

HELLO = (user("Hello"),)
SCHEMA = {
    "type": "object",
    "properties": {"n": {"type": "integer"}, "s": {"type": "string"}},
    "required": ["n", "s"],
    "additionalProperties": False,
}
JSON = Format(kind=FormatKind.JSON, rule=SCHEMA)
CLOCK = Tool(name="clock")
ROME = '{"name": "weather", "arguments": {"city": "Rome"}}'
NOON = '{"name": "clock", "arguments": {}}'


def asked(completer: StubCompleter, contents: tuple[Content, ...] = HELLO, **named: Any) -> Response:
    """The answer; what holds of every answer is checked on the way."""
    request = Request(model="stub", contents=contents, **named)
    engine = LocalEngine(completer)
    form = engine._prompt(request, engine._tools(request)).form

    async def run() -> tuple[list[Delta], int]:
        return [delta async for delta in engine.generate(request)], await engine.count_tokens(request)

    deltas, prompt = asyncio.run(run())
    response = collected_now(deltas)
    usage = response.usage
    assert usage.answer + usage.thoughts + usage.summaries == completer.made == usage.total - usage.prompt
    thought = completer.seen[0].completion.stop == (engine._channel.close,)  # it may be of no tokens
    opened = request.tool_choice.mode is ToolMode.ANY and not thought
    forced = len(completer.tokenize(form.openings[0] + form.behind)) if opened else 0
    assert response.usage.prompt == prompt == len(completer.seen[0].completion.prompt) - forced
    assert [delta.usage is not None for delta in deltas] == [False] * (len(deltas) - 1) + [True]
    assert deltas[-1].finish is not None
    assert sum(delta.finish is not None for delta in deltas) == request.config.candidates
    assert len({call.id for call in response.calls}) == len(response.calls)
    return response


def budget(tokens: int, show: bool = True) -> Thinking:
    return Thinking(mode=ThinkingMode.BUDGET, budget=tokens, show=show)


def written(completer: StubCompleter, index: int = -1) -> str:
    """The prompt of a completion."""
    return completer.detokenize(completer.seen[index].completion.prompt)


# --- words ------------------------------------------------------------------------------------------------


def test_words_come_as_they_are_made():
    response = asked(StubCompleter(["Grüße, 🇮🇹 👩‍🚀!"]))
    assert response.text == "Grüße, 🇮🇹 👩‍🚀!"
    assert response.candidates[0].finish is FinishReason.STOP


def pieces(text: str) -> list[str]:
    engine = LocalEngine(StubCompleter([text]))

    async def run() -> list[str]:
        deltas = engine.generate(Request(model="stub", contents=HELLO))
        return [delta.part.text async for delta in deltas if isinstance(delta.part, Text)]

    return asyncio.run(run())


LETTERS = st.sampled_from(["é", "e\u0301", "🇮🇹", "👩\u200d🚀", "👍🏽", "นี้", "```", "a", "\n", "`"])


@settings(max_examples=30, deadline=None)
@given(st.lists(LETTERS, max_size=12).map("".join))
def test_a_stream_never_breaks_a_letter_or_a_fence(text):
    given_out = pieces(text)
    assert "".join(given_out) == text
    for before, after in pairwise(given_out):
        assert not (before.endswith("`") and after.startswith("`"))
        assert not before.endswith("\u200d")
        if not before[-1].isascii():
            assert after[0] not in "\u0301\u200d🏽\u0e35\u0e49"
            assert not (before[-1] == "🇮" and after[0] == "🇹")


def test_a_stop_text_ends_the_answer_though_it_lies_across_tokens():
    completer = StubCompleter(["one STOP two"], words=("e S", "TO", "P t"))
    response = asked(completer, config=GenerationConfig(stop=("STOP",)))
    assert response.text == "one "
    assert response.candidates[0].finish is FinishReason.STOP
    assert completer.seen[0].end == "stop"


def test_an_answer_that_is_cut_off_says_so():
    response = asked(StubCompleter([Say("abc", ends=False)]), config=GenerationConfig(max_tokens=7))
    assert (response.text, response.candidates[0].finish) == ("abc....", FinishReason.LENGTH)
    assert (
        response.candidates[0].finish_message == "cut off before the answer ended: max_tokens (7) are spent"
    )
    response = asked(StubCompleter([Say(ends=False)], context=60))
    assert response.candidates[0].finish_message == "cut off before the answer ended: the context is full"
    assert response.usage.total == 60


def test_settings_reach_the_completer():
    config = GenerationConfig(
        temperature=0.5, top_p=0.9, top_k=7, seed=3, presence_penalty=1, frequency_penalty=-1
    )
    completer = StubCompleter(["a"])
    asked(completer, config=config)
    sampling = completer.seen[0].completion.sampling
    for name in ("temperature", "top_p", "top_k", "seed", "presence_penalty", "frequency_penalty"):
        assert getattr(sampling, name) == getattr(config, name)


def test_log_probabilities_are_of_the_words():
    config = GenerationConfig(logprobs=0, thinking=budget(9))
    response = asked(StubCompleter(["hm</think>", "words"]), config=config)
    assert "".join(entry.token for entry in response.candidates[0].logprobs) == "words"


def test_candidates_run_at_once_with_seeds_of_their_own():
    completer = StubCompleter(lambda completion: f"seed {completion.sampling.seed}")
    response = asked(completer, config=GenerationConfig(candidates=3, seed=5))
    assert [candidate.text for candidate in response.candidates] == ["seed 5", "seed 6", "seed 7"]
    assert response.usage.answer == 18


def test_candidates_overlap():
    """None can go on before all have begun."""
    begun = 0

    async def wait_for_all() -> None:
        nonlocal begun
        begun += 1
        while begun < 3:
            await asyncio.sleep(0)

    response = asked(
        StubCompleter(["a", "b", "c"], pause=wait_for_all), config=GenerationConfig(candidates=3)
    )
    assert [candidate.text for candidate in response.candidates] == ["a", "b", "c"]


def test_a_model_without_template_ends_before_the_next_turn():
    completer = StubCompleter([" Hi.\n\nUser: and"], template=None)
    assert asked(completer).text.strip() == "Hi."
    assert written(completer) == "<bos>User: Hello\n\nAssistant:"


# --- thoughts ---------------------------------------------------------------------------------------------

TEMPLATES = {"emulated": CHATML, "native": families.HERMES, "opened": families.OPENS, "none": None}
SCRIPTS = st.one_of(
    st.text(st.sampled_from("ab </think>é\n"), max_size=30),
    st.builds(Say, text=st.sampled_from(["", "I think", "ok</think>"]), ends=st.booleans()),
    st.builds(Noise, seed=st.integers(0, 999), eos=st.sampled_from([0.0, 0.05, 0.5])),
)


@settings(max_examples=40, deadline=None)
@given(
    st.lists(SCRIPTS, min_size=1, max_size=3),
    st.sampled_from([0, 1, 16, 256, None]),
    st.sampled_from([None, 300, 1200]),
    st.sampled_from(list(TEMPLATES)),
)
def test_a_budget_is_never_exceeded_and_the_account_adds_up(scripts, tokens, max_tokens, template):
    """The account is checked in `asked`."""
    thinking = Thinking(mode=ThinkingMode.DYNAMIC, show=True) if tokens is None else budget(tokens)
    completer = StubCompleter(scripts, template=TEMPLATES[template], context=1500, words=(">\n", "k>", "</"))
    config = GenerationConfig(thinking=thinking, max_tokens=max_tokens)
    usage = asked(completer, config=config).usage
    if tokens is not None:
        assert usage.thoughts <= tokens
    if max_tokens is not None:
        assert usage.thoughts + usage.answer <= max_tokens
    assert usage.prompt + usage.thoughts + usage.answer <= 1500


@pytest.mark.parametrize("tokens", [1, 2, 16, 256])
def test_a_spent_budget_is_spent_to_the_token(tokens):
    completer = StubCompleter([Say("Well", ends=False), "Answer"])
    response = asked(completer, config=GenerationConfig(thinking=budget(tokens)))
    assert response.usage.thoughts == tokens
    assert response.text == "Answer"
    assert response.candidates[0].content.thoughts == ("Well" + "." * tokens)[:tokens]
    assert written(completer).endswith(("Well" + "." * tokens)[:tokens] + "\n</think>\n\n")


@pytest.mark.parametrize("template", TEMPLATES)
def test_no_budget_is_an_empty_thought(template):
    native = template in ("native", "opened")
    for thinking in (budget(0), Thinking(mode=ThinkingMode.OFF)):
        completer = StubCompleter(["Answer"], template=TEMPLATES[template])
        assert asked(completer, config=GenerationConfig(thinking=thinking)).usage.thoughts == 0
        assert written(completer).endswith("</think>\n\n") == native
        assert written(completer).count("<think>") == native


def test_a_thought_that_the_model_closes_is_continued_in_place():
    """As it was made, so that the engine has it in its cache."""
    completer = StubCompleter(["I see.</think>", "Yes"], template=families.HERMES)
    response = asked(completer, config=GenerationConfig(thinking=budget(50)))
    assert (response.candidates[0].content.thoughts, response.text) == ("I see.", "Yes")
    first, second = (seen.completion.prompt for seen in completer.seen)
    assert second == first + tuple(completer.seen[0].tokens) + completer.tokenize("\n\n")
    assert written(completer, 0).endswith("<|im_start|>assistant\n<think>\n")


def test_a_closing_tag_within_a_token_leaves_nothing_behind():
    """What the token says beyond the tag is in no answer, so it must not be in the prompt either."""
    completer = StubCompleter(["so</think>\nYes", "No"], words=("k>\nYes",), control=CONTROL[:5])
    response = asked(completer, config=GenerationConfig(thinking=budget(50)))
    assert (response.candidates[0].content.thoughts, response.text) == ("so", "No")
    assert completer.detokenize(completer.seen[0].tokens) == "so</think>\nYes"
    assert written(completer).endswith("<think>\nso</think>\n\n")


def test_a_turn_that_ends_within_the_thought_gets_its_answer_still():
    completer = StubCompleter(["Hm.", "Yes"])
    assert asked(completer, config=GenerationConfig(thinking=budget(50))).text == "Yes"
    assert written(completer).endswith("<think>\nHm.\n</think>\n\n")


def test_hidden_thoughts_are_counted():
    response = asked(
        StubCompleter(["Hm.</think>", "Yes"]), config=GenerationConfig(thinking=budget(50, show=False))
    )
    assert response.candidates[0].content.thoughts == ""
    assert response.usage.thoughts == len("Hm.") + 1


SUMMED = Thinking(mode=ThinkingMode.BUDGET, budget=50, show=Show.SUMMARY)


def test_a_summary_is_shown_in_place_of_the_thought():
    for template, closed in ((CHATML, "</think>"), (families.GEMMA4, "<channel|>")):
        completer = of_family(["Seven and eight: fifteen." + closed, "A sum.", "15"], template)
        response = asked(completer, config=GenerationConfig(thinking=SUMMED))
        assert (response.candidates[0].content.thoughts, response.text) == ("A sum.", "15")
        assert response.usage.summaries == len("A sum.")
        wanted = completer.seen[1].completion
        assert "Seven and eight: fifteen." in completer.detokenize(wanted.prompt)
        assert closed not in completer.detokenize(wanted.prompt).replace("<|channel>thought\n<channel|>", "")
        assert (wanted.max_tokens, wanted.sampling.temperature) == (64, 0)
        assert "A sum." not in written(completer)
        assert "Seven and eight: fifteen." + closed in written(completer)


def test_a_summary_is_bounded_whatever_the_rest_is():
    completer = StubCompleter([Say("Hm", ends=False), Say("It ", ends=False), "Yes"])
    response = asked(completer, config=GenerationConfig(thinking=SUMMED, max_tokens=60))
    assert (response.usage.thoughts, response.usage.summaries, response.text) == (50, 64, "Yes")
    assert response.candidates[0].content.thoughts == "It " + "." * 61 + " …"


def test_a_long_thought_is_summed_up_from_its_end():
    script = ["x" * 397 + "end</think>", "Letters.", "Yes"]
    completer = StubCompleter(script, template=families.HERMES, context=528)
    thinking = Thinking(mode=ThinkingMode.BUDGET, budget=401, show=Show.SUMMARY)
    response = asked(completer, config=GenerationConfig(thinking=thinking))
    read = completer.detokenize(completer.seen[1].completion.prompt)
    assert "xend<" in read
    assert read.count("x") == 1 + 397 - 400 // 4
    assert response.candidates[0].content.thoughts == "Letters."


def test_no_thought_has_no_summary():
    completer = StubCompleter(["</think>", "Yes"])
    response = asked(completer, config=GenerationConfig(thinking=SUMMED))
    assert (response.usage.summaries, response.text, len(completer.seen)) == (0, "Yes", 2)


def test_what_is_shown_was_a_truth_value_once():
    assert [Thinking(show=show).show for show in (True, False)] == [Show.FULL, Show.HIDDEN]
    assert Thinking.model_validate_json('{"show": true}').show is Show.FULL
    assert [bool(show) for show in Show] == [False, True, True]
    assert Thinking.model_validate_json(SUMMED.model_dump_json()) == SUMMED


def test_what_nothing_is_said_of_is_left_to_the_model():
    for template, thinks in ((CHATML, False), (families.HERMES, True), (families.OPENS, True), (None, False)):
        completer = StubCompleter(["Hm.</think>", "Yes"], template=template)
        assert (asked(completer).usage.thoughts > 0) == thinks


def test_a_channel_that_is_shut_unless_asked_for_is_opened_when_asked():
    opened, closed = "<|channel>thought\n", "<channel|>"
    for thinking, end in ((None, opened + closed), (budget(0), opened + closed), (budget(9), opened)):
        completer = StubCompleter(["Hm." + closed, "Yes"], template=families.ASKED)
        response = asked(completer, config=GenerationConfig(thinking=thinking))
        assert written(completer, 0).endswith("<|turn>model\n" + end)
        assert ("<|think|>" in written(completer)) == (end == opened)
    assert response.usage.thoughts == 9
    completer = StubCompleter(["Hm." + closed, "Yes"], template=families.ASKED)
    response = asked(completer, config=GenerationConfig(thinking=budget(50)))
    assert (response.candidates[0].content.thoughts, response.text) == ("Hm.", "Yes")


def test_each_family_has_a_channel_of_its_own():
    for template, opened, closed in (
        (families.HERMES, "<think>\n", "</think>"),
        (families.MISTRAL_NAMED, "[THINK]", "[/THINK]"),
        (families.GEMMA4, "<|channel>thought\n", "<channel|>"),
    ):
        completer = of_family(["Hm." + closed, "Yes"], template)
        response = asked(completer, config=GenerationConfig(thinking=budget(50)))
        assert (response.candidates[0].content.thoughts, response.text) == ("Hm.", "Yes")
        assert written(completer, 0).endswith(opened)


def test_levels_are_budgets_within_the_room():
    def thought(level: Level, context: int) -> int:
        completer = StubCompleter([Say(ends=False), "Yes"], context=context)
        thinking = Thinking(mode=ThinkingMode.LEVEL, level=level)
        return asked(
            completer, config=GenerationConfig(thinking=thinking, max_tokens=context - 200)
        ).usage.thoughts

    assert thought(Level.MINIMAL, 1000) == LEVELS[Level.MINIMAL]
    assert thought(Level.LOW, 2000) == LEVELS[Level.LOW]
    assert thought(Level.HIGH, 1000) == 600
    assert list(LEVELS.values()) == sorted(LEVELS.values())


def test_a_thought_that_takes_all_is_told():
    completer = StubCompleter([Say(ends=False)], context=400)
    with pytest.raises(InvalidRequestError, match="leaves nothing of 8 tokens"):
        asked(completer, config=GenerationConfig(thinking=budget(8), max_tokens=8))
    thinking = Thinking(mode=ThinkingMode.DYNAMIC)
    response = asked(completer, config=GenerationConfig(thinking=thinking, max_tokens=1))
    assert response.candidates[0].finish is FinishReason.LENGTH
    assert (
        response.candidates[0].finish_message == "cut off before the answer began: max_tokens (1) are spent"
    )
    for bad in (Thinking(mode=ThinkingMode.BUDGET), Thinking(mode=ThinkingMode.LEVEL)):
        with pytest.raises(InvalidRequestError, match="is named"):
            asked(completer, config=GenerationConfig(thinking=bad))


# --- schemas ----------------------------------------------------------------------------------------------


@settings(max_examples=25, deadline=None)
@given(st.integers(0, 10_000), st.sampled_from([None, 0, 16]), st.sampled_from([None, 40]))
def test_an_answer_keeps_to_its_schema_or_says_that_it_was_cut_off(seed, tokens, max_tokens):
    noise = Noise(seed, tokens=('{"n": 0123456789, "s": "abc"}', '\\"'))
    completer = StubCompleter([noise, noise], context=700)
    thinking = None if tokens is None else budget(tokens)
    response = asked(
        completer, config=GenerationConfig(format=JSON, thinking=thinking, max_tokens=max_tokens)
    )
    if response.candidates[0].finish is FinishReason.STOP:
        assert fault(json.loads(response.text), SCHEMA) == ""
    else:
        assert response.candidates[0].finish is FinishReason.LENGTH
        assert (response.candidates[0].finish_message or "").startswith("cut off before the answer was whole")


def test_the_constraint_begins_where_the_answer_begins():
    completer = StubCompleter(["No JSON here.</think>", '{"n": 1, "s": "a"}'])
    response = asked(completer, config=GenerationConfig(format=JSON, thinking=budget(50)))
    assert json.loads(response.text) == {"n": 1, "s": "a"}
    assert [seen.completion.constraint is None for seen in completer.seen] == [True, False]


def test_a_stop_text_within_the_form_is_told():
    config = GenerationConfig(format=JSON, stop=("STOP",))
    response = asked(StubCompleter(['{"n": 1, "s": "STOP"}']), config=config)
    assert response.candidates[0].finish is FinishReason.OTHER
    assert "STOP" in (response.candidates[0].finish_message or "")


class Unfaithful(StubCompleter):
    """Holds to no constraint."""

    def complete(self, completion: Any) -> Any:
        from dataclasses import replace

        return super().complete(replace(completion, constraint=None))


def test_an_engine_that_breaks_its_word_is_found_out():
    with pytest.raises(UpstreamError, match="not of the form") as caught:
        asked(Unfaithful(['{"n": 1}']), config=GenerationConfig(format=JSON))
    assert caught.value.retry
    with pytest.raises(UpstreamError, match="not of the form"):
        asked(Unfaithful(['{"name": "weather", "arguments": {}}']), tools=(WEATHER,), tool_choice=MUST)


# --- tools ------------------------------------------------------------------------------------------------

MUST = ToolChoice(mode=ToolMode.ANY)


def names(response: Response) -> list[str]:
    return [call.name for call in response.calls]


@pytest.mark.parametrize("template", [CHATML, families.HERMES, families.GEMMA, families.OTHER_TOOLS, None])
def test_a_model_may_speak_or_call(template):
    off = GenerationConfig(thinking=Thinking(mode=ThinkingMode.OFF))
    completer = StubCompleter(["It is fine."], template=template)
    assert asked(completer, tools=(WEATHER,), config=off).text == "It is fine."
    completer = StubCompleter(["Let me see.\n<tool_call>", ROME, EOS], template=template)
    response = asked(completer, tools=(WEATHER,), config=off)
    assert response.text == "Let me see."
    assert response.calls[0].arguments == {"city": "Rome"}
    assert response.candidates[0].finish is FinishReason.STOP
    assert written(completer).endswith(f"Let me see.\n<tool_call>\n{ROME}\n</tool_call>")
    assert "How it is outside." in written(completer, 0)


def test_several_calls_in_one_turn():
    script = ["<tool_call>", ROME, "\n<tool_call>", NOON, "That is all."]
    completer = StubCompleter(script)
    assert names(asked(completer, tools=(WEATHER, CLOCK))) == ["weather", "clock"]
    assert completer.seen[-1].cancelled
    one = StubCompleter(script)
    assert names(asked(one, tools=(WEATHER, CLOCK), tool_choice=ToolChoice(parallel=False))) == ["weather"]
    assert len(one.seen) == 2


def test_a_call_can_be_demanded():
    completer = StubCompleter([ROME])
    assert names(asked(completer, tools=(WEATHER,), tool_choice=MUST)) == ["weather"]
    assert written(completer, 0).endswith("<|im_start|>assistant\n<tool_call>\n")


def test_only_allowed_functions_are_told_and_called():
    choice = ToolChoice(mode=ToolMode.ANY, allowed=("clock",))
    completer = StubCompleter([ROME])
    assert names(asked(completer, tools=(WEATHER, CLOCK), tool_choice=choice)) == ["clock"]
    assert "How it is outside." not in written(completer, 0)


def of_family(scripts: Any, template: str, **named: Any) -> StubCompleter:
    return StubCompleter(scripts, template=template, control=families.CONTROL, **named)


LIST = f" [{ROME}, {NOON}]"
GEMMA_ROME, GEMMA_NOON = 'call:weather{city:<|"|>Rome<|"|>}', "call:clock{}"
TWICE = {
    families.MISTRAL: (["[TOOL_CALLS]", LIST], f"[TOOL_CALLS]{LIST}"),
    families.MISTRAL_NAMED: (
        ["[TOOL_CALLS]", "weather{", '{"city": "Rome"}', "[TOOL_CALLS]", "clock{", "{}", EOS],
        '[TOOL_CALLS]weather[ARGS]{"city": "Rome"}[TOOL_CALLS]clock[ARGS]{}',
    ),
    families.MISTRAL_WITH_IDS: (
        ["[TOOL_CALLS]", "weather{", '{"city": "Rome"}', "[TOOL_CALLS]", "clock{", "{}", EOS],
        '[TOOL_CALLS]weather[CALL_ID]000000000[ARGS]{"city": "Rome"}'
        "[TOOL_CALLS]clock[CALL_ID]000000001[ARGS]{}",
    ),
    families.GEMMA4: (
        ["<|tool_call>", GEMMA_ROME, "<|tool_call>", GEMMA_NOON, EOS],
        f"<|tool_call>{GEMMA_ROME}<tool_call|><|tool_call>{GEMMA_NOON}<tool_call|>",
    ),
}
OFF = GenerationConfig(thinking=Thinking(mode=ThinkingMode.OFF))


@pytest.mark.parametrize("template", TWICE)
def test_calls_in_the_templates_own_form(template):
    script, whole = TWICE[template]
    completer = of_family(script, template)
    response = asked(completer, tools=(WEATHER, CLOCK), config=OFF)
    assert [(call.name, call.arguments) for call in response.calls] == [
        ("weather", {"city": "Rome"}),
        ("clock", {}),
    ]
    assert (response.text, response.candidates[0].finish) == ("", FinishReason.STOP)
    last = completer.seen[-1]
    spoken = completer.detokenize((*last.completion.prompt, *last.tokens))
    assert whole in spoken.removesuffix(EOS)
    assert "How it is outside." in written(completer, 0)
    assert "You may call" not in written(completer, 0)
    one = of_family(script, template)
    response = asked(one, tools=(WEATHER, CLOCK), config=OFF, tool_choice=ToolChoice(parallel=False))
    assert names(response) == ["weather"]


@pytest.mark.parametrize("template", TWICE)
def test_a_call_can_be_demanded_in_the_templates_own_form(template):
    completer = of_family(TWICE[template][0][1:], template)
    choice = ToolChoice(mode=ToolMode.ANY, parallel=False)
    assert names(asked(completer, tools=(WEATHER, CLOCK), config=OFF, tool_choice=choice)) == ["weather"]
    assert written(completer, 0).endswith(TWICE[template][0][0])


@pytest.mark.parametrize("opening", forms.LLAMA.openings)
def test_a_turn_that_is_a_call(opening):
    completer = of_family([opening, 'weather", "parameters": {"city": "Rome"}'], families.LLAMA)
    response = asked(completer, tools=(WEATHER, CLOCK))
    assert response.calls[0].arguments == {"city": "Rome"}
    assert (response.text, len(completer.seen)) == ("", 2)
    forced = of_family(['clock", "parameters": {}'], families.LLAMA)
    assert names(asked(forced, tools=(WEATHER, CLOCK), tool_choice=MUST)) == ["clock"]
    assert written(forced, 0).endswith('<|end_header_id|>\n\n{"name": "')


def test_what_looks_like_a_call_within_a_text_is_text():
    said = ['Write {"name": "', 'weather"} then.']
    response = asked(of_family(said, families.LLAMA), tools=(WEATHER,))
    assert (response.text, response.calls) == ("".join(said), ())


def test_names_of_which_one_begins_another_are_told_apart():
    both = (Tool(name="get"), Tool(name="get_all"))
    for name in ("get", "get_all"):
        completer = of_family(["[TOOL_CALLS]", name + "{", "{}", EOS], families.MISTRAL_NAMED)
        assert names(asked(completer, tools=both, config=OFF)) == [name]


def emulated(completer: StubCompleter) -> bool:
    return "You may call" in written(completer, 0)


def test_what_a_form_cannot_express_is_asked_for_in_the_system_text():
    choice = GenerationConfig(format=Format(kind=FormatKind.CHOICE, rule=("yes", "no")))
    dated = Tool(name="on", parameters={"properties": {"day": {"type": "string", "pattern": "^[0-9]+$"}}})
    two = (
        user("Hello"),
        model(Call(name="clock", arguments={}, id="a"), Call(name="clock", arguments={}, id="b")),
        user(CallResult(name="clock", result=1, id="a"), CallResult(name="clock", result=2, id="b")),
    )
    worded = (
        two[0],
        model("Well", Call(name="clock", arguments={})),
        user(CallResult(name="clock", result=1)),
    )
    for template, named in (
        (families.LLAMA, {"config": choice}),
        (families.LLAMA, {"contents": two}),
        (families.LLAMA, {"contents": worded}),
        (families.MISTRAL, {"contents": worded}),
        (families.GEMMA4, {"contents": worded}),
        (families.GEMMA4, {"tools": (dated,)}),
    ):
        completer = of_family([], template)
        asked(completer, **{"tools": (CLOCK,), **named})
        assert emulated(completer)
        completer = of_family([], template)
        asked(completer, tools=(CLOCK,))
        assert not emulated(completer)


def test_arguments_that_are_not_declared_are_not_made():
    """Unless the schema speaks of others, or is made of several."""
    inner = {"type": "object", "properties": {"x": {"type": "integer"}}}
    for parameters, said, made in (
        ({"properties": {"in": inner}}, '{"in": {"x": 1, "y": 2}}', {"in": {"x": 1}}),
        ({"properties": {}}, '{"y": 2}', {}),
        ({"properties": {}, "additionalProperties": True}, '{"y": 2}', {"y": 2}),
        ({"type": "object"}, '{"y": 2}', {"y": 2}),
        ({"allOf": [inner]}, '{"x": 1, "y": 2}', {"x": 1, "y": 2}),
    ):
        completer = StubCompleter([f'{{"name": "f", "arguments": {said}}}'])
        tool = Tool(name="f", parameters=parameters)
        assert asked(completer, tools=(tool,), tool_choice=MUST).calls[0].arguments == made


def test_no_calls_means_no_tools():
    completer = StubCompleter(["<tool_call>"])
    response = asked(completer, tools=(WEATHER,), tool_choice=ToolChoice(mode=ToolMode.NONE))
    assert (response.text, response.calls) == ("<tool_call>", ())
    assert "weather" not in written(completer, 0)


@settings(max_examples=25, deadline=None)
@given(st.integers(0, 10_000), st.sampled_from(list(ToolMode)), st.sampled_from([None, 0, 16]), st.booleans())
def test_arguments_are_sound_in_every_mode_with_thoughts_and_a_schema(seed, mode, tokens, formed):
    noise = Noise(
        seed, eos=0.02, tokens=("<tool_call>", '{"name": "weather", "arguments": {"city": "R"}}', " ab")
    )
    tools = (WEATHER, CLOCK, Tool(name="pick", parameters=SCHEMA))
    completer = StubCompleter(lambda _: noise, context=2500)
    config = GenerationConfig(
        thinking=None if tokens is None else budget(tokens),
        format=JSON if formed else Format(),
        max_tokens=400,
    )
    response = asked(completer, tools=tools, tool_choice=ToolChoice(mode=mode), config=config)
    for call in response.calls:
        declared = next(tool for tool in tools if tool.name == call.name)
        assert fault(call.arguments, declared.parameters or {}) == ""
    finish = response.candidates[0].finish
    if finish is FinishReason.STOP and mode is ToolMode.ANY:
        assert response.calls
    if finish is FinishReason.STOP and formed and not response.calls:
        assert fault(json.loads(response.text), SCHEMA) == ""
    if mode is ToolMode.NONE:
        assert not response.calls


BEGINNINGS = (
    *("[TOOL_CALLS]", "<|tool_call>", "<tool_call>", '{"name": "', "weather", "{", " [", "]", '<|"|>', "}"),
    *("call:", 'pick", "parameters": {"n": 1', "city:", '{"name": "weather", "arguments": {"city": "R"}}'),
)


@settings(max_examples=60, deadline=None)
@given(
    st.integers(0, 10_000),
    st.sampled_from([ToolMode.AUTO, ToolMode.ANY]),
    st.sampled_from([None, 0, 16]),
    st.booleans(),
    st.sampled_from([*TWICE, families.LLAMA]),
    st.booleans(),
)
def test_arguments_are_sound_in_every_form(seed, mode, tokens, formed, template, parallel):
    noise = Noise(seed, eos=0.02, tokens=BEGINNINGS)
    tools = (WEATHER, CLOCK, Tool(name="pick", parameters=SCHEMA))
    config = GenerationConfig(
        thinking=None if tokens is None else budget(tokens),
        format=JSON if formed else Format(),
        max_tokens=300,
    )
    response = asked(
        of_family(lambda _: noise, template, context=3000),
        tools=tools,
        tool_choice=ToolChoice(mode=mode, parallel=parallel),
        config=config,
    )
    for call in response.calls:
        declared = next(tool for tool in tools if tool.name == call.name)
        assert fault(call.arguments, declared.parameters or {}) == ""
    assert parallel or len(response.calls) <= 1
    if response.candidates[0].finish is FinishReason.STOP:
        assert response.calls or mode is ToolMode.AUTO
        if formed and not response.calls:
            assert fault(json.loads(response.text), SCHEMA) == ""


@pytest.mark.parametrize(
    ("form", "said", "expected"),
    [
        (JSON, ["{", '{"n": 1, "s": "a"}'], '{"n": 1, "s": "a"}'),
        (Format(kind=FormatKind.CHOICE, rule=("yes", "no")), ["yes"], "yes"),
        (Format(kind=FormatKind.REGEX, rule="[0-9]{3}"), ["123"], "123"),
    ],
)
def test_a_call_or_an_answer_of_the_form(form, said, expected):
    config = GenerationConfig(format=form, thinking=budget(20))
    assert asked(StubCompleter(["Hm</think>", *said]), tools=(WEATHER,), config=config).text == expected
    response = asked(StubCompleter(["Hm</think>", "<tool_call>", ROME]), tools=(WEATHER,), config=config)
    assert (names(response), response.text) == (["weather"], "")


@pytest.mark.parametrize("template", [families.MISTRAL, families.MISTRAL_NAMED])
def test_a_call_or_an_answer_where_a_grammar_cannot_name_the_tag(template):
    """The model begins freely; what it began with is forgotten if it is no call."""
    config = GenerationConfig(format=JSON, thinking=Thinking(mode=ThinkingMode.OFF))
    completer = of_family(["Well", '{"n": 1, "s": "a"}'], template)
    response = asked(completer, tools=(WEATHER,), config=config)
    assert (response.text, response.calls) == ('{"n": 1, "s": "a"}', ())
    assert completer.seen[0].completion.prompt == completer.seen[1].completion.prompt
    response = asked(of_family(TWICE[template][0], template), tools=(WEATHER, CLOCK), config=config)
    assert (names(response), response.text) == (["weather", "clock"], "")


def test_a_call_that_is_cut_off_is_no_call():
    config = GenerationConfig(max_tokens=20)
    response = asked(StubCompleter(["<tool_call>", ROME]), tools=(WEATHER,), config=config)
    assert response.calls == ()
    assert response.candidates[0].finish is FinishReason.LENGTH
    assert "inside a function call" in (response.candidates[0].finish_message or "")


@pytest.mark.parametrize(
    ("named", "what"),
    [
        ({"tools": (CLOCK, CLOCK)}, "declared twice: clock"),
        ({"tools": (CLOCK,), "tool_choice": ToolChoice(allowed=("cook",))}, "no such function: cook"),
        ({"tool_choice": MUST}, "no function is allowed"),
        ({"tools": (Tool(name="f", parameters={"type": "array"}),)}, "must be an object"),
        ({"tools": (Tool(name="f", parameters={"properties": {"a": {"not": {}}}}),)}, "not"),
        (
            {
                "tools": (CLOCK,),
                "config": GenerationConfig(format=Format(kind=FormatKind.LARK, rule='start: "a"')),
            },
            "cannot be offered at once",
        ),
    ],
)
def test_tools_that_cannot_be_are_refused(named, what):
    completer = StubCompleter()
    with pytest.raises(InvalidRequestError, match=what):
        asked(completer, **named)
    assert completer.seen == []


# --- what is refused, what goes wrong, what is given up ---------------------------------------------------


@pytest.mark.parametrize(
    ("named", "where"),
    [
        ({"cache": "mine"}, "cache"),
        ({"config": GenerationConfig(modalities=("text", "audio"))}, "config.modalities"),
        ({"config": GenerationConfig(logprobs=1)}, "config.logprobs"),
        ({"config": GenerationConfig(seed=1)}, "config.seed"),
        ({"config": GenerationConfig(format=JSON)}, "config.format"),
        ({"tools": (CLOCK,)}, "tools"),
    ],
)
def test_nothing_is_dropped_in_silence(named, where):
    lacking = StubCompleter(capabilities={"grammar": False, "logprobs": False, "seed": False})
    with pytest.raises(UnsupportedError) as caught:
        asked(lacking, **named)
    assert caught.value.where == where


def test_a_prompt_beyond_the_context_is_refused():
    with pytest.raises(InvalidRequestError, match="context length is 10"):
        asked(StubCompleter(context=10))


def test_a_failure_comes_through_and_ends_the_others():
    broken = UpstreamError("the engine died", where="stub")
    completer = StubCompleter([Say(ends=False), Say("ab", then=broken), Say(ends=False)])
    with pytest.raises(UpstreamError, match="died"):
        asked(completer, config=GenerationConfig(candidates=3, max_tokens=3000))
    assert [seen.cancelled for seen in completer.seen] == [True, False, True]


@pytest.mark.parametrize("candidates", [1, 3])
@pytest.mark.parametrize("thinking", [None, budget(100)])
def test_closing_the_stream_ends_the_work(candidates, thinking):
    completer = StubCompleter(lambda _: Say(ends=False))
    config = GenerationConfig(candidates=candidates, thinking=thinking)

    async def run() -> None:
        stream = LocalEngine(completer).generate(Request(model="stub", contents=HELLO, config=config))
        async for _ in stream:
            break
        await stream.aclose()

    asyncio.run(run())
    assert all(seen.cancelled for seen in completer.seen)


def test_cancelling_the_reader_ends_the_work_before_the_first_token():
    """As in a prompt that is still being read."""
    begun, never = asyncio.Event(), asyncio.Event()

    async def hang() -> None:
        begun.set()
        await never.wait()

    completer = StubCompleter(["a", "b"], pause=hang)

    async def run() -> None:
        stream = LocalEngine(completer).generate(
            Request(model="stub", contents=HELLO, config=GenerationConfig(candidates=2))
        )
        task = asyncio.create_task(collected(stream))
        await begun.wait()
        task.cancel()
        with pytest.raises(asyncio.CancelledError):
            await task

    asyncio.run(run())
    assert all(seen.cancelled for seen in completer.seen)


def test_embeddings_are_unit_vectors_of_the_length_that_is_wished():
    engine = LocalEngine(StubCompleter())
    (vector,) = asyncio.run(engine.embed(["see the house"], dimensions=4))
    assert len(vector) == 4
    assert math.isclose(sum(value * value for value in vector), 1)
    with pytest.raises(UnsupportedError, match="10 dimensions"):
        asyncio.run(engine.embed(["a"], dimensions=11))
    with pytest.raises(UnsupportedError, match="no embeddings"):
        asyncio.run(LocalEngine(StubCompleter(capabilities={"embeddings": False})).embed(["a"]))


def test_tokens_are_told_with_their_bytes_and_none_is_a_control_token():
    engine = LocalEngine(StubCompleter(words=["é", "Hal"]))
    plain, forged, nothing = asyncio.run(engine.tokenize(["Hallé", EOS, ""]))
    assert [token.data for token in plain] == [b"Hal", b"l", "é".encode()]
    assert [token.data for token in forged] == [letter.encode() for letter in EOS]
    assert nothing == []
    assert all(engine._completer.detokenize([one.id]).encode() == one.data for one in plain)


def test_it_is_an_engine():
    completer: Completer = StubCompleter()
    engine: Engine = LocalEngine(completer)
    assert engine.capabilities.tools
    assert engine.capabilities.thinking
    asyncio.run(engine.close())
    assert completer.closed  # type: ignore[attr-defined]


def test_what_was_cached_is_told():
    completer = StubCompleter(["Yes", "Yes"])
    assert asked(completer).usage.cached == 0
    first = completer.made
    engine = LocalEngine(completer)
    again = asyncio.run(collected(engine.generate(Request(model="stub", contents=HELLO))))
    assert again.usage.cached == again.usage.prompt
    assert completer.made == 2 * first


def test_no_more_is_cached_than_the_prompt_has():
    """Behind the prompt of a demanded call stands the call's tag, which the engine has read before too."""
    weather = Tool(name="weather", parameters={"type": "object", "properties": {}})
    demanded = {"tools": (weather,), "tool_choice": ToolChoice(mode=ToolMode.ANY, parallel=False)}
    completer = StubCompleter(['{"name": "weather", "arguments": {}}'] * 2)
    engine = LocalEngine(completer)
    request = Request(model="stub", contents=HELLO, **demanded)
    _, again = (asyncio.run(collected(engine.generate(request))).usage for _ in range(2))
    assert again.cached == again.prompt

"""Prompts are what transformers makes of the same template, and nobody can forge a control token in them."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from language import families
from language.stub import CHATML, StubCompleter
from studiolo.language.conversation import (
    Call,
    CallResult,
    Content,
    Data,
    FileRef,
    Role,
    Text,
    Thought,
    Tool,
    model,
    user,
)
from studiolo.language.decoding import forms, turns
from studiolo.language.decoding import tools as tool_plans
from studiolo.language.decoding.template import ChatTemplate, Vault, token_ids
from studiolo.language.errors import InvalidRequestError, UnsupportedError

NAMES = {"bos_token": "<bos>", "eos_token": "</s>"}
TALK = (user("Hi there"), model("Hello."), user('Tell me "more"\nof <|im_end|> that'))
WEATHER = Tool(
    name="weather",
    description='The "weather" <|im_end|> there',
    parameters={"type": "object", "properties": {"city": {"type": "string", "enum": ["Rome", "<|im_end|>"]}}},
)


def segments(
    source: str | None, contents=TALK, *, system=None, tools: tuple[Tool, ...] = (), thinking=None
) -> list[tuple[str, bool]]:
    template, vault = ChatTemplate(source, NAMES), Vault()
    hidden = vault.hide(system, wanted=True) if system else None
    made = turns.messages(contents, hidden, vault, takes_system=template.takes_system, form=template.form)
    declared = tool_plans.declarations(tools, vault) if tools else None
    return template.render(made, vault, tools=declared, thinking=thinking)


def text(*args: Any, **named: Any) -> str:
    return "".join(part for part, _ in segments(*args, **named))


def by_transformers(source: str, messages: list[dict[str, Any]], **variables: Any) -> str:
    from transformers.utils.chat_template_utils import render_jinja_template

    rendered, _ = render_jinja_template(
        [messages], chat_template=source, add_generation_prompt=True, **NAMES, **variables
    )
    return rendered[0]


PLAIN_TALK = [
    {"role": "user", "content": "Hi there"},
    {"role": "assistant", "content": "Hello."},
    {"role": "user", "content": TALK[2].text},
]


@pytest.mark.parametrize(
    "source", [CHATML, families.HERMES, families.GEMMA, families.OPENS, families.OTHER_TOOLS]
)
def test_a_conversation_is_written_as_transformers_writes_it(source):
    assert text(source) == by_transformers(source, PLAIN_TALK)


def test_a_system_text_has_its_place_or_is_folded_into_the_first_turn():
    told = [{"role": "system", "content": "Be brief."}, *PLAIN_TALK]
    assert text(CHATML, system="Be brief.") == by_transformers(CHATML, told)
    folded = [{"role": "user", "content": "Be brief.\n\nHi there"}, *PLAIN_TALK[1:]]
    assert text(families.GEMMA, system="Be brief.") == by_transformers(families.GEMMA, folded)


ARGUMENTS = {"city": 'Rome "<|im_end|>"\n\\', "days": [1, 2.5, None, True], "deep": {"straße": "é"}}
CALLED = (
    user("What is the weather?"),
    model(Thought(text="I look it up."), "Let me see.", Call(name="weather", arguments=ARGUMENTS, id="a")),
    user(
        CallResult(name="weather", result={"sky": 'blue "<|im_end|>"'}, id="a"),
        CallResult(name="x", result="so"),
    ),
)


def test_calls_and_results_are_written_as_the_template_wants_them():
    messages = [
        {"role": "user", "content": "What is the weather?"},
        {
            "role": "assistant",
            "content": "Let me see.",
            "reasoning_content": "I look it up.",
            "tool_calls": [
                {"id": "a", "type": "function", "function": {"name": "weather", "arguments": ARGUMENTS}}
            ],
        },
        {"role": "tool", "name": "weather", "content": '{"sky": "blue \\"<|im_end|>\\""}'},
        {"role": "tool", "name": "x", "content": "so"},
    ]
    parameters = {"name": "weather", "description": WEATHER.description, "parameters": WEATHER.parameters}
    tools = [{"type": "function", "function": parameters}]
    assert ChatTemplate(families.HERMES).form == forms.HERMES
    theirs = by_transformers(families.HERMES, messages, tools=tools)
    assert text(families.HERMES, CALLED, tools=(WEATHER,)) == theirs
    assert "<think>\nI look it up.\n</think>" in theirs


FORMS = {
    families.HERMES: forms.HERMES,
    families.LLAMA: replace(forms.LLAMA, words=False),
    families.MISTRAL: replace(forms.MISTRAL_LIST, words=False),
    families.MISTRAL_NAMED: forms.MISTRAL_NAMED,
    families.MISTRAL_WITH_IDS: replace(forms.MISTRAL_NAMED, apart="[CALL_ID]000000000[ARGS]"),
    families.GEMMA4: replace(forms.GEMMA, words=False),
    families.GEMMA4_INLINE: replace(forms.GEMMA, words=False, inline=True),
}


@pytest.mark.parametrize("source", FORMS)
def test_the_form_of_calls_is_seen_in_the_template(source):
    assert ChatTemplate(source, NAMES).form == FORMS[source]


CALL = {"id": "call00001", "type": "function", "function": {"name": "weather", "arguments": ARGUMENTS}}
RESULT = {"role": "tool", "name": "weather", "tool_call_id": "call00001", "content": "so"}


@pytest.mark.parametrize("source", [source for source in FORMS if source != families.GEMMA4_INLINE])
def test_a_call_in_the_templates_own_form_is_what_transformers_writes(source):
    """Whatever the ids were."""
    made = model(Call(name="weather", arguments=ARGUMENTS, id="call_4af"))
    ours = (user("Rome?"), made, user(CallResult(name="weather", result="so", id="call_4af")))
    messages = [
        {"role": "user", "content": "Rome?"},
        {"role": "assistant", "content": "", "tool_calls": [CALL]},
        RESULT,
    ]
    declared = {"name": "weather", "description": WEATHER.description, "parameters": WEATHER.parameters}
    tools = [{"type": "function", "function": declared}]
    assert text(source, ours, tools=(WEATHER,)) == by_transformers(source, messages, tools=tools)


def test_results_go_into_the_message_that_called_where_the_template_wants_them_there():
    both = (
        user("Rome?"),
        model(Call(name="f", arguments={}, id="1"), Call(name="g", arguments={"x": [True]}, id="2")),
        user(
            CallResult(name="g", result={"n": "two", "ok": True}, id="2"),
            CallResult(name="f", result="one", id="1"),
        ),
    )
    answers = [{"name": "g", "response": {"n": "two", "ok": True}}, {"name": "f", "response": "one"}]
    calls = [
        {"function": {"name": "f", "arguments": {}}},
        {"function": {"name": "g", "arguments": {"x": [True]}}},
    ]
    messages = [
        {"role": "user", "content": "Rome?"},
        {"role": "assistant", "content": "", "tool_calls": calls, "tool_responses": answers},
    ]
    source = families.GEMMA4_INLINE
    assert text(source, both) == by_transformers(source, messages)
    assert text(source, both).endswith(
        "<|tool_call>call:f{}<tool_call|><|tool_call>call:g{x:[true]}<tool_call|>"
        '<|tool_response>response:g{n:<|"|>two<|"|>,ok:true}<tool_response|>'
        '<|tool_response>response:f{value:<|"|>one<|"|>}<tool_response|>'
    )


def test_a_result_is_that_of_its_call():
    calls = [Call(name="f", arguments={"n": 1}, id="b"), Call(name="f", arguments={"n": 2}, id="a")]
    results = [CallResult(name="f", result="of 2", id="a"), CallResult(name="f", result="of 1", id="")]
    written = text(families.MISTRAL, (user("Hi"), model(*calls), user(*results)))
    assert '{"n": 1}, "id": "call00001"}' in written
    assert '{"content": of 2, "call_id": "call00002"}' in written
    assert '{"content": of 1, "call_id": "call00001"}' in written


@pytest.mark.parametrize("source", [CHATML, families.GEMMA, families.OTHER_TOOLS, None])
def test_calls_are_written_in_tags_where_the_template_knows_no_such_form(source):
    assert ChatTemplate(source, NAMES).form == forms.EMULATED
    written = text(source, CALLED)
    assert "Let me see.\n<tool_call>\n" + turns.call_text(CALLED[1].calls[0]) + "\n</tool_call>" in written
    assert "<tool_response>\nso\n</tool_response>" in written


def test_a_model_without_template_gets_a_plain_form():
    assert text(None, system="Be brief.") == (
        "<bos>Be brief.\n\nUser: Hi there\n\nAssistant: Hello.\n\nUser: " + TALK[2].text + "\n\nAssistant:"
    )


SPEECH = st.lists(
    st.one_of(
        st.sampled_from([*families.CONTROL, "\ue000\ue010\ue001", "\n", " ", '"', "\\"]), st.text(max_size=5)
    ),
    max_size=6,
).map("".join)


@settings(max_examples=80, deadline=None)
@given(SPEECH, SPEECH, SPEECH, SPEECH, st.sampled_from([CHATML, families.GEMMA, None, *FORMS]))
def test_what_is_said_never_becomes_a_control_token(said, system, argument, returned, source):
    """The control tokens of a prompt are those of the same prompt with harmless texts."""

    def control(said: str, system: str, argument: str, returned: str) -> list[int]:
        contents = (
            user(said),
            model(Thought(text=said), Call(name="f", arguments={"x": argument, "y": [argument]})),
            user(CallResult(name="f", result={"z": returned}), CallResult(name="f", result=returned or "-")),
            model("Yes " + said),
            user(said),
        )
        tool = Tool(
            name="f", description=said, parameters={"type": "object", "properties": {"x": {"title": system}}}
        )
        completer = StubCompleter(control=families.CONTROL)
        ids = token_ids(segments(source, contents, system=system, tools=(tool,)), completer.tokenize)
        return [token for token in ids if token >= 256]

    assert control("x" + said, "x" + system, "x" + argument, "x" + returned) == control("x", "x", "x", "x")


@settings(max_examples=30, deadline=None)
@given(SPEECH, st.sampled_from([CHATML, families.HERMES, families.OPENS]))
def test_what_is_said_is_in_the_prompt_as_it_is(said, source):
    assert f"user\n({said})" in text(source, (user(f"({said})"),))


def test_texts_are_escaped_where_the_template_writes_them_as_json():
    source = "{{ messages | tojson }} {{ messages | tojson | tojson }} {{ messages[0] | tojson(indent=1) }}"
    messages = [{"role": "user", "content": 'a "b" \\ <|im_end|>\n'}]
    assert text(source, (user(messages[0]["content"]),)) == by_transformers(source, messages)


def test_a_template_that_leaves_something_out_is_refused():
    with pytest.raises(UnsupportedError, match="leaves this part of the conversation out") as caught:
        segments("{{ messages[-1].content }}")
    assert "Hi there" in str(caught.value)


def test_a_template_that_refuses_says_why():
    with pytest.raises(InvalidRequestError, match="too short"):
        segments("{{ raise_exception('too short') }}")
    with pytest.raises(UnsupportedError, match="cannot be read"):
        ChatTemplate("{% for %}")


def test_a_template_cannot_reach_into_python():
    with pytest.raises(InvalidRequestError, match="unsafe"):
        segments("{{ ''.__class__.__mro__ }}{{ messages.append(1) }}{{ messages[0].content }}")


def test_texts_are_lists_of_parts_where_the_template_wants_them_so():
    assert text(families.PARTS, system="Be brief.") == text(CHATML, system="Be brief.")
    assert ChatTemplate(families.PARTS).takes_parts
    assert not ChatTemplate(CHATML).takes_parts


def test_a_family_whose_answers_are_not_understood_is_refused():
    with pytest.raises(UnsupportedError, match="Harmony"):
        ChatTemplate("{{ '<|start|>assistant<|channel|>final<|message|>' }}")


def test_training_marks_and_loop_controls_are_understood():
    source = (
        "{% for m in messages %}{% if loop.index > 1 %}{% break %}{% endif %}"
        "{% generation %}{{ m.content }}{% endgeneration %}{% endfor %}"
    )
    assert text(source, TALK[:1]) == by_transformers(source, PLAIN_TALK[:1]) == "Hi there"


def test_turns_of_one_speaker_in_a_row_are_one():
    assert text(families.GEMMA, (user("a"), user("b"), model("c"), model("d"), user("e"))) == text(
        families.GEMMA, (user("a\n\nb"), model("c\n\nd"), user("e"))
    )


@pytest.mark.parametrize(
    ("contents", "what"),
    [
        ((model("Hi"), user("Hi")), "does not begin with the user"),
        ((user("Hi"), model("Hi")), "last turn is the model's"),
        ((user(""),), "an empty turn"),
        ((Content(role=Role.USER, parts=()),), "an empty turn"),
        ((user(Call(name="f", arguments={})),), "a call in a turn of the user"),
        ((user("Hi"), model(CallResult(name="f", result=1)), user("Hi")), "a result in a turn of the model"),
        ((user(Data(media_type="image/png", data=b"")),), "image/png"),
        ((user(FileRef(uri="x", media_type="audio/wav"), Text(text="a")),), "audio/wav"),
        (
            (user(CallResult(name="f", result=1, media=(FileRef(uri="x", media_type="video/mp4"),))),),
            "video/mp4",
        ),
    ],
)
def test_a_conversation_that_cannot_be_written_is_refused(contents, what):
    with pytest.raises(InvalidRequestError, match=what) as caught:
        segments(CHATML, contents)
    assert (caught.value.where or "").startswith("contents[")


def test_inner_texts_get_no_space_from_a_vocabulary_that_puts_one_first():
    """As SentencePiece does at the beginning of whatever it is given."""

    def tokenize(text: str, *, special: bool = True) -> tuple[int, ...]:
        return tuple((" " + text).encode())

    ids = token_ids([("<s>", True), ("a b", False), ("</s>", True)], tokenize)
    assert bytes(ids) == b" <s>a b</s>"

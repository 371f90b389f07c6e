"""The engine over OpenAI's chat/completions, against a loopback server that speaks the wire format."""

from __future__ import annotations

import asyncio
import base64
import json
import time
from email.utils import formatdate
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from language.loopback import Asked, Loopback, Reply
from language.weather import ASK_WEATHER, HELLO, WEATHER
from studiolo.language.collect import collected
from studiolo.language.conversation import (
    Call,
    CallResult,
    Content,
    Data,
    Delta,
    FileRef,
    FinishReason,
    Format,
    FormatKind,
    GenerationConfig,
    Harm,
    Level,
    Request,
    SafetySetting,
    Show,
    Text,
    Thinking,
    ThinkingMode,
    Thought,
    Threshold,
    Tool,
    ToolChoice,
    ToolMode,
    Usage,
    model,
    user,
)
from studiolo.language.engines.openai_body import DIALECTS, body_of
from studiolo.language.engines.openai_upstream import OPENROUTER_URL, OpenAIUpstream
from studiolo.language.engines.upstream import TimeLimits
from studiolo.language.errors import (
    AuthenticationError,
    InvalidRequestError,
    OverloadedError,
    RateLimitError,
    TimedOutError,
    UnknownModelError,
    UnsupportedError,
    UpstreamError,
)

KEY = "sk-the-secret-of-this-test"


def chunk(
    delta: dict[str, Any] | None = None, *, finish: str | None = None, index: int = 0, **more: Any
) -> Any:
    choice = {"index": index, "delta": delta or {}, "finish_reason": finish, **more}
    return {"id": "c", "object": "chat.completion.chunk", "created": 1, "model": "m", "choices": [choice]}


def usage(**fields: Any) -> Any:
    return {
        "id": "c",
        "object": "chat.completion.chunk",
        "created": 1,
        "model": "m",
        "choices": [],
        "usage": fields,
    }


def answering(*events: Any):
    async def handler(asked: Asked, reply: Reply) -> None:
        await reply.stream(*events, "[DONE]")
        await reply.end()

    return handler


def ask(handler, request: Request = HELLO, *, dialect: str = "openai", **options: Any):
    """What the engine makes of the handler's answer, and what the server was asked."""

    async def go():
        async with Loopback(handler) as server:
            engine = OpenAIUpstream("m", base_url=f"{server.url}/v1", dialect=dialect, key=KEY, **options)
            try:
                return await collected(engine.generate(request)), server.asked
            finally:
                await engine.close()

    return asyncio.run(go())


# --- answers ----------------------------------------------------------------------------------------------


def test_text_comes_in_pieces_with_its_usage():
    response, asked = ask(
        answering(
            chunk({"role": "assistant", "content": ""}),
            chunk({"content": "Hel"}),
            chunk({"content": "lo"}),
            chunk(finish="stop"),
            usage(
                prompt_tokens=9, completion_tokens=7, total_tokens=16,
                prompt_tokens_details={"cached_tokens": 4, "audio_tokens": 2},
                completion_tokens_details={"reasoning_tokens": 5},
            ),
        )
    )  # fmt: skip
    assert response.text == "Hello"
    assert response.candidates[0].finish is FinishReason.STOP
    assert response.usage == Usage(prompt=9, cached=4, answer=2, thoughts=5, prompt_by_modality={"audio": 2})
    assert (response.model, response.notes) == ("m", ())
    assert asked[0].path == "/v1/chat/completions"
    assert asked[0].headers["authorization"] == f"Bearer {KEY}"
    assert asked[0].body == {
        "model": "m",
        "messages": [{"role": "user", "content": "hello"}],
        "stream": True,
        "stream_options": {"include_usage": True},
    }


@pytest.mark.parametrize("field", ["reasoning_content", "reasoning"])
@pytest.mark.parametrize("show", [True, False])
def test_thoughts_are_apart_and_hidden_unless_asked_for(field, show):
    request = HELLO.model_copy(update={"config": GenerationConfig(thinking=Thinking(show=show))})
    answer = answering(chunk({field: "hm"}), chunk({field: "m"}), chunk({"content": "Yes"}),
                       chunk(finish="stop"),
                       usage(prompt_tokens=1, completion_tokens=3, total_tokens=4))  # fmt: skip
    response, _ = ask(answer, request, dialect="vllm")
    assert response.text == "Yes"
    assert response.candidates[0].content.thoughts == ("hmm" if show else "")
    assert response.usage == Usage(prompt=1, answer=3)
    assert response.notes == ("the upstream counts its thoughts with the answer",)


def test_fragments_of_calls_are_put_together():
    def part(index: int, arguments: str, **first: Any) -> Any:
        name = {"name": first.pop("name")} if first else {}
        return chunk(
            {"tool_calls": [{"index": index, **first, "function": {**name, "arguments": arguments}}]}
        )

    response, _ = ask(
        answering(
            chunk({"content": "Let me see."}),
            part(0, "", id="a", name="weather"), part(0, '{"ci'), part(0, 'ty": "Rome"}'),
            part(1, '{"city": ', id="b", name="weather"), part(1, '"Łódź"}'),
            chunk(finish="tool_calls"),
        ),
        ASK_WEATHER,
    )  # fmt: skip
    assert response.calls == (
        Call(name="weather", arguments={"city": "Rome"}, id="a"),
        Call(name="weather", arguments={"city": "Łódź"}, id="b"),
    )
    assert response.candidates[0].finish is FinishReason.STOP
    assert response.text == "Let me see."


def test_calls_that_are_all_numbered_zero_are_told_apart_by_their_ids():
    def whole(call_id: str, city: str) -> Any:
        function = {"name": "weather", "arguments": json.dumps({"city": city})}
        return chunk({"tool_calls": [{"index": 0, "id": call_id, "function": function}]})

    response, _ = ask(
        answering(whole("a", "Rome"), whole("b", "Oslo"), chunk(finish="tool_calls")), ASK_WEATHER
    )
    assert [call.arguments["city"] for call in response.calls] == ["Rome", "Oslo"]


@pytest.mark.parametrize(
    ("name", "arguments", "said"),
    [
        ("weather", '{"city": 3}', "$.city: 3 is not of type 'string'"),
        ("weather", "{}", "'city' is a required property"),
        ("weather", '{"city": "Ro', "not JSON"),
        ("weather", "[]", "no JSON object"),
        ("wether", '{"city": "Rome"}', "no tool of this request"),
    ],
)
def test_a_call_that_is_not_as_declared_is_malformed(name, arguments, said):
    call = {"index": 0, "id": "a", "function": {"name": name, "arguments": arguments}}
    response, _ = ask(answering(chunk({"tool_calls": [call]}), chunk(finish="tool_calls")), ASK_WEATHER)
    assert response.calls == ()
    assert response.candidates[0].finish is FinishReason.MALFORMED_CALL
    assert said in response.candidates[0].finish_message


def test_a_call_that_was_forbidden_or_cut_off_is_not_given_out():
    call = {"index": 0, "id": "a", "function": {"name": "weather", "arguments": '{"city": "Rome"}'}}
    forbidden = ASK_WEATHER.model_copy(update={"tool_choice": ToolChoice(mode=ToolMode.NONE)})
    for request, said, finish in (
        (forbidden, "tool_calls", FinishReason.MALFORMED_CALL),
        (ASK_WEATHER, "length", FinishReason.LENGTH),
        (ASK_WEATHER, "content_filter", FinishReason.SAFETY),
    ):
        response, _ = ask(answering(chunk({"tool_calls": [call]}), chunk(finish=said)), request)
        assert (response.calls, response.candidates[0].finish) == ((), finish)


def test_a_declaration_does_not_make_the_validator_fetch_anything():
    tool = Tool(
        name="f", parameters={"type": "object", "properties": {"a": {"$ref": "http://127.0.0.1:9/x"}}}
    )
    request = Request(model="any", contents=(user("hi"),), tools=(tool,))
    call = {"index": 0, "id": "a", "function": {"name": "f", "arguments": '{"a": 1}'}}
    response, _ = ask(answering(chunk({"tool_calls": [call]}), chunk(finish="tool_calls")), request)
    assert "leads nowhere" in response.candidates[0].finish_message


SCHEMA = {"type": "object", "properties": {"a": {"type": "integer"}}, "required": ["a"]}


@pytest.mark.parametrize(
    ("fields", "text", "finish", "told"),
    [
        (
            {"config": GenerationConfig(format=Format(kind=FormatKind.JSON, rule=SCHEMA))},
            '{"a": 1}',
            "stop",
            "",
        ),
        (
            {"config": GenerationConfig(format=Format(kind=FormatKind.JSON, rule=SCHEMA))},
            "{}",
            "other",
            "'a' is a",
        ),
        ({"config": GenerationConfig(format=Format(kind=FormatKind.JSON))}, "Sure!", "other", "not JSON"),
        (
            {"tools": (WEATHER,), "tool_choice": ToolChoice(mode=ToolMode.ANY)},
            "Sunny.",
            "malformed_call",
            "none was",
        ),
    ],
)
def test_an_upstream_that_does_not_keep_to_what_was_asked_is_found_out(fields, text, finish, told):
    response, _ = ask(
        answering(chunk({"content": text}), chunk(finish="stop")), HELLO.model_copy(update=fields)
    )
    assert (response.text, response.candidates[0].finish) == (text, finish)
    assert told in (response.candidates[0].finish_message or "")


@pytest.mark.parametrize(
    ("said", "finish"),
    [
        ("stop", FinishReason.STOP),
        ("length", FinishReason.LENGTH),
        ("content_filter", FinishReason.SAFETY),
        ("tool_calls", FinishReason.STOP),
        ("abort", FinishReason.OTHER),
    ],
)
def test_finish_reasons(said, finish):
    response, _ = ask(answering(chunk({"content": "x"}), chunk(finish=said)))
    assert response.candidates[0].finish is finish
    assert response.candidates[0].finish_message == ("the upstream said 'abort'" if said == "abort" else None)


def test_a_refusal_is_a_finish_reason():
    response, _ = ask(answering(chunk({"refusal": "I "}), chunk({"refusal": "won't"}), chunk(finish="stop")))
    assert (response.text, response.candidates[0].finish) == ("", FinishReason.SAFETY)
    assert response.candidates[0].finish_message == "I won't"


def test_several_candidates_and_logprobs():
    token = {"token": "é", "bytes": [195, 169], "logprob": -0.5, "top_logprobs": [
        {"token": "é", "bytes": [195, 169], "logprob": -0.5},
        {"token": "e", "bytes": None, "logprob": -1.0}]}  # fmt: skip
    request = HELLO.model_copy(update={"config": GenerationConfig(candidates=2, logprobs=2)})
    response, asked = ask(
        answering(
            chunk({"content": "é"}, index=0, logprobs={"content": [token]}), chunk({"content": "b"}, index=1),
            chunk(finish="length", index=1), chunk(finish="stop", index=0),
        ),
        request,
    )  # fmt: skip
    assert [candidate.text for candidate in response.candidates] == ["é", "b"]
    assert [candidate.finish for candidate in response.candidates] == [FinishReason.STOP, FinishReason.LENGTH]
    (logprob,) = response.candidates[0].logprobs
    assert (logprob.token, logprob.bytes, logprob.logprob) == ("é", (195, 169), -0.5)
    assert [(top.token, top.bytes) for top in logprob.top] == [("é", (195, 169)), ("e", (101,))]
    assert {name: asked[0].body[name] for name in ("n", "logprobs", "top_logprobs")} == {
        "n": 2, "logprobs": True, "top_logprobs": 2}  # fmt: skip


def test_every_delta_comes_in_the_promised_order():
    async def go() -> list[Delta]:
        handler = answering(
            chunk({"content": "a"}), chunk(finish="stop"), usage(prompt_tokens=1, completion_tokens=1)
        )
        async with Loopback(handler) as server:
            engine = OpenAIUpstream("m", base_url=f"{server.url}/v1")
            deltas = [delta async for delta in engine.generate(HELLO)]
            await engine.close()
            assert "authorization" not in server.asked[0].headers
            return deltas

    deltas = asyncio.run(go())
    assert [delta.finish for delta in deltas] == [None, FinishReason.STOP]
    assert [delta.usage for delta in deltas] == [None, Usage(prompt=1, answer=1)]


# --- what is asked ----------------------------------------------------------------------------------------


def asked_body(dialect: str = "openai", **fields: Any) -> dict[str, Any]:
    fields = {"model": "any", "contents": (user("hi"),), **fields}
    return body_of(Request(**fields), "m", DIALECTS[dialect]).fields


def configured(dialect: str = "openai", **config: Any) -> dict[str, Any]:
    body = asked_body(dialect, config=GenerationConfig(**config))
    return {name: value for name, value in body.items() if name not in ("model", "messages", "provider")}


def test_a_conversation_with_media_calls_and_results():
    png, wav, pdf = b"\x89PNG", b"RIFF", b"%PDF"
    contents = (
        user("look", Data(media_type="image/png", data=png), Data(media_type="audio/wav", data=wav),
             Data(media_type="application/pdf", data=pdf, name="a.pdf"),
             FileRef(uri="https://example.org/b.jpg", media_type="image/jpeg")),
        model("I will", Call(name="f", arguments={"a": "ä"}, id="x"), Call(name="f", arguments={}),
              Call(name="g", arguments={})),
        user("and?", CallResult(name="g", result="plain"), CallResult(name="f", result={"b": 1}, id="x"),
             CallResult(name="f", result=None)),
    )  # fmt: skip
    body = asked_body(contents=contents, system="be brief")
    encoded = base64.b64encode
    assert body["messages"] == [
        {"role": "system", "content": "be brief"},
        {"role": "user", "content": [
            {"type": "text", "text": "look"},
            {"type": "image_url", "image_url": {"url": "data:image/png;base64," + encoded(png).decode()}},
            {"type": "input_audio", "input_audio": {"data": encoded(wav).decode(), "format": "wav"}},
            {"type": "file", "file": {
                "filename": "a.pdf", "file_data": "data:application/pdf;base64," + encoded(pdf).decode()}},
            {"type": "image_url", "image_url": {"url": "https://example.org/b.jpg"}},
        ]},
        {"role": "assistant", "content": "I will", "tool_calls": [
            {"id": "x", "type": "function", "function": {"name": "f", "arguments": '{"a": "ä"}'}},
            {"id": "call_1_1", "type": "function", "function": {"name": "f", "arguments": "{}"}},
            {"id": "call_1_2", "type": "function", "function": {"name": "g", "arguments": "{}"}},
        ]},
        {"role": "tool", "tool_call_id": "call_1_2", "content": "plain"},
        {"role": "tool", "tool_call_id": "x", "content": '{"b": 1}'},
        {"role": "tool", "tool_call_id": "call_1_1", "content": "null"},
        {"role": "user", "content": "and?"},
    ]  # fmt: skip


def test_a_result_needs_its_call():
    with pytest.raises(InvalidRequestError, match="without its call"):
        asked_body(contents=(user(CallResult(name="f", result=1, id="x")),))


def test_thoughts_of_earlier_turns_go_where_there_is_a_place_for_them():
    contents = (user("a"), model(Thought(text="hm"), "b"), user("c"))
    for dialect, name in (
        ("vllm", "reasoning"),
        ("llamacpp", "reasoning_content"),
        ("openrouter", "reasoning"),
    ):
        assert asked_body(dialect, contents=contents)["messages"][1] == {
            "role": "assistant", "content": "b", name: "hm"}  # fmt: skip
    answer = answering(
        chunk({"content": "d"}), chunk(finish="stop"), usage(prompt_tokens=1, completion_tokens=1)
    )
    response, _ = ask(answer, Request(model="any", contents=contents))
    assert response.notes == ("thoughts of earlier turns were left out: the upstream has no place for them",)


def test_sampling():
    wishes = {"max_tokens": 5, "temperature": 0.0, "top_p": 0.5, "seed": 7, "stop": ("a", "b"),
              "presence_penalty": 1.0, "frequency_penalty": -1.0}  # fmt: skip
    wire = {**wishes, "stop": ["a", "b"]}
    assert configured("vllm", **wishes, top_k=3) == {**wire, "top_k": 3}
    del wire["max_tokens"]
    assert configured(**wishes) == {**wire, "max_completion_tokens": 5}


@pytest.mark.parametrize(
    ("mode", "allowed", "wire", "names"),
    [
        (ToolMode.AUTO, None, "auto", ["weather", "clock"]),
        (ToolMode.VALIDATED, None, "auto", ["weather", "clock"]),
        (ToolMode.ANY, None, "required", ["weather", "clock"]),
        (ToolMode.ANY, ("clock",), "required", ["clock"]),
        (ToolMode.NONE, None, "none", ["weather", "clock"]),
    ],
)
def test_how_tools_are_to_be_used(mode, allowed, wire, names):
    clock = Tool(name="clock", description="What time it is.", returns={"type": "string"})
    choice = ToolChoice(mode=mode, allowed=allowed, parallel=False)
    body = asked_body(tools=(WEATHER, clock), tool_choice=choice)
    assert (body["tool_choice"], body["parallel_tool_calls"]) == (wire, False)
    functions = {tool["function"]["name"]: tool["function"] for tool in body["tools"]}
    assert list(functions) == names
    assert functions["clock"]["description"] == (
        'What time it is.\nReturns JSON of this schema: {"type": "string"}'
    )
    assert all(("strict" in function) == (mode is ToolMode.VALIDATED) for function in functions.values())


def test_formats():
    schema = {"type": "object", "properties": {"a": {"type": "integer"}}}
    json_schema = {"type": "json_schema", "json_schema": {"name": "answer", "schema": schema, "strict": True}}
    assert configured(format=Format(kind=FormatKind.JSON, rule=schema)) == {"response_format": json_schema}
    for rule in (None, {"type": "object"}):
        assert configured(format=Format(kind=FormatKind.JSON, rule=rule)) == {
            "response_format": {"type": "json_object"}
        }
    choice = Format(kind=FormatKind.CHOICE, rule=("yes", 'n"o'))
    assert configured("vllm", format=choice) == {"structured_outputs": {"choice": ["yes", 'n"o']}}
    assert configured("llamacpp", format=choice) == {"grammar": 'root ::= "yes" | "n\\"o"'}
    regex = Format(kind=FormatKind.REGEX, rule="a+")
    assert configured("vllm", format=regex) == {"structured_outputs": {"regex": "a+"}}
    gbnf = Format(kind=FormatKind.GBNF, rule='root ::= "a"')
    assert configured("vllm", format=gbnf) == {"structured_outputs": {"grammar": 'root ::= "a"'}}
    assert configured("llamacpp", format=gbnf) == {"grammar": 'root ::= "a"'}


OFF, DYNAMIC = Thinking(mode=ThinkingMode.OFF), Thinking()
BUDGET = Thinking(mode=ThinkingMode.BUDGET, budget=64, show=True)
HIDDEN_BUDGET = Thinking(mode=ThinkingMode.BUDGET, budget=64)
LOW = Thinking(mode=ThinkingMode.LEVEL, level=Level.LOW)
SUMMED_UP = Thinking(show=Show.SUMMARY)


@pytest.mark.parametrize(
    ("dialect", "thinking", "wire"),
    [
        ("openai", OFF, {"reasoning_effort": "none"}),
        ("openai", LOW, {"reasoning_effort": "low"}),
        ("openai", DYNAMIC, {}),
        ("ollama", LOW, {"reasoning_effort": "low"}),
        ("vllm", OFF, {"chat_template_kwargs": {"enable_thinking": False}}),
        ("vllm", BUDGET, {"chat_template_kwargs": {"enable_thinking": True}, "thinking_token_budget": 64}),
        ("vllm", LOW, {"chat_template_kwargs": {"enable_thinking": True}, "reasoning_effort": "low"}),
        (
            "llamacpp",
            BUDGET,
            {"chat_template_kwargs": {"enable_thinking": True}, "thinking_budget_tokens": 64},
        ),
        ("openrouter", OFF, {"reasoning": {"effort": "none", "exclude": True}}),
        ("openrouter", BUDGET, {"reasoning": {"max_tokens": 64, "exclude": False}}),
        ("openrouter", LOW, {"reasoning": {"effort": "low", "exclude": True}}),
        ("openrouter", DYNAMIC, {"reasoning": {"enabled": True, "exclude": True}}),
    ],
)
def test_thinking(dialect, thinking, wire):
    assert configured(dialect, thinking=thinking) == wire


CHOICE, REGEX = Format(kind=FormatKind.CHOICE, rule=("a",)), Format(kind=FormatKind.REGEX, rule="a")

REFUSED = [
    ("openai", {"config": GenerationConfig(top_k=5)}, "config.top_k"),
    ("ollama", {"config": GenerationConfig(top_k=5)}, "config.top_k"),
    ("ollama", {"config": GenerationConfig(candidates=2)}, "config.candidates"),
    ("openai", {"config": GenerationConfig(stop=("a", "b", "c", "d", "e"))}, "config.stop"),
    ("openai", {"config": GenerationConfig(thinking=HIDDEN_BUDGET)}, "config.thinking.budget"),
    ("openai", {"config": GenerationConfig(thinking=Thinking(show=True))}, "config.thinking.show"),
    ("vllm", {"config": GenerationConfig(thinking=SUMMED_UP)}, "config.thinking.show 'summary'"),
    ("llamacpp", {"config": GenerationConfig(thinking=LOW)}, "config.thinking.level"),
    ("openai", {"config": GenerationConfig(format=CHOICE)}, "config.format"),
    ("llamacpp", {"config": GenerationConfig(format=REGEX)}, "config.format"),
    ("openai", {"config": GenerationConfig(modalities=("text", "image"))}, "config.modalities"),
    ("openai", {"cache": "c"}, "cache"),
    ("openai", {"safety": (SafetySetting(harm=Harm.HATE, threshold=Threshold.LOW),)}, "safety.hate"),
    ("openai", {"contents": (user(Data(media_type="video/mp4", data=b"x")),)}, "video/mp4"),
    ("openai", {"contents": (user(Data(media_type="audio/flac", data=b"x")),)}, "audio/flac"),
    ("llamacpp", {"contents": (user(Data(media_type="application/pdf", data=b"x")),)}, "application/pdf"),
    ("ollama", {"tools": (WEATHER,), "tool_choice": ToolChoice(mode=ToolMode.ANY)}, "tool_choice.mode"),
    ("openai", {"tools": (Tool(name="a.b"),)}, "a.b"),
]  # fmt: skip


@pytest.mark.parametrize(
    ("dialect", "fields", "where"), REFUSED, ids=[f"{case[0]} {case[2]}" for case in REFUSED]
)
def test_what_a_server_has_nothing_for_is_refused_by_name(dialect, fields, where):
    with pytest.raises(UnsupportedError) as caught:
        asked_body(dialect, **fields)
    assert where in caught.value.where


def test_a_tool_that_is_not_declared_cannot_be_allowed():
    with pytest.raises(InvalidRequestError, match="no tool of this name"):
        asked_body(tools=(WEATHER,), tool_choice=ToolChoice(allowed=("clock",)))
    with pytest.raises(InvalidRequestError, match="not a JSON Schema"):
        asked_body(tools=(Tool(name="f", parameters={"type": "objekt"}),))


_TURNS = st.lists(st.text(max_size=8), min_size=1, max_size=6)
_CALLS = st.lists(
    st.tuples(st.sampled_from(["f", "g"]), st.sampled_from(["", "a", "b"])), max_size=4, unique=True
)


@settings(deadline=None)
@given(
    said=_TURNS,
    calls=_CALLS,
    order=st.randoms(use_true_random=False),
    dialect=st.sampled_from(sorted(DIALECTS)),
)
def test_every_word_is_sent_and_every_result_finds_its_call(said, calls, order, dialect):
    """The API's own rule: each tool message answers one call of the assistant's message before it."""
    unique = {call_id: (name, call_id) for name, call_id in calls if call_id}
    calls = [*unique.values(), *(pair for pair in calls if not pair[1])]
    results = [
        CallResult(name=name, result=number, id=call_id) for number, (name, call_id) in enumerate(calls)
    ]
    order.shuffle(results)
    contents = [
        Content(role="user" if number % 2 == 0 else "model", parts=(Text(text=text),))
        for number, text in enumerate(said)
    ]
    contents += [
        model(*(Call(name=name, arguments={}, id=call_id) for name, call_id in calls)),
        user(*results, "end"),
    ]
    messages = asked_body(dialect, contents=tuple(contents))["messages"]
    assert "".join(m["content"] or "" for m in messages if m["role"] != "tool") == "".join(said) + "end"
    made = [call["id"] for m in messages for call in m.get("tool_calls", ())]
    answered = [m["tool_call_id"] for m in messages if m["role"] == "tool"]
    assert len(set(made)) == len(made)
    assert sorted(made) == sorted(answered)


# --- faults -----------------------------------------------------------------------------------------------


def failing(status: int, **headers: str):
    async def handler(asked: Asked, reply: Reply) -> None:
        message = f"no, {asked.headers.get('authorization')}"
        await reply.json({"error": {"message": message, "type": "t", "code": "c"}}, status, **headers)

    return handler


@pytest.mark.parametrize(
    ("status", "kind"),
    [
        (400, InvalidRequestError), (401, AuthenticationError), (403, AuthenticationError),
        (404, UnknownModelError),
        (408, TimedOutError), (409, UpstreamError), (413, InvalidRequestError), (422, InvalidRequestError),
        (429, RateLimitError), (500, UpstreamError), (502, UpstreamError),
        (503, OverloadedError), (504, TimedOutError),
    ],
)  # fmt: skip
def test_statuses_become_kinds_of_errors_and_the_key_stays_out(status, kind):
    with pytest.raises(kind) as caught:
        ask(failing(status))
    assert type(caught.value) is kind
    assert "no, Bearer ***" in str(caught.value)
    shown = "".join(map(str, (caught.getrepr(style="long", chain=True), repr(caught.value))))
    assert KEY not in shown.replace(f"KEY = {KEY!r}", "")


def test_one_attempt_only():
    attempts = []

    async def handler(asked: Asked, reply: Reply) -> None:
        attempts.append(asked)
        await reply.json({"error": {"message": "later"}}, 503, retry_after="0")

    with pytest.raises(OverloadedError):
        ask(handler)
    assert len(attempts) == 1


@pytest.mark.parametrize(
    ("headers", "seconds"),
    [
        ({"retry_after": "7"}, 7),
        ({"retry_after_ms": "1500"}, 1.5),
        ({"retry_after": formatdate(time.time() + 1e6, usegmt=True)}, pytest.approx(1e6, rel=0.01)),
        ({"retry_after": "soon"}, None),
        ({}, None),
    ],
)
def test_a_rate_limit_says_when_to_come_again(headers, seconds):
    with pytest.raises(RateLimitError) as caught:
        ask(failing(429, **headers))
    assert caught.value.retry_after == seconds


def broken(*events: Any, how: str):
    async def handler(asked: Asked, reply: Reply) -> None:
        await reply.stream(*events)
        if how == "cut":
            reply.cut()
        else:
            await reply.end()

    return handler


@pytest.mark.parametrize("how", ["cut", "ended early"])
def test_a_stream_that_breaks_is_an_error_after_what_came(how):
    async def go():
        async with Loopback(broken(chunk({"content": "half"}), how=how)) as server:
            engine = OpenAIUpstream("m", base_url=f"{server.url}/v1")
            got = []
            try:
                async for delta in engine.generate(HELLO):
                    got.append(delta.part)
            except UpstreamError as error:
                return got, type(error)
            finally:
                await engine.close()

    got, kind = asyncio.run(go())
    assert kind is UpstreamError
    assert got in ([Text(text="half")], [])  # a reset may throw away what lies in the socket
    assert how == "cut" or got


@pytest.mark.parametrize(
    "event",
    ["{not json", [1, 2], {"choices": "x"}, {"choices": [{"index": "a"}]},
     {"choices": [{"delta": {"tool_calls": [3]}}]}],
    ids=str,
)  # fmt: skip
def test_wrong_json_is_an_error_of_the_upstream(event):
    with pytest.raises(UpstreamError):
        ask(answering(event, chunk(finish="stop")))


def test_a_page_instead_of_a_stream_is_an_error_of_the_upstream():
    async def handler(asked: Asked, reply: Reply) -> None:
        await reply.text("<html>Welcome to nginx</html>", content_type="text/html")

    with pytest.raises(UpstreamError):
        ask(handler)


@pytest.mark.parametrize(
    ("error", "kind"),
    [
        ({"message": "overloaded", "code": 429}, RateLimitError),
        ({"message": "broke", "code": 502}, UpstreamError),
        ({"message": "broke", "type": "server_error"}, UpstreamError),
    ],
)
def test_an_error_within_the_stream(error, kind):
    with pytest.raises(kind) as caught:
        ask(answering(chunk({"content": "a"}), {"error": error}))
    assert type(caught.value) is kind


@pytest.mark.parametrize("pieces", [0, 1], ids=["no answer within", "nothing more within"])
def test_silence_ends_in_time(request, pieces):
    async def handler(asked: Asked, reply: Reply) -> None:
        if pieces:
            await reply.stream(chunk({"content": "a"}))
        await asked.gone.wait()  # for as long as the client waits

    limits = TimeLimits(first=0.05 if not pieces else 30, between=0.05)
    with pytest.raises(TimedOutError, match=request.node.callspec.id):
        ask(handler, limits=limits)


def test_the_whole_may_not_take_too_long():
    async def handler(asked: Asked, reply: Reply) -> None:
        while not asked.gone.is_set():
            await reply.stream(chunk({"content": "a"}))
            await asyncio.sleep(0)

    with pytest.raises(TimedOutError, match="no end within"):
        ask(handler, limits=TimeLimits(whole=0.1))


def test_a_server_that_is_not_there():
    async def go():
        async with Loopback(answering()) as server:
            url = server.url
        engine = OpenAIUpstream("m", base_url=f"{url}/v1")
        await collected(engine.generate(HELLO))

    with pytest.raises(UpstreamError, match="connection failed"):
        asyncio.run(go())


@pytest.mark.parametrize("how", ["closed", "cancelled", "cancelled before the first piece"])
def test_who_stops_reading_hangs_up(how):
    async def go():
        asked_once = asyncio.Event()

        async def handler(asked: Asked, reply: Reply) -> None:
            asked_once.set()
            if "before" not in how:
                await reply.stream(chunk({"content": "a"}))
            await asked.gone.wait()

        async with Loopback(handler) as server:
            engine = OpenAIUpstream("m", base_url=f"{server.url}/v1")
            answer = engine.generate(HELLO)
            if how == "closed":
                await anext(answer)
                await answer.aclose()
            else:
                task = asyncio.create_task(collected(answer))
                await asked_once.wait()
                task.cancel()
                await asyncio.wait([task])
            await asyncio.wait_for(server.asked[0].gone.wait(), 30)
            await engine.close()

    asyncio.run(go())


# --- the rest ---------------------------------------------------------------------------------------------


def call(handler, method: str, *arguments: Any, dialect: str = "openai", **options: Any):
    async def go():
        async with Loopback(handler) as server:
            engine = OpenAIUpstream("m", base_url=f"{server.url}/v1", dialect=dialect)
            try:
                return await getattr(engine, method)(*arguments, **options), server.asked
            finally:
                await engine.close()

    return asyncio.run(go())


def test_embeddings_are_unit_vectors_in_the_order_of_the_texts():
    async def handler(asked: Asked, reply: Reply) -> None:
        data = [{"object": "embedding", "index": 1, "embedding": [0.0, 2.0, 0.0]},
                {"object": "embedding", "index": 0, "embedding": [3.0, 4.0, 12.0]}]  # fmt: skip
        await reply.json(
            {"object": "list", "model": "m", "data": data, "usage": {"prompt_tokens": 1, "total_tokens": 1}}
        )

    vectors, asked = call(handler, "embed", ["a", "b"], dimensions=2)
    assert vectors == [pytest.approx([0.6, 0.8]), [0.0, 1.0]]
    assert asked[0].body == {"model": "m", "input": ["a", "b"], "encoding_format": "float", "dimensions": 2}


def test_the_names_of_the_models():
    async def handler(asked: Asked, reply: Reply) -> None:
        data = [{"id": name, "object": "model", "created": 1, "owned_by": "x"} for name in ("a", "b")]
        await reply.json({"object": "list", "data": data})

    names, asked = call(handler, "models")
    assert (names, asked[0].path) == (["a", "b"], "/v1/models")


def test_tokens_are_counted_where_the_server_can():
    async def vllm(asked: Asked, reply: Reply) -> None:
        await reply.json({"count": 12, "max_model_len": 100, "tokens": [1] * 12})

    count, asked = call(vllm, "count_tokens", ASK_WEATHER, dialect="vllm")
    assert (count, asked[0].path) == (12, "/tokenize")
    assert set(asked[0].body) == {"model", "messages", "tools", "add_generation_prompt"}

    async def llamacpp(asked: Asked, reply: Reply) -> None:
        await reply.json({"prompt": "<s>hello"} if asked.path == "/apply-template" else {"tokens": [1, 2, 3]})

    count, asked = call(llamacpp, "count_tokens", HELLO, dialect="llamacpp")
    assert count == 3
    assert asked[1].body == {"content": "<s>hello", "add_special": True, "parse_special": True}

    with pytest.raises(UnsupportedError, match="counts tokens"):
        call(vllm, "count_tokens", HELLO)
    with pytest.raises(UnsupportedError, match="does not tell tokens"):
        call(vllm, "tokenize", ["a"])


def test_keys_come_from_the_environment_and_go_to_their_own_server_only(monkeypatch):
    monkeypatch.setenv("OPENAI_API_KEY", KEY)
    monkeypatch.setenv("OPENAI_ORG_ID", "org-mine")
    monkeypatch.delenv("OPENROUTER_API_KEY", raising=False)
    assert KEY not in repr(OpenAIUpstream("m")) + str(vars(OpenAIUpstream("m")))
    with pytest.raises(AuthenticationError, match="OPENROUTER_API_KEY"):
        OpenAIUpstream("m", base_url=OPENROUTER_URL, dialect="openrouter")

    async def handler(asked: Asked, reply: Reply) -> None:
        await reply.json({"object": "list", "data": []})

    _, asked = call(handler, "models")
    assert not {"authorization", "openai-organization"} & asked[0].headers.keys()


def test_an_unknown_dialect_is_refused():
    with pytest.raises(InvalidRequestError, match="no such kind of server"):
        OpenAIUpstream("m", base_url="http://127.0.0.1:1/v1", dialect="vlm")
    with pytest.raises(InvalidRequestError, match="not an http"):
        OpenAIUpstream("m", base_url="127.0.0.1:1/v1")

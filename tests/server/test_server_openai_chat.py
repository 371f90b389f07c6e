"""chat/completions, by the official client."""

from __future__ import annotations

import asyncio
import json
import re
import threading
from datetime import timedelta
from typing import Any

import httpx
import openai
import pytest
from openai.types.chat import ChatCompletion, ChatCompletionChunk
from pydantic import BaseModel
from talking import Exactly, client_of, done, speaking, user

from language.stub import EOS, Reply, StubEngine
from studiolo.language import conversation as c
from studiolo.language.caching.contexts import Prefix
from studiolo.language.errors import OverloadedError, RateLimitError, TooLongError, UpstreamError
from studiolo.server.openai import answering

WEATHER = {
    "type": "function",
    "function": {
        "name": "weather",
        "description": "The weather of a town.",
        "parameters": {
            "type": "object",
            "properties": {"town": {"type": "string"}},
            "required": ["town"],
            "additionalProperties": False,
        },
        "strict": True,
    },
}


PNG, PDF = "data:image/png;base64,", "data:application/pdf;base64,"


class Fact(BaseModel):
    name: str
    year: int


def test_an_answer_with_its_usage(serve):
    engine = StubEngine([Reply(("Hel", "lo."), usage=c.Usage(prompt=9, cached=4, answer=2, thoughts=3))])
    client = client_of(serve(engine).url)
    answer = client.chat.completions.create(model="stub", messages=[user("Hi")])
    ChatCompletion.model_validate(answer.model_dump(), strict=True)
    assert answer.id.startswith("chatcmpl-")
    assert answer.model == "stub"
    assert answer.system_fingerprint
    assert answer.system_fingerprint.startswith("fp_")
    (choice,) = answer.choices
    assert (choice.message.content, choice.finish_reason, choice.message.refusal) == ("Hello.", "stop", None)
    usage = answer.usage
    assert (usage.prompt_tokens, usage.completion_tokens, usage.total_tokens) == (9, 5, 14)
    assert usage.completion_tokens_details.reasoning_tokens == 3
    assert usage.prompt_tokens_details.cached_tokens == 4


def test_every_base_path(serve):
    url = serve(StubEngine()).url
    for base in (f"{url}/v1", f"{url}/openai/v1", f"{url}/openai"):
        client = client_of(url, base_url=base)
        assert client.chat.completions.create(model="stub", messages=[user("Hi")]).choices[0].message.content


def test_the_asynchronous_client(serve):
    url = serve(StubEngine()).url

    async def talk() -> tuple[list[str | None], str]:
        async with openai.AsyncOpenAI(base_url=f"{url}/v1", api_key="k") as client:
            chat = client.chat.completions
            answers = await asyncio.gather(
                *[chat.create(model="stub", messages=[user(str(number))]) for number in range(8)]
            )
            stream = await chat.create(model="stub", messages=[user("Hi")], stream=True)
            text = "".join([chunk.choices[0].delta.content or "" async for chunk in stream])
            return [answer.choices[0].message.content for answer in answers], text

    assert asyncio.run(talk()) == (["Hello there."] * 8, "Hello there.")


def test_who_said_what(serve):
    engine = StubEngine()
    client_of(serve(engine).url).chat.completions.create(
        model="stub",
        messages=[
            {"role": "system", "content": "Be kind."},
            {"role": "developer", "content": [{"type": "text", "text": "Be short."}]},
            {"role": "user", "content": "Look.", "name": "ada"},
            {"role": "assistant", "content": "Yes?", "refusal": None},
            {
                "role": "user",
                "content": [
                    {"type": "text", "text": "What is it?"},
                    {
                        "type": "image_url",
                        "image_url": {"url": "data:image/png;base64,aGk=", "detail": "low"},
                    },
                    {"type": "image_url", "image_url": {"url": "https://example.org/a/cat.webp"}},
                    {"type": "input_audio", "input_audio": {"data": "aGk=", "format": "mp3"}},
                    {
                        "type": "file",
                        "file": {"filename": "a.pdf", "file_data": "data:application/pdf;base64,aGk="},
                    },
                ],
            },
        ],
    )
    (request,) = engine.requests
    assert request.system == "Be kind.\n\nBe short."
    assert request.contents == (
        c.user("Look."),
        c.model("Yes?"),
        c.user(
            "What is it?",
            c.Data(media_type="image/png", data=b"hi"),
            c.FileRef(uri="https://example.org/a/cat.webp", media_type="image/webp"),
            c.Data(media_type="audio/mpeg", data=b"hi"),
            c.Data(media_type="application/pdf", data=b"hi", name="a.pdf"),
        ),
    )


def test_media_are_refused_by_an_engine_that_reads_text(serve):
    parts = [{"type": "image_url", "image_url": {"url": "data:image/png;base64,aGk="}}]
    with pytest.raises(openai.BadRequestError, match="reads text only") as told:
        client_of(serve(speaking(["x"])).url).chat.completions.create(
            model="stub", messages=[{"role": "user", "content": parts}]
        )
    assert told.value.param == "messages"


@pytest.fixture
def asked(serve):
    """What the engine is asked where the client asks for this."""

    def ask(**body: Any) -> c.Request:
        engine = StubEngine()
        client_of(serve(engine).url).chat.completions.create(
            **{"model": "stub", "messages": [user("Hi")]} | body
        )
        return engine.requests[0]

    return ask


def test_wishes(asked):
    request = asked(
        temperature=0.5, top_p=0.9, max_completion_tokens=50, n=2, stop=["END", "\n"], seed=7,
        presence_penalty=1, frequency_penalty=-1, logprobs=True, top_logprobs=3, reasoning_effort="medium",
        verbosity="low", extra_body={"top_k": 5, "safety": {"hate": "low"}},
    )  # fmt: skip
    assert request.config == c.GenerationConfig(
        max_tokens=50, temperature=0.5, top_p=0.9, top_k=5, seed=7, stop=("END", "\n"), presence_penalty=1,
        frequency_penalty=-1, candidates=2, logprobs=3,
        thinking=c.Thinking(mode=c.ThinkingMode.LEVEL, level=c.Level.MEDIUM, show=c.Show.FULL),
    )  # fmt: skip
    assert request.system
    assert "briefly" in request.system
    assert request.safety == (c.SafetySetting(harm=c.Harm.HATE, threshold=c.Threshold.LOW),)


@pytest.mark.parametrize(
    "body",
    [
        {"user": "u", "metadata": {"a": "b"}, "store": True, "service_tier": "auto", "prompt_cache_key": "k"},
        {"safety_identifier": "s", "modalities": ["text"], "logit_bias": {}, "prompt_cache_retention": "24h"},
        {"prediction": {"type": "content", "content": "Hi"}},
    ],
)
def test_what_makes_no_difference(asked, body):
    assert asked(**body) == asked()


@pytest.mark.parametrize(
    ("body", "thinking"),
    [
        ({"reasoning_effort": "none"}, c.Thinking(mode=c.ThinkingMode.OFF)),
        ({"reasoning_effort": "xhigh"}, c.Thinking(mode="level", level="high", show=True)),
        ({"extra_body": {"thinking_budget": 64}}, c.Thinking(mode="budget", budget=64, show=True)),
        ({"extra_body": {"thinking_budget": 0}}, c.Thinking(mode="off")),
        (
            {"extra_body": {"thinking_budget": -1, "include_reasoning": False}},
            c.Thinking(mode="dynamic", show=False),
        ),
    ],
)
def test_thoughts_are_wished(asked, body, thinking):
    assert asked(**body).config.thinking == thinking


NULL = {"type": "null"}


@pytest.mark.parametrize(
    ("body", "form"),
    [
        ({"response_format": {"type": "text"}}, c.Format()),
        ({"response_format": {"type": "json_object"}}, c.Format(kind="json", rule={"type": "object"})),
        (
            {"response_format": {"type": "json_schema", "json_schema": {"name": "a", "schema": NULL}}},
            c.Format(kind="json", rule=NULL),
        ),
        ({"extra_body": {"guided_choice": ["a", "b"]}}, c.Format(kind="choice", rule=("a", "b"))),
        ({"extra_body": {"guided_regex": "a+"}}, c.Format(kind="regex", rule="a+")),
        ({"extra_body": {"guided_grammar": "start: /a/"}}, c.Format(kind="lark", rule="start: /a/")),
        ({"extra_body": {"guided_grammar": 'root ::= "a"'}}, c.Format(kind="gbnf", rule='root ::= "a"')),
    ],
)  # fmt: skip
def test_forms_are_wished(asked, body, form):
    assert asked(**body).config.format == form


NAMED = {"type": "function", "function": {"name": "weather"}}
SHELL = {"type": "custom", "custom": {"name": "shell", "format": {"type": "text"}}}


@pytest.mark.parametrize(
    ("choice", "wanted"),
    [
        ("none", c.ToolChoice(mode="none")),
        ("auto", c.ToolChoice()),
        ("required", c.ToolChoice(mode="any")),
        (NAMED, c.ToolChoice(mode="any", allowed=("weather",))),
        ({"type": "custom", "custom": {"name": "shell"}}, c.ToolChoice(mode="any", allowed=("shell",))),
        (
            {"type": "allowed_tools", "allowed_tools": {"mode": "auto", "tools": [NAMED]}},
            c.ToolChoice(allowed=("weather",)),
        ),
        (
            {"type": "allowed_tools", "allowed_tools": {"mode": "required", "tools": [NAMED]}},
            c.ToolChoice(mode="any", allowed=("weather",)),
        ),
    ],
)
def test_tools_are_chosen(asked, choice, wanted):
    request = asked(tools=[WEATHER, SHELL], tool_choice=choice)
    assert request.tool_choice == wanted
    assert [tool.name for tool in request.tools] == ["weather", "shell"]
    assert request.tools[0].parameters == WEATHER["function"]["parameters"]
    assert not asked(tools=[WEATHER], parallel_tool_calls=False).tool_choice.parallel


# --- tools ------------------------------------------------------------------------------------------------

CALL = '{"name": "weather", "arguments": {"town": "Turin"}}'


def test_the_loop_of_a_function(serve):
    engine = speaking(["<tool_call>", CALL, EOS, "It rains in Turin."])
    client, messages = client_of(serve(engine).url), [user("Weather in Turin?")]
    first = client.chat.completions.create(model="stub", messages=messages, tools=[WEATHER]).choices[0]
    assert first.finish_reason == "tool_calls"
    assert first.message.content is None
    (call,) = first.message.tool_calls
    assert (call.type, call.function.name) == ("function", "weather")
    assert json.loads(call.function.arguments) == {"town": "Turin"}
    messages += [first.message, {"role": "tool", "tool_call_id": call.id, "content": '{"sky": "rain"}'}]
    second = client.chat.completions.create(model="stub", messages=messages, tools=[WEATHER]).choices[0]
    assert (second.message.content, second.finish_reason) == ("It rains in Turin.", "stop")
    prompt = engine.says.detokenize(engine.says.seen[-1].completion.prompt)
    assert '{"sky": "rain"}' in prompt
    assert '{"town": "Turin"}' in prompt


def test_several_calls_whole_and_in_a_stream(serve):
    calls = [c.Call(name="weather", arguments={"town": town}, id=f"call_{town}") for town in ("A", "B")]
    deltas = [*[c.Delta(part=call) for call in calls], done()]
    client = client_of(serve(Exactly(deltas, deltas, deltas)).url)
    body: Any = {"model": "stub", "messages": [user("?")], "tools": [WEATHER]}
    whole = client.chat.completions.create(**body).choices[0]
    assert [call.id for call in whole.message.tool_calls] == ["call_A", "call_B"]
    pieces = [chunk.choices[0] for chunk in client.chat.completions.create(**body, stream=True)]
    made = [call for piece in pieces for call in piece.delta.tool_calls or ()]
    assert [(call.index, call.id, call.function.arguments) for call in made] == [
        (0, "call_A", '{"town": "A"}'), (1, "call_B", '{"town": "B"}'),
    ]  # fmt: skip
    assert pieces[-1].finish_reason == "tool_calls"
    with client.chat.completions.stream(**body) as stream:
        events = [event for event in stream if event.type == "tool_calls.function.arguments.done"]
        final = stream.get_final_completion()
    assert [event.parsed_arguments for event in events] == [{"town": "A"}, {"town": "B"}]
    assert len(final.choices[0].message.tool_calls) == 2


def test_results_of_one_turn(asked):
    calls = [
        {"id": f"c{n}", "type": "function", "function": {"name": "weather", "arguments": '{"town": "T"}'}}
        for n in (1, 2)
    ]
    request = asked(
        messages=[
            user("?"),
            {"role": "assistant", "tool_calls": calls},
            {"role": "tool", "tool_call_id": "c2", "content": "rain"},
            {"role": "tool", "tool_call_id": "c1", "content": [{"type": "text", "text": "sun"}]},
            user("And?"),
        ]
    )
    called = [c.Call(name="weather", arguments={"town": "T"}, id=f"c{n}") for n in (1, 2)]
    results = [c.CallResult(name="weather", result=r, id=i) for i, r in (("c2", "rain"), ("c1", "sun"))]
    assert request.contents[1:] == (c.model(*called), c.user(*results), c.user("And?"))


def test_signatures_go_round(serve):
    call = c.Call(name="weather", arguments={"town": "A"}, id="x", signature=b"\x00sign")
    engine = Exactly([c.Delta(part=call), done()], [done()])
    client = client_of(serve(engine).url)
    message = (
        client.chat.completions.create(model="stub", messages=[user("?")], tools=[WEATHER]).choices[0].message
    )
    assert message.tool_calls[0].extra_content == {"google": {"thought_signature": "AHNpZ24="}}
    client.chat.completions.create(
        model="stub", messages=[user("?"), message, {"role": "tool", "tool_call_id": "x", "content": "."}]
    )
    assert engine.requests[1].contents[1] == c.model(call)


def test_custom_tools(serve):
    tool: Any = {
        "type": "custom",
        "custom": {
            "name": "shell",
            "format": {"type": "grammar", "grammar": {"syntax": "regex", "definition": "ls( -[al]+)?"}},
        },
    }
    said = '{"name": "shell", "arguments": {"input": "ls -la"}}'
    engine = speaking(["<tool_call>", said, EOS, "rm -rf"])
    client = client_of(serve(engine).url)
    body: Any = {"model": "stub", "messages": [user("?")], "tools": [tool]}
    (call,) = client.chat.completions.create(**body).choices[0].message.tool_calls
    assert (call.type, call.custom.name, call.custom.input) == ("custom", "shell", "ls -la")
    assert (
        client.chat.completions.create(**body, tool_choice="required")
        .choices[0]
        .message.tool_calls[0]
        .custom.input.startswith("ls")
    )
    tool["custom"]["format"]["grammar"] = {"syntax": "lark", "definition": "start: nowhere"}
    with pytest.raises(openai.BadRequestError, match=r"this grammar cannot be enforced: .*nowhere"):
        client.chat.completions.create(**body)


SQL = """start: "SELECT " NAME (", " NAME)* " FROM " NAME
NAME: /[a-z]{1,8}/
"""
"""A grammar as OpenAI's guide writes them."""


def test_the_input_of_a_custom_tool_is_of_its_lark_grammar(serve):
    tool: Any = {
        "type": "custom",
        "custom": {
            "name": "sql",
            "description": "Asks the database.",
            "format": {"type": "grammar", "grammar": {"syntax": "lark", "definition": SQL}},
        },
    }
    said = ["<tool_call>", 'sql\nSELECT "x", town FROM map; DROP', EOS]
    engine = speaking([*said, "sql\nSELECT a FROM b", EOS, "Rome.", '{"name": "weather", "arg', EOS])
    client = client_of(serve(engine).url)
    body: Any = {"model": "stub", "messages": [user("Which towns?")], "tools": [tool]}
    (call,) = client.chat.completions.create(**body).choices[0].message.tool_calls
    assert (call.type, call.custom.name) == ("custom", "sql")
    assert re.fullmatch(r"SELECT [a-z]{1,8}(, [a-z]{1,8})* FROM [a-z]{1,8}", call.custom.input)
    prompt = engine.says.detokenize(engine.says.seen[0].completion.prompt)
    assert SQL in prompt
    assert "Asks the database." in prompt
    forced = client.chat.completions.create(**body, tool_choice="required").choices[0].message.tool_calls
    assert forced[0].custom.input == "SELECT a FROM b"
    # Its call is read back as it was written.
    history = [user("Which towns?"), {"role": "assistant", "tool_calls": [call.model_dump()]}]
    history += [{"role": "tool", "tool_call_id": call.id, "content": "Rome"}]
    client.chat.completions.create(**body | {"messages": history})
    prompt = engine.says.detokenize(engine.says.seen[-1].completion.prompt)
    assert f"<tool_call>\nsql\n{call.custom.input}\n</tool_call>" in prompt
    # Functions beside it are called in JSON.
    both = client.chat.completions.create(**body | {"tools": [WEATHER, tool]}, tool_choice="required")
    (other,) = both.choices[0].message.tool_calls
    assert (other.type, other.function.name) == ("function", "weather")
    json.loads(other.function.arguments)


def test_biases_of_tokens(serve):
    engine = Exactly([done()])
    client = client_of(serve(engine).url)
    client.chat.completions.create(model="stub", messages=[user("?")], logit_bias={"50256": -100, "7": 2})
    assert engine.requests[0].config.bias == ((50256, -100.0), (7, 2.0))


# --- forms and thoughts -----------------------------------------------------------------------------------


def test_the_answer_is_parsed(serve):
    engine = speaking(['{"name": "Ada", "year": 1815}', "nonsense", '{"name": "A'])
    client = client_of(serve(engine).url)
    parsed = client.chat.completions.parse(model="stub", messages=[user("Who?")], response_format=Fact)
    assert parsed.choices[0].message.parsed == Fact(name="Ada", year=1815)
    forced = client.chat.completions.parse(model="stub", messages=[user("Who?")], response_format=Fact)
    assert isinstance(forced.choices[0].message.parsed, Fact)
    with pytest.raises(openai.LengthFinishReasonError):
        client.chat.completions.parse(
            model="stub", messages=[user("?")], response_format=Fact, max_completion_tokens=5
        )


def test_a_stream_is_parsed(serve):
    client = client_of(serve(speaking(['{"name": "Ada", "year": 1815}'])).url)
    with client.chat.completions.stream(
        model="stub", messages=[user("Who?")], response_format=Fact
    ) as stream:
        kinds = [event.type for event in stream]
        final = stream.get_final_completion()
    assert final.choices[0].message.parsed == Fact(name="Ada", year=1815)
    assert "content.delta" in kinds
    assert kinds[-1] == "content.done"


def test_thoughts_are_told_and_counted(serve):
    engine = speaking(["Hmm.</think>", "Yes."] * 3)
    client = client_of(serve(engine).url)
    body: Any = {"model": "stub", "messages": [user("?")], "extra_body": {"thinking_budget": 100}}
    answer = client.chat.completions.create(**body)
    message = answer.choices[0].message
    assert (message.content, message.reasoning_content.strip()) == ("Yes.", "Hmm.")
    details = answer.usage.completion_tokens_details
    assert 0 < details.reasoning_tokens < answer.usage.completion_tokens
    deltas = [chunk.choices[0].delta for chunk in client.chat.completions.create(**body, stream=True)]
    thoughts = "".join(getattr(delta, "reasoning_content", None) or "" for delta in deltas)
    assert (thoughts.strip(), "".join(delta.content or "" for delta in deltas)) == ("Hmm.", "Yes.")
    body["extra_body"]["include_reasoning"] = False
    hidden = client.chat.completions.create(**body)
    assert not hasattr(hidden.choices[0].message, "reasoning_content")
    assert hidden.usage.completion_tokens_details.reasoning_tokens == details.reasoning_tokens


def test_logprobs(serve):
    client = client_of(serve(speaking(["Hi", "Hi", "Hi"])).url)
    body: Any = {"model": "stub", "messages": [user("?")]}
    assert client.chat.completions.create(**body).choices[0].logprobs is None
    tokens = client.chat.completions.create(**body, logprobs=True).choices[0].logprobs.content
    assert [(token.token, token.bytes, token.logprob) for token in tokens][:2] == [
        ("H", [72], -0.5), ("i", [105], -0.5),
    ]  # fmt: skip
    streamed = client.chat.completions.create(**body, logprobs=True, stream=True)
    told = [token.token for chunk in streamed for token in (chunk.choices[0].logprobs or Told).content]
    assert told[:2] == ["H", "i"]


class Told:
    content: tuple[Any, ...] = ()


# --- ends and streams -------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("finish", "word"),
    [
        ("stop", "stop"), ("length", "length"), ("safety", "content_filter"),
        ("recitation", "content_filter"),
        ("prohibited", "content_filter"), ("malformed_call", "length"), ("other", "length"),
    ],
)  # fmt: skip
def test_how_it_ended(serve, finish, word):
    deltas = [c.Delta(part=c.Text(text="Well")), done(finish=finish, finish_message="because")]
    client = client_of(serve(Exactly(deltas, deltas)).url)
    choice = client.chat.completions.create(model="stub", messages=[user("?")]).choices[0]
    assert choice.finish_reason == word
    assert choice.message.refusal == ("because" if word == "content_filter" else None)
    stream = client.chat.completions.create(model="stub", messages=[user("?")], stream=True)
    chunks = [chunk.choices[0] for chunk in stream]
    assert chunks[-1].finish_reason == word
    assert "".join(chunk.delta.refusal or "" for chunk in chunks) == (choice.message.refusal or "")


def test_a_prompt_that_is_withheld(serve):
    blocked = [c.Delta(blocked=c.FinishReason.SAFETY, usage=c.Usage())]
    client = client_of(serve(Exactly(blocked, blocked)).url)
    choice = client.chat.completions.create(model="stub", messages=[user("?")]).choices[0]
    assert (choice.message.content, choice.finish_reason) == (None, "content_filter")
    assert "withheld" in choice.message.refusal
    with client.chat.completions.stream(model="stub", messages=[user("?")]) as stream:
        kinds = {event.type for event in stream}
    assert "refusal.done" in kinds


def test_the_chunks_of_a_stream(serve):
    url = serve(StubEngine()).url
    body = {"model": "stub", "messages": [user("Hi")], "stream": True}
    with_usage = {**body, "stream_options": {"include_usage": True}}
    said = httpx.post(f"{url}/v1/chat/completions", json=with_usage)
    assert said.headers["content-type"].startswith("text/event-stream")
    lines = said.text.strip().split("\n\n")
    assert all(line.startswith("data: ") for line in lines)
    assert lines[-1] == "data: [DONE]"
    chunks = [json.loads(line[6:]) for line in lines[:-1]]
    for chunk in chunks:
        ChatCompletionChunk.model_validate(chunk, strict=True)
    assert chunks[0]["choices"][0]["delta"] == {"role": "assistant", "content": "", "refusal": None}
    assert chunks[-1]["choices"] == []
    assert chunks[-1]["usage"]["completion_tokens"] == 2
    assert all(chunk["usage"] is None for chunk in chunks[:-1])
    assert len({chunk["id"] for chunk in chunks}) == 1
    plain = httpx.post(f"{url}/v1/chat/completions", json=body).text
    assert '"usage"' not in plain


def test_several_answers_in_a_stream(serve):
    client = client_of(serve(speaking(["One", "Two", "Six"])).url)
    texts = {0: "", 1: "", 2: ""}
    ends = []
    stream = client.chat.completions.create(
        model="stub", messages=[user("?")], n=3, stream=True, stream_options={"include_usage": True}
    )
    for chunk in stream:
        for choice in chunk.choices:
            texts[choice.index] += choice.delta.content or ""
            ends += [choice.index] if choice.finish_reason else []
    assert sorted(texts.values()) == ["One", "Six", "Two"]
    assert sorted(ends) == [0, 1, 2]
    assert chunk.usage.completion_tokens == engine_tokens(3, 3)


def engine_tokens(answers: int, letters: int) -> int:
    return answers * letters


def test_a_stream_that_breaks(serve):
    engine = StubEngine([Reply(("Hel", "lo"), fault=UpstreamError("the other side hung up"), fault_after=1)])
    stream = client_of(serve(engine).url).chat.completions.create(
        model="stub", messages=[user("?")], stream=True
    )
    texts: list[str | None] = []
    with pytest.raises(openai.APIError, match="hung up") as told:
        texts.extend(chunk.choices[0].delta.content for chunk in stream)
    assert texts == ["", "Hel"]
    assert (told.value.type, told.value.code) == ("server_error", "upstream_error")


def test_what_fails_before_the_first_token_has_a_status(serve):
    engine = StubEngine([Reply(fault=OverloadedError("the queue is full", retry_after=0.25), fault_after=0)])
    with pytest.raises(openai.InternalServerError) as told:
        client_of(serve(engine).url).chat.completions.create(model="stub", messages=[user("?")], stream=True)
    assert told.value.status_code == 503
    assert told.value.response.headers["retry-after-ms"] == "250"


class Gate:
    """Lets so many pieces through, and then none until it is opened."""

    def __init__(self, pieces: int) -> None:
        self.left, self.open = pieces, threading.Event()

    async def __call__(self) -> None:
        self.left -= 1
        while self.left < 0 and not self.open.is_set():
            await asyncio.sleep(0.005)


def until(condition: Any) -> None:
    """Waits for what another thread brings about."""
    met = threading.Event()

    def look() -> None:
        while not condition():
            if met.wait(0.005):
                return
        met.set()

    watching = threading.Thread(target=look, daemon=True)
    watching.start()
    assert met.wait(20), "it never came about"


@pytest.mark.parametrize("pieces", [0, 1])
def test_who_goes_away_stops_the_work(serve, pieces):
    """In the midst of the answer, and before its first token."""
    gate = Gate(pieces)
    engine = StubEngine(pause=gate)
    serving = serve(engine)
    body = json.dumps({"model": "stub", "messages": [user("?")], "stream": True})
    with serving.connect() as connection:
        head = f"POST /v1/chat/completions HTTP/1.1\r\nhost: localhost\r\ncontent-length: {len(body)}\r\n\r\n"
        connection.sendall((head + body).encode())
        until(lambda: engine.running == 1)
        if pieces:
            assert b"200 OK" in connection.recv(65536)
    until(lambda: engine.cancelled)
    assert engine.running == 0


def test_a_client_that_closes_its_stream_stops_the_work(serve):
    engine = StubEngine(pause=Gate(1))
    stream = client_of(serve(engine).url).chat.completions.create(
        model="stub", messages=[user("?")], stream=True
    )
    next(iter(stream))
    stream.close()
    until(lambda: engine.cancelled)


def test_a_long_silence_is_bridged(serve, monkeypatch):
    monkeypatch.setattr(answering, "KEEP_ALIVE", 0.02)
    gate = Gate(0)
    serving = serve(StubEngine(pause=gate))
    body: Any = {"model": "stub", "messages": [user("?")], "stream": True}
    with httpx.stream("POST", f"{serving.url}/v1/chat/completions", json=body) as said:
        lines = said.iter_lines()
        assert next(lines) == ": waiting"
        gate.open.set()
        assert list(lines)[-2] == "data: [DONE]"
    gate.left = 1
    gate.open.clear()
    stream = client_of(serving.url).chat.completions.create(**body)
    chunks = iter(stream)
    next(chunks)
    threading.Timer(0.1, gate.open.set).start()
    assert [chunk.choices[0].delta.content for chunk in chunks][-2] == " there."


def test_pictures_that_the_model_makes(serve):
    picture = c.Data(media_type="image/png", data=b"PNG")
    deltas = [c.Delta(part=c.Text(text="Look:")), c.Delta(part=picture), done()]
    engine = Exactly(deltas, deltas)
    client = client_of(serve(engine).url)
    body: Any = {"model": "stub", "modalities": ["text", "image"]}
    message = client.chat.completions.create(**body, messages=[user("A fox")]).choices[0].message
    assert engine.requests[0].config.modalities == ("text", "image")
    url = "data:image/png;base64,UE5H"
    assert message.images == [{"type": "image_url", "index": 0, "image_url": {"url": url}}]
    stream = client.chat.completions.create(
        **body, messages=[user("A fox"), message, user("Again")], stream=True
    )
    images = [getattr(chunk.choices[0].delta, "images", None) for chunk in stream]
    assert [image for image in images if image] == [message.images]
    assert engine.requests[1].contents[1] == c.model("Look:", picture)


# --- errors -----------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("error", "kind", "code"),
    [
        (TooLongError("too long", where="contents"), openai.BadRequestError, "context_length_exceeded"),
        (RateLimitError("slower"), openai.RateLimitError, "rate_limit_exceeded"),
        (OverloadedError("full"), openai.InternalServerError, "server_overloaded"),
        (UpstreamError("gone"), openai.InternalServerError, "upstream_error"),
        (RuntimeError("secret"), openai.InternalServerError, "internal_error"),
    ],
)  # fmt: skip
def test_errors_of_the_engine(serve, error, kind, code):
    engine = StubEngine([Reply(fault=error, fault_after=0)])
    with pytest.raises(kind) as told:
        client_of(serve(engine).url).chat.completions.create(model="stub", messages=[user("?")])
    assert told.value.code == code
    assert "secret" not in told.value.message


def test_a_model_that_is_none(serve):
    with pytest.raises(openai.NotFoundError, match="no model of this name") as told:
        client_of(serve(StubEngine()).url).chat.completions.create(model="gpt-9", messages=[user("?")])
    assert (told.value.code, told.value.type) == ("model_not_found", "invalid_request_error")
    assert told.value.param == "model"


def _body(**more: Any) -> dict[str, Any]:
    return {"model": "stub", "messages": [user("?")]} | more


@pytest.mark.parametrize(
    ("body", "param"),
    [
        ({"messages": [user("?")]}, "model"),
        ({"model": "stub"}, "messages"),
        (_body(messages=[]), "messages"),
        (_body(messages=[{"role": "system", "content": "x"}]), "messages"),
        (_body(messages=[{"role": "robot", "content": "x"}]), "messages[0]"),
        (_body(messages=[{"role": "user", "content": [{"type": "text"}]}]), "messages[0].content[0].text"),
        (_body(messages=[{"role": "function", "name": "f", "content": "x"}]), "messages[0]"),
        (_body(messages=[{"role": "tool", "tool_call_id": "x", "content": "x"}]), "messages[0].tool_call_id"),
        (_body(temperature=3), "temperature"),
        (_body(temperature="1"), "temperature"),
        (_body(n=0), "n"),
        (_body(seed=2**63), "seed"),
        (_body(max_tokens=1, max_completion_tokens=2), "max_tokens"),
        (_body(top_logprobs=2), "top_logprobs"),
        (_body(stream_options={"include_usage": True}), "stream_options"),
        (_body(logit_bias={"fox": -100}), "logit_bias.fox"),
        (_body(logit_bias={"7": 101}), "logit_bias.7"),
        (_body(audio={"voice": "ash", "format": "wav"}), "audio"),
        (_body(functions=[{"name": "f"}]), "functions"),
        (_body(web_search_options={}), "web_search_options"),
        (_body(tool_choice="required"), "tool_choice"),
        (_body(tools=[WEATHER], tool_choice={"type": "function", "function": {"name": "f"}}), "tool_choice"),
        (_body(tools=[{"type": "function", "function": {"name": "no good"}}]), "tools[0].function.name"),
        (_body(tools=[{"type": "web_search"}]), "tools[0]"),
        (_body(colour="red"), "colour"),
        (_body(reasoning_effort="low", thinking_budget=3), "thinking_budget"),
        (_body(safety={"hate": "purple"}), "safety = {'hate': 'purple'}"),
        (
            _body(messages=[{"role": "user", "content": [{"type": "image_url", "image_url": {"url": "x"}}]}]),
            "messages[0].content[0].image_url.url",
        ),
        (
            _body(messages=[{"role": "user", "content": [{"type": "file", "file": {"file_id": "file-1"}}]}]),
            "file_id",
        ),
    ],
)
def test_bad_requests(serve, body, param):
    engine = StubEngine()
    said = httpx.post(f"{serve(engine).url}/v1/chat/completions", json=body)
    error = said.json()["error"]
    assert 400 <= said.status_code < 500 or said.status_code == 501
    assert (error["param"], error["type"]) == (param, "invalid_request_error")
    assert not engine.requests


HALF = b'{"model": "stub", "messages": [{"role": "user", "content": "\\ud83d"}]}'


@pytest.mark.parametrize("body", [b"", b"[]", b"{", b"nul", b'{"a": NaN}', b"\xff", HALF])
def test_bodies_that_are_none(serve, body):
    said = httpx.post(f"{serve(StubEngine()).url}/v1/chat/completions", content=body)
    assert said.status_code == 400
    assert said.json()["error"]["type"] == "invalid_request_error"


def test_an_explicit_context(serve):
    engine = StubEngine()
    serving = serve(engine)
    serving.studio.contexts.create(
        Prefix(contents=(c.user("The book."),), system="Read."), model="stub", name="book",
        ttl=timedelta(hours=1), tokens=2,
    )  # fmt: skip
    client = client_of(serving.url)
    for name in ("book", "cachedContents/book"):
        client.chat.completions.create(
            model="stub", messages=[user("Who?")], extra_body={"cached_content": name}
        )
        assert engine.requests[-1].contents == (c.user("The book."), c.user("Who?"))
        assert engine.requests[-1].system == "Read."
    with pytest.raises(openai.NotFoundError, match="no context of this name"):
        client.chat.completions.create(
            model="stub", messages=[user("Who?")], extra_body={"cached_content": "none"}
        )
    with pytest.raises(openai.BadRequestError, match="no system of its own") as told:
        client.chat.completions.create(
            model="stub",
            messages=[{"role": "system", "content": "x"}, user("Who?")],
            extra_body={"cached_content": "book"},
        )
    assert told.value.param == "cached_content"

"""responses, by the official client."""

from __future__ import annotations

import asyncio
import json
from typing import Any

import httpx
import openai
import pytest
from openai.types.responses import Response, ResponseStreamEvent
from pydantic import BaseModel, TypeAdapter
from talking import Exactly, client_of, done, speaking

from language.stub import EOS, Reply, StubEngine
from studiolo.language import conversation as c
from studiolo.language.errors import RateLimitError, TooLongError, UpstreamError

WEATHER: Any = {
    "type": "function",
    "name": "weather",
    "description": "The weather of a town.",
    "parameters": {"type": "object", "properties": {"town": {"type": "string"}}, "required": ["town"]},
    "strict": True,
}
EVENTS: TypeAdapter[Any] = TypeAdapter(ResponseStreamEvent)


class Fact(BaseModel):
    name: str
    year: int


def test_a_response_with_its_usage(serve):
    usage = c.Usage(prompt=9, cached=4, answer=2, thoughts=3)
    engine = StubEngine([Reply(("Hel", "lo."), usage=usage)])
    answer = client_of(serve(engine).url).responses.create(
        model="stub", input="Hi", instructions="Be kind.", temperature=0.5, metadata={"a": "b"}
    )
    Response.model_validate(answer.model_dump(by_alias=True), strict=True)
    assert (answer.status, answer.output_text, answer.error) == ("completed", "Hello.", None)
    assert (answer.usage.input_tokens, answer.usage.output_tokens, answer.usage.total_tokens) == (9, 5, 14)
    assert answer.usage.input_tokens_details.cached_tokens == 4
    assert answer.usage.output_tokens_details.reasoning_tokens == 3
    assert (answer.metadata, answer.temperature, answer.instructions) == ({"a": "b"}, 0.5, "Be kind.")
    (request,) = engine.requests
    assert (request.system, request.contents, request.config.temperature) == (
        "Be kind.", (c.user("Hi"),), 0.5,
    )  # fmt: skip


@pytest.fixture
def asked(serve):
    """What the engine is asked where the client asks for this."""

    def ask(**body: Any) -> c.Request:
        engine = StubEngine()
        client_of(serve(engine).url).responses.create(**{"model": "stub", "input": "Hi"} | body)
        return engine.requests[0]

    return ask


def test_wishes(asked):
    request = asked(
        max_output_tokens=50, top_p=0.9, top_logprobs=3, reasoning={"effort": "low", "summary": "auto"},
        text={"verbosity": "low", "format": {"type": "json_object"}},
        extra_body={"top_k": 5, "seed": 7, "stop": ["END"], "safety": "high"},
    )  # fmt: skip
    assert request.config == c.GenerationConfig(
        max_tokens=50, top_p=0.9, top_k=5, seed=7, stop=("END",), logprobs=3,
        thinking=c.Thinking(mode="level", level="low", show=c.Show.SUMMARY),
        format=c.Format(kind="json", rule={"type": "object"}),
    )  # fmt: skip
    assert request.system
    assert "briefly" in request.system
    assert {setting.threshold for setting in request.safety} == {c.Threshold.HIGH}


def test_items(asked):
    request = asked(
        input=[
            {"role": "developer", "content": "Be short."},
            {
                "type": "message",
                "role": "user",
                "content": [
                    {"type": "input_text", "text": "What is it?"},
                    {"type": "input_image", "image_url": "data:image/png;base64,aGk=", "detail": "auto"},
                    {"type": "input_file", "filename": "a.txt", "file_data": "aGk="},
                    {"type": "input_file", "file_url": "https://example.org/a.pdf"},
                ],
            },
            {"type": "reasoning", "id": "rs_1", "summary": [], "content": [
                {"type": "reasoning_text", "text": "Hm."}], "encrypted_content": "AHM="},
            {"type": "message", "role": "assistant", "id": "msg_1", "status": "completed", "content": [
                {"type": "output_text", "text": "A", "annotations": []},
                {"type": "output_text", "text": "B", "annotations": []}]},
            {"type": "function_call", "call_id": "c1", "name": "weather", "arguments": '{"town": "T"}'},
            {"type": "function_call", "call_id": "c2", "name": "weather", "arguments": '{"town": "U"}'},
            {"type": "function_call_output", "call_id": "c2", "output": "rain"},
            {"type": "function_call_output", "call_id": "c1", "output": [
                {"type": "input_text", "text": "sun"},
                {"type": "input_image", "image_url": "data:image/png;base64,aGk="}]},
            {"role": "user", "content": "So?"},
        ]
    )  # fmt: skip
    picture = c.Data(media_type="image/png", data=b"hi")
    calls = [c.Call(name="weather", arguments={"town": town}, id=i) for town, i in (("T", "c1"), ("U", "c2"))]
    assert request.system == "Be short."
    assert request.contents == (
        c.user(
            "What is it?",
            picture,
            c.Data(media_type="text/plain", data=b"hi", name="a.txt"),
            c.FileRef(uri="https://example.org/a.pdf", media_type="application/pdf"),
        ),
        c.model(c.Thought(text="Hm.", signature=b"\0s"), "A", "B", *calls),
        c.user(
            c.CallResult(name="weather", result="rain", id="c2"),
            c.CallResult(name="weather", result="sun", id="c1", media=(picture,)),
            "So?",
        ),
    )


@pytest.mark.parametrize(
    ("choice", "wanted"),
    [
        ("none", c.ToolChoice(mode="none")),
        ("required", c.ToolChoice(mode="any")),
        ({"type": "function", "name": "weather"}, c.ToolChoice(mode="any", allowed=("weather",))),
        (
            {"type": "allowed_tools", "mode": "auto", "tools": [{"type": "function", "name": "weather"}]},
            c.ToolChoice(allowed=("weather",)),
        ),
    ],
)
def test_tools_are_chosen(asked, choice, wanted):
    request = asked(tools=[WEATHER, {"type": "custom", "name": "shell"}], tool_choice=choice)
    assert request.tool_choice == wanted
    assert [tool.name for tool in request.tools] == ["weather", "shell"]


def test_the_loop_of_a_function(serve):
    engine = speaking(
        ["<tool_call>", '{"name": "weather", "arguments": {"town": "Turin"}}', EOS, "It rains."]
    )
    client = client_of(serve(engine).url)
    items: list[Any] = [{"role": "user", "content": "Weather in Turin?"}]
    first = client.responses.create(model="stub", input=items, tools=[WEATHER])
    (call,) = first.output
    assert (call.type, call.name, json.loads(call.arguments)) == (
        "function_call", "weather", {"town": "Turin"},
    )  # fmt: skip
    items += [*first.output, {"type": "function_call_output", "call_id": call.call_id, "output": "rain"}]
    second = client.responses.create(model="stub", input=items, tools=[WEATHER])
    assert (second.status, second.output_text) == ("completed", "It rains.")


def test_going_on_from_a_response_that_is_kept(serve):
    engine = speaking(
        ["<tool_call>", '{"name": "weather", "arguments": {"town": "Turin"}}', EOS, "Rain.", "Yes."]
    )
    client = client_of(serve(engine).url)
    first = client.responses.create(model="stub", input="Weather?", tools=[WEATHER])
    second = client.responses.create(
        model="stub",
        previous_response_id=first.id,
        input=[{"type": "function_call_output", "call_id": first.output[0].call_id, "output": "rain"}],
        tools=[WEATHER],
    )
    assert second.output_text == "Rain."
    client.responses.create(model="stub", previous_response_id=second.id, input="Sure?")
    prompt = engine.says.detokenize(engine.says.seen[-1].completion.prompt)
    order = [prompt.index(said) for said in ("Weather?", '"Turin"', "rain", "Rain.", "Sure?")]
    assert order == sorted(order)


def test_what_is_kept_is_fetched_and_deleted(serve):
    client = client_of(serve(StubEngine()).url)
    made = client.responses.create(
        model="stub", input=[{"role": "user", "content": str(number)} for number in range(5)]
    )
    assert client.responses.retrieve(made.id).model_dump() == made.model_dump()
    texts = [item.content[0].text for item in client.responses.input_items.list(made.id, limit=2)]
    assert texts == ["4", "3", "2", "1", "0"]
    page = client.responses.input_items.list(made.id, order="asc", limit=3)
    assert ([item.content[0].text for item in page.data], page.has_more) == (["0", "1", "2"], True)
    with pytest.raises(openai.BadRequestError, match="background"):
        client.responses.cancel(made.id)
    client.responses.delete(made.id)
    for gone in (client.responses.retrieve, client.responses.delete, client.responses.input_items.list):
        with pytest.raises(openai.NotFoundError):
            gone(made.id)
    with pytest.raises(openai.NotFoundError) as told:
        client.responses.create(model="stub", input="Hi", previous_response_id=made.id)
    assert told.value.param == "previous_response_id"


def test_no_more_is_read_back_than_a_request_could_bring(serve):
    client = client_of(serve(StubEngine(), largest_body=8000).url)
    wanted = {"model": "stub", "input": "x" * 500}
    made = [client.responses.create(**wanted)]

    def go_on() -> None:
        for _ in range(20):
            made.append(client.responses.create(**wanted, previous_response_id=made[-1].id))

    with pytest.raises(openai.APIStatusError, match="more than 8,000 bytes") as told:
        go_on()
    assert (told.value.status_code, told.value.param) == (413, "previous_response_id")
    assert client.responses.retrieve(made[-1].id).id == made[-1].id  # by itself it is read all the same


def test_what_is_not_to_be_kept_is_not(serve):
    client = client_of(serve(StubEngine()).url)
    made = client.responses.create(model="stub", input="Hi", store=False)
    assert made.to_dict()["store"] is False
    with pytest.raises(openai.NotFoundError):
        client.responses.retrieve(made.id)


# --- forms, thoughts, ends --------------------------------------------------------------------------------


def test_the_answer_is_parsed(serve):
    client = client_of(serve(speaking(['{"name": "Ada", "year": 1815}'] * 2)).url)
    parsed = client.responses.parse(model="stub", input="Who?", text_format=Fact)
    assert parsed.output_parsed == Fact(name="Ada", year=1815)
    with client.responses.stream(model="stub", input="Who?", text_format=Fact) as stream:
        texts = [event.delta for event in stream if event.type == "response.output_text.delta"]
        final = stream.get_final_response()
    assert final.output_parsed == Fact(name="Ada", year=1815)
    assert json.loads("".join(texts)) == {"name": "Ada", "year": 1815}


def test_thoughts(serve):
    deltas = [
        c.Delta(part=c.Thought(text="Hm", signature=b"\0s")),
        c.Delta(part=c.Thought(text="m.")),
        c.Delta(part=c.Text(text="Yes.")),
        done(usage=c.Usage(prompt=5, answer=1, thoughts=2)),
    ]
    client = client_of(serve(Exactly(*[deltas] * 4)).url)
    body: Any = {"model": "stub", "input": "?", "include": ["reasoning.encrypted_content"]}
    thought, message = client.responses.create(**body, reasoning={"effort": "low"}).output
    assert (thought.type, thought.content[0].text, thought.summary) == ("reasoning", "Hmm.", [])
    assert thought.encrypted_content == "AHM="
    assert (message.type, message.content[0].text) == ("message", "Yes.")
    summed, _ = client.responses.create(**body, reasoning={"effort": "low", "summary": "auto"}).output
    assert (summed.summary[0].text, summed.content) == ("Hmm.", None)
    for reasoning, kind in (
        ({"effort": "low"}, "response.reasoning_text"),
        ({"effort": "low", "summary": "auto"}, "response.reasoning_summary_text"),
    ):
        with client.responses.stream(**body, reasoning=reasoning) as stream:
            events = list(stream)
        assert [event.delta for event in events if event.type == f"{kind}.delta"] == ["Hm", "m."]
        assert [event.text for event in events if event.type == f"{kind}.done"] == ["Hmm."]


@pytest.mark.parametrize(
    ("finish", "status", "reason"),
    [
        ("stop", "completed", None), ("length", "incomplete", "max_output_tokens"),
        ("safety", "incomplete", "content_filter"), ("malformed_call", "incomplete", "max_output_tokens"),
    ],
)  # fmt: skip
def test_how_it_ended(serve, finish, status, reason):
    deltas = [c.Delta(part=c.Text(text="Well")), done(finish=finish, finish_message="because")]
    client = client_of(serve(Exactly(deltas, deltas)).url)
    answer = client.responses.create(model="stub", input="?")
    assert answer.status == status
    assert (answer.incomplete_details.reason if answer.incomplete_details else None) == reason
    assert answer.output_text == "Well"
    refusals = [part.refusal for item in answer.output for part in item.content if part.type == "refusal"]
    assert refusals == (["because"] if reason == "content_filter" else [])
    with client.responses.stream(model="stub", input="?") as stream:
        assert [event.type for event in stream][-1] == f"response.{status}"


def test_a_prompt_that_is_withheld(serve):
    engine = Exactly([c.Delta(blocked=c.FinishReason.SAFETY, usage=c.Usage())])
    answer = client_of(serve(engine).url).responses.create(model="stub", input="?")
    assert answer.incomplete_details.reason == "content_filter"
    assert "withheld" in answer.output[0].content[0].refusal


def test_logprobs(serve):
    client = client_of(serve(speaking(["Hi", "Hi"])).url)
    include = ["message.output_text.logprobs"]
    part = client.responses.create(model="stub", input="?", include=include).output[0].content[0]
    assert [(token.token, token.logprob) for token in part.logprobs][:2] == [("H", -0.5), ("i", -0.5)]
    assert client.responses.create(model="stub", input="?").output[0].content[0].logprobs is None


def test_custom_tools(serve):
    call = c.Call(name="shell", arguments={"input": "ls"}, id="c1")
    engine = Exactly([c.Delta(part=call), done()], [c.Delta(part=call), done()], [done()])
    client = client_of(serve(engine).url)
    tools: Any = [
        {
            "type": "custom",
            "name": "shell",
            "format": {"type": "grammar", "syntax": "regex", "definition": "l.*"},
        }
    ]
    first = client.responses.create(model="stub", input="?", tools=tools)
    (made,) = first.output
    assert (made.type, made.name, made.input) == ("custom_tool_call", "shell", "ls")
    with client.responses.stream(model="stub", input="?", tools=tools) as stream:
        kinds = [event.type for event in stream]
    assert "response.custom_tool_call_input.done" in kinds
    client.responses.create(
        model="stub",
        previous_response_id=first.id,
        input=[{"type": "custom_tool_call_output", "call_id": "c1", "output": "a b"}],
    )
    assert engine.requests[-1].contents[1:] == (
        c.model(call),
        c.user(c.CallResult(name="shell", result="a b", id="c1")),
    )


def test_pictures_that_the_model_makes(serve):
    picture = c.Data(media_type="image/png", data=b"PNG")
    deltas = [
        c.Delta(part=c.Text(text="Look:")),
        c.Delta(part=picture),
        c.Delta(part=c.Text(text="Nice?")),
        done(),
    ]
    engine = Exactly(deltas, deltas)
    client = client_of(serve(engine).url)
    first = client.responses.create(model="stub", input="A fox")
    assert [item.type for item in first.output] == ["message", "image_generation_call", "message"]
    assert (first.output[1].result, first.output[1].status) == ("UE5H", "completed")
    with client.responses.stream(model="stub", input="?", previous_response_id=first.id) as stream:
        assert "response.image_generation_call.completed" in [event.type for event in stream]
    assert engine.requests[1].contents[1] == c.model("Look:", picture, "Nice?")


# --- events -----------------------------------------------------------------------------------------------


def test_the_events_of_a_stream(serve):
    call = c.Call(name="weather", arguments={"town": "A"}, id="c1")
    deltas = [
        c.Delta(part=c.Thought(text="Hm")),
        c.Delta(part=c.Text(text="Let ")),
        c.Delta(part=c.Text(text="me.")),
        c.Delta(part=call),
        done(),
    ]
    url = serve(Exactly(deltas, deltas)).url
    body = {"model": "stub", "input": "?", "tools": [WEATHER], "stream": True}
    said = httpx.post(f"{url}/v1/responses", json=body)
    assert said.headers["content-type"].startswith("text/event-stream")
    told = [event.split("\n") for event in said.text.strip().split("\n\n")]
    assert all(name == f"event: {json.loads(data[6:])['type']}" for name, data in told)
    events = [EVENTS.validate_python(json.loads(data[6:])) for _, data in told]
    assert [event.type.removeprefix("response.") for event in events] == [
        "created", "in_progress",
        "output_item.added", "content_part.added", "reasoning_text.delta", "reasoning_text.done",
        "content_part.done", "output_item.done",
        "output_item.added", "content_part.added", "output_text.delta", "output_text.delta",
        "output_text.done", "content_part.done", "output_item.done",
        "output_item.added", "function_call_arguments.delta", "function_call_arguments.done",
        "output_item.done", "completed",
    ]  # fmt: skip
    assert [event.sequence_number for event in events] == list(range(len(events)))
    final = events[-1].response
    done_items = [event.item for event in events if event.type == "response.output_item.done"]
    assert final.output == done_items
    with client_of(url).responses.stream(model="stub", input="?", tools=[WEATHER]) as stream:
        collected = stream.get_final_response()
    assert [item.type for item in collected.output] == ["reasoning", "message", "function_call"]


def test_a_stream_that_breaks(serve):
    engine = StubEngine([Reply(("Hel", "lo"), fault=UpstreamError("the other side hung up"), fault_after=1)])
    serving = serve(engine)
    events = list(client_of(serving.url).responses.create(model="stub", input="?", stream=True))
    assert [event.type for event in events][-2:] == ["error", "response.failed"]
    error, failed = events[-2:]
    assert (error.code, "hung up" in error.message) == ("upstream_error", True)
    assert (failed.response.status, failed.response.error.code) == ("failed", "server_error")
    with pytest.raises(openai.NotFoundError):
        client_of(serving.url).responses.retrieve(failed.response.id)


def test_what_fails_before_the_first_token_has_a_status(serve):
    faults = [RateLimitError("slower", retry_after=2.0), TooLongError("too long", where="contents")]
    client = client_of(serve(StubEngine([Reply(fault=fault, fault_after=0) for fault in faults])).url)
    with pytest.raises(openai.RateLimitError) as told:
        client.responses.create(model="stub", input="?", stream=True)
    assert told.value.response.headers["retry-after"] == "2"
    with pytest.raises(openai.BadRequestError) as told:
        client.responses.create(model="stub", input="?", stream=True)
    assert (told.value.code, told.value.param) == ("context_length_exceeded", "input")


def test_the_asynchronous_client(serve):
    url = serve(StubEngine()).url

    async def talk() -> tuple[str, str]:
        async with openai.AsyncOpenAI(base_url=f"{url}/openai/v1", api_key="k") as client:
            whole = await client.responses.create(model="stub", input="Hi")
            async with client.responses.stream(model="stub", input="Hi") as stream:
                final = await stream.get_final_response()
            return whole.output_text, final.output_text

    assert asyncio.run(talk()) == ("Hello there.", "Hello there.")


def test_counting_the_prompt(serve):
    client = client_of(serve(Exactly()).url)
    assert client.responses.input_tokens.count(model="stub", input="Hi").input_tokens == 7


def _body(**more: Any) -> dict[str, Any]:
    return {"model": "stub", "input": "?"} | more


@pytest.mark.parametrize(
    ("body", "param"),
    [
        ({"input": "?"}, "model"),
        ({"model": "stub"}, "input"),
        (_body(input=[]), "input"),
        (_body(input=7), "input"),
        (_body(input=[{"role": "system", "content": "x"}]), "input"),
        (_body(input=[{"type": "item_reference", "id": "msg_1"}]), "input[0]"),
        (_body(input=[{"type": "web_search_call", "id": "x"}]), "input[0]"),
        (_body(input=[{"role": "user", "content": [{"type": "text", "text": "x"}]}]), "input[0].content[0]"),
        (_body(input=[{"type": "function_call_output", "call_id": "x", "output": "x"}]), "input[0].call_id"),
        (_body(tools=[{"type": "web_search"}]), "tools[0]"),
        (_body(tools=[{"type": "mcp", "server_label": "x"}]), "tools[0]"),
        (_body(tool_choice={"type": "image_generation"}), "tool_choice"),
        (_body(background=True, store=False), "store"),
        (_body(conversation="conv_1"), "conversation"),
        (_body(truncation="auto"), "truncation"),
        (_body(prompt={"id": "p"}), "prompt"),
        (_body(previous_response_id="resp_none"), "previous_response_id"),
        (_body(text={"format": {"type": "json_schema", "name": "a"}}), "text.format.schema"),
        (_body(include=["everything"]), "include[0]"),
        (_body(n=2), "n"),
    ],
)
def test_bad_requests(serve, body, param):
    engine = StubEngine()
    said = httpx.post(f"{serve(engine).url}/v1/responses", json=body)
    error = said.json()["error"]
    assert said.status_code in (400, 404)
    assert (error["param"], error["type"]) == (param, "invalid_request_error")
    assert not engine.requests

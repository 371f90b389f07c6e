"""OpenAI's client, the whole server, and real models: SmolLM2 speaks, MiniLM makes vectors."""

from __future__ import annotations

import asyncio
import json
import math
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import openai
import pytest
from pydantic import BaseModel, Field
from serving import running
from talking import client_of, user

from pulled import pulled, weights_for_tests
from studiolo.language.embedders import MiniLM
from studiolo.server.settings import Settings
from studiolo.server.starting import open_studio

GREEDY: dict[str, Any] = {"model": "smollm2", "temperature": 0, "max_completion_tokens": 24}
WEATHER: Any = {
    "type": "function",
    "function": {
        "name": "weather",
        "description": "The weather in a town.",
        "parameters": {
            "type": "object",
            "properties": {
                "town": {"type": "string", "maxLength": 12},
                "unit": {"type": "string", "enum": ["celsius", "kelvin"]},
            },
            "required": ["town", "unit"],
        },
    },
}


class Capital(BaseModel):
    city: str = Field(max_length=20)
    inhabitants: int = Field(ge=0, le=10**8)


@pytest.fixture
def client(studiolo_home: Path) -> Iterator[openai.OpenAI]:
    weights_for_tests("smollm2")
    weights_for_tests("minilm")
    studio = open_studio(Settings(data=studiolo_home, model="smollm2", preload=False, port=0))
    with running(studio) as (_, port):
        yield client_of(f"http://127.0.0.1:{port}")


def test_words_whole_and_in_pieces_are_the_same(client):
    chat = client.chat.completions
    whole = chat.create(**GREEDY, messages=[user("Count to five.")])
    stream = chat.create(
        **GREEDY,
        messages=[user("Count to five.")],
        stream=True,
        stream_options={"include_usage": True},
    )
    chunks = list(stream)
    words = "".join(chunk.choices[0].delta.content or "" for chunk in chunks if chunk.choices)
    assert words == whole.choices[0].message.content
    assert len(words) > 5
    assert len(chunks) > 5
    assert chunks[-1].usage.completion_tokens == whole.usage.completion_tokens <= 24
    # The second time, most of the prompt is there already.
    assert chunks[-1].usage.prompt_tokens_details.cached_tokens > whole.usage.prompt_tokens / 2


def test_a_response_goes_on_from_another(client):
    body: Any = {"model": "smollm2", "temperature": 0, "max_output_tokens": 16}
    first = client.responses.create(**body, input="My name is Ada. Say hello.")
    second = client.responses.create(**body, input="And now goodbye.", previous_response_id=first.id)
    by_hand = client.responses.create(
        **body, input=[user("My name is Ada. Say hello."), *first.output, user("And now goodbye.")]
    )
    assert second.output_text == by_hand.output_text
    assert second.usage.input_tokens == by_hand.usage.input_tokens > first.usage.input_tokens
    with client.responses.stream(**body, input="My name is Ada. Say hello.") as stream:
        last = list(stream)[-1]
    assert last.type == f"response.{first.status}"
    assert last.response.output_text == first.output_text


def test_a_schema_is_kept_to(client):
    answer = client.chat.completions.parse(
        model="smollm2", temperature=0, messages=[user("A capital of Europe?")], response_format=Capital
    )
    assert isinstance(answer.choices[0].message.parsed, Capital)
    parsed = client.responses.parse(model="smollm2", input="A capital of Europe?", text_format=Capital)
    assert isinstance(parsed.output_parsed, Capital)
    guided = client.chat.completions.create(
        **GREEDY, messages=[user("The sky is")], extra_body={"guided_regex": "(blue|grey)!"}
    )
    assert guided.choices[0].message.content in ("blue!", "grey!")


def test_the_loop_of_a_function(client):
    messages: list[Any] = [user("How is the weather in Rome?")]
    body: Any = {"model": "smollm2", "temperature": 0, "tools": [WEATHER]}
    chat = client.chat.completions
    first = chat.create(**body, messages=messages, tool_choice="required", parallel_tool_calls=False)
    (call,) = first.choices[0].message.tool_calls
    arguments = json.loads(call.function.arguments)
    assert arguments["unit"] in ("celsius", "kelvin")
    assert len(arguments["town"]) <= 12
    messages += [first.choices[0].message, {"role": "tool", "tool_call_id": call.id, "content": "sunny, 25"}]
    second = chat.create(**body, messages=messages, tool_choice="none", max_completion_tokens=24)
    assert second.choices[0].message.content
    assert second.usage.prompt_tokens > first.usage.prompt_tokens / 2


def test_thoughts_within_their_budget(client):
    answer = client.chat.completions.create(
        model="smollm2", messages=[user("What is 2 + 2?")], max_completion_tokens=64, seed=1,
        extra_body={"thinking_budget": 12},
    )  # fmt: skip
    assert 0 < answer.usage.completion_tokens_details.reasoning_tokens <= 12
    assert answer.choices[0].message.reasoning_content


def test_logprobs_are_of_the_tokens_that_were_said(client):
    choice = client.chat.completions.create(
        **GREEDY,
        messages=[user("Say hello.")],
        logprobs=True,
        top_logprobs=2,
        frequency_penalty=0,
        presence_penalty=0,
    ).choices[0]
    said = b"".join(bytes(token.bytes) for token in choice.logprobs.content)
    assert said.decode(errors="ignore").startswith(choice.message.content[:10])
    for token in choice.logprobs.content:
        assert len(token.top_logprobs) == 2
        assert token.logprob == pytest.approx(token.top_logprobs[0].logprob, abs=1e-3)  # greedy


def test_vectors_are_the_embedders(client):
    texts = ["a cat on a mat", "a kitten on a rug", "tax law"]
    told = client.embeddings.create(model="minilm", input=texts)
    expected = [list(map(float, row)) for row in _vectors(texts)]
    for vector, right in zip(told.data, expected, strict=True):
        assert vector.embedding == pytest.approx(right, abs=1e-6)
    first, second, third = (vector.embedding for vector in told.data)
    assert _cosine(first, second) > _cosine(first, third)
    assert told.usage.prompt_tokens > 10


def _cosine(one: list[float], other: list[float]) -> float:
    """Of unit vectors."""
    return math.fsum(a * b for a, b in zip(one, other, strict=True))


def _vectors(texts: list[str]) -> Any:
    return asyncio.run(MiniLM(pulled("minilm")).embed(texts))


def test_the_models_that_are_here(client):
    kinds = {model.id: model.kind for model in client.models.list()}
    assert kinds["smollm2"] == "chat"
    assert kinds["minilm"] == "embedding"
    with pytest.raises(openai.BadRequestError):
        client.chat.completions.create(model="minilm", messages=[user("Hi")])


def test_a_prompt_that_is_too_long(client):
    with pytest.raises(openai.BadRequestError) as told:
        client.chat.completions.create(model="smollm2", messages=[user("word " * 20000)])
    assert (told.value.code, told.value.param) == ("context_length_exceeded", "messages")

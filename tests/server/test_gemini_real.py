"""Google's client, the whole server, and real models: SmolLM2 speaks, MiniLM makes vectors."""

from __future__ import annotations

import asyncio
import math
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from gemini_stub import client_of
from google import genai
from google.genai import errors, types
from pydantic import BaseModel, Field
from serving import running

from pulled import pulled, weights_for_tests
from studiolo.language.embedders import MiniLM
from studiolo.server.settings import Settings
from studiolo.server.starting import open_studio

GREEDY: dict[str, Any] = {"temperature": 0, "max_output_tokens": 24}


class Capital(BaseModel):
    city: str = Field(max_length=20)
    country: str = Field(max_length=20)


@pytest.fixture
def client(studiolo_home: Path) -> Iterator[genai.Client]:
    weights_for_tests("smollm2")
    weights_for_tests("minilm")
    studio = open_studio(Settings(data=studiolo_home, model="smollm2", preload=False, port=0))
    with running(studio) as (_, port):
        yield client_of(f"http://127.0.0.1:{port}")


def test_words_whole_and_in_pieces_are_the_same(client):
    whole = client.models.generate_content(model="smollm2", contents="Count to five.", config=GREEDY)
    chunks = list(
        client.models.generate_content_stream(model="smollm2", contents="Count to five.", config=GREEDY)
    )
    assert len(chunks) > 3
    assert "".join(chunk.text or "" for chunk in chunks) == whole.text
    usage = chunks[-1].usage_metadata
    assert usage.total_token_count == usage.prompt_token_count + usage.candidates_token_count
    assert usage.prompt_token_count == whole.usage_metadata.prompt_token_count
    assert usage.cached_content_token_count > 0  # of the first question
    counted = client.models.count_tokens(model="smollm2", contents="Count to five.").total_tokens
    assert counted == usage.prompt_token_count
    if usage.candidates_token_count == 24:
        assert chunks[-1].candidates[0].finish_reason == types.FinishReason.MAX_TOKENS


def test_schemas_choices_and_calls_hold_whatever_the_model_would_say(client):
    config = types.GenerateContentConfig(
        response_mime_type="application/json", response_schema=Capital, max_output_tokens=99, temperature=0
    )
    answer = client.models.generate_content(model="smollm2", contents="A capital of Europe?", config=config)
    assert isinstance(answer.parsed, Capital)
    config = types.GenerateContentConfig(
        response_mime_type="text/x.enum", response_schema={"type": "STRING", "enum": ["red", "blue"]}
    )
    answer = client.models.generate_content(model="smollm2", contents="The sky is", config=config)
    assert answer.text in ("red", "blue")
    called = []

    def weather(town: str) -> str:
        """The weather of a town."""
        called.append(town)
        return "sunny"

    tools = types.GenerateContentConfig(
        tools=[weather],
        tool_config=types.ToolConfig(function_calling_config=types.FunctionCallingConfig(mode="ANY")),
        automatic_function_calling=types.AutomaticFunctionCallingConfig(maximum_remote_calls=2),
        max_output_tokens=200,
        temperature=0,
    )
    client.models.generate_content(model="smollm2", contents="How is the weather in Rome?", config=tools)
    assert called
    assert all(isinstance(town, str) for town in called)


def test_a_context_is_not_read_twice(client):
    book = "The studiolo of Federico was finished in 1476. " * 20
    made = client.caches.create(
        model="smollm2", config=types.CreateCachedContentConfig(contents=book, ttl="600s")
    )
    config = types.GenerateContentConfig(cached_content=made.name, **GREEDY)
    answer = client.models.generate_content(model="smollm2", contents="When?", config=config)
    usage = answer.usage_metadata
    assert made.usage_metadata.total_token_count > 200
    assert usage.cached_content_token_count >= made.usage_metadata.total_token_count
    assert usage.prompt_token_count > usage.cached_content_token_count


def test_thoughts_are_counted_apart_and_the_budget_is_kept(client):
    config = types.GenerateContentConfig(
        thinking_config=types.ThinkingConfig(include_thoughts=True, thinking_budget=16), **GREEDY
    )
    answer = client.models.generate_content(model="smollm2", contents="What is 2 + 2?", config=config)
    assert 0 < answer.usage_metadata.thoughts_token_count <= 16
    assert answer.candidates[0].content.parts[0].thought


def test_tokens_are_those_of_the_model(client):
    enterprise = client_of(str(client._api_client._http_options.base_url), vertexai=True)
    said = "Die Straße, 世界 🤪 <|im_end|>"
    answer = enterprise.models.compute_tokens(model="smollm2", contents=[said, "Hi"])
    first, second = answer.tokens_info
    assert (first.role, b"".join(first.tokens).decode()) == ("user", said)
    assert (second.role, second.tokens) == ("user", [b"Hi"])
    assert all(len(info.tokens) == len(info.token_ids) for info in answer.tokens_info)
    assert len(first.tokens) > 12  # the name of a control token is letters, where somebody says it
    with pytest.raises(errors.ServerError, match="counted, and not told"):
        enterprise.models.compute_tokens(model="minilm", contents="Hi")


def test_probabilities(client):
    config = types.GenerateContentConfig(response_logprobs=True, logprobs=2, **GREEDY)
    answer = client.models.generate_content(model="smollm2", contents="Hi", config=config)
    result = answer.candidates[0].logprobs_result
    assert len(result.chosen_candidates) == answer.usage_metadata.candidates_token_count
    for chosen, top in zip(result.chosen_candidates, result.top_candidates, strict=True):
        assert chosen.log_probability <= 0
        assert top.candidates[0].log_probability >= top.candidates[1].log_probability
        assert top.candidates[0].token_id == chosen.token_id  # the likeliest was taken


def test_vectors_are_those_of_the_embedder(client):
    texts = ["A dog runs.", "Un cane corre.", "Interest rates rose."]
    answer = client.models.embed_content(model="minilm", contents=texts)
    found = [embedding.values for embedding in answer.embeddings]
    wanted = asyncio.run(MiniLM(pulled("minilm")).embed(texts)).tolist()
    for one, other in zip(found, wanted, strict=True):
        assert one == pytest.approx(other, abs=1e-5)
    cut = client.models.embed_content(model="minilm", contents="A dog", config={"output_dimensionality": 64})
    assert math.hypot(*cut.embeddings[0].values) == pytest.approx(1)
    with pytest.raises(errors.ClientError):
        client.models.generate_content(model="minilm", contents="Speak!")


def test_models_tell_what_they_can(client):
    models = {model.name: model for model in client.models.list()}
    assert "generateContent" in models["models/smollm2"].supported_actions
    assert models["models/minilm"].supported_actions == ["countTokens", "embedContent", "batchEmbedContents"]


def test_media_are_refused_in_words(client):
    picture = types.Part.from_bytes(data=b"\x89PNG", mime_type="image/png")
    with pytest.raises(errors.ClientError, match="reads text only") as error:
        client.models.generate_content(model="smollm2", contents=[picture, "What is this?"])
    assert error.value.code == 400

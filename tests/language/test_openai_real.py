"""The engine over a real llama.cpp server, for loopback servers speak only what we believe it to speak."""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Callable, Iterator
from pathlib import Path
from typing import Any, TypeVar

import pytest

from studiolo.language.collect import collected
from studiolo.language.conversation import (
    FinishReason,
    Format,
    FormatKind,
    GenerationConfig,
    Request,
    Response,
    Thinking,
    ThinkingMode,
    Tool,
    ToolChoice,
    ToolMode,
    user,
)
from studiolo.language.engines.openai_upstream import OpenAIUpstream
from studiolo.language.errors import AuthenticationError

T = TypeVar("T")

KEY = "the-key-of-this-server"
HELLO = Request(model="any", contents=(user("What colour is the sky?"),), system="Be brief.")


@pytest.fixture(scope="module")
def url(smollm2: Path) -> Iterator[str]:
    xllamacpp = pytest.importorskip("xllamacpp")
    params = xllamacpp.CommonParams()
    params.model.path = str(smollm2)
    params.hostnames = ["127.0.0.1"]
    params.port = 0
    params.api_keys = [KEY]
    params.ui = False
    params.verbosity = 0
    params.n_ctx = 512
    params.n_parallel = 1
    params.cpuparams.n_threads = params.cpuparams_batch.n_threads = 1
    server = xllamacpp.Server(params)
    yield f"{server.listening_address}/v1"
    del server


def with_engine(url: str, what: Callable[[OpenAIUpstream], Awaitable[T]], key: str = KEY) -> T:
    async def go() -> T:
        engine = OpenAIUpstream("smollm2", base_url=url, dialect="llamacpp", key=key)
        try:
            return await what(engine)
        finally:
            await engine.close()

    return asyncio.run(go())


def ask(url: str, request: Request = HELLO, **config: Any) -> Response:
    request = request.model_copy(update={"config": GenerationConfig(temperature=0.0, **config)})
    return with_engine(url, lambda engine: collected(engine.generate(request)))


def test_a_choice_is_kept_to_and_tokens_are_counted_alike(url):
    response = ask(url, format=Format(kind=FormatKind.CHOICE, rule=('"red"', "blue, or so")))
    assert response.text in ('"red"', "blue, or so")
    assert response.candidates[0].finish is FinishReason.STOP
    assert response.usage.prompt == with_engine(url, lambda engine: engine.count_tokens(HELLO))


def test_the_bound_the_logprobs_and_the_prefix_that_is_reused(url):
    response = ask(url, max_tokens=3, logprobs=2, seed=1)
    assert response.candidates[0].finish is FinishReason.LENGTH
    assert response.usage.answer == 3
    logprobs = response.candidates[0].logprobs
    assert b"".join(bytes(token.bytes) for token in logprobs).decode() == response.text
    assert all(len(token.top) == 2 and token.logprob <= 0 for token in logprobs)
    again = ask(url, max_tokens=3, seed=1)
    assert again.text == response.text
    assert 0 < again.usage.cached < again.usage.prompt


def test_a_schema_and_a_stop_text(url):
    schema = {"type": "object", "properties": {"sky": {"enum": ["blue"]}}, "required": ["sky"],
              "additionalProperties": False}  # fmt: skip
    response = ask(url, format=Format(kind=FormatKind.JSON, rule=schema))
    assert response.text.replace(" ", "").replace("\n", "") == '{"sky":"blue"}'
    assert (
        ask(url, format=Format(kind=FormatKind.GBNF, rule='root ::= "one two"'), stop=("tw",)).text == "one "
    )


def test_a_call_that_the_server_does_not_force_is_missed(url):
    """This model's template knows no tools: the server leaves them out, and says nothing."""
    request = HELLO.model_copy(
        update={"tools": (Tool(name="weather"),), "tool_choice": ToolChoice(mode=ToolMode.ANY)}
    )
    response = ask(url, request, stop=(" ",), thinking=Thinking(mode=ThinkingMode.OFF))
    assert response.calls == ()
    assert response.candidates[0].finish is FinishReason.MALFORMED_CALL
    assert "none was" in response.candidates[0].finish_message


def test_names_and_a_wrong_key(url):
    assert with_engine(url, lambda engine: engine.models())
    with pytest.raises(AuthenticationError):
        with_engine(url, lambda engine: collected(engine.generate(HELLO)), key="another-key")

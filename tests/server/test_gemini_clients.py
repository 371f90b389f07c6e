"""Google's own client in three generations, unchanged: the same round, the same answers."""

from __future__ import annotations

import json
from typing import Any

import pytest
from gemini_stub import Scripted, done
from sdks import toured
from serving import serving

from studiolo.language import conversation as c
from studiolo.language.errors import RateLimitError, UpstreamError

CLIENTS = {"installed": None, "2.34.0": "2.34.0", "1.75.0": "1.75.0"}
SEARCHED = (
    "'tools[0].google_search' is not supported: there is no such tool here; declare a function, and answer "
    "its calls."
)


def said(request: c.Request) -> list[Any]:
    """What the model says to each question of the tour."""
    last = request.contents[-1]
    if results := [part for part in last.parts if isinstance(part, c.CallResult)]:
        result = results[0].result
        return [f"The sky is {result.get('sky') or result['result']['sky']}."]
    match last.text:
        case "hello":
            return ["Hel", "lo."]
        case "person":
            return ['{"name": "Ada", ', '"age": 36}']
        case "mood":
            return ["glad"]
        case "think":
            usage = c.Usage(prompt=5, answer=1, thoughts=3)
            return [c.Delta(part=c.Thought(text="Hm.")), "Yes.", done(usage=usage)]
        case "likely":
            other = c.TokenLogprob(token="No", bytes=(), logprob=-2.0, id=2)
            chosen = c.TokenLogprob(token="Yes", bytes=(), logprob=-0.5, id=1, top=(other,))
            return [c.Delta(part=c.Text(text="Yes"), logprobs=(chosen,))]
        case "weather?":
            return [c.Delta(part=c.Call(name="weather", arguments={"town": "Rome"}, id="call_1"))]
        case "cached":
            return [f"{request.contents[0].text}, {request.system}"]
        case "what did I say?":
            return [" | ".join(f"{turn.role}: {turn.text}" for turn in request.contents)]
        case "too much":
            return [RateLimitError("too many requests", retry_after=1.5)]
        case "break off":
            return ["Well", UpstreamError("the connection failed")]
        case "block":
            verdict = c.Verdict(harm=c.Harm.HATE, probability="high", blocked=True)
            return [c.Delta(blocked=c.FinishReason.SAFETY, verdicts=(verdict,), usage=c.Usage(prompt=1))]
        case "withhold":
            verdict = c.Verdict(harm=c.Harm.HATE, probability="high", blocked=True)
            return [done(finish=c.FinishReason.SAFETY, verdicts=(verdict,))]
    raise AssertionError(last)


@pytest.fixture(params=CLIENTS, scope="module")
def tour(request, tmp_path_factory) -> dict[str, Any]:
    """What a client of that version made of everything, by the kind of client."""
    engine, newer = Scripted(said), Scripted(said, model="gemini-embedding-2")
    home = tmp_path_factory.mktemp("home")
    with serving(home, {"stub": engine, "gemini-embedding-2": newer}) as served:
        told = toured("gemini_tour.py", served.url, version=CLIENTS[request.param])
    return told | {"first": engine.requests[0].model_dump(mode="json")}


@pytest.fixture(params=["developer", "enterprise", "project"])
def told(tour, request) -> dict[str, Any]:
    return {**tour[request.param], "kind": request.param}


def test_words(told):
    assert told["text"] == ["Hello.", "STOP", "stub", True, [5, 2, 7], [["TEXT", 5]]]
    assert told["streamed"] == [["Hel", "lo.", ""], "STOP", 7]
    assert told["asynchronous"] == ["Hello.", ["Hel", "lo.", ""], "The sky is blue over Rome.", 2]


def test_the_request_arrives_as_it_was_meant(tour):
    request = c.Request.model_validate(tour["first"])
    assert request.system == "Be kind."
    assert request.config == c.GenerationConfig(
        temperature=0.5, top_p=0.9, top_k=40, seed=7, max_tokens=99, stop=("END",), presence_penalty=0.5,
        frequency_penalty=0.25,
    )  # fmt: skip
    assert request.safety == (c.SafetySetting(harm=c.Harm.HATE, threshold=c.Threshold.HIGH),)


def test_schemas(told):
    assert told["parsed"] == [{"name": "Ada", "age": 36}, "Person"]
    assert json.loads(told["json_schema"]) == {"name": "Ada", "age": 36}
    assert told["chosen"] == ["glad", "GLAD"]


def test_thoughts_and_probabilities(told):
    assert told["thoughts"] == ["Yes.", [["Hm.", True], ["Yes.", False]], 3]
    assert told["logprobs"] == [-0.5, [["Yes", 1, -0.5]], [["No"]]]


def test_functions(told):
    assert told["calls_by_hand"] == ["weather", {"town": "Rome"}, True, "The sky is blue over Rome."]
    text, roles = told["calls_by_themselves"]
    assert text == "The sky is blue over Rome."
    assert roles[:3] == ["user", "model", "user"]


def test_a_chat_remembers_streamed_answers_as_they_were(told):
    """Clients keep a streamed answer in pieces; to the model it is one turn again."""
    first, second, third = told["chat"]
    assert (first, second) == ("Hello.", "The sky is blue over Rome.")
    assert third == (
        "user: hello | model: Hello. | user: weather? | model:  | user:  | "
        "model: The sky is blue over Rome. | user: what did I say?"
    )


def test_cached_contents(told):
    name = "models/stub"
    assert told["caches"] == [
        "book", name, 6, 60.0, "a long book, Be brief.", True, True, [404, "NOT_FOUND"]
    ]  # fmt: skip


def test_counts_and_vectors(told):
    assert told["counted"] == 2  # a text of two parts: "one twothree"
    assert told["embedded"] == [[[1.0, 0.0], [3.0, 0.0]], [[4.0, 0.0, 0.0]]]
    assert told["embedded_anew"] == [[4.0, 0.0, 0.0]]


def test_tokens(told):
    """Part by part. The developer's client itself has no such call."""
    if told["kind"] == "developer":
        assert told["computed"].startswith("ValueError: This method is only supported")
    else:
        assert told["computed"] == [["user", [3, 4], ["one", " two"]], ["user", [5], ["three"]]]


def test_models(told):
    assert told["listed"] == [["gemini-embedding-2", "stub"], "stub"]


def test_errors(told):
    found = told["errors_of"]
    code, status, message, _, kind = found["unknown model"]
    assert (code, status, kind) == (404, "NOT_FOUND", "ClientError")
    assert message.startswith("models/nothing is not found for API version v1")
    assert found["too much"] == [
        429, "RESOURCE_EXHAUSTED", "too many requests", ["RetryInfo"], "ClientError"
    ]  # fmt: skip
    assert found["bad"][:2] == [400, "INVALID_ARGUMENT"]
    assert "'generation_config.temperature' must be at most 2" in found["bad"][2]
    assert found["search"] == [400, "INVALID_ARGUMENT", SEARCHED, ["BadRequest"], "ClientError"]
    assert found["in a stream"][0] in (502, 503)
    assert found["in a stream"][2] == "the connection failed"


def test_what_is_withheld(told):
    assert told["blocked"] == ["SAFETY", ["HARM_CATEGORY_HATE_SPEECH"]]
    assert told["withheld"] == ["SAFETY", None, [True]]

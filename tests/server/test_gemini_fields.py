"""Every field that Google's client can send is decided: taken, ignored with a reason, or refused by name."""

from __future__ import annotations

from typing import Any

import httpx
import pytest
from gemini_stub import Scripted
from google.genai import types

from studiolo.language import conversation as c
from studiolo.server.gemini.fields import ENUMS, MESSAGES
from studiolo.server.gemini.reading import camel

OTHERWISE = {
    # The client's words for what it sends as something else, or never sends.
    "EmbedContentConfig": {"httpOptions"},
    "InlinedRequest": {"config", "contents", "model"},
    "TunedModel": {"checkpoints", "endpoint", "model"},
    "TuningJob": {
        "createTime", "endTime", "error", "evaluateDatasetRuns", "experiment", "gcsMetricsUri", "pipelineJob",
        "sdkHttpResponse", "startTime", "state", "tunedModel", "tuningDataStats", "tuningJobMetadata",
        "tuningJobState", "updateTime",
    },
}  # fmt: skip
KNOWN = sorted(name for name in MESSAGES if hasattr(getattr(types, name, None), "model_fields"))


@pytest.mark.parametrize("message", KNOWN)
def test_no_field_of_the_client_is_unknown(message):
    theirs = {camel(field.alias or name) for name, field in getattr(types, message).model_fields.items()}
    assert theirs - MESSAGES[message].keys() <= OTHERWISE.get(message, set())


def test_there_are_messages_to_compare():
    assert {"Part", "GenerationConfig", "Tool", "FunctionResponsePart", "ThinkingConfig"} <= set(KNOWN)


def test_no_value_of_an_enum_is_unknown():
    decided = {"MediaProcessing": {"AGENTIC"}, "Delivery": {"URI"}}  # these values are refused
    for name, values in ENUMS.items():
        theirs = getattr(types, name.rpartition(".")[2], None)
        if theirs is not None and hasattr(theirs, "__members__"):
            left = {str(one.value).upper() for one in theirs} - set(values)
            assert left == decided.get(name, set()), name


@pytest.fixture
def ask(serve):
    engine = Scripted()
    url = f"{serve(engine).url}/v1beta/models/stub:generateContent"

    def post(part: dict[str, Any] | None = None, **config: Any) -> Any:
        parts = [{"text": "hi"}, *([part] if part else [])]
        body = {"contents": [{"parts": parts}], "generationConfig": config}
        answer = httpx.post(url, json=body).json()
        return answer["error"]["message"] if "error" in answer else engine.requests[-1]

    return post


PICTURE = {"inlineData": {"mimeType": "image/png", "data": "aGk="}}


def test_how_media_are_read_is_not_to_be_chosen(ask):
    plain = ask(PICTURE)
    for more in (
        {"mediaResolution": {"level": "MEDIA_RESOLUTION_HIGH"}},
        {"mediaProcessing": "STATIC"},
        {"audioTranscription": {"text": "hi"}},
    ):
        assert ask(PICTURE | more) == plain
    assert ask(PICTURE, mediaResolution="MEDIA_RESOLUTION_LOW") == plain
    for name, value in (
        ("mediaProcessing", "AGENTIC"),
        ("videoMetadata", {"startOffset": "1s"}),
        ("audioMetadata", {"startOffset": "1s"}),
        ("documentMetadata", {"startPage": 1}),
        ("spreadsheetMetadata", {"sheetIndex": 1}),
        ("speechMetadata", {"style": "calm"}),
    ):
        assert name[:5] in ask(PICTURE | {name: value})


def test_the_newer_words_for_the_form_of_an_answer(ask):
    schema = {"type": "object", "properties": {"a": {"type": "integer"}}}
    assert ask(responseFormat=[{"text": {"schema": schema}}]).config.format == c.Format(
        kind="json", rule=schema
    )
    assert ask(responseFormat={"text": {"mimeType": "application/json"}}).config.format == c.Format(
        kind="json"
    )
    assert ask(responseFormat=[{"text": {}}]).config == c.GenerationConfig()
    assert "response_mime_type says the same" in ask(
        responseFormat=[{"text": {"schema": schema}}], responseMimeType="application/json"
    )
    assert "two forms" in ask(responseFormat=[{"text": {}}, {"text": {}}])
    assert "one of text and image" in ask(responseFormat=[{}])
    assert "delivery" in ask(responseFormat=[{"image": {"delivery": "URI"}}])
    assert "models that speak" in ask(responseFormat=[{"image": {"aspectRatio": "16:9"}}])


@pytest.mark.parametrize(
    ("method", "path"),
    [
        ("GET", "fileSearchStores"),
        ("POST", "fileSearchStores"),
        ("GET", "fileSearchStores/x/documents"),
        ("POST", "fileSearchStores/x:importFile"),
        ("POST", "files:register"),
        ("GET", "batchPredictionJobs"),
        ("POST", "models/veo:predictLongRunning"),
        ("POST", "auth_tokens"),
    ],
)
def test_calls_that_are_not_here_say_so(serve, method, path):
    answer = httpx.request(method, f"{serve(Scripted()).url}/v1beta/{path}", headers={"x-goog-api-key": "k"})
    assert (answer.status_code, answer.json()["error"]["status"]) == (501, "UNIMPLEMENTED")


def test_wishes_that_change_nothing_here(serve):
    engine = Scripted()
    url = f"{serve(engine).url}/v1beta/models/stub:generateContent"
    body: dict[str, Any] = {
        "contents": [{"parts": [{"text": "hi"}]}],
        "tools": [{"functionDeclarations": [{"name": "f"}]}],
    }
    calling = {"functionCallingConfig": {"streamFunctionCallArguments": True}}
    for more in ({}, {"store": True}, {"store": False}, {"toolConfig": calling}, {"labels": {"a": "b"}}):
        assert httpx.post(url, json=body | more).status_code == 200
    assert all(request == engine.requests[0] for request in engine.requests)

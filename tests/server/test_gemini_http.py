"""The Gemini dialect as it goes over the wire: bytes, prefixes, keys, errors, and clients that go away."""

from __future__ import annotations

import asyncio
import json
import socket
from io import BytesIO
from typing import Any

import httpx
import pytest
from gemini_stub import HOLD, Scripted, client_of, done
from google.genai import errors
from PIL import Image

from studiolo.language import conversation as c
from studiolo.language.errors import OverloadedError, RateLimitError, UpstreamError

KEY = {"x-goog-api-key": "test-key"}
HI = {"contents": [{"parts": [{"text": "hi"}]}]}
STREAM = "/v1beta/models/stub:streamGenerateContent"


def posted(url: str, path: str, body: Any = None, **options: Any) -> httpx.Response:
    return httpx.post(url + path, json=HI if body is None else body, headers=KEY, timeout=30, **options)


def test_events_are_exactly_data_lines(serve):
    """Google's clients take comments, names of events and [DONE] for broken answers."""
    url = serve(Scripted(["Hél", "lo."])).url
    answer = posted(url, STREAM, params={"alt": "sse"})
    assert answer.headers["content-type"].startswith("text/event-stream")
    assert answer.content.endswith(b"}\n\n")
    lines = answer.content.removesuffix(b"\n\n").split(b"\n\n")
    assert all(line.startswith(b'data: {"') and b"\n" not in line for line in lines)
    chunks = [json.loads(line.removeprefix(b"data: ")) for line in lines]
    answer_id = chunks[0]["responseId"]
    said = {"modelVersion": "stub", "responseId": answer_id}
    assert chunks == [
        {"candidates": [{"index": 0, "content": {"parts": [{"text": "Hél"}], "role": "model"}}]} | said,
        {"candidates": [{"index": 0, "content": {"parts": [{"text": "lo."}], "role": "model"}}]} | said,
        {
            "candidates": [
                {"index": 0, "content": {"parts": [{"text": ""}], "role": "model"}, "finishReason": "STOP"}
            ],
            "usageMetadata": {
                "promptTokenCount": 5,
                "candidatesTokenCount": 2,
                "totalTokenCount": 7,
                "promptTokensDetails": [{"modality": "TEXT", "tokenCount": 5}],
                "candidatesTokensDetails": [{"modality": "TEXT", "tokenCount": 2}],
            },
        }
        | said,
    ]


def test_without_alt_sse_the_stream_is_a_json_array(serve):
    url = serve(Scripted(["Hel", "lo."])).url
    events = posted(url, STREAM, params={"alt": "sse"}).text
    answer = posted(url, STREAM)
    assert answer.headers["content-type"] == "application/json"
    chunks = [json.loads(line.removeprefix("data: ")) for line in events.split("\n\n") if line]
    assert [_anonymous(chunk) for chunk in answer.json()] == [_anonymous(chunk) for chunk in chunks]


def _anonymous(chunk: dict[str, Any]) -> dict[str, Any]:
    return {name: value for name, value in chunk.items() if name != "responseId"}


@pytest.mark.parametrize("alt", ["sse", "json"])
def test_pieces_go_out_as_they_come(serve, alt):
    engine = Scripted(["Hel", HOLD])
    url = serve(engine).url
    with httpx.stream("POST", url + STREAM, params={"alt": alt}, json=HI, headers=KEY) as answer:
        first = next(answer.iter_bytes())
        assert b'"Hel"' in first
        assert engine.held.wait(10)


@pytest.mark.parametrize("alt", ["sse", "json"])
def test_an_error_within_a_stream(serve, alt):
    url = serve(Scripted(["Hel", UpstreamError("the connection failed")])).url
    answer = posted(url, STREAM, params={"alt": alt})
    assert answer.status_code == 200
    said = {"error": {"code": 502, "message": "the connection failed", "status": "UNAVAILABLE"}}
    if alt == "sse":
        assert json.loads(answer.text.split("\n\n")[1].removeprefix("data: ")) == said
    else:
        assert answer.json()[1] == said


def test_an_error_before_the_first_piece_has_a_status_of_its_own(serve):
    url = serve(Scripted([RateLimitError("too many", retry_after=2.5)])).url
    for path in (STREAM, STREAM + "?alt=sse", "/v1beta/models/stub:generateContent"):
        answer = posted(url, path)
        assert answer.status_code == 429
        assert answer.headers["retry-after"] == "3"
        (detail,) = answer.json()["error"]["details"]
        assert detail == {"@type": "type.googleapis.com/google.rpc.RetryInfo", "retryDelay": "2.5s"}


def test_the_server_s_own_failures_are_enveloped_and_tell_nothing(serve):
    answer = posted(serve(Scripted([RuntimeError("secret")])).url, "/v1beta/models/stub:generateContent")
    assert answer.status_code == 500
    assert answer.json()["error"]["status"] == "INTERNAL"
    assert "secret" not in answer.text


def test_overload(serve):
    url = serve(Scripted([OverloadedError("the queue is full", retry_after=1)])).url
    error = posted(url, "/v1beta/models/stub:generateContent").json()["error"]
    assert (error["code"], error["status"]) == (503, "UNAVAILABLE")


@pytest.mark.parametrize(
    "prefix",
    [
        "/v1",
        "/v1beta",
        "/v1alpha",
        "/gemini/v1beta",
        "/v1beta1/publishers/google",
        "/v1/publishers/google",
        "/v1beta1/projects/p/locations/l/publishers/google",
        "/v1/projects/p/locations/l",
    ],
)
def test_prefixes(serve, prefix):
    url = serve(Scripted(["Hello."])).url + prefix
    answer = posted(url, "/models/stub:generateContent")
    assert answer.json()["candidates"][0]["content"]["parts"] == [{"text": "Hello."}]
    assert posted(url, "/models/stub:countTokens").json()["totalTokens"] == 1
    assert posted(url, "/models/stub:embedContent", {"content": {"parts": {"text": "hi"}}}).status_code == 200
    assert httpx.get(f"{url}/models", headers=KEY).json()["models"][0]["name"] == "models/stub"
    assert httpx.get(f"{url}/models/stub", headers=KEY).json()["inputTokenLimit"] == 4096


def test_a_key_in_the_query_tells_the_dialect_too(serve):
    url = serve(Scripted()).url
    assert "models" in httpx.get(f"{url}/v1/models?key=test").json()
    assert "models" not in httpx.get(f"{url}/v1/models").json()


@pytest.mark.parametrize(
    ("path", "status", "word"),
    [
        ("/v1beta/models/nothing:generateContent", 404, "NOT_FOUND"),
        ("/v1beta/models/stub:doWhatIMean", 405, "UNIMPLEMENTED"),
        ("/v1beta/nothing", 404, "NOT_FOUND"),
    ],
)
def test_what_is_not_there(serve, path, status, word):
    answer = posted(serve(Scripted()).url, path)
    assert answer.status_code == status
    assert answer.json()["error"]["code"] == status
    assert answer.json()["error"]["status"] == word


@pytest.mark.parametrize(
    "body", [b"", b"{", b"[]", b"null", b'"a"', b'{"contents": NaN}', b"\xff\xfe", b"[" * 9999]
)
def test_bodies_that_are_none(serve, body):
    url = serve(Scripted()).url
    for verb in ("generateContent", "streamGenerateContent", "countTokens", "batchEmbedContents", "predict"):
        answer = httpx.post(f"{url}/v1beta/models/stub:{verb}", content=body, headers=KEY)
        assert answer.status_code == 400
        assert answer.json()["error"]["status"] == "INVALID_ARGUMENT"


def test_every_violation_names_its_field(serve):
    body = HI | {"generationConfig": {"top_pp": 1, "temperature": 9}, "tools": [{"codeExecution": {}}]}
    error = posted(serve(Scripted()).url, "/v1beta/models/stub:generateContent", body).json()["error"]
    (detail,) = error["details"]
    assert detail["@type"] == "type.googleapis.com/google.rpc.BadRequest"
    fields = [violation["field"] for violation in detail["fieldViolations"]]
    assert fields == ["generation_config", "generation_config.temperature", "tools[0].code_execution"]


# --- clients that go away ----------------------------------------------------------------------------------


@pytest.mark.parametrize("said", [[HOLD], ["Hel", HOLD]], ids=["before the first piece", "after it"])
@pytest.mark.parametrize(
    "verb", ["generateContent", "streamGenerateContent?alt=sse", "streamGenerateContent"]
)
def test_a_client_that_goes_away_ends_the_engine_s_work(serve, said, verb):
    engine = Scripted(said)
    served = serve(engine)
    body = json.dumps(HI).encode()
    head = (
        f"POST /v1beta/models/stub:{verb} HTTP/1.1\r\nhost: localhost\r\nx-goog-api-key: k\r\n"
        f"content-type: application/json\r\ncontent-length: {len(body)}\r\n\r\n"
    )
    with served.connect() as connection:
        connection.sendall(head.encode() + body)
        assert engine.held.wait(10)
        assert not engine.cancelled.is_set()
        connection.shutdown(socket.SHUT_RDWR)
    assert engine.cancelled.wait(10)


def test_closing_the_client_s_stream_ends_the_engine_s_work(serve):
    engine = Scripted(["Hel", HOLD])
    client = client_of(serve(engine).url)

    async def read_one() -> str:
        async with client.aio as asynchronous:
            stream = await asynchronous.models.generate_content_stream(model="stub", contents="hi")
            first = await anext(stream)
            await stream.aclose()
        return str(first.text)

    assert asyncio.run(read_one()) == "Hel"
    assert engine.cancelled.wait(10)


# --- counting, vectors, models, contexts -------------------------------------------------------------------


def test_counts(serve):
    url = serve(Scripted()).url
    path = "/v1beta/models/stub:countTokens"
    assert posted(url, path).json() == {
        "totalTokens": 1,
        "promptTokensDetails": [{"modality": "TEXT", "tokenCount": 1}],
    }
    whole = {"model": "models/stub", **HI, "systemInstruction": {"parts": {"text": "a b"}}}
    assert posted(url, path, {"generateContentRequest": whole}).json()["totalTokens"] == 3
    said = {"contents": [*HI["contents"], {"role": "model", "parts": {"text": "a b"}}]}
    assert posted(url, path, said).json()["totalTokens"] == 4  # with the user's next turn
    assert posted(url, path, {"generateContentRequest": whole | {"model": "models/x"}}).status_code == 400


def test_vectors(serve):
    url = serve(Scripted()).url
    one = {"content": {"parts": {"text": "abcd"}}, "outputDimensionality": 2.0, "taskType": "CLUSTERING"}
    answer = posted(url, "/v1beta/models/stub:embedContent", one).json()
    assert answer == {"embedding": {"values": [4.0, 0.0]}, "usageMetadata": {"promptTokenCount": 1}}
    instances = {"instances": [{"content": "ab cd", "task_type": "X"}], "parameters": {"autoTruncate": True}}
    (prediction,) = posted(url, "/v1beta/models/stub:predict", instances).json()["predictions"]
    statistics = {"truncated": False, "token_count": 2}
    assert prediction == {"embeddings": {"values": [5.0, 0.0, 0.0], "statistics": statistics}}
    for wrong in ([], [one] * 101, [one, one | {"outputDimensionality": 3}], [{"content": {"parts": []}}]):
        answer = posted(url, "/v1beta/models/stub:batchEmbedContents", {"requests": wrong})
        assert answer.status_code == 400
    picture = {"inlineData": {"mimeType": "image/png", "data": "YQ=="}}
    answer = posted(url, "/v1beta/models/stub:embedContent", {"content": {"parts": picture}})
    assert answer.status_code == 400


def test_pages_of_models(serve):
    url = serve(*(Scripted(model=f"m{number}") for number in range(5))).url + "/v1beta/models"
    names, token = [], None
    while token != "":
        query = {"pageSize": "2"} | ({"pageToken": token} if token else {})
        page = httpx.get(url, params=query, headers=KEY).json()
        names.append([model["name"] for model in page["models"]])
        token = page.get("nextPageToken", "")
    assert names == [["models/m0", "models/m1"], ["models/m2", "models/m3"], ["models/m4"]]
    assert httpx.get(url, params={"pageSize": "-1"}, headers=KEY).status_code == 400
    assert httpx.get(url, params={"pageSize": "many"}, headers=KEY).json()["error"]["code"] == 400


def test_contexts(serve):
    served = serve(Scripted(), Scripted(model="other"))
    url = served.url + "/v1beta/cachedContents"
    made = httpx.post(url, json=HI | {"model": "models/stub", "ttl": "60s"}, headers=KEY).json()
    assert made["name"].startswith("cachedContents/")
    one = f"{served.url}/v1beta/{made['name']}"
    assert httpx.get(one, headers=KEY).json() == made
    later = httpx.patch(
        one, json={"expireTime": "2026-12-31T00:00:00Z"}, params={"updateMask": "expireTime"}, headers=KEY
    )
    assert later.json()["expireTime"].startswith("2026-12-31T00:00:00")
    for body in (
        {},
        {"displayName": "x"},
        {"ttl": "-5s"},
        {"ttl": "5s", "expireTime": "2026-12-31T00:00:00Z"},
    ):
        assert httpx.patch(one, json=body, headers=KEY).status_code == 400
    used = {"cachedContent": made["name"]}
    path = "/models/stub:generateContent"
    assert posted(served.url + "/v1beta", path, HI | used).status_code == 200
    counted = {"generateContentRequest": HI | used}
    count = posted(served.url, "/v1beta/models/stub:countTokens", counted).json()
    assert (count["totalTokens"], count["cachedContentTokenCount"]) == (
        2,
        made["usageMetadata"]["totalTokenCount"],
    )
    own = HI | used | {"systemInstruction": {"parts": {"text": "Be kind."}}}
    assert posted(served.url + "/v1beta", path, own).status_code == 400
    assert posted(served.url, "/v1beta/models/other:generateContent", HI | used).status_code == 400
    assert httpx.delete(one, headers=KEY).json() == {}
    assert httpx.get(one, headers=KEY).status_code == 404
    assert posted(served.url + "/v1beta", path, HI | used).json()["error"]["status"] == "NOT_FOUND"
    for body in (HI, {"model": "models/stub"}, HI | {"model": "models/stub", "name": "cachedContents/mine"}):
        assert httpx.post(url, json=body, headers=KEY).status_code == 400
    assert httpx.post(url, json=HI | {"model": "models/nothing"}, headers=KEY).status_code == 404


def test_uploaded_files_are_read_into_the_request(serve):
    engine = Scripted()
    served = serve(engine)
    drawn = BytesIO()
    Image.new("RGB", (2, 2)).save(drawn, "PNG")
    png = drawn.getvalue()
    record = served.studio.files.add(png, owner=None, name="a.png", mime="image/png", purpose="vision")
    for uri in (f"files/{record.id}", f"{served.url}/v1beta/files/{record.id}"):
        parts = [{"fileData": {"fileUri": uri}}, {"text": "What is this?"}]
        answer = posted(served.url, "/v1beta/models/stub:generateContent", {"contents": [{"parts": parts}]})
        assert answer.status_code == 200
        picture = c.Data(media_type="image/png", data=png, name="a.png")
        assert engine.requests[-1].contents[0].parts == (picture, c.Text(text="What is this?"))
    parts = [{"fileData": {"fileUri": "files/file-000000000000000000000000"}}]
    answer = posted(served.url, "/v1beta/models/stub:generateContent", {"contents": [{"parts": parts}]})
    assert answer.status_code == 404


def test_what_an_answer_took_is_accounted_for_once(serve, monkeypatch):
    spent = []
    usage = c.Usage(prompt=5, answer=2)
    served = serve(Scripted(["Hel", "lo.", done(usage=usage)]))

    async def account(caller: Any, model: str, usage: c.Usage, *, batch: bool = False) -> float:
        spent.append((model, usage))
        return 0.0

    monkeypatch.setattr(served.studio, "account", account)
    for path in ("/v1beta/models/stub:generateContent", STREAM, STREAM + "?alt=sse"):
        posted(served.url, path)
    assert spent == [("stub", usage)] * 3


def test_blocked_prompts_and_pictures_in_answers(serve):
    verdict = c.Verdict(harm=c.Harm.HATE, probability="high", blocked=True)
    blocked = c.Delta(blocked=c.FinishReason.SAFETY, verdicts=(verdict,), usage=c.Usage(prompt=3))
    answer = posted(serve(Scripted([blocked])).url, "/v1beta/models/stub:generateContent").json()
    assert "candidates" not in answer
    rating = {"category": "HARM_CATEGORY_HATE_SPEECH", "probability": "HIGH", "blocked": True}
    assert answer["promptFeedback"] == {"blockReason": "SAFETY", "safetyRatings": [rating]}
    picture = c.Delta(part=c.Data(media_type="image/png", data=b"\xff\xfe"))
    answer = posted(serve(Scripted(["Here: ", picture])).url, "/v1beta/models/stub:generateContent").json()
    parts = answer["candidates"][0]["content"]["parts"]
    assert parts == [{"text": "Here: "}, {"inlineData": {"mimeType": "image/png", "data": "//4="}}]


def test_the_openapi_document_tells_of_the_fields(serve):
    paths = httpx.get(serve(Scripted()).url + "/openapi.json").json()["paths"]
    schema = paths["/gemini/v1beta/models/{model}:generateContent"]["post"]["requestBody"]["content"][
        "application/json"
    ]["schema"]
    config = schema["properties"]["generationConfig"]["properties"]
    assert config["temperature"] == {"type": "number", "minimum": 0, "maximum": 2}
    assert "speechConfig" not in config


COMPUTE = "/v1beta1/publishers/google/models/stub:computeTokens"


def test_tokens_are_told_as_google_tells_them(serve):
    """Numbers are texts, as the JSON form of protocol buffers has those of 64 bits; tokens are in base64."""
    turns = [{"role": "user", "parts": [{"text": "one two"}, {"text": ""}]}, {"parts": [{"text": "three"}]}]
    answer = posted(serve(Scripted()).url, COMPUTE, {"contents": turns})
    assert answer.json() == {
        "tokensInfo": [
            {"role": "user", "tokens": ["b25l", "IHR3bw=="], "tokenIds": ["3", "4"]},
            {"role": "user", "tokens": [], "tokenIds": []},
            {"tokens": ["dGhyZWU="], "tokenIds": ["5"]},
        ]
    }


@pytest.mark.parametrize(
    ("body", "status", "told"),
    [
        ({"contents": {"parts": {"text": "untold"}}}, 501, "Ask countTokens"),
        ({}, 400, "contents is not specified"),
        ({"contents": []}, 400, "contents is not specified"),
        ({"contents": {"parts": []}}, 400, "without parts"),
        ({"contents": {"parts": [{"text": "a"}, {"functionCall": {"name": "f"}}]}}, 400, "[0].parts[1]"),
        ({"contents": {"role": "system", "parts": {"text": "a"}}}, 400, "valid role"),
        ({"instances": [{"prompt": "a"}]}, 400, "instances"),
        ({"model": "other", "contents": {"parts": {"text": "a"}}}, 400, "the path"),
        ({"contents": {"parts": {"text": "é" * (2**19 + 1)}}}, 413, "1,048,576"),
    ],
)  # fmt: skip
def test_tokens_that_are_not_told(serve, body, status, told):
    error = posted(serve(Scripted()).url, COMPUTE, body).json()["error"]
    assert (error["code"], told in error["message"]) == (status, True), error
    if status == 501:
        assert error["status"] == "UNIMPLEMENTED"


def test_contexts_of_all_keys_are_bounded_together(serve):
    served = serve(Scripted(), all_contexts=1000)
    keys = [served.studio.keys.store.create(name)[0] for name in ("anna", "ben")]
    clients = [client_of(served.url, api_key=key) for key in (*keys, "any")]
    made = clients[0].caches.create(model="stub", config={"contents": "a" * 500})
    for client in clients:
        with pytest.raises(errors.ClientError, match="for everybody") as told:
            client.caches.create(model="stub", config={"contents": "a" * 500})
        assert told.value.code == 413
    clients[0].caches.delete(name=made.name)
    assert clients[1].caches.create(model="stub", config={"contents": "a" * 500}).name
    with pytest.raises(errors.ClientError, match="at most 128 letters"):
        clients[2].caches.create(model="stub", config={"contents": "a", "display_name": "a" * 129})


def test_each_key_has_contexts_of_its_own(serve):
    served = serve(Scripted())
    anna, ben = (served.studio.keys.store.create(name)[0] for name in ("anna", "ben"))
    client = client_of(served.url, api_key=anna)
    made = client.caches.create(model="stub", config={"contents": "a long book"})
    assert [one.name for one in client.caches.list()] == [made.name]
    for key in (ben, "test-key"):
        other = client_of(served.url, api_key=key)
        assert list(other.caches.list()) == []
        with pytest.raises(errors.ClientError, match="404"):
            other.models.generate_content(model="stub", contents="hi", config={"cached_content": made.name})
    answer = client.models.generate_content(model="stub", contents="hi", config={"cached_content": made.name})
    assert answer.text == "Hello there."


def test_batches_wait_while_somebody_is_answered(serve):
    engine = Scripted(["Hel", HOLD])
    served = serve(engine)
    assert not served.studio.room.busy
    with httpx.stream("POST", f"{served.url}{STREAM}?alt=sse", json=HI, headers=KEY) as answer:
        pieces = answer.iter_bytes()  # held: one that is let go of hangs up
        next(pieces)
        assert served.studio.room.busy
    assert engine.cancelled.wait(10)

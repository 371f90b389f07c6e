"""The engine over Google's API, against a loopback server that speaks the wire format."""

from __future__ import annotations

import asyncio
import base64
import json
import re
from typing import Any

import pytest
from google.genai import types

from language.loopback import Asked, Loopback, Reply
from language.weather import ASK_WEATHER, HELLO, WEATHER
from studiolo.language.collect import collected
from studiolo.language.conversation import (
    Call,
    CallResult,
    Data,
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
from studiolo.language.engines.gemini import GeminiEngine
from studiolo.language.engines.gemini_body import body_of
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

KEY = "the-secret-of-this-test"


def said(*parts: dict[str, Any], finish: str | None = None, index: int = 0, **more: Any) -> dict[str, Any]:
    candidate = {"content": {"role": "model", "parts": list(parts)}, "index": index}
    if finish:
        candidate["finishReason"] = finish
    return {"candidates": [candidate | more], "modelVersion": "m-001"}


def answering(*events: Any):
    async def handler(asked: Asked, reply: Reply) -> None:
        await reply.stream(*events)
        await reply.end()

    return handler


def ask(handler, request: Request = HELLO, **options: Any):
    """What the engine makes of the handler's answer, and what the server was asked."""

    async def go():
        async with Loopback(handler) as server:
            engine = GeminiEngine("m", base_url=server.url, key=KEY, **options)
            try:
                return await collected(engine.generate(request)), server.asked
            finally:
                await engine.close()

    return asyncio.run(go())


# --- answers ----------------------------------------------------------------------------------------------


def test_text_comes_in_pieces_with_its_usage():
    usage = {
        "promptTokenCount": 9, "cachedContentTokenCount": 4, "toolUsePromptTokenCount": 1,
        "candidatesTokenCount": 2,
        "thoughtsTokenCount": 5, "totalTokenCount": 17,
        "promptTokensDetails": [
            {"modality": "TEXT", "tokenCount": 3}, {"modality": "AUDIO", "tokenCount": 6}],
        "toolUsePromptTokensDetails": [{"modality": "TEXT", "tokenCount": 1}],
    }  # fmt: skip
    response, asked = ask(
        answering(
            said({"text": "Hel"}) | {"usageMetadata": {"promptTokenCount": 9}},
            said({"text": "lo\u2028"}, finish="STOP") | {"usageMetadata": usage},
        )
    )
    assert response.text == "Hello\u2028"
    assert response.candidates[0].finish is FinishReason.STOP
    assert response.usage == Usage(
        prompt=10, cached=4, answer=2, thoughts=5, prompt_by_modality={"text": 4, "audio": 6}
    )
    assert response.usage.total == usage["totalTokenCount"]
    assert response.model == "m"
    assert asked[0].path.endswith("/models/m:streamGenerateContent?alt=sse")
    assert asked[0].headers["x-goog-api-key"] == KEY
    assert asked[0].body == {
        "contents": [{"role": "user", "parts": [{"text": "hello"}]}],
        "generationConfig": {},
    }


@pytest.mark.parametrize("show", [True, False])
def test_thoughts_are_apart_and_their_signatures_come_back(show):
    sign = base64.b64encode(b"sig").decode()
    config = GenerationConfig(thinking=Thinking(show=show))
    response, _ = ask(
        answering(
            said({"text": "hm", "thought": True}),
            said({"text": "Yes"}),
            said({"text": "", "thoughtSignature": sign}, finish="STOP"),
        ),
        HELLO.model_copy(update={"config": config}),
    )
    content = response.candidates[0].content
    assert (content.text, content.thoughts) == ("Yes", "hm" if show else "")
    assert content.parts[-1] == Thought(text="", signature=b"sig")
    again = body_of(HELLO.model_copy(update={"contents": (user("hello"), content, user("so?"))}))
    parts = again["contents"][1]["parts"]
    assert parts[-2:] == [{"text": "Yes"}, {"text": "", "thoughtSignature": sign}]
    assert (parts[0] == {"text": "hm", "thought": True}) == show


def test_calls_are_checked_and_keep_their_signatures():
    sign = base64.b64encode(b"sig").decode()
    response, _ = ask(
        answering(
            said({"functionCall": {"name": "weather", "args": {"city": "Rome"}}, "thoughtSignature": sign}),
            said({"functionCall": {"name": "weather", "args": {"city": "Oslo"}, "id": "x"}}, finish="STOP"),
        ),
        ASK_WEATHER,
    )
    assert response.calls == (
        Call(name="weather", arguments={"city": "Rome"}, id="call_0", signature=b"sig"),
        Call(name="weather", arguments={"city": "Oslo"}, id="x"),
    )
    assert response.candidates[0].finish is FinishReason.STOP


@pytest.mark.parametrize(
    ("call", "told"),
    [
        ({"name": "weather", "args": {"city": 3}}, "$.city: 3 is not of type 'string'"),
        ({"name": "weather"}, "'city' is a required property"),
        ({"name": "clock", "args": {}}, "no tool of this request"),
    ],
)
def test_a_call_that_is_not_as_declared_is_malformed(call, told):
    response, _ = ask(answering(said({"functionCall": call}, finish="STOP")), ASK_WEATHER)
    assert response.calls == ()
    assert response.candidates[0].finish is FinishReason.MALFORMED_CALL
    assert told in response.candidates[0].finish_message


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
    response, _ = ask(answering(said({"text": text}, finish="STOP")), HELLO.model_copy(update=fields))
    assert (response.text, response.candidates[0].finish) == (text, finish)
    assert told in (response.candidates[0].finish_message or "")


@pytest.mark.parametrize(
    ("wire", "finish"),
    [
        ("STOP", FinishReason.STOP),
        ("MAX_TOKENS", FinishReason.LENGTH),
        ("SAFETY", FinishReason.SAFETY),
        ("RECITATION", FinishReason.RECITATION),
        ("BLOCKLIST", FinishReason.BLOCKLIST),
        ("PROHIBITED_CONTENT", FinishReason.PROHIBITED),
        ("SPII", FinishReason.PERSONAL),
        ("LANGUAGE", FinishReason.LANGUAGE),
        ("MALFORMED_FUNCTION_CALL", FinishReason.MALFORMED_CALL),
        ("OTHER", FinishReason.OTHER),
    ],
)
def test_finish_reasons(wire, finish):
    response, _ = ask(answering(said({"text": "x"}, finish=wire)))
    assert response.candidates[0].finish is finish
    told = None if wire in ("STOP", "MAX_TOKENS") else f"the upstream said '{wire}'"
    assert response.candidates[0].finish_message == told


@pytest.mark.filterwarnings("ignore:.*is not a valid FinishReason")
def test_a_finish_reason_of_tomorrow_is_told():
    response, _ = ask(answering(said({"text": "x"}, finish="FULL_MOON")))
    assert response.candidates[0].finish is FinishReason.OTHER
    assert response.candidates[0].finish_message == "the upstream said 'FULL_MOON'"


def test_every_finish_reason_of_the_sdk_has_its_place():
    """New ones are to be sorted by hand; these are about nothing that is asked for here."""
    from studiolo.language.engines.gemini_stream import _FINISH

    known = {reason.value for reason in types.FinishReason}
    assert set(_FINISH) <= known
    assert known - set(_FINISH) == {
        "FINISH_REASON_UNSPECIFIED", "OTHER", "IMAGE_OTHER", "NO_IMAGE", "MISSING_THOUGHT_SIGNATURE",
        "MALFORMED_RESPONSE", "ESCALATION", "PUP_LIMITED_DISABLED", "CONTINUATION"}  # fmt: skip


@pytest.mark.parametrize(
    ("wire", "blocked"),
    [
        ("SAFETY", FinishReason.SAFETY),
        ("BLOCKLIST", FinishReason.BLOCKLIST),
        ("PROHIBITED_CONTENT", FinishReason.PROHIBITED),
        ("OTHER", FinishReason.OTHER),
    ],
)
def test_a_prompt_that_is_blocked_has_no_candidate(wire, blocked):
    rating = {"category": "HARM_CATEGORY_HATE_SPEECH", "probability": "HIGH", "blocked": True}
    feedback = {
        "promptFeedback": {"blockReason": wire, "safetyRatings": [rating]},
        "usageMetadata": {"promptTokenCount": 3},
    }
    response, _ = ask(answering(feedback))
    assert (response.candidates, response.blocked, response.usage) == ((), blocked, Usage(prompt=3))
    assert [(v.harm, v.probability, v.blocked) for v in response.verdicts] == [(Harm.HATE, "high", True)]


def test_verdicts_logprobs_and_several_candidates():
    rating = {"category": "HARM_CATEGORY_DANGEROUS_CONTENT", "probability": "LOW", "probabilityScore": 0.25}
    chosen = {"token": "é", "tokenId": 7, "logProbability": -0.5}
    logprobs = {
        "chosenCandidates": [chosen],
        "topCandidates": [{"candidates": [chosen, {"token": "e", "logProbability": -1}]}],
    }
    response, asked = ask(
        answering(
            said({"text": "é"}, index=0, logprobsResult=logprobs, safetyRatings=[rating]),
            said({"text": "b"}, index=1, finish="MAX_TOKENS"),
            said(index=0, finish="STOP"),
        ),
        HELLO.model_copy(update={"config": GenerationConfig(candidates=2, logprobs=2)}),
    )
    assert [(c.text, c.finish) for c in response.candidates] == [
        ("é", FinishReason.STOP),
        ("b", FinishReason.LENGTH),
    ]
    (token,) = response.candidates[0].logprobs
    assert (token.token, token.bytes, token.logprob, token.id) == ("é", (195, 169), -0.5, 7)
    assert [(top.token, top.logprob) for top in token.top] == [("é", -0.5), ("e", -1.0)]
    (verdict,) = response.candidates[0].verdicts
    assert (verdict.harm, verdict.probability, verdict.score, verdict.blocked) == (
        Harm.DANGEROUS,
        "low",
        0.25,
        False,
    )
    assert asked[0].body["generationConfig"] == {"candidateCount": 2, "responseLogprobs": True, "logprobs": 2}


def test_a_picture_in_the_answer():
    image = {"inlineData": {"mimeType": "image/png", "data": base64.b64encode(b"\x89PNG").decode()}}
    response, _ = ask(answering(said({"text": "here: "}, image, finish="STOP")))
    assert response.candidates[0].content.parts == (
        Text(text="here: "),
        Data(media_type="image/png", data=b"\x89PNG"),
    )


# --- what is asked ----------------------------------------------------------------------------------------


def sent(**fields: Any) -> dict[str, Any]:
    """The body that reaches the server, which must be the one that was meant, through the SDK and all."""
    request = Request(**{"model": "any", "contents": (user("hi"),), **fields})
    _, asked = ask(answering(said({"text": "x"}, finish="STOP")), request)
    body = camel(asked[0].body)
    assert body == json.loads(json.dumps(body_of(request)))
    return body


# Names below these are the user's own.
_FOREIGN = {"args", "response", "parametersJsonSchema", "responseJsonSchema"}


def camel(value: Any) -> Any:
    """The SDK mixes snake_case into the names of the wire; the API takes both."""
    if isinstance(value, list):
        return [camel(inner) for inner in value]
    if not isinstance(value, dict):
        return value
    named = {re.sub("_([a-z])", lambda match: match[1].upper(), name): inner for name, inner in value.items()}
    return {name: inner if name in _FOREIGN else camel(inner) for name, inner in named.items()}


def test_everything_at_once_reaches_the_wire():
    schema = {
        "type": "object",
        "properties": {"a": {"anyOf": [{"type": "integer"}, {"const": "x"}]}},
        "$defs": {},
    }
    clock = Tool(name="clock", returns={"type": "string"})
    body = sent(
        contents=(
            user("look", Data(media_type="image/png", data=b"\x00\xff"),
                 FileRef(uri="files/1", media_type="video/mp4")),
            model("I will", Call(name="weather", arguments={"city": "Rome"}, id="a", signature=b"s"),
                  Call(name="clock", arguments={})),
            user(
                CallResult(name="weather", result={"sky": "blue"}, id="a",
                           media=(Data(media_type="image/png", data=b"p"),)),
                CallResult(name="clock", result=[1, None]),
            ),
        ),
        system="be brief",
        tools=(WEATHER, clock),
        tool_choice=ToolChoice(mode=ToolMode.VALIDATED, allowed=("clock",)),
        safety=(
            SafetySetting(harm=Harm.HATE, threshold=Threshold.LOW),
            SafetySetting(harm=Harm.CIVIC, threshold=Threshold.OFF)
        ),
        cache="cachedContents/c",
        config=GenerationConfig(
            max_tokens=5, temperature=0.0, top_p=0.5, top_k=3, seed=7, stop=("a", "b"), presence_penalty=1.0,
            frequency_penalty=-1.0, format=Format(kind=FormatKind.JSON, rule=schema),
            thinking=Thinking(mode=ThinkingMode.BUDGET, budget=64, show=True),
        ),
    )  # fmt: skip
    assert body == {
        "contents": [
            {"role": "user", "parts": [
                {"text": "look"}, {"inlineData": {"mimeType": "image/png", "data": "AP8="}},
                {"fileData": {"mimeType": "video/mp4", "fileUri": "files/1"}}]},
            {"role": "model", "parts": [
                {"text": "I will"},
                {"functionCall": {"name": "weather", "args": {"city": "Rome"}, "id": "a"},
                 "thoughtSignature": "cw=="},
                {"functionCall": {"name": "clock", "args": {}}}]},
            {"role": "user", "parts": [
                {"functionResponse": {"name": "weather", "response": {"sky": "blue"}, "id": "a",
                                      "parts": [{"inlineData": {"mimeType": "image/png", "data": "cA=="}}]}},
                {"functionResponse": {"name": "clock", "response": {"output": [1, None]}}}]},
        ],
        "systemInstruction": {"parts": [{"text": "be brief"}]},
        "tools": [{"functionDeclarations": [
            {"name": "weather", "description": "How it is outside.",
             "parametersJsonSchema": WEATHER.parameters},
            {"name": "clock", "description": "", "responseJsonSchema": {"type": "string"}}]}],
        "toolConfig": {"functionCallingConfig": {"mode": "VALIDATED", "allowedFunctionNames": ["clock"]}},
        "safetySettings": [
            {"category": "HARM_CATEGORY_HATE_SPEECH", "threshold": "BLOCK_LOW_AND_ABOVE"},
            {"category": "HARM_CATEGORY_CIVIC_INTEGRITY", "threshold": "OFF"}],
        "cachedContent": "cachedContents/c",
        "generationConfig": {
            "maxOutputTokens": 5, "temperature": 0.0, "topP": 0.5, "topK": 3, "seed": 7,
            "stopSequences": ["a", "b"],
            "presencePenalty": 1.0, "frequencyPenalty": -1.0, "responseMimeType": "application/json",
            "responseJsonSchema": schema, "thinkingConfig": {"thinkingBudget": 64, "includeThoughts": True}},
    }  # fmt: skip


@pytest.mark.parametrize(
    ("thinking", "wire"),
    [
        (Thinking(mode=ThinkingMode.OFF), {"thinkingBudget": 0, "includeThoughts": False}),
        (Thinking(show=True), {"thinkingBudget": -1, "includeThoughts": True}),
        (Thinking(show=Show.SUMMARY), {"thinkingBudget": -1, "includeThoughts": True}),
        (
            Thinking(mode=ThinkingMode.LEVEL, level=Level.LOW),
            {"thinkingLevel": "LOW", "includeThoughts": False},
        ),
    ],
)
def test_thinking(thinking, wire):
    assert sent(config=GenerationConfig(thinking=thinking))["generationConfig"] == {"thinkingConfig": wire}


def test_formats():
    wish = GenerationConfig(format=Format(kind=FormatKind.CHOICE, rule=("yes", "no")))
    assert sent(config=wish)["generationConfig"] == {
        "responseMimeType": "text/x.enum",
        "responseSchema": {"type": "STRING", "enum": ["yes", "no"]},
    }
    anything = GenerationConfig(format=Format(kind=FormatKind.JSON))
    assert body_of(HELLO.model_copy(update={"config": anything}))["generationConfig"] == {
        "responseMimeType": "application/json"}  # fmt: skip


@pytest.mark.parametrize("mode", [ToolMode.AUTO, ToolMode.NONE])
def test_where_names_cannot_be_given_only_the_allowed_are_declared(mode):
    choice = ToolChoice(mode=mode, allowed=("clock",))
    request = HELLO.model_copy(update={"tools": (WEATHER, Tool(name="clock")), "tool_choice": choice})
    body = body_of(request)
    assert body["toolConfig"] == {"functionCallingConfig": {"mode": mode.value.upper()}}
    assert [tool["name"] for tool in body["tools"][0]["functionDeclarations"]] == ["clock"]


@pytest.mark.parametrize(
    ("fields", "where"),
    [
        ({"config": GenerationConfig(format=Format(kind=FormatKind.REGEX, rule="a"))}, "config.format"),
        ({"config": GenerationConfig(stop=tuple("abcdef"))}, "config.stop"),
        ({"tools": (WEATHER,), "tool_choice": ToolChoice(parallel=False)}, "tool_choice.parallel"),
    ],
)
def test_what_the_api_has_nothing_for_is_refused_by_name(fields, where):
    with pytest.raises(UnsupportedError) as caught:
        body_of(HELLO.model_copy(update=fields))
    assert caught.value.where == where


@pytest.mark.parametrize(
    "content",
    [user(FileRef(uri="files/1")), user(Thought(text="hm")), model(CallResult(name="f", result=1))],
    ids=["no media type", "a thought of the user", "a result of the model"],
)
def test_what_contradicts_itself_is_refused(content):
    with pytest.raises(InvalidRequestError):
        body_of(HELLO.model_copy(update={"contents": (content,)}))


# --- faults -----------------------------------------------------------------------------------------------


def failing(status: int, *details: Any, **headers: str):
    async def handler(asked: Asked, reply: Reply) -> None:
        message = f"no, {asked.headers['x-goog-api-key']}"
        error = {"code": status, "message": message, "status": "SOME_STATUS", "details": list(details)}
        await reply.json({"error": error}, status, **headers)

    return handler


@pytest.mark.parametrize(
    ("status", "kind"),
    [
        (400, InvalidRequestError), (401, AuthenticationError), (403, AuthenticationError),
        (404, UnknownModelError),
        (429, RateLimitError), (500, UpstreamError), (503, OverloadedError), (504, TimedOutError),
    ],
)  # fmt: skip
def test_statuses_become_kinds_of_errors_and_the_key_stays_out(status, kind):
    with pytest.raises(kind) as caught:
        ask(failing(status))
    assert type(caught.value) is kind
    assert "no, ***" in str(caught.value)
    assert caught.value.__cause__ is None
    assert KEY not in repr(caught.value)


def test_a_key_that_is_not_valid_is_told_as_that():
    info = {"@type": "type.googleapis.com/google.rpc.ErrorInfo", "reason": "API_KEY_INVALID"}
    with pytest.raises(AuthenticationError):
        ask(failing(400, info))


@pytest.mark.parametrize(
    ("details", "headers", "seconds"),
    [
        (
            [{"@type": "type.googleapis.com/google.rpc.RetryInfo", "retryDelay": "3.5s"}],
            {"retry_after": "9"},
            3.5,
        ),
        ([{"@type": "type.googleapis.com/google.rpc.Help"}], {"retry_after": "9"}, 9),
        ([], {}, None),
    ],
)
def test_a_rate_limit_says_when_to_come_again(details, headers, seconds):
    with pytest.raises(RateLimitError) as caught:
        ask(failing(429, *details, **headers))
    assert caught.value.retry_after == seconds


def test_one_attempt_only():
    attempts = []

    async def handler(asked: Asked, reply: Reply) -> None:
        attempts.append(asked)
        reply.cut()

    with pytest.raises(UpstreamError):
        ask(handler)
    assert len(attempts) == 1


@pytest.mark.parametrize("how", ["cut", "ended early"])
def test_a_stream_that_breaks_is_an_error(how):
    async def handler(asked: Asked, reply: Reply) -> None:
        await reply.stream(said({"text": "half"}))
        if how == "cut":
            reply.cut()
        else:
            await reply.end()

    with pytest.raises(UpstreamError):
        ask(handler)


@pytest.mark.parametrize(
    "event",
    ["{not json", [1, 2], {"candidates": "x"}, {"candidates": [{"content": {"parts": [3]}}]}],
    ids=str,
)
def test_wrong_json_is_an_error_of_the_upstream(event):
    with pytest.raises(UpstreamError):
        ask(answering(event))


def test_a_page_instead_of_a_stream_is_an_error_of_the_upstream():
    async def handler(asked: Asked, reply: Reply) -> None:
        await reply.text("<html>Welcome to nginx</html>", content_type="text/html")

    with pytest.raises(UpstreamError):
        ask(handler)


def test_an_error_within_the_stream():
    error = {"error": {"code": 503, "message": "overloaded", "status": "UNAVAILABLE"}}
    with pytest.raises(OverloadedError, match="overloaded"):
        ask(answering(said({"text": "a"}), error))


@pytest.mark.parametrize("pieces", [0, 1], ids=["no answer within", "nothing more within"])
def test_silence_ends_in_time(request, pieces):
    async def handler(asked: Asked, reply: Reply) -> None:
        if pieces:
            await reply.stream(said({"text": "a"}))
        await asked.gone.wait()  # for as long as the client waits

    limits = TimeLimits(first=0.05 if not pieces else 30, between=0.05)
    with pytest.raises(TimedOutError, match=request.node.callspec.id):
        ask(handler, limits=limits)


@pytest.mark.parametrize("how", ["closed", "cancelled", "cancelled before the first piece"])
def test_who_stops_reading_hangs_up(how):
    async def go():
        asked_once = asyncio.Event()

        async def handler(asked: Asked, reply: Reply) -> None:
            asked_once.set()
            if "before" not in how:
                await reply.stream(said({"text": "a"}))
            await asked.gone.wait()

        async with Loopback(handler) as server:
            engine = GeminiEngine("m", base_url=server.url, key=KEY)
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


def test_closing_one_of_two_answers_leaves_the_other():
    async def go():
        async def handler(asked: Asked, reply: Reply) -> None:
            await reply.stream(said({"text": "a"}))
            if asked.body["contents"][0]["parts"][0]["text"] == "first":
                await asked.gone.wait()
            else:
                await server.asked[0].gone.wait()  # ends after the first has been closed
                await reply.stream(said({"text": "b"}, finish="STOP"))
                await reply.end()

        async with Loopback(handler) as server:
            engine = GeminiEngine("m", base_url=server.url, key=KEY)
            first, second = (
                engine.generate(HELLO.model_copy(update={"contents": (user(text),)}))
                for text in ("first", "second")
            )
            texts = [(await anext(first)).part.text, (await anext(second)).part.text]
            await first.aclose()
            texts += [delta.part.text async for delta in second if delta.part]
            await engine.close()
            return texts

    assert asyncio.run(go()) == ["a", "a", "b"]


# --- the rest ---------------------------------------------------------------------------------------------


def call(handler, method: str, *arguments: Any, **options: Any):
    async def go():
        async with Loopback(handler) as server:
            engine = GeminiEngine("m", base_url=server.url, key=KEY)
            try:
                return await getattr(engine, method)(*arguments, **options), server.asked
            finally:
                await engine.close()

    return asyncio.run(go())


def test_tokens_are_counted_with_tools_and_system():
    async def handler(asked: Asked, reply: Reply) -> None:
        await reply.json({"totalTokens": 12})

    request = ASK_WEATHER.model_copy(update={"system": "be brief"})
    count, asked = call(handler, "count_tokens", request)
    assert count == 12
    assert asked[0].path.endswith("/models/m:countTokens")
    whole = asked[0].body["generateContentRequest"]
    assert whole == {"model": "models/m"} | body_of(request)


def test_tokens_are_not_told():
    async def handler(asked: Asked, reply: Reply) -> None:
        raise AssertionError("nobody is asked")

    with pytest.raises(UnsupportedError, match="does not tell them"):
        call(handler, "tokenize", ["a"])


def test_embeddings_are_unit_vectors():
    async def handler(asked: Asked, reply: Reply) -> None:
        await reply.json({"embeddings": [{"values": [3.0, 4.0, 12.0]}, {"values": [0.0, 2.0, 0.0]}]})

    vectors, asked = call(handler, "embed", ["a", "b"], dimensions=2)
    assert vectors == [pytest.approx([0.6, 0.8]), [0.0, 1.0]]
    assert asked[0].path.endswith("/models/m:batchEmbedContents")
    assert [request["outputDimensionality"] for request in asked[0].body["requests"]] == [2, 2]
    texts = [part["text"] for request in asked[0].body["requests"] for part in request["content"]["parts"]]
    assert texts == ["a", "b"]


def test_too_few_vectors_are_an_error_of_the_upstream():
    async def handler(asked: Asked, reply: Reply) -> None:
        await reply.json({"embeddings": [{"values": [1.0]}]})

    with pytest.raises(UpstreamError):
        call(handler, "embed", ["a", "b"])


def test_the_key_comes_from_the_environment_and_is_never_shown(monkeypatch):
    monkeypatch.delenv("GOOGLE_API_KEY", raising=False)
    monkeypatch.setenv("GEMINI_API_KEY", KEY)
    engine = GeminiEngine("m")
    assert KEY not in repr(engine) + str(vars(engine))
    monkeypatch.delenv("GEMINI_API_KEY")
    with pytest.raises(AuthenticationError, match="GEMINI_API_KEY or GOOGLE_API_KEY"):
        GeminiEngine("m")

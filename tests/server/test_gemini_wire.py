"""The Gemini dialect's messages: read as Google reads them, refused in Google's words, written as its types
read them."""

from __future__ import annotations

import base64
import json
from contextlib import suppress
from datetime import UTC, datetime, timedelta
from typing import Any

import pytest
from google.genai import types
from hypothesis import given
from hypothesis import strategies as st

from studiolo.language import conversation as c
from studiolo.language.collect import collected_now
from studiolo.language.decoding.schema import normalised
from studiolo.language.engines import gemini_body
from studiolo.language.errors import InvalidRequestError, UnknownContextError, UnsupportedError
from studiolo.server.gemini import names
from studiolo.server.gemini.fields import ENUMS, MESSAGES, Support
from studiolo.server.gemini.reading import _SCALARS, WireError, camel, read, snake
from studiolo.server.gemini.wire_request import request_of
from studiolo.server.gemini.wire_response import Chunks, response_of
from studiolo.server.sse import dumps

HI = {"contents": [{"role": "user", "parts": [{"text": "hi"}]}]}


def asked(**more: Any) -> c.Request:
    return request_of(HI | more, "m")


def configured(**config: Any) -> c.GenerationConfig:
    return asked(generationConfig=config).config


def refusal(**more: Any) -> str:
    with pytest.raises(InvalidRequestError) as error:
        asked(**more)
    return f"{error.value.where}: {error.value.message}"


# --- the table ---------------------------------------------------------------------------------------------


def test_every_field_is_of_a_kind_that_can_be_read_and_says_why_where_it_is_not_supported():
    for message, fields in MESSAGES.items():
        for name, field in fields.items():
            assert field.type in MESSAGES or field.type in ENUMS or field.type in _SCALARS, (message, name)
            assert field.note or field.support is Support.SUPPORTED, (message, name)


@pytest.mark.parametrize(
    ("message", "type_"),
    [
        ("Content", types.Content),
        ("Part", types.Part),
        ("Blob", types.Blob),
        ("FileData", types.FileData),
        ("FunctionCall", types.FunctionCall),
        ("FunctionDeclaration", types.FunctionDeclaration),
        ("FunctionCallingConfig", types.FunctionCallingConfig),
        ("Tool", types.Tool),
        ("ToolConfig", types.ToolConfig),
        ("SafetySetting", types.SafetySetting),
        ("ThinkingConfig", types.ThinkingConfig),
        ("Schema", types.Schema),
        ("GenerationConfig", types.GenerationConfig),
    ],
)
def test_no_field_of_google_s_own_types_is_forgotten(message, type_):
    """What their client can send is in the table, so that it is answered on purpose."""
    newest = {  # of models and sessions that are not asked here; refused as unknown
        "audioTranscription", "mediaProcessing", "speechMetadata", "documentMetadata", "spreadsheetMetadata",
        "audioMetadata",
    }  # fmt: skip
    assert {camel(name) for name in type_.model_fields} - newest <= MESSAGES[message].keys()


@pytest.mark.parametrize(
    ("name", "enum"),
    [
        ("HarmCategory", types.HarmCategory),
        ("HarmBlockThreshold", types.HarmBlockThreshold),
        ("HarmBlockMethod", types.HarmBlockMethod),
        ("FunctionCallingConfig.Mode", types.FunctionCallingConfigMode),
        ("ThinkingLevel", types.ThinkingLevel),
        ("Modality", types.Modality),
        ("Type", types.Type),
        ("MediaResolution", types.MediaResolution),
        ("Behavior", types.Behavior),
    ],
)
def test_no_word_of_google_s_own_enums_is_forgotten(name, enum):
    assert {member.value for member in enum} <= set(ENUMS[name])


# --- reading -----------------------------------------------------------------------------------------------


def test_both_spellings_at_every_level():
    camelled = {
        "systemInstruction": {"parts": {"text": "Be kind."}},
        "generationConfig": {
            "maxOutputTokens": 5,
            "responseMimeType": "application/json",
            "responseSchema": {"type": "OBJECT", "properties": {"a_b": {"type": "STRING", "maxLength": 3}}},
            "thinkingConfig": {"thinkingBudget": 3, "includeThoughts": True},
        },
        "tools": [{"functionDeclarations": [{"name": "f", "parametersJsonSchema": {"type": "object"}}]}],
        "toolConfig": {"functionCallingConfig": {"mode": "ANY", "allowedFunctionNames": ["f"]}},
        "safetySettings": [{"category": "HARM_CATEGORY_HATE_SPEECH", "threshold": "BLOCK_NONE"}],
        "cachedContent": "cachedContents/abc",
        "contents": [{"parts": [{"inlineData": {"mimeType": "image/png", "data": "YQ=="}}]}],
    }
    assert request_of(_snaked(camelled), "m") == request_of(camelled, "m")


def _snaked(value: Any) -> Any:
    """Keys in snake_case; those that are a user's own have it already."""
    if isinstance(value, dict):
        return {snake(key): _snaked(item) for key, item in value.items()}
    return [_snaked(item) for item in value] if isinstance(value, list) else value


def test_numbers_and_enums_as_clients_write_them():
    config = configured(topK=40.0, maxOutputTokens="128", seed=-1.0, temperature="0.5", candidateCount=2.0)
    wanted = c.GenerationConfig(top_k=40, max_tokens=128, seed=-1, temperature=0.5, candidates=2)
    assert config == wanted
    assert configured(thinkingConfig={"thinkingLevel": "low"}).thinking.level == "low"
    assert configured(responseModalities=["text"]).modalities == ("text",)


def test_one_value_is_a_list_of_one_as_in_google_s_own_examples():
    request = request_of(
        {"contents": {"parts": {"text": "hi"}}, "system_instruction": {"parts": {"text": "You are a cat."}}},
        "m",
    )
    assert request.contents == (c.user("hi"),)
    assert request.system == "You are a cat."


def test_what_is_null_or_asks_for_nothing_is_not_there():
    nothing = {
        "temperature": None,
        "mediaResolution": "MEDIA_RESOLUTION_UNSPECIFIED",
        "audioTimestamp": False,
    }
    assert asked(generationConfig=nothing, tools=[], toolConfig=None, store=False) == asked()


def test_everything_wrong_is_told_at_once_in_google_s_words():
    body = HI | {
        "fooBar": 1,
        "generationConfig": {"top_pp": 1, "temperature": "hot", "topK": 1.5, "seed": True},
        "safetySettings": [{"category": "HARM_CATEGORY_RUDENESS"}],
    }
    with pytest.raises(WireError) as error:
        read("GenerateContentRequest", body)
    assert [tuple(violation) for violation in error.value.violations] == [
        ("", 'Invalid JSON payload received. Unknown name "fooBar": Cannot find field.'),
        (
            "generation_config",
            "Invalid JSON payload received. Unknown name \"top_pp\" at 'generation_config': "
            "Cannot find field.",
        ),
        (
            "generation_config.temperature",
            "Invalid value at 'generation_config.temperature' (TYPE_FLOAT), \"hot\"",
        ),
        ("generation_config.top_k", "Invalid value at 'generation_config.top_k' (TYPE_INT32), 1.5"),
        ("generation_config.seed", "Invalid value at 'generation_config.seed' (TYPE_INT32), true"),
        (
            "safety_settings[0].category",
            "Invalid value at 'safety_settings[0].category' (type.googleapis.com/HarmCategory), "
            '"HARM_CATEGORY_RUDENESS"',
        ),
    ]


JSONS = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats(allow_nan=False) | st.text(),
    lambda inner: (
        st.lists(inner, max_size=4)
        | st.dictionaries(
            st.sampled_from(sorted({n for m in MESSAGES.values() for n in m})), inner, max_size=6
        )
    ),
    max_leaves=30,
)


@given(JSONS)
def test_any_json_is_read_or_refused(body):
    """Nothing else comes of it, and what was read has a JSON form again."""
    with suppress(InvalidRequestError, UnknownContextError):
        request_of(body, "m").model_dump_json()


@given(JSONS)
def test_any_content_is_read_or_refused(part):
    with suppress(InvalidRequestError):
        request_of({"contents": {"parts": part}}, "m").model_dump_json()


def test_half_a_character_is_refused():
    assert "TYPE_STRING" in refusal(contents=[{"parts": [{"text": "\ud83d"}]}])
    call = {"functionResponse": {"name": "f", "response": {"x": ["\udc00"]}}}
    assert "in Unicode" in refusal(contents=[{"parts": [call]}])


def test_times():
    context = read("CachedContent", {"ttl": "3.5s", "expireTime": "2027-01-01T02:00:00+02:00"})
    assert context["ttl"] == timedelta(seconds=3.5)
    assert context["expireTime"] == datetime(2027, 1, 1, tzinfo=UTC)
    for ttl in (5, "5", "5m", "1e3s", "9" * 30 + "s", ""):
        with pytest.raises(WireError):
            read("CachedContent", {"ttl": ttl})


@given(st.binary())
def test_bytes_in_both_alphabets_of_base64_padded_or_not(data):
    for encode in (base64.b64encode, base64.urlsafe_b64encode):
        text = encode(data).decode()
        for written in (text, text.rstrip("=")):
            assert read("Blob", {"data": written}).get("data") == data
    with pytest.raises(WireError):
        read("Blob", {"data": "a b"})


# --- requests ----------------------------------------------------------------------------------------------


def test_parts():
    parts = [
        {"text": "hi", "partMetadata": {"mine": 1}},
        {"inlineData": {"mimeType": "image/png", "data": "YQ==", "displayName": "a.png"}},
        {"fileData": {"mimeType": "audio/mp3", "fileUri": "gs://bucket/a.mp3"}},
        {"fileData": {"fileUri": "http://127.0.0.1:8484/v1beta/files/abc"}},
        {"fileData": {"fileUri": "https://generativelanguage.googleapis.com/v1beta/files/abc"}},
        {
            "functionResponse": {
                "name": "f",
                "id": "1",
                "response": {"a": 1},
                "parts": [{"inlineData": {"mimeType": "image/png", "data": "YQ=="}}],
            }
        },
    ]
    picture = c.Data(media_type="image/png", data=b"a")
    assert request_of({"contents": [{"parts": parts}]}, "m").contents[0].parts == (
        c.Text(text="hi"),
        picture.model_copy(update={"name": "a.png"}),
        c.FileRef(uri="gs://bucket/a.mp3", media_type="audio/mp3"),
        c.FileRef(uri="files/abc"),
        c.FileRef(uri="https://generativelanguage.googleapis.com/v1beta/files/abc"),
        c.CallResult(name="f", id="1", result={"a": 1}, media=(picture,)),
    )


def test_what_models_said_comes_back_with_its_signatures():
    parts = [
        {"text": "Hm.", "thought": True, "thoughtSignature": "c2ln"},
        {"text": "Well,", "thoughtSignature": "c2ln"},
        {"functionCall": {"name": "f", "args": {"a": 1}}, "thoughtSignature": "c2ln"},
        {"text": "", "thoughtSignature": "c2ln"},
    ]
    turn = request_of({"contents": [{"role": "model", "parts": parts}]}, "m").contents[0]
    assert turn.parts == (
        c.Thought(text="Hm.", signature=b"sig"),
        c.Text(text="Well,"),
        c.Thought(text="", signature=b"sig"),
        c.Call(name="f", arguments={"a": 1}, signature=b"sig"),
        c.Thought(text="", signature=b"sig"),
    )


def test_turns_of_the_model_are_one_and_those_of_the_user_stay_apart():
    said = [("user", "a"), ("user", "b"), ("model", "Hel"), ("model", "lo"), ("model", ""), ("user", "c")]
    turns = [{"role": role, "parts": [{"text": text}]} for role, text in said]
    assert request_of({"contents": turns}, "m").contents == (
        c.user("a"), c.user("b"), c.model("Hello"), c.user("c")
    )  # fmt: skip


def test_the_empty_text_behind_a_call_is_no_word_of_the_model_s():
    call = {"role": "model", "parts": [{"functionCall": {"name": "f", "args": {}}}]}
    empty = {"role": "model", "parts": [{"text": ""}]}
    request = request_of({"contents": [*HI["contents"], call, empty, *HI["contents"], empty]}, "m")
    wanted = (c.user("hi"), c.model(c.Call(name="f", arguments={})), c.user("hi"))
    assert request.contents == wanted


@pytest.mark.parametrize(
    ("part", "complaint"),
    [
        ({}, "must have one initialized field"),
        (
            {"text": "a", "inlineData": {"mimeType": "a/b", "data": "YQ=="}},
            "oneof field 'data' is already set",
        ),
        ({"inlineData": {"data": "YQ=="}}, "no mimeType"),
        ({"fileData": {"mimeType": "a/b"}}, "no fileUri"),
        ({"functionCall": {"args": {}}}, "no name"),
        ({"executableCode": {"code": "1"}}, "no code execution"),
        ({"text": "a", "videoMetadata": {"fps": 1}}, "files are not cut"),
    ],
)
def test_parts_that_are_none(part, complaint):
    told = refusal(contents=[{"parts": [{"text": "a"}, part]}])
    assert complaint in told
    assert "contents[0].parts[1]" in told


def test_roles():
    assert (
        request_of({"contents": [{"role": "function", "parts": {"text": "a"}}]}, "m").contents[0].role
        == "user"
    )
    assert refusal(contents=[{"role": "system", "parts": {"text": "a"}}]).startswith(
        "contents[0].role: Please use"
    )
    assert refusal(contents=[]).endswith("contents is not specified")
    assert "without parts" in refusal(contents=[{"role": "user"}])


def test_tools():
    schema = {"type": "OBJECT", "properties": {"town": {"type": "STRING"}}, "required": ["town"]}
    (tool,) = asked(
        tools=[{"functionDeclarations": {"name": "f", "description": "d", "parameters": schema}}]
    ).tools
    assert (tool.name, tool.description) == ("f", "d")
    assert normalised(tool.parameters) == {
        "type": "object",
        "properties": {"town": {"type": "string"}},
        "required": ["town"],
        "additionalProperties": False,
    }
    assert "Invalid function name" in refusal(tools=[{"functionDeclarations": {"name": "a b"}}])
    both = {"name": "f", "parameters": schema, "parametersJsonSchema": {}}
    assert "both parameters and" in refusal(tools=[{"functionDeclarations": both}])
    live = {"name": "f", "behavior": "NON_BLOCKING"}
    assert "blocking" in refusal(tools=[{"functionDeclarations": live}])
    for name, field in MESSAGES["Tool"].items():
        if field.support is Support.REFUSED:
            assert f"'tools[0].{snake(name)}' is not supported" in refusal(tools=[{name: {}}])


def test_tool_choice():
    def chosen(**calling: Any) -> c.ToolChoice:
        return asked(toolConfig={"functionCallingConfig": calling}).tool_choice

    assert chosen() == chosen(mode="MODE_UNSPECIFIED") == c.ToolChoice()
    assert chosen(mode="any", allowedFunctionNames=["f"]) == c.ToolChoice(mode=c.ToolMode.ANY, allowed=("f",))
    assert chosen(mode="VALIDATED").mode == c.ToolMode.VALIDATED
    assert chosen(mode="NONE").mode == c.ToolMode.NONE
    with pytest.raises(InvalidRequestError, match="should only be set when"):
        chosen(mode="AUTO", allowedFunctionNames=["f"])


def test_forms_of_the_answer():
    schema = {"type": "OBJECT", "properties": {"n": {"type": "INTEGER"}}}
    config = configured(responseMimeType="application/json", responseSchema=schema)
    assert config.format == c.Format(kind=c.FormatKind.JSON, rule=schema)
    assert configured(responseMimeType="application/json").format == c.Format(kind=c.FormatKind.JSON)
    config = configured(responseMimeType="application/json", _responseJsonSchema={"const": 1})
    assert config.format.rule == {"const": 1}
    choices = {"type": "STRING", "enum": ["a", "b"]}
    config = configured(responseMimeType="text/x.enum", responseSchema=choices)
    assert config.format == c.Format(kind=c.FormatKind.CHOICE, rule=("a", "b"))
    assert configured(responseMimeType="text/plain").format == c.Format()
    for wrong in (
        {"responseSchema": schema},
        {"responseMimeType": "text/x.enum"},
        {"responseMimeType": "text/html"},
        {"responseMimeType": "application/json", "responseSchema": schema, "responseJsonSchema": {}},
        {"responseMimeType": "application/json", "responseSchema": {"type": "OBJECT", "minimun": 1}},
    ):
        assert "generation_config" in refusal(generationConfig=wrong)


@pytest.mark.parametrize(
    ("wish", "thinking"),
    [
        ({}, None),
        ({"includeThoughts": False}, None),
        ({"includeThoughts": True}, c.Thinking(show=c.Show.FULL)),
        ({"thinkingBudget": -1}, c.Thinking()),
        ({"thinkingBudget": 0}, c.Thinking(mode=c.ThinkingMode.OFF)),
        ({"thinkingBudget": 0, "includeThoughts": True}, c.Thinking(mode=c.ThinkingMode.OFF)),
        ({"thinkingBudget": 9.0}, c.Thinking(mode=c.ThinkingMode.BUDGET, budget=9)),
        ({"thinkingLevel": "MINIMAL"}, c.Thinking(mode=c.ThinkingMode.LEVEL, level=c.Level.MINIMAL)),
        ({"thinkingLevel": "XHIGH"}, c.Thinking(mode=c.ThinkingMode.LEVEL, level=c.Level.HIGH)),
        ({"thinkingLevel": "THINKING_LEVEL_UNSPECIFIED"}, None),
    ],
)
def test_thinking(wish, thinking):
    assert configured(thinkingConfig=wish).thinking == thinking


def test_wishes_that_contradict_each_other_or_are_out_of_range():
    for wish in (
        {"thinkingConfig": {"thinkingBudget": 1, "thinkingLevel": "LOW"}},
        {"thinkingConfig": {"thinkingBudget": -2}},
        {"logprobs": 3},
        {"logprobs": 21, "responseLogprobs": True},
        {"temperature": 2.1},
        {"topP": 1.1},
        {"maxOutputTokens": 0},
        {"candidateCount": 17},
        {"seed": 2**31},
        {"stopSequences": ["a"] * 17},
        {"responseModalities": ["AUDIO"]},
        {"imageConfig": {"aspectRatio": "1:1"}},
        {"speechConfig": {}},
    ):
        assert "generation_config" in refusal(generationConfig=wish)
    assert configured(responseModalities=["TEXT", "IMAGE"], imageConfig={}).modalities == ("text", "image")
    assert configured(topP=0).top_p == pytest.approx(0, abs=1e-5)
    assert configured(responseLogprobs=True).logprobs == 0


def test_safety():
    def settings(*pairs: tuple[str, str], **more: str) -> tuple[c.SafetySetting, ...]:
        return asked(safetySettings=[{"category": a, "threshold": b} | more for a, b in pairs]).safety

    for harm, category in gemini_body.HARMS.items():
        assert settings((category, "BLOCK_LOW_AND_ABOVE")) == (
            c.SafetySetting(harm=harm, threshold=c.Threshold.LOW),
        )
    assert settings(("HARM_CATEGORY_HATE_SPEECH", "HARM_BLOCK_THRESHOLD_UNSPECIFIED")) == ()
    assert settings(("HARM_CATEGORY_IMAGE_HATE", "OFF")) == ()
    with pytest.raises(UnsupportedError):
        settings(("HARM_CATEGORY_IMAGE_HATE", "BLOCK_ONLY_HIGH"))
    with pytest.raises(UnsupportedError):
        settings(("HARM_CATEGORY_HATE_SPEECH", "OFF"), method="SEVERITY")


def test_names():
    for resource in ("x", "models/x", "tunedModels/x", "publishers/google/models/x"):
        assert names.model(resource) == names.model(f"projects/p/locations/l/{resource}") == "x"
    assert names.model("hf/x") == "hf/x"
    assert names.cached_content("projects/p/locations/l/cachedContents/a") == "a"
    for wrong in ("a", "cachedContents/", "cachedContents/a/b"):
        with pytest.raises(UnknownContextError):
            names.cached_content(wrong)
    assert refusal(model="models/other").startswith("model: the body names the model")
    assert asked(model="models/m").model == "m"


@given(
    st.builds(
        c.GenerationConfig,
        max_tokens=st.none() | st.integers(1, 9999),
        temperature=st.none() | st.floats(0, 2),
        top_p=st.none() | st.floats(0.01, 1),
        top_k=st.none() | st.integers(0, 999),
        seed=st.none() | st.integers(-(2**31), 2**31 - 1),
        stop=st.lists(st.text(min_size=1), max_size=5).map(tuple),
        presence_penalty=st.none() | st.floats(-2, 2),
        candidates=st.integers(1, 8),
        logprobs=st.none() | st.integers(0, 20),
        format=st.sampled_from(
            [
                c.Format(),
                c.Format(kind=c.FormatKind.JSON),
                c.Format(kind=c.FormatKind.JSON, rule={"type": "object"}),
                c.Format(kind=c.FormatKind.CHOICE, rule=("a", "b")),
            ]
        ),
        thinking=st.sampled_from(
            [
                None,
                c.Thinking(mode=c.ThinkingMode.OFF),
                c.Thinking(show=c.Show.FULL),
                c.Thinking(mode=c.ThinkingMode.BUDGET, budget=5, show=c.Show.FULL),
                c.Thinking(mode=c.ThinkingMode.LEVEL, level=c.Level.LOW),
            ]
        ),
    )
)
def test_what_this_project_sends_to_google_is_read_here_as_it_was_meant(config):
    """The upstream's writer and the server's reader are each other's inverse."""
    tool = c.Tool(name="f", description="d", parameters={"type": "object", "properties": {}})
    request = c.Request(
        model="m",
        contents=(
            c.user("hi", c.Data(media_type="image/png", data=b"\xff\xfe")),
            c.model(c.Thought(text="Hm", signature=b"s"), c.Call(name="f", arguments={"a": 1}, id="1")),
            c.user(c.CallResult(name="f", result={"x": 1}, id="1")),
        ),
        system="Be kind.",
        tools=(tool,),
        tool_choice=c.ToolChoice(mode=c.ToolMode.ANY, allowed=("f",)),
        safety=(c.SafetySetting(harm=c.Harm.CIVIC, threshold=c.Threshold.MEDIUM),),
        config=config,
    )
    assert request_of(json.loads(json.dumps(gemini_body.body_of(request))), "m") == request


# --- answers -----------------------------------------------------------------------------------------------

TOKEN = c.TokenLogprob(
    token="a", bytes=(97,), logprob=-0.5, id=3, top=(c.TokenLogprob(token="b", bytes=(98,), logprob=-2.0),)
)
VERDICT = c.Verdict(harm=c.Harm.SEXUAL, probability="low", score=0.25)
PARTS: list[c.Part] = [
    c.Thought(text="Hm.", signature=b"\xff\xfe\xfd"),
    c.Text(text="Well"),
    c.Thought(text="", signature=b"sig"),
    c.Call(name="f", arguments={"a": 1}, id="call_1", signature=b"sig"),
    c.Data(media_type="image/png", data=b"\xff\xfe\xfd", name="p.png"),
    c.FileRef(uri="files/a", media_type="image/png"),
    c.CallResult(name="f", result=3, id="call_1", media=(c.Data(media_type="image/png", data=b"a"),)),
]
USAGE = c.Usage(prompt=10, cached=4, answer=3, thoughts=2, summaries=1, prompt_by_modality={"text": 10})
LAST = c.Delta(finish=c.FinishReason.STOP, verdicts=(VERDICT,), usage=USAGE, model="m")


def deltas() -> list[c.Delta]:
    return [*(c.Delta(part=part, logprobs=(TOKEN,), model="m") for part in PARTS), LAST]


class Strict(types.GenerateContentResponse):
    model_config = types.GenerateContentResponse.model_config | {"extra": "forbid"}


def as_google_reads(wire: dict[str, Any]) -> types.GenerateContentResponse:
    """Also that it holds nothing that their types do not know (they forbid it)."""
    return Strict.model_validate_json(dumps(wire))


def test_a_whole_answer():
    answer = as_google_reads(response_of(collected_now(deltas()), "id"))
    (candidate,) = answer.candidates
    assert answer.response_id == "id"
    assert answer.model_version == "m"
    assert candidate.finish_reason == types.FinishReason.STOP
    assert candidate.avg_logprobs == -0.5
    assert len(candidate.logprobs_result.chosen_candidates) == len(PARTS)
    assert candidate.logprobs_result.log_probability_sum == -0.5 * len(PARTS)
    assert candidate.safety_ratings[0].category == types.HarmCategory.HARM_CATEGORY_SEXUALLY_EXPLICIT
    assert candidate.safety_ratings[0].probability == types.HarmProbability.LOW
    parts = candidate.content.parts
    assert (parts[0].text, parts[0].thought, parts[0].thought_signature) == ("Hm.", True, b"\xff\xfe\xfd")
    assert (parts[2].text, parts[2].thought, parts[2].thought_signature) == ("", None, b"sig")
    assert (parts[3].function_call.id, parts[3].function_call.args) == ("call_1", {"a": 1})
    assert parts[4].inline_data.data == b"\xff\xfe\xfd"
    assert parts[5].file_data.file_uri == "files/a"
    assert parts[6].function_response.response == {"output": 3}


def test_bytes_are_in_the_alphabet_that_everyone_reads():
    wire = response_of(collected_now(deltas()), "id")
    data = wire["candidates"][0]["content"]["parts"][4]["inlineData"]["data"]
    assert data == base64.b64encode(b"\xff\xfe\xfd").decode() == "//79"


def test_usage():
    usage = as_google_reads(response_of(collected_now(deltas()), "id")).usage_metadata
    assert usage.prompt_token_count == 10
    assert usage.cached_content_token_count == 4
    assert usage.candidates_token_count == 3
    assert usage.thoughts_token_count == 3
    assert usage.total_token_count == USAGE.total == 16
    assert usage.prompt_tokens_details == [types.ModalityTokenCount(modality="TEXT", token_count=10)]
    assert usage.cache_tokens_details == [types.ModalityTokenCount(modality="TEXT", token_count=4)]
    assert usage.candidates_tokens_details == [types.ModalityTokenCount(modality="TEXT", token_count=3)]


def test_every_finish_reason_has_google_s_word():
    for reason in c.FinishReason:
        last = c.Delta(finish=reason, finish_message="why", usage=c.Usage())
        answer = as_google_reads(response_of(collected_now([last]), "id")).candidates[0]
        assert answer.finish_reason in types.FinishReason
        assert answer.finish_message == "why"
        blocked = c.Delta(blocked=reason, verdicts=(VERDICT,), usage=c.Usage(prompt=1))
        answer = as_google_reads(response_of(collected_now([blocked]), "id"))
        assert answer.candidates is None
        assert answer.prompt_feedback.block_reason in types.BlockedReason
        assert len(answer.prompt_feedback.safety_ratings) == 1


def chunks_of(said: list[c.Delta]) -> list[types.GenerateContentResponse]:
    writer = Chunks("m", "id")
    wires = [chunk for delta in said for chunk in writer.add(delta)]
    return [as_google_reads(wire) for wire in [*wires, *writer.end()]]


def test_chunks_amount_to_the_whole_answer():
    whole = as_google_reads(response_of(collected_now(deltas()), "id"))
    chunks = chunks_of(deltas())
    parts = [part for chunk in chunks for part in chunk.candidates[0].content.parts]
    assert parts == whole.candidates[0].content.parts
    assert chunks[-1].candidates[0].avg_logprobs == -0.5
    assert chunks[-1].usage_metadata == whole.usage_metadata
    assert [bool(chunk.candidates[0].finish_reason) for chunk in chunks] == [False] * 3 + [True]


def test_calls_are_in_the_last_chunk_all_together():
    """The client of 2025 calls only what the last chunk has, and answers with that chunk's content alone."""
    calls = [c.Call(name=name, arguments={}, id=name) for name in ("f", "g")]
    said = [c.Delta(part=c.Text(text="Let me see.")), *(c.Delta(part=call) for call in calls), LAST]
    first, last = chunks_of(said)
    assert first.text == "Let me see."
    assert [call.name for call in last.function_calls] == ["f", "g"]
    assert last.candidates[0].finish_reason == types.FinishReason.STOP


def test_no_chunk_is_without_content_while_the_answer_goes_on():
    """The client of 2025 takes the first one without for the end."""
    said = [c.Delta(logprobs=(TOKEN,)), c.Delta(part=c.Text(text="a")), LAST]
    assert [chunk.candidates[0].content.parts[0].text for chunk in chunks_of(said)] == ["", "a", ""]


def test_the_last_chunk_has_the_finish_reason_and_the_usage_however_they_come():
    words = c.Delta(part=c.Text(text="a"))
    apart = [words, c.Delta(finish=c.FinishReason.STOP), c.Delta(usage=USAGE)]
    together = [c.Delta(part=c.Text(text="a"), finish=c.FinishReason.STOP, usage=USAGE)]
    for said, number in ((apart, 2), (together, 1)):
        chunks = chunks_of(said)
        assert len(chunks) == number
        assert chunks[-1].candidates[0].finish_reason
        assert chunks[-1].candidates[0].content.parts
        assert chunks[-1].usage_metadata.total_token_count == 16


def test_several_candidates():
    said = [
        c.Delta(candidate=1, part=c.Text(text="b")),
        c.Delta(candidate=1, finish=c.FinishReason.LENGTH),
        c.Delta(candidate=0, part=c.Text(text="a")),
        c.Delta(candidate=0, finish=c.FinishReason.STOP, usage=USAGE),
    ]
    heads = [(chunk.candidates[0].index, chunk.candidates[0].finish_reason) for chunk in chunks_of(said)]
    assert heads == [(1, None), (1, "MAX_TOKENS"), (0, None), (0, "STOP")]


def test_a_blocked_prompt_in_a_stream():
    (chunk,) = chunks_of([c.Delta(blocked=c.FinishReason.SAFETY, usage=c.Usage(prompt=3))])
    assert chunk.prompt_feedback.block_reason == types.BlockedReason.SAFETY
    assert chunk.usage_metadata.prompt_token_count == 3

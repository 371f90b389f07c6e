"""Interactions: by Google's own client in two generations, and by hand where it hides what is sent."""

from __future__ import annotations

import base64
import io
import json
from typing import Any

import httpx
import pytest
from gemini_stub import HOLD, Scripted, client_of, done
from PIL import Image
from sdks import toured
from serving import serving, waited

from studiolo.language import conversation as c
from studiolo.language.errors import RateLimitError, UpstreamError
from studiolo.server.gemini.interaction_answer import Interaction

CLIENTS = {"installed": None, "2.34.0": "2.34.0"}
ASKED: dict[str, Any] = {"model": "stub", "input": "hello"}


def said(request: c.Request) -> list[Any]:
    """What the model says to each question of the tour."""
    last = request.contents[-1]
    if results := [part for part in last.parts if isinstance(part, c.CallResult)]:
        return [f"The sky is {results[0].result['sky']}."]
    match last.text:
        case "hello":
            return ["Hel", "lo."]
        case "person":
            return ['{"name": "Ada", ', '"age": 36}']
        case "think":
            usage = c.Usage(prompt=5, answer=1, thoughts=3)
            return [c.Delta(part=c.Thought(text="Hm.")), "Yes.", done(usage=usage)]
        case "weather?":
            return [c.Delta(part=c.Call(name="weather", arguments={"town": "Rome"}, id="call_1"))]
        case "what did I say?":
            return [" | ".join(f"{turn.role}: {turn.text}" for turn in request.contents)]
        case "look":
            return [part.media_type for part in last.parts if isinstance(part, c.Data)]
        case "too much":
            return [RateLimitError("too many requests", retry_after=1.5)]
        case "break off":
            return ["Well", UpstreamError("the connection failed")]
        case "block":
            return [c.Delta(blocked=c.FinishReason.SAFETY, usage=c.Usage(prompt=1))]
        case "long":
            return ["Once", done(finish="length")]
        case "wait":
            return ["Well", HOLD]
        case "sign":
            call = c.Call(name="weather", arguments={}, id="c1", signature=b"\0s")
            return [c.Delta(part=call)]
        case "draw":
            return ["Look: ", c.Delta(part=c.Data(media_type="image/png", data=b"PNG")), "Nice?"]
    raise AssertionError(last)


@pytest.fixture(params=CLIENTS, scope="module")
def tour(request, tmp_path_factory) -> dict[str, Any]:
    """What a client of that version made of everything."""
    engine = Scripted(said)
    with serving(tmp_path_factory.mktemp("home"), {"stub": engine}) as served:
        told = toured("interactions_tour.py", served.url, version=CLIENTS[request.param])
    return told | {"first": engine.requests[0].model_dump(mode="json")}


def test_a_turn(tour):
    assert tour["text"] == ["completed", "Hello.", "stub", True, {"team": "a"}]
    assert tour["usage"] == [5, 2, 7]
    request = c.Request.model_validate(tour["first"])
    assert (request.system, request.contents) == ("Be kind.", (c.user("hello"),))
    assert request.config == c.GenerationConfig(
        temperature=0.5, top_p=0.9, seed=7, max_tokens=99, stop=("END",)
    )
    assert request.safety == (c.SafetySetting(harm=c.Harm.HATE, threshold=c.Threshold.HIGH),)


def test_the_turns_before_are_kept(tour):
    history = "user: hello | model: Hello. | user: what did I say?"
    assert tour["history"] == history
    assert tour["fetched"] == ["completed", history, True, [["what did I say?"]], None]
    assert tour["turns"] == "user: a | model: b | user: what did I say?"
    assert tour["asynchronous"] == [history, "interaction.completed"]


def test_events(tour):
    assert tour["streamed"] == [
        ["interaction.created", "in_progress", None],
        ["interaction.status_update", "in_progress"],
        ["step.start", 0, "model_output"],
        ["step.delta", 0, "text", "Hel"],
        ["step.delta", 0, "text", "lo."],
        ["step.stop", 0],
        ["interaction.completed", "completed", 7],
    ]


def test_functions(tour):
    assert tour["called"] == [
        "requires_action", "weather", {"town": "Rome"}, "completed", "The sky is blue.",
    ]  # fmt: skip
    assert tour["streamed call"][2:] == [
        ["step.start", 0, "function_call"],
        ["step.delta", 0, "arguments_delta", '{"town": "Rome"}'],
        ["step.stop", 0],
        ["interaction.completed", "requires_action", 7],
    ]


def test_forms_thoughts_and_media(tour):
    for name in ("form", "schema"):
        assert json.loads(tour[name]) == {"name": "Ada", "age": 36}
    assert tour["thought"] == [["thought", "model_output"], "Hm.", "Yes.", 3]
    assert tour["parts"] == "image/png"


def test_in_the_background(tour):
    assert tour["background"] == [True, "Hello.", "in_progress", "completed", "Hello.", "completed"]


def test_errors(tour):
    assert [code for code, _ in tour["deleted"]] == [404, 404]
    errors = tour["errors"]
    assert {name: errors[name][0] for name in ("not kept", "model", "tool", "previous")} == {
        "not kept": 404, "model": 404, "tool": 400, "previous": 404,
    }  # fmt: skip
    assert "there is no tool 'google_search' here" in errors["tool"][1]
    assert errors["broken"][:2] == ["error", "unavailable"]
    assert errors["blocked"] == "incomplete"


# --- what is sent -----------------------------------------------------------------------------------------


@pytest.fixture
def engine() -> Scripted:
    return Scripted(said)


@pytest.fixture
def ask(serve, engine):
    """Asks by hand: the answer's JSON, or its error's."""
    url = f"{serve(engine).url}/v1beta/interactions"

    def post(**body: Any) -> Any:
        return httpx.post(url, json=ASKED | body).json()

    post.url = url  # type: ignore[attr-defined]
    return post


def test_events_as_google_sends_them(ask):
    answer = httpx.post(ask.url, json=ASKED | {"stream": True})
    assert answer.headers["content-type"].startswith("text/event-stream")
    events = [event.split("\n") for event in answer.text.rstrip("\n").split("\n\n")]
    assert events[-1] == ["event: done", "data: [DONE]"]
    assert all(name == f"event: {json.loads(data[6:])['event_type']}" for name, data in events[:-1])
    last = json.loads(events[-2][1][6:])["interaction"]
    assert httpx.get(f"{ask.url}/{last['id']}").json() == last
    assert (last["steps"], last["object"]) == (
        [{"type": "model_output", "content": [{"type": "text", "text": "Hello."}]}], "interaction",
    )  # fmt: skip


def test_how_it_ended(ask):
    assert ask(input="long")["status"] == "incomplete"
    blocked = ask(input="block")
    assert (blocked["status"], blocked["errors"][0]["code"]) == ("incomplete", "safety")
    busy = httpx.post(ask.url, json=ASKED | {"input": "too much", "stream": True})
    assert (busy.status_code, busy.headers["retry-after"]) == (429, "2")


def test_signatures_go_back_with_their_calls(ask, engine):
    first = ask(input="sign")
    assert [step["type"] for step in first["steps"]] == ["thought", "function_call"]
    assert first["steps"][0]["signature"] == "AHM="
    result = {"type": "function_result", "call_id": "c1", "result": {"sky": "grey"}}
    ask(input=[result], previous_interaction_id=first["id"])
    call = c.Call(name="weather", arguments={}, id="c1", signature=b"\0s")
    assert engine.requests[-1].contents[1:] == (
        c.model(call),
        c.user(c.CallResult(name="weather", result={"sky": "grey"}, id="c1")),
    )


def test_pictures_within_an_answer(ask, engine):
    first = ask(input="draw")
    (step,) = first["steps"]
    assert [content["type"] for content in step["content"]] == ["text", "image", "text"]
    assert step["content"][1] == {"type": "image", "mime_type": "image/png", "data": "UE5H"}
    ask(previous_interaction_id=first["id"])
    picture = c.Data(media_type="image/png", data=b"PNG")
    assert engine.requests[-1].contents[1] == c.model("Look: ", picture, "Nice?")


def test_a_model_that_draws(studiolo_home):
    with serving(studiolo_home, {"stub": Scripted(said)}, jobs=True) as served:
        form = {"type": "image", "mime_type": "image/jpeg", "aspect_ratio": "16:9"}
        client = client_of(served.url)  # one that nobody holds is closed
        made = client.interactions.create(
            model="studiolo-base", input="a photo of a fox", response_format=form
        )
    picture = made.output_image
    assert (made.status, picture.mime_type) == ("completed", "image/jpeg")
    with Image.open(io.BytesIO(base64.b64decode(picture.data))) as image:
        assert image.width / image.height == pytest.approx(16 / 9, rel=0.1)


def test_results_of_functions(ask, engine):
    call = {"type": "function_call", "id": "c1", "name": "weather", "arguments": {"town": "Rome"}}
    content = [{"type": "text", "text": "{}"}, {"type": "image", "data": "aGk=", "mime_type": "image/png"}]
    for result, wanted in (
        ({"result": {"sky": "red"}}, c.CallResult(name="weather", result={"sky": "red"}, id="c1")),
        (
            {"result": {"sky": "red"}, "isError": True},
            c.CallResult(name="weather", result={"error": {"sky": "red"}}, id="c1"),
        ),
        (
            {"result": content},
            c.CallResult(
                name="weather", result="{}", id="c1", media=(c.Data(media_type="image/png", data=b"hi"),)
            ),
        ),
    ):
        ask(input=[call, {"type": "function_result", "call_id": "c1", **result}])
        assert engine.requests[-1].contents[-1] == c.user(wanted)


@pytest.mark.parametrize(
    ("given", "wanted"),
    [
        ("any", c.ToolChoice(mode="any")),
        ({"allowed_tools": {"mode": "any", "tools": ["f"]}}, c.ToolChoice(mode="any", allowed=("f",))),
    ],
)
def test_tools_are_chosen(ask, engine, given, wanted):
    tools = [{"type": "function", "name": "f"}]
    ask(tools=tools, generation_config={"tool_choice": given})
    assert engine.requests[-1].tool_choice == wanted


WRONG = [
    ({"model": None}, "model"),
    ({"model": "stub", "agent": "deep-research"}, "agent"),
    ({"input": None}, "input"),
    ({"input": []}, "input"),
    ({"input": [7]}, "input[0]"),
    ({"input": [{"type": "image", "mime_type": "image/png"}]}, "input[0].content[0]"),
    ({"input": [{"type": "code_execution_call", "id": "x"}]}, "input[0].type"),
    ({"input": [{"type": "function_result", "call_id": "x", "result": "r"}]}, "input[0].call_id"),
    ({"generation_config": {"tool_choice": "never"}}, "generation_config.tool_choice"),
    ({"generation_config": {"temperature": 3}}, "generation_config.temperature"),
    ({"response_format": {"type": "audio"}}, "response_format"),
    ({"response_format": {"type": "image", "delivery": "uri"}}, "response_format.delivery"),
    ({"response_format": {"type": "image", "aspect_ratio": "1:1"}}, "models that speak"),
    ({"response_modalities": ["audio"]}, "response_modalities"),
    ({"background": True, "store": False}, "store"),
    ({"webhook_config": {"uris": ["http://x"]}}, "webhook_config"),
    ({"nonsense": 1}, "nonsense"),
    ({"tools": [{"type": "function", "name": "1 f"}]}, "tools[0].name"),
    ({"safety_settings": [{"type": "hate_speech", "threshold": "off", "method": "severity"}]}, "method"),
]


@pytest.mark.parametrize(("body", "where"), WRONG)
def test_what_is_wrong_is_told(ask, body, where):
    error = ask(**body)["error"]
    assert (error["code"], error["status"]) == (400, "INVALID_ARGUMENT")
    assert where in error["message"]


def test_no_more_is_read_back_than_a_request_could_bring(serve, engine):
    url = f"{serve(engine, largest_body=4000).url}/v1beta/interactions"
    made = httpx.post(url, json=ASKED).json()
    for _ in range(20):
        made = httpx.post(url, json=ASKED | {"previous_interaction_id": made["id"]}).json()
        if "error" in made:
            break
    assert made["error"]["code"] == 413
    assert made["error"]["message"].startswith("previous_interaction_id: ")
    assert "more than 4,000 bytes" in made["error"]["message"]


# --- in the background ------------------------------------------------------------------------------------


def test_it_is_cancelled(ask, engine):
    made = ask(input="wait", background=True)
    assert engine.held.wait(10)
    now = httpx.get(f"{ask.url}/{made['id']}").json()
    assert now["status"] == "in_progress"
    error = ask(previous_interaction_id=made["id"])["error"]
    assert "still being made" in error["message"]
    for _ in range(2):
        assert httpx.post(f"{ask.url}/{made['id']}/cancel").json()["status"] == "cancelled"
    assert engine.cancelled.is_set()


def test_its_events_are_taken_up(ask, engine):
    with httpx.stream("POST", ask.url, json=ASKED | {"background": True, "stream": True}) as answer:
        first = json.loads(next(line for line in answer.iter_lines() if line.startswith("data: "))[6:])
    id_ = first["interaction"]["id"]
    waited(lambda: httpx.get(f"{ask.url}/{id_}").json(), lambda one: one["status"] == "completed")
    rest = httpx.get(f"{ask.url}/{id_}", params={"stream": True, "last_event_id": first["event_id"]}).text
    ids = [json.loads(line[6:])["event_id"] for line in rest.splitlines() if line.startswith("data: {")]
    assert ids == ["2", "3", "4", "5", "6", "7"]
    wrong = httpx.get(f"{ask.url}/{id_}", params={"stream": True, "last_event_id": "99"})
    assert (wrong.status_code, "no such event" in wrong.text) == (400, True)


def test_a_server_that_stops_says_so(studiolo_home):
    engine = Scripted(said)
    with serving(studiolo_home, {"stub": engine}) as first:
        url = f"{first.url}/v1beta/interactions"
        made = httpx.post(url, json=ASKED | {"input": "wait", "background": True}).json()
        assert engine.held.wait(10)
    with serving(studiolo_home, {"stub": engine}) as second:
        told = httpx.get(f"{second.url}/v1beta/interactions/{made['id']}").json()
    assert (told["status"], told["errors"][0]["code"]) == ("failed", "unavailable")


def test_each_key_has_its_own(serve, engine):
    served = serve(engine)
    url = f"{served.url}/v1beta/interactions"
    ada, bob = ({"x-goog-api-key": served.studio.keys.store.create(name)[0]} for name in ("ada", "bob"))
    made = httpx.post(url, json=ASKED, headers=ada).json()
    assert httpx.get(f"{url}/{made['id']}", headers=ada).status_code == 200
    for act, path in (("GET", ""), ("DELETE", ""), ("POST", "/cancel")):
        assert httpx.request(act, f"{url}/{made['id']}{path}", headers=bob).status_code == 404
    after = httpx.post(url, json=ASKED | {"previous_interaction_id": made["id"]}, headers=bob)
    assert after.status_code == 404


def test_its_steps_are_those_that_were_told():
    """The steps of a whole interaction are what a reader of its events puts together."""
    made = Interaction({}, "m", numbered=False)
    parts = [c.Thought(text="H"), c.Thought(text="m", signature=b"s"), c.Text(text="a"), c.Text(text="b")]
    events = [event for part in parts for event in made.add(c.Delta(part=part))]
    events += [*made.add(done()), *made.finish()]
    told = [event["delta"] for event in events if event["event_type"] == "step.delta"]
    thought, output = made.body["steps"]
    assert thought["summary"][0]["text"] == "".join(
        delta["content"]["text"] for delta in told if delta["type"] == "thought_summary"
    )
    assert output["content"] == [{"type": "text", "text": "ab"}]
    assert [event["index"] for event in events if event["event_type"] == "step.stop"] == [0, 1]

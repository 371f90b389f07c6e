"""What google-genai makes of interactions: `python interactions_tour.py URL` prints it as JSON.

It runs with every version of the client that has `client.interactions` as it is now.
"""

from __future__ import annotations

import asyncio
import json
import sys
import warnings
from typing import Any

from google import genai
from google.genai import version

warnings.simplefilter("ignore")  # temperature and others are told to be going

WEATHER = {
    "type": "function",
    "name": "weather",
    "description": "The weather of a town.",
    "parameters": {"type": "object", "properties": {"town": {"type": "string"}}, "required": ["town"]},
}
PERSON = {
    "type": "object",
    "properties": {"name": {"type": "string"}, "age": {"type": "integer"}},
    "required": ["name", "age"],
}


def tour(client: genai.Client) -> dict[str, Any]:
    told: dict[str, Any] = {}
    ask = client.interactions
    first = ask.create(
        model="stub", input="hello", system_instruction="Be kind.", labels={"team": "a"},
        generation_config={
            "temperature": 0.5, "top_p": 0.9, "seed": 7, "max_output_tokens": 99, "stop_sequences": ["END"],
        },
        safety_settings=[{"type": "hate_speech", "threshold": "block_only_high"}],
    )  # fmt: skip
    usage = first.usage
    told["text"] = [first.status, first.output_text, first.model, first.id.startswith("v1_"), first.labels]
    told["usage"] = [usage.total_input_tokens, usage.total_output_tokens, usage.total_tokens]
    second = ask.create(model="stub", input="what did I say?", previous_interaction_id=first.id)
    told["history"] = second.output_text
    fetched = ask.get(second.id, include_input=True)
    told["fetched"] = [
        fetched.status, fetched.output_text, fetched.previous_interaction_id == first.id,
        [[part.text for part in step.content] for step in fetched.input], ask.get(second.id).input,
    ]  # fmt: skip
    told["streamed"] = [_of(event) for event in ask.create(model="stub", input="hello", stream=True)]
    told["called"] = _called(ask)
    told["streamed call"] = [
        _of(event) for event in ask.create(model="stub", input="weather?", tools=[WEATHER], stream=True)
    ]
    form = {"type": "text", "mime_type": "application/json", "schema": PERSON}
    for name, given in (("form", form), ("schema", PERSON)):
        told[name] = ask.create(model="stub", input="person", response_format=given).output_text
    thinking = {"thinking_level": "low", "thinking_summaries": "auto"}
    thought = ask.create(model="stub", input="think", generation_config=thinking)
    told["thought"] = [
        [step.type for step in thought.steps], thought.steps[0].summary[0].text, thought.output_text,
        thought.usage.total_thought_tokens,
    ]  # fmt: skip
    told["parts"] = ask.create(
        model="stub",
        input=[
            {"type": "text", "text": "look"},
            {"type": "image", "data": "aGk=", "mime_type": "image/png"},
        ],
    ).output_text
    told["turns"] = ask.create(
        model="stub", store=False,
        input=[
            {"type": "user_input", "content": [{"type": "text", "text": "a"}]},
            {"type": "model_output", "content": [{"type": "text", "text": "b"}]},
            {"type": "user_input", "content": [{"type": "text", "text": "what did I say?"}]},
        ],
    ).output_text  # fmt: skip
    told["background"] = _background(ask)
    told["deleted"] = _deleted(ask, first.id)
    told["errors"] = _errors(ask)
    told["asynchronous"] = asyncio.run(_asynchronous(client))
    return told


def _called(ask: Any) -> list[Any]:
    asked = ask.create(model="stub", input="weather?", tools=[WEATHER])
    (call,) = [step for step in asked.steps if step.type == "function_call"]
    answered = ask.create(
        model="stub",
        previous_interaction_id=asked.id,
        tools=[WEATHER],
        input=[{"type": "function_result", "call_id": call.id, "name": call.name, "result": {"sky": "blue"}}],
    )
    return [asked.status, call.name, call.arguments, answered.status, answered.output_text]


def _background(ask: Any) -> list[Any]:
    begun = list(ask.create(model="stub", input="hello", background=True, stream=True))
    id_ = begun[0].interaction.id
    again = list(ask.get(id_, stream=True, last_event_id=begun[2].event_id))
    polled = ask.create(model="stub", input="hello", background=True)
    status = polled.status
    while (now := ask.get(polled.id)).status == "in_progress":
        pass
    return [
        [_of(event) for event in begun[3:]] == [_of(event) for event in again],
        ask.get(id_).output_text, status, now.status, now.output_text, ask.cancel(polled.id).status,
    ]  # fmt: skip


def _deleted(ask: Any, id_: str) -> list[Any]:
    ask.delete(id_)
    return [_fault(lambda: ask.get(id_)), _fault(lambda: ask.delete(id_))]


def _errors(ask: Any) -> dict[str, Any]:
    made = ask.create(model="stub", input="hello", store=False)
    return {
        "not kept": _fault(lambda: ask.get(made.id)),
        "model": _fault(lambda: ask.create(model="none", input="hello")),
        "tool": _fault(lambda: ask.create(model="stub", input="hello", tools=[{"type": "google_search"}])),
        "previous": _fault(lambda: ask.create(model="stub", input="a", previous_interaction_id="v1_none")),
        "broken": [_of(event) for event in ask.create(model="stub", input="break off", stream=True)][-1],
        "blocked": ask.create(model="stub", input="block").status,
    }


async def _asynchronous(client: genai.Client) -> list[Any]:
    ask = client.aio.interactions
    made = await ask.create(model="stub", input="hello")
    after = await ask.create(model="stub", input="what did I say?", previous_interaction_id=made.id)
    streamed = [_of(event) async for event in await ask.create(model="stub", input="hello", stream=True)]
    return [after.output_text, streamed[-1][0]]


def _of(event: Any) -> list[Any]:
    """An event, in short."""
    kind = event.event_type
    match kind:
        case "step.start":
            return [kind, event.index, event.step.type]
        case "step.delta":
            delta = event.delta
            return [kind, event.index, delta.type, getattr(delta, "text", None) or delta.arguments]
        case "step.stop":
            return [kind, event.index]
        case "error":
            return [kind, event.error.code, event.error.message]
        case "interaction.status_update":
            return [kind, event.status]
        case _:
            usage = event.interaction.usage
            return [kind, event.interaction.status, usage.total_tokens if usage else None]


def _fault(act: Any) -> list[Any]:
    try:
        act()
    except Exception as error:  # of whichever kind the client has for it
        return [getattr(error, "status_code", None) or getattr(error, "code", None), str(error)[:300]]
    return ["no error"]


if __name__ == "__main__":
    url = sys.argv[1]
    options: Any = {"base_url": url, "retry_options": {"attempts": 1}}
    made = tour(genai.Client(api_key="test-key", http_options=options))
    print(json.dumps({"version": version.__version__, **made}))

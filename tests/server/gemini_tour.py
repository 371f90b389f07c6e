"""A round through the Gemini dialect by whichever google-genai is installed, as a program of its own.

    python gemini_tour.py http://127.0.0.1:8484

It prints one JSON object: for each stop of the round what the client made of the answer. What the server says
to each question is scripted in `test_gemini_clients`.
"""

import asyncio
import enum
import json
import sys
import warnings
from typing import Any

from google import genai
from google.genai import errors, types
from google.oauth2.credentials import Credentials
from pydantic import BaseModel


class Person(BaseModel):
    name: str
    age: int | None = None


class Mood(enum.Enum):
    GLAD = "glad"
    SAD = "sad"


def weather(town: str, days: int = 1) -> dict[str, Any]:
    """The weather of a town.

    Args:
        town: its name.
        days: how many.
    """
    return {"sky": f"blue over {town}", "days": days}


def finish(response: types.GenerateContentResponse) -> str:
    return str(response.candidates[0].finish_reason.value)


def text(client: genai.Client) -> Any:
    answer = client.models.generate_content(
        model="stub",
        contents="hello",
        config={
            "system_instruction": "Be kind.", "temperature": 0.5, "top_p": 0.9, "top_k": 40, "seed": 7,
            "max_output_tokens": 99, "stop_sequences": ["END"], "candidate_count": 1,
            "presence_penalty": 0.5, "frequency_penalty": 0.25,
            "safety_settings": [
                {"category": "HARM_CATEGORY_HATE_SPEECH", "threshold": "BLOCK_ONLY_HIGH"}
            ],
        },
    )  # fmt: skip
    usage = answer.usage_metadata
    details = [(str(one.modality.value), one.token_count) for one in usage.prompt_tokens_details]
    counts = (usage.prompt_token_count, usage.candidates_token_count, usage.total_token_count)
    return answer.text, finish(answer), answer.model_version, bool(answer.response_id), counts, details


def streamed(client: genai.Client) -> Any:
    chunks = list(client.models.generate_content_stream(model="models/stub", contents="hello"))
    return [chunk.text for chunk in chunks], finish(chunks[-1]), chunks[-1].usage_metadata.total_token_count


def parsed(client: genai.Client) -> Any:
    config = types.GenerateContentConfig(response_mime_type="application/json", response_schema=Person)
    answer = client.models.generate_content(model="stub", contents="person", config=config)
    return answer.parsed.model_dump(), type(answer.parsed).__name__


def json_schema(client: genai.Client) -> Any:
    config = types.GenerateContentConfig(
        response_mime_type="application/json", response_json_schema=Person.model_json_schema()
    )
    return client.models.generate_content(model="stub", contents="person", config=config).text


def chosen(client: genai.Client) -> Any:
    config = types.GenerateContentConfig(response_mime_type="text/x.enum", response_schema=Mood)
    answer = client.models.generate_content(model="stub", contents="mood", config=config)
    return answer.text, answer.parsed.name


def thoughts(client: genai.Client) -> Any:
    config = types.GenerateContentConfig(
        thinking_config=types.ThinkingConfig(include_thoughts=True, thinking_budget=64)
    )
    answer = client.models.generate_content(model="stub", contents="think", config=config)
    parts = [(part.text, bool(part.thought)) for part in answer.candidates[0].content.parts]
    return answer.text, parts, answer.usage_metadata.thoughts_token_count


def logprobs(client: genai.Client) -> Any:
    config = types.GenerateContentConfig(response_logprobs=True, logprobs=1)
    answer = client.models.generate_content(model="stub", contents="likely", config=config).candidates[0]
    result = answer.logprobs_result
    return (
        answer.avg_logprobs,
        [(one.token, one.token_id, one.log_probability) for one in result.chosen_candidates],
        [[one.token for one in top.candidates] for top in result.top_candidates],
    )


def calls_by_hand(client: genai.Client) -> Any:
    declared = types.FunctionDeclaration(
        name="weather",
        description="The weather of a town.",
        parameters=types.Schema(
            type="OBJECT", properties={"town": types.Schema(type="STRING")}, required=["town"]
        ),
    )
    config = types.GenerateContentConfig(
        tools=[types.Tool(function_declarations=[declared])],
        tool_config=types.ToolConfig(
            function_calling_config=types.FunctionCallingConfig(
                mode="ANY", allowed_function_names=["weather"]
            )
        ),
    )
    first = client.models.generate_content(model="stub", contents="weather?", config=config)
    call = first.function_calls[0]
    result = types.Part.from_function_response(name="weather", response={"sky": "blue over Rome"})
    result.function_response.id = call.id
    turns = [
        types.Content(role="user", parts=[types.Part(text="weather?")]),
        first.candidates[0].content,
        types.Content(role="user", parts=[result]),
    ]
    second = client.models.generate_content(model="stub", contents=turns, config=config)
    return call.name, call.args, bool(call.id), second.text


def calls_by_themselves(client: genai.Client) -> Any:
    config = types.GenerateContentConfig(tools=[weather])
    answer = client.models.generate_content(model="stub", contents="weather?", config=config)
    history = answer.automatic_function_calling_history
    return answer.text, [content.role for content in history]


def chat(client: genai.Client) -> Any:
    talk = client.chats.create(model="stub", config=types.GenerateContentConfig(tools=[weather]))
    first = talk.send_message("hello").text
    second = "".join(chunk.text or "" for chunk in talk.send_message_stream("weather?"))
    third = talk.send_message("what did I say?").text
    return first, second, third


def caches(client: genai.Client) -> Any:
    made = client.caches.create(
        model="stub",
        config=types.CreateCachedContentConfig(
            contents="a long book", system_instruction="Be brief.", ttl="60s", display_name="book"
        ),
    )
    got = client.caches.get(name=made.name)
    config = types.GenerateContentConfig(cached_content=made.name)
    answer = client.models.generate_content(model="stub", contents="cached", config=config)
    longer = client.caches.update(name=made.name, config=types.UpdateCachedContentConfig(ttl="3600s"))
    listed = [one.name for one in client.caches.list(config={"page_size": 1})]
    client.caches.delete(name=made.name)
    gone = refused(lambda: client.caches.get(name=made.name))
    return (
        got.display_name, got.model, got.usage_metadata.total_token_count,
        (got.expire_time - got.create_time).total_seconds(), answer.text,
        longer.expire_time > got.expire_time, listed == [made.name], gone[:2],
    )  # fmt: skip


def counted(client: genai.Client) -> Any:
    return client.models.count_tokens(model="stub", contents=["one two", "three"]).total_tokens


def computed(client: genai.Client) -> Any:
    answer = client.models.compute_tokens(model="stub", contents=["one two", "three"])
    return [(one.role, one.token_ids, [token.decode() for token in one.tokens]) for one in answer.tokens_info]


def embedded(client: genai.Client) -> Any:
    answer = client.models.embed_content(
        model="stub", contents=["a", "bcd"], config={"output_dimensionality": 2, "task_type": "CLUSTERING"}
    )
    alone = client.models.embed_content(model="stub", contents="four")
    return [one.values for one in answer.embeddings], [one.values for one in alone.embeddings]


def embedded_anew(client: genai.Client) -> Any:
    """The way of the newer embedding models, of whose names the clients know."""
    answer = client.models.embed_content(model="gemini-embedding-2", contents="four")
    return [one.values for one in answer.embeddings]


def listed(client: genai.Client) -> Any:
    names = [model.name.rpartition("/")[2] for model in client.models.list(config={"page_size": 1})]
    model = client.models.get(model="stub")
    return names, model.name.rpartition("/")[2]


def refused(ask: Any) -> Any:
    try:
        ask()
    except errors.APIError as error:
        details = error.details.get("error", {}).get("details", [])
        kinds = [detail["@type"].rpartition(".")[2] for detail in details]
        return error.code, error.status, error.message, kinds, type(error).__name__
    return None


def errors_of(client: genai.Client) -> Any:
    ask = client.models.generate_content
    return {
        "unknown model": refused(lambda: ask(model="nothing", contents="hello")),
        "too much": refused(lambda: ask(model="stub", contents="too much")),
        "bad": refused(lambda: ask(model="stub", contents="hello", config={"temperature": 9})),
        "search": refused(
            lambda: ask(model="stub", contents="hello", config={"tools": [{"google_search": {}}]})
        ),
        "in a stream": refused(
            lambda: list(client.models.generate_content_stream(model="stub", contents="break off"))
        ),
    }


def blocked(client: genai.Client) -> Any:
    feedback = client.models.generate_content(model="stub", contents="block").prompt_feedback
    return str(feedback.block_reason.value), [str(one.category.value) for one in feedback.safety_ratings]


def withheld(client: genai.Client) -> Any:
    answer = client.models.generate_content(model="stub", contents="withhold")
    return finish(answer), answer.text, [one.blocked for one in answer.candidates[0].safety_ratings]


async def asynchronously(client: genai.Client) -> Any:
    answer = await client.aio.models.generate_content(model="stub", contents="hello")
    stream = await client.aio.models.generate_content_stream(model="stub", contents="hello")
    pieces = [chunk.text async for chunk in stream]
    talk = client.aio.chats.create(model="stub", config=types.GenerateContentConfig(tools=[weather]))
    said = (await talk.send_message("weather?")).text
    count = (await client.aio.models.count_tokens(model="stub", contents="one two")).total_tokens
    return answer.text, pieces, said, count


def asynchronous(client: genai.Client) -> Any:
    return asyncio.run(asynchronously(client))


STOPS = [
    text, streamed, parsed, json_schema, chosen, thoughts, logprobs, calls_by_hand, calls_by_themselves, chat,
    caches, counted, computed, embedded, embedded_anew, listed, errors_of, blocked, withheld,
    asynchronous,
]  # fmt: skip


def tour(client: genai.Client) -> dict[str, Any]:
    told = {}
    for stop in STOPS:
        try:
            told[stop.__name__] = stop(client)
        except Exception as error:
            told[stop.__name__] = f"{type(error).__name__}: {error}"
    return told


def main(url: str) -> None:
    warnings.simplefilter("ignore")
    options: Any = {"base_url": url}
    clients = {
        "developer": genai.Client(vertexai=False, api_key="test-key", http_options=options),
        "enterprise": genai.Client(vertexai=True, api_key="test-key", http_options=options),
        "project": genai.Client(
            vertexai=True, project="p", location="l", credentials=Credentials("token"), http_options=options
        ),
    }
    told = {name: tour(client) for name, client in clients.items()}
    print(json.dumps({"version": genai.__version__} | told))


if __name__ == "__main__":
    main(sys.argv[1])

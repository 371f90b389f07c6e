"""What litellm makes of the server: run by itself, with litellm and all that it brings on the path.

python litellm_tour.py URL     prints what came back, as JSON
"""

from __future__ import annotations

import asyncio
import json
import sys
from typing import Any

import litellm

WEATHER = {
    "type": "function",
    "function": {
        "name": "weather",
        "parameters": {"type": "object", "properties": {"town": {"type": "string"}}, "required": ["town"]},
    },
}
SCHEMA = {"type": "object", "properties": {"year": {"type": "integer"}}, "required": ["year"]}


def main(url: str) -> dict[str, Any]:
    server: dict[str, Any] = {"api_base": f"{url}/v1", "api_key": "sk-test", "num_retries": 0}
    chat = {**server, "model": "openai/stub"}
    said: dict[str, Any] = {}

    whole = litellm.completion(**chat, messages=[{"role": "user", "content": "Hi"}], temperature=0.5, seed=1)
    said["whole"] = [whole.choices[0].message.content, whole.usage.total_tokens > 0]

    stream = litellm.completion(
        **chat,
        messages=[{"role": "user", "content": "Hi"}],
        stream=True,
        stream_options={"include_usage": True},
    )
    chunks = list(stream)
    said["stream"] = "".join(chunk.choices[0].delta.content or "" for chunk in chunks if chunk.choices)
    said["stream_usage"] = chunks[-1].usage.completion_tokens

    messages: list[Any] = [{"role": "user", "content": "Weather in Turin?"}]
    called = litellm.completion(**chat, messages=messages, tools=[WEATHER])
    message = called.choices[0].message
    (call,) = message.tool_calls
    said["call"] = [called.choices[0].finish_reason, call.function.name, json.loads(call.function.arguments)]
    messages += [message.model_dump(), {"role": "tool", "tool_call_id": call.id, "content": "rain"}]
    said["answer"] = litellm.completion(**chat, messages=messages, tools=[WEATHER]).choices[0].message.content

    form = {"type": "json_schema", "json_schema": {"name": "fact", "schema": SCHEMA, "strict": True}}
    fact = litellm.completion(**chat, messages=[{"role": "user", "content": "?"}], response_format=form)
    said["json"] = json.loads(fact.choices[0].message.content)

    thought = litellm.completion(
        **chat, messages=[{"role": "user", "content": "?"}], extra_body={"thinking_budget": 50}
    )
    message = thought.choices[0].message
    said["thought"] = [message.reasoning_content.strip(), message.content]

    said["asynchronous"] = (
        asyncio.run(litellm.acompletion(**chat, messages=[{"role": "user", "content": "?"}]))
        .choices[0]
        .message.content
    )
    vectors = litellm.embedding(**chat, input=["a test"], encoding_format="float")
    said["embedding"] = len(vectors.data[0]["embedding"])
    said["response"] = litellm.responses(**chat, input="Hi").output[0].content[0].text

    said["errors"] = [error_of({**chat, "model": "openai/none"}), error_of({**chat, "logit_bias": {"1": 2}})]
    said["errors"] += [error_of(chat, "long " * 5000)]
    return said


def error_of(chat: dict[str, Any], text: str = "Hi") -> str:
    try:
        litellm.completion(**chat, messages=[{"role": "user", "content": text}])
    except Exception as error:  # whatever kind it makes of it is what is to be told
        return type(error).__name__
    return "none"


if __name__ == "__main__":
    print(json.dumps(main(sys.argv[1])))

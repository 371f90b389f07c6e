"""Requests that tests of engines share: a greeting, and a question about the weather with a tool for it."""

from __future__ import annotations

from studiolo.language.conversation import Request, Tool, user

HELLO = Request(model="any", contents=(user("hello"),))
WEATHER = Tool(
    name="weather",
    description="How it is outside.",
    parameters={
        "type": "object",
        "properties": {"city": {"type": "string"}},
        "required": ["city"],
        "additionalProperties": False,
    },
)
ASK_WEATHER = Request(model="any", contents=(user("how is it in Rome?"),), tools=(WEATHER,))

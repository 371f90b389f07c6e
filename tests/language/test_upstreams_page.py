"""The tables of docs/upstreams.md are those of the code, and leave no field out."""

from __future__ import annotations

import runpy
from pathlib import Path

import pytest

from studiolo.language.conversation import GenerationConfig, Request, ToolChoice, user
from studiolo.language.errors import InvalidRequestError

ROOT = Path(__file__).parents[2]


@pytest.fixture(scope="module")
def script():
    return runpy.run_path(str(ROOT / "scripts" / "upstreams_page.py"))


def test_the_tables_are_those_of_the_code(script):
    assert script["PAGE"].read_text(encoding="utf-8") == script["page"](), "run scripts/upstreams_page.py"


def test_no_field_is_left_out(script):
    fields = {"system", "contents", "tools", "safety", "cache"}
    fields |= {f"tool_choice.{name}" for name in ToolChoice.model_fields}
    fields |= {f"config.{name}" for name in GenerationConfig.model_fields}
    assert fields == {wish.split(":")[0].split(",")[0].split(" ")[0] for wish in script["WISHES"]}
    assert set(Request.model_fields) == {"model", "tool_choice", "config"} | {
        f for f in fields if "." not in f
    }


def test_every_wish_is_sent_or_refused_by_every_kind_of_server(script):
    """Where the request is as without the wish, that must be the right thing to do."""
    nothing = []
    for kind, body_of in script["columns"]().items():
        for wish, pair in script["WISHES"].items():
            try:
                cell = script["cell"](body_of, *pair)
            except InvalidRequestError as error:
                pytest.fail(f"{kind}: {wish}: {error}")
            if cell == script["NOTHING"]:
                nothing.append((kind, wish))
    # OpenAI's API has no place for thoughts (a note says so); to think as it likes is what a model does
    # unasked; and whether thoughts are shown is decided here where the server streams them anyway.
    assert nothing == [
        ("openai", "contents: a thought"),
        ("openai", "config.thinking dynamic"),
        ("vllm", "config.thinking show full"),
        ("llamacpp", "config.thinking show full"),
        ("ollama", "config.thinking dynamic"),
        ("ollama", "config.thinking show full"),
    ]


def test_a_plain_request_asks_for_nothing_more(script):
    plain = Request(model="m", contents=(user("hi"),))
    sizes = {kind: set(body_of(plain)) for kind, body_of in script["columns"]().items()}
    assert sizes.pop("gemini") == {"contents", "generationConfig"}
    assert sizes.pop("openrouter") == {"model", "messages", "provider"}
    assert all(size == {"model", "messages"} for size in sizes.values())

"""litellm, a client that many programs speak through, against the OpenAI dialect."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path

from sdks import folder_of
from talking import speaking

from language.stub import EOS

VERSION = "1.106.2"
TOUR = Path(__file__).with_name("litellm_tour.py")


def test_what_it_makes_of_the_server(serve):
    scripts = [
        "Hello.", "Hello.", "<tool_call>", '{"name": "weather", "arguments": {"town": "Turin"}}', EOS,
        "Rain.", '{"year": 1815}', "Hmm.</think>", "Yes.", "Good.", "Kept.",
    ]  # fmt: skip
    folder = folder_of("litellm", VERSION, "mcp")
    url = serve(speaking(scripts)).url
    # Its table of prices comes with it: nothing is fetched.
    told = {"PYTHONPATH": str(folder), "LITELLM_LOCAL_MODEL_COST_MAP": "True", "LITELLM_LOG": "ERROR"}
    done = subprocess.run(
        [sys.executable, str(TOUR), url], env={**os.environ, **told}, capture_output=True, text=True
    )
    assert done.returncode == 0, done.stderr[-3000:]
    assert json.loads(done.stdout.splitlines()[-1]) == {
        "whole": ["Hello.", True],
        "stream": "Hello.",
        "stream_usage": len("Hello."),
        "call": ["tool_calls", "weather", {"town": "Turin"}],
        "answer": "Rain.",
        "json": {"year": 1815},
        "thought": ["Hmm.", "Yes."],
        "asynchronous": "Good.",
        "embedding": 10,
        "response": "Kept.",
        "errors": ["NotFoundError", "BadRequestError", "ContextWindowExceededError"],
    }

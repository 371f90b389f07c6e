"""The tables of docs/api.md are those of the code."""

from __future__ import annotations

import runpy
from pathlib import Path

ROOT = Path(__file__).parents[2]


def test_the_tables_are_those_of_the_code():
    script = runpy.run_path(str(ROOT / "scripts" / "api_page.py"))
    text = script["PAGE"].read_text(encoding="utf-8")
    assert text == script["page"](text), "run scripts/api_page.py"


def test_every_request_of_the_openai_dialect_is_in_them():
    from studiolo.server.openai.wire import Wire

    script = runpy.run_path(str(ROOT / "scripts" / "api_page.py"))  # imports the routes, and so all types
    requests = {kind for kind in _below(Wire) if kind.__name__.endswith("Request")}
    assert requests == set(script["REQUESTS"].values())


def _below(kind: type) -> set[type]:
    return {one for child in kind.__subclasses__() for one in {child, *_below(child)}}

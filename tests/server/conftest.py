"""Servers for the tests of the server."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import ExitStack
from pathlib import Path
from typing import Any, Protocol

import pytest
from serving import Serving, serving


class Serve(Protocol):
    def __call__(self, *engines: Any, **settings: Any) -> Serving: ...


@pytest.fixture
def serve(studiolo_home: Path) -> Iterator[Serve]:
    """`serve(engine, ...)` starts a server over these engines (see `language.stub`), each under its `model`.
    It ends with the test. Keyword arguments are fields of Settings."""
    with ExitStack() as stack:

        def start(*engines: Any, **settings: Any) -> Serving:
            named = {engine.model: engine for engine in engines}
            return stack.enter_context(serving(studiolo_home, named, **settings))

        yield start

"""Servers for the tests of the server."""

from __future__ import annotations

import asyncio
import json
import ssl
from collections.abc import Iterator
from contextlib import ExitStack
from pathlib import Path
from typing import Any, Protocol

import httpx
import openai
import pytest
import uvicorn
from serving import Serving, serving
from talking import client_of

from jobs.databases import NoServerError, new_database, postgres
from language.stub import StubEngine
from studiolo.models.registry import CARD_FILE, register


@pytest.fixture(scope="module", autouse=True)
def no_certificates() -> Iterator[None]:
    """Nobody speaks TLS here, and each new client would take 30 ms to read the certificates of the world."""
    with pytest.MonkeyPatch.context() as patch:
        for load in ("load_verify_locations", "load_default_certs"):
            patch.setattr(ssl.SSLContext, load, lambda *_, **__: None)
        yield


@pytest.fixture(scope="module", autouse=True)
def clients_wait() -> Iterator[None]:
    """httpx gives up after 5 seconds, which a machine may need whose disk is taken by other tests."""
    with pytest.MonkeyPatch.context() as patch:
        for phase in ("connect", "read", "write", "pool"):
            patch.setattr(httpx._config.DEFAULT_TIMEOUT_CONFIG, phase, 120.0)
        yield


class _Soon:
    """asyncio, as uvicorn sees it: it looks every 0.1 seconds whether it is to end, and whether it has."""

    def __getattr__(self, name: str) -> Any:
        return getattr(asyncio, name)

    async def sleep(self, seconds: float) -> None:
        await asyncio.sleep(seconds / 10)


@pytest.fixture(scope="module", autouse=True)
def ends_soon() -> Iterator[None]:
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(uvicorn.server, "asyncio", _Soon())
        yield


class Serve(Protocol):
    def __call__(self, *engines: Any, **settings: Any) -> Serving: ...


@pytest.fixture(scope="session")
def postgresql() -> Iterator[str]:
    """A server that lives as long as the tests."""
    try:
        with postgres() as url:
            yield url
    except NoServerError as error:
        pytest.skip(f"no PostgreSQL: {error}")


@pytest.fixture(params=["sqlite", "postgresql"])
def database_url(request: pytest.FixtureRequest, tmp_path: Path) -> str:
    """A new database of each kind."""
    if request.param == "sqlite":
        return f"sqlite:///{tmp_path / 'studiolo.sqlite'}"
    return new_database(request.getfixturevalue("postgresql"))


@pytest.fixture
def foxes(tmp_path: Path) -> None:
    """A model that draws, `tiny`, and a subject, `my-fox`."""
    from tiny import tiny_folder  # takes seconds to import

    register(tiny_folder(tmp_path / "base"), "tiny")
    subject = tiny_folder(tmp_path / "subject", seed=1)
    card = {"title": "My fox", "class_noun": "fox", "identifier": "zwx", "base": {"name": "tiny"}}
    (subject / CARD_FILE).write_text(json.dumps(card))
    register(subject, "my-fox")


@pytest.fixture
def served(studiolo_home: Path) -> Iterator[Serving]:
    """A server with a model that speaks, all that draws, and jobs."""
    with serving(studiolo_home, {"stub": StubEngine()}, jobs=True) as served:
        yield served


@pytest.fixture
def client(served: Serving) -> openai.OpenAI:
    """The official client of that server."""
    return client_of(served.url)


@pytest.fixture
def serve(studiolo_home: Path) -> Iterator[Serve]:
    """`serve(engine, ...)` starts a server over these engines (see `language.stub`), each under its `model`.
    It ends with the test. Keyword arguments are fields of Settings."""
    with ExitStack() as stack:

        def start(*engines: Any, **settings: Any) -> Serving:
            named = {engine.model: engine for engine in engines}
            return stack.enter_context(serving(studiolo_home, named, **settings))

        yield start

"""Servers for the tests of the server."""

from __future__ import annotations

import itertools
import os
from collections.abc import Iterator
from contextlib import ExitStack
from pathlib import Path
from typing import Any, Protocol

import pytest
import sqlalchemy as sa
from serving import Serving, serving

from jobs.databases import NoServerError, postgres


class Serve(Protocol):
    def __call__(self, *engines: Any, **settings: Any) -> Serving: ...


_number = itertools.count()


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
    server = sa.make_url(request.getfixturevalue("postgresql"))
    name = f"test_{os.getpid()}_{next(_number)}"
    engine = sa.create_engine(server, isolation_level="AUTOCOMMIT")
    with engine.connect() as connection:
        connection.execute(sa.text(f"CREATE DATABASE {name}"))
    engine.dispose()
    return server.set(database=name).render_as_string(hide_password=False)


@pytest.fixture
def serve(studiolo_home: Path) -> Iterator[Serve]:
    """`serve(engine, ...)` starts a server over these engines (see `language.stub`), each under its `model`.
    It ends with the test. Keyword arguments are fields of Settings."""
    with ExitStack() as stack:

        def start(*engines: Any, **settings: Any) -> Serving:
            named = {engine.model: engine for engine in engines}
            return stack.enter_context(serving(studiolo_home, named, **settings))

        yield start

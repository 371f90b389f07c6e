"""Both databases."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import pytest

from jobs.databases import NoServerError, new_database, postgres


@pytest.fixture(scope="session")
def server() -> Iterator[str]:
    try:
        with postgres() as url:
            yield url
    except NoServerError as error:
        pytest.skip(f"no PostgreSQL: {error}")


@pytest.fixture(params=["sqlite", "postgresql"])
def url(request: pytest.FixtureRequest, tmp_path: Path) -> str:
    """A new database."""
    if request.param == "sqlite":
        return f"sqlite:///{tmp_path / 'studiolo.sqlite'}"
    return new_database(request.getfixturevalue("server"))

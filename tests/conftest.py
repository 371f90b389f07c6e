"""Every test has a home of its own, so none can see or touch the models of whoever runs it."""

from __future__ import annotations

from pathlib import Path

import pytest
from hypothesis import settings

settings.register_profile("studiolo", deadline=None)  # how fast a machine is, is not what tests tell
settings.load_profile("studiolo")


@pytest.fixture(autouse=True)
def studiolo_home(tmp_path_factory: pytest.TempPathFactory, monkeypatch: pytest.MonkeyPatch) -> Path:
    home = tmp_path_factory.mktemp("home")
    monkeypatch.setenv("STUDIOLO_HOME", str(home))
    return home

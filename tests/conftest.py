"""Every test has a home of its own, so none can see or touch the models of whoever runs it."""

from __future__ import annotations

import gc
import os
import signal
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from hypothesis import settings

from warm import warmed

if "PYTEST_XDIST_WORKER" in os.environ:
    # The cores are the workers': threads of one would wait for those of others. torch reads it when loaded.
    os.environ.setdefault("OMP_NUM_THREADS", "1")

settings.register_profile("studiolo", deadline=None)  # how fast a machine is, is not what tests tell
settings.load_profile("studiolo")


@pytest.fixture(autouse=True)
def studiolo_home(tmp_path_factory: pytest.TempPathFactory, monkeypatch: pytest.MonkeyPatch) -> Path:
    home = tmp_path_factory.mktemp("home")
    monkeypatch.setenv("STUDIOLO_HOME", str(home))
    return home


@pytest.fixture
def one_thread() -> Iterator[None]:
    """All rows of a batch in one call, for tests that count calls."""
    from studiolo.diffusion.threads import torch_threads

    with torch_threads(1):
        yield


@pytest.fixture(scope="session")
def warm_python() -> Iterator[str]:
    """An executable like python that has imported already what takes long; see `warm`."""
    with warmed() as python:
        yield python


@pytest.fixture(scope="module")
def warm_trainings(warm_python: str) -> Iterator[None]:
    """What servers begin to teach begins at once."""
    from studiolo.jobs import tunings

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(tunings, "LEASH", [warm_python, *tunings.LEASH[1:]])
        yield


def pytest_configure() -> None:
    """A shell starts what runs in its background with Ctrl-C ignored, and processes pass that on."""
    if signal.getsignal(signal.SIGINT) == signal.SIG_IGN:
        signal.signal(signal.SIGINT, signal.default_int_handler)


def pytest_collection_finish() -> None:
    gc.freeze()  # what is imported stays: without, looking for garbage among it takes half a second each time


@pytest.hookimpl(optionalhook=True)
def pytest_xdist_make_scheduler(config: pytest.Config, log: Any) -> Any:
    from spreading import Spreading

    config.option.loadscopereorder = False
    return Spreading(config, log) if config.getvalue("dist") == "loadfile" else None


def pytest_collection_modifyitems(config: pytest.Config, items: list[pytest.Item]) -> None:
    if hasattr(config, "workerinput"):
        from spreading import order

        order(items)

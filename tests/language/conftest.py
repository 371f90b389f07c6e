"""Weights for the tests of the language half."""

from __future__ import annotations

import os
from pathlib import Path

import pytest

from pulled import pulled


@pytest.fixture(scope="session")
def smollm2() -> Path:
    """SmolLM2-135M-Instruct as a GGUF file: named by STUDIOLO_TEST_GGUF, or else pulled."""
    named = os.environ.get("STUDIOLO_TEST_GGUF")
    if not named:
        return pulled("smollm2")
    path = Path(named)
    if not path.is_file():
        pytest.skip(f"STUDIOLO_TEST_GGUF names no file: {path}")
    return path

"""Weights for the tests of the language half."""

from __future__ import annotations

import os
from pathlib import Path

import pytest


@pytest.fixture(scope="session")
def smollm2() -> Path:
    """SmolLM2-135M-Instruct as a GGUF file: the one that STUDIOLO_TEST_GGUF names."""
    named = os.environ.get("STUDIOLO_TEST_GGUF")
    if not named:
        pytest.skip(
            "no weights to test with: set STUDIOLO_TEST_GGUF to the GGUF file of SmolLM2-135M-Instruct"
        )
    path = Path(named)
    if not path.is_file():
        pytest.skip(f"STUDIOLO_TEST_GGUF names no file: {path}")
    return path

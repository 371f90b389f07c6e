"""Weights for the tests of the language half."""

from __future__ import annotations

from pathlib import Path

import pytest

from pulled import pulled


@pytest.fixture(scope="session")
def smollm2() -> Path:
    """SmolLM2-135M-Instruct as a GGUF file."""
    return pulled("smollm2")

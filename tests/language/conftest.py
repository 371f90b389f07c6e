"""Weights for the tests of the language half."""

from __future__ import annotations

import os
from pathlib import Path

import pytest

from pulled import pulled
from studiolo.language.engines.native import SPINS

# As `engines.native` has it, which comes too late where a test imports xllamacpp itself.
os.environ.setdefault("GOMP_SPINCOUNT", SPINS)


@pytest.fixture(scope="session")
def smollm2() -> Path:
    """SmolLM2-135M-Instruct as a GGUF file."""
    return pulled("smollm2")

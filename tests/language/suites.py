"""The benchmarks' own functions, for tests that keep true in small what the tables in docs/ show at large."""

from __future__ import annotations

import sys
from collections.abc import Callable, Iterable
from importlib import import_module
from pathlib import Path
from typing import Any

import pytest

BENCHMARKS = Path(__file__).parents[2] / "benchmarks"


def benchmark(name: str) -> Any:
    """The script of that name in benchmarks/, as a module."""
    sys.path.insert(0, str(BENCHMARKS))
    try:
        return import_module(name)
    finally:
        sys.path.remove(str(BENCHMARKS))


def cases(collection: Callable[..., Iterable[Any]], *arguments: str) -> list[Any]:
    """Schemas of a public collection; skips the test where it is neither here nor to be had."""
    try:
        return list(collection(*arguments))
    except benchmark("schema_suites").UnreachableError as error:
        pytest.skip(f"the schemas are neither in the cache nor to be had: {error}")

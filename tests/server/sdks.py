"""Other versions of a client than the one that is installed, each in a folder of its own."""

from __future__ import annotations

import json
import os
import shutil
import subprocess
import sys
import tempfile
from pathlib import Path
from typing import Any

import pytest


def toured(program: str, *words: object, version: str | None) -> dict[str, Any]:
    """What a tour in this folder tells, as JSON, that google-genai of that version takes; None is the one
    that is installed. `words` are its arguments."""
    paths = [str(folder_of("google-genai", version))] if version else []
    done = subprocess.run(
        [sys.executable, str(Path(__file__).with_name(program)), *map(str, words)],
        env={**os.environ, "PYTHONPATH": os.pathsep.join(paths)},
        capture_output=True, text=True, timeout=600,
    )  # fmt: skip
    assert done.returncode == 0, done.stderr
    told: dict[str, Any] = json.loads(done.stdout)
    assert version is None or told["version"] == version
    return told


def folder_of(package: str, version: str, *also: str) -> Path:
    """Where that version lies, for PYTHONPATH; installed once, and kept beside the weights of the tests.
    `also` are requirements that it has and does not name.

    Skips the test where no package index can be reached.
    """
    cache = Path(os.environ.get("STUDIOLO_TEST_CACHE") or "~/.cache/studiolo-tests").expanduser() / "sdks"
    folder = cache / f"{package}-{version}"
    if not folder.is_dir():
        cache.mkdir(parents=True, exist_ok=True)
        made = Path(tempfile.mkdtemp(dir=cache))
        wanted = ["--target", str(made), f"{package}=={version}", *also]
        done = subprocess.run(
            [sys.executable, "-m", "pip", "install", "--quiet", *wanted], capture_output=True, text=True
        )
        if done.returncode:
            shutil.rmtree(made)
            pytest.skip(f"{package} {version} is neither in {cache} nor to be had: {done.stderr[-300:]}")
        made.rename(folder)
    return folder

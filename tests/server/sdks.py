"""Other versions of a client than the one that is installed, each in a folder of its own."""

from __future__ import annotations

import os
import shutil
import subprocess
import sys
import tempfile
from pathlib import Path

import pytest


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

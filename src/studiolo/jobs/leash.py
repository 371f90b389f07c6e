"""A training in a process of its own that does not outlive who started it, and never runs twice.

    python -m studiolo.jobs.leash FOLDER

FOLDER holds recipe.yaml; the run goes to FOLDER/run, gone on with where there is one. Its standard input is
the leash: when it ends, because the other side died or let go, the training saves its step and ends. A second
process on the same folder waits until the first has gone.
"""

from __future__ import annotations

import os
import runpy
import shutil
import signal
import sys
import threading
import time
from pathlib import Path

from filelock import FileLock

LOCK = ".lock"
GRACE = 60.0
"""Seconds from the wish to end until the end by force."""


def main(folder: Path) -> None:
    threading.Thread(target=_end_with_input, daemon=True).start()
    lock = FileLock(folder / LOCK)
    lock.acquire()  # held until the process ends, however it does
    run = folder / "run"
    if (run / "run.json").exists():
        arguments = ["--resume", str(run)]
    else:
        shutil.rmtree(run, ignore_errors=True)  # it died before it could begin
        arguments = ["--recipe", str(folder / "recipe.yaml"), "--out", str(run)]
    sys.argv = ["studiolo", "train", *arguments]
    runpy.run_module("studiolo.cli.main", run_name="__main__", alter_sys=True)


def _end_with_input() -> None:
    os.read(sys.stdin.fileno(), 1)
    os.kill(os.getpid(), signal.SIGTERM)
    time.sleep(GRACE)
    os.kill(os.getpid(), signal.SIGKILL)


if __name__ == "__main__":
    main(Path(sys.argv[1]))

"""A Python that has imported already what takes seconds, for tests that start many processes.

The fixture `warm_python` is the path of an executable that is used like python: `-c CODE`, `-m MODULE`, `-`
or a file, and arguments. What it runs is a process of its own, with the environment, the folder, the streams
and the end that it would have; but it is forked from one (`server.py`) in which torch and Studiolo's larger
modules lie ready. Signals are passed on to it (`client.py`). What it starts by `sys.executable` is warm, too.

Tests of how a process starts, or that kill it from outside and at once go on, take `sys.executable`.
"""

from __future__ import annotations

import os
import shlex
import socket
import subprocess
import sys
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

HERE = Path(__file__).parent


@contextmanager
def warmed() -> Iterator[str]:
    """The path of that executable. With the block ends what it forks from."""
    if not hasattr(os, "pidfd_open"):
        yield sys.executable  # not Linux: it takes longer, and proves the same
        return
    with tempfile.TemporaryDirectory(prefix="warm-") as folder, socket.socket(socket.AF_UNIX) as listener:
        address = str(Path(folder) / "socket")
        listener.bind(address)
        listener.listen(64)  # who comes before it is ready waits here
        python = executable(Path(folder) / "python", sys.executable, "-IS", str(HERE / "client.py"), address)
        server = subprocess.Popen(
            [sys.executable, str(HERE / "server.py"), str(listener.fileno()), python],
            pass_fds=[listener.fileno()], stdin=subprocess.PIPE, stdout=subprocess.PIPE,
        )  # fmt: skip
        listener.close()
        try:
            yield python
        finally:
            for stream in (server.stdin, server.stdout):
                stream.close()  # type: ignore[union-attr]
            server.wait()


def executable(path: Path, *command: str) -> str:
    """A script at `path` that is that command."""
    path.write_text(f'#!/bin/sh\nexec {shlex.join(command)} "$@"\n')
    path.chmod(0o755)
    return str(path)

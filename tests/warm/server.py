"""Forks a process for each `client.py` that asks, with all imported that takes long.

    python server.py LISTENER PYTHON

LISTENER is the number of a socket; PYTHON becomes `sys.executable`. It ends with its standard input. For each
client there is one process that looks after it, and one that is what was asked for.
"""

from __future__ import annotations

import gc
import importlib
import json
import multiprocessing.spawn  # noqa: F401  (remembers the real Python, to which files can be passed on)
import os
import runpy
import select
import signal
import socket
import sys
import types
from pathlib import Path
from typing import Any

LONG = (
    "studiolo.dreambooth.trainer", "studiolo.drawing.model", "studiolo.evaluation.scores",
    "studiolo.evaluation.training", "studiolo.server.starting",
)  # fmt: skip


def main(listener: socket.socket, python: str) -> None:
    """Comes back in each process that was asked for, and then it is that."""
    own = os.environ.get("PYTHONPATH", "").split(os.pathsep)
    rest = [path for path in sys.path[1:] if path not in own]
    sys.executable = python
    os.environ.setdefault("GOMP_SPINCOUNT", "300")  # tests share the cores
    for name in LONG:
        importlib.import_module(name)
    gc.freeze()  # what lies ready is not gone through again, by each at its end
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    signal.signal(signal.SIGCHLD, signal.SIG_IGN)  # nobody waits for who looks after a client
    while listener in select.select([listener, 0], [], [])[0]:
        client, _ = listener.accept()
        if os.fork():
            client.close()
            continue
        listener.close()
        asked, streams = _read(client)
        if process := os.fork():
            for stream in streams:
                os.close(stream)
            _look_after(client, process)
        client.close()
        _become(asked, streams, rest)
        return
    os._exit(0)


def _read(client: socket.socket) -> tuple[dict[str, Any], list[int]]:
    size, streams, *_ = socket.recv_fds(client, 4, 3)
    data = b""
    while len(data) < int.from_bytes(size, "big"):
        data += client.recv(int.from_bytes(size, "big") - len(data))
    return json.loads(data), streams


def _look_after(client: socket.socket, process: int) -> None:
    """Passes signals on, kills it when the client has gone, and tells how it ended."""
    signal.signal(signal.SIGCHLD, signal.SIG_DFL)
    ended = os.pidfd_open(process)
    while ended not in select.select([client, ended], [], [])[0]:
        told = client.recv(1)
        os.kill(process, told[0] if told else signal.SIGKILL)
        if not told:
            break
    _, status = os.waitpid(process, 0)
    client.sendall(status.to_bytes(4, "big"))
    os._exit(0)


def _become(asked: dict[str, Any], streams: list[int], rest: list[str]) -> None:
    """Takes over everything by which processes of the same code differ."""
    signal.signal(signal.SIGCHLD, signal.SIG_DFL)
    signal.signal(signal.SIGINT, signal.default_int_handler)
    for number in asked["ignored"]:
        signal.signal(number, signal.SIG_IGN)
    for number, stream in enumerate(streams):
        os.dup2(stream, number)
        os.close(stream)
    os.chdir(asked["folder"])
    os.environ.clear()
    os.environ.update(asked["environment"])
    _read_environment()
    way, *arguments = asked["arguments"]
    first = {"-c": "", "-": "", "-m": asked["folder"]}.get(way, str(Path(way).absolute().parent))
    given = [path for path in os.environ.get("PYTHONPATH", "").split(os.pathsep) if path]
    sys.path[:] = [first, *given, *rest]
    sys.argv[:] = {"-c": ["-c", *arguments[1:]], "-m": arguments}.get(way, [way, *arguments])
    sys.orig_argv[:] = [sys.executable, way, *arguments]


def _read_environment() -> None:
    """Once more, what modules read while they are imported."""
    import torch
    from lightning_fabric.utilities.rank_zero import _get_rank, rank_zero_only

    rank_zero_only.rank = _get_rank() or 0
    if threads := os.environ.get("OMP_NUM_THREADS"):
        torch.set_num_threads(int(threads))


def run(way: str, *arguments: str) -> None:
    """What Python does with a command line."""
    if way == "-m":
        runpy.run_module(arguments[0], run_name="__main__", alter_sys=True)
        return
    module = sys.modules["__main__"] = types.ModuleType("__main__")
    if way == "-c":
        code = compile(arguments[0], "<string>", "exec")
    elif way == "-":
        code = compile(sys.stdin.read(), "<stdin>", "exec")
    else:
        module.__file__ = way
        with open(way, "rb") as file:
            code = compile(file.read(), way, "exec")
    exec(code, module.__dict__)


if __name__ == "__main__":
    main(socket.socket(fileno=int(sys.argv[1])), sys.argv[2])
    run(*sys.orig_argv[1:])

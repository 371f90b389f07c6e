"""Asks `server.py` for a process, and is like that process to who has started it.

python -IS client.py SOCKET [-c CODE | -m MODULE | - | FILE] [ARGUMENT ...]
"""

from __future__ import annotations

import json
import os
import signal
import socket
import sys
from contextlib import suppress

PASSED_ON = (signal.SIGINT, signal.SIGTERM, signal.SIGHUP, signal.SIGUSR1, signal.SIGUSR2)


def main(address: str, *arguments: str) -> None:
    if not arguments or (arguments[0].startswith("-") and arguments[0] not in ("-c", "-m", "-")):
        os.execv(sys.executable, [sys.executable, *arguments])
    server = socket.socket(socket.AF_UNIX)
    server.connect(address)
    ignored = [number for number in PASSED_ON if signal.getsignal(number) == signal.SIG_IGN]
    for number in PASSED_ON:
        if number not in ignored:
            signal.signal(number, lambda got, _: server.send(bytes([got])))
    told = {"arguments": arguments, "environment": dict(os.environ), "ignored": ignored}
    message = json.dumps(told | {"folder": os.getcwd()}).encode()  # noqa: PTH109  (pathlib takes its time)
    socket.send_fds(server, [len(message).to_bytes(4, "big")], [0, 1, 2])
    server.sendall(message)
    nothing = os.open(os.devnull, os.O_RDWR)
    for stream in range(3):  # or who reads what it writes would wait for us, too
        os.dup2(nothing, stream)
    _end(server.recv(4))


def _end(told: bytes) -> None:
    """As it has ended."""
    status = int.from_bytes(told, "big") if told else os.EX_SOFTWARE << 8
    if os.WIFSIGNALED(status):
        with suppress(OSError):  # SIGKILL is never handled
            signal.signal(os.WTERMSIG(status), signal.SIG_DFL)
        os.kill(os.getpid(), os.WTERMSIG(status))
    os._exit(os.WEXITSTATUS(status))


main(*sys.argv[1:])

"""Has threads that wait for each other wait a moment, and then sleep; imports `xllamacpp` so.

llama.cpp's threads meet some hundred times a token. The library that they meet in (libgomp, OpenMP) lets
them run on the spot for long first: as soon as another program wants a core, all wait for a thread that
does not get one, hundreds of times a token. Sleeping at once costs more than half of the speed where nothing
else runs. A short while on the spot has nearly the best of both (docs/performance-language.md has numbers).
How long is read from the environment once, when the library is loaded; so it has to be said before that.
torch brings the library, too: in a process that is ours alone, and speaks or draws, it is said for both at
its start; elsewhere it is said while `xllamacpp` is loaded, and taken back. Who teaches waits as libgomp has
it: a step of the embedded base takes less time so where nothing else runs (docs/benchmarks.md).
"""

from __future__ import annotations

import os
import threading
from collections.abc import Mapping
from typing import Any

SPINS = "300"
"""Turns on the spot; libgomp's own number is 300,000."""
_SAID_BY_USERS = ("OMP_WAIT_POLICY", "GOMP_SPINCOUNT")
"""https://gcc.gnu.org/onlinedocs/libgomp/Environment-Variables.html"""

_lock = threading.Lock()


def waiting(environment: Mapping[str, str]) -> dict[str, str]:
    """What an environment lacks for threads to wait so; nothing, where a user has said how they wait."""
    return {} if any(name in environment for name in _SAID_BY_USERS) else {"GOMP_SPINCOUNT": SPINS}


def xllamacpp() -> Any:
    """The package. What a user has said of how threads wait is left as it is."""
    with _lock:
        added = waiting(os.environ)
        os.environ.update(added)
        try:
            import xllamacpp as package
        finally:
            for name in added:
                del os.environ[name]
    return package

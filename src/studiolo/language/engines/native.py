"""Imports `xllamacpp` so that its threads wait for each other a moment, and then sleep.

llama.cpp's threads meet some hundred times a token. The library that they meet in (libgomp, OpenMP) lets
them run on the spot for long first: as soon as another program wants a core, all wait for a thread that
does not get one, hundreds of times a token. Sleeping at once costs more than half of the speed where nothing
else runs. A short while on the spot has nearly the best of both (docs/performance-language.md has numbers).
How long is read from the environment once, when the library is loaded; so it has to be said before that, and
is taken back afterwards.
"""

from __future__ import annotations

import os
import threading
from typing import Any

SPINS = "300"
"""Turns on the spot; libgomp's own number is 300,000."""
_SAID_BY_USERS = ("OMP_WAIT_POLICY", "GOMP_SPINCOUNT")
"""https://gcc.gnu.org/onlinedocs/libgomp/Environment-Variables.html"""

_lock = threading.Lock()


def xllamacpp() -> Any:
    """The package. What a user has said of how threads wait is left as it is."""
    with _lock:
        said = any(name in os.environ for name in _SAID_BY_USERS)
        if not said:
            os.environ["GOMP_SPINCOUNT"] = SPINS
        try:
            import xllamacpp as package
        finally:
            if not said:
                del os.environ["GOMP_SPINCOUNT"]
    return package

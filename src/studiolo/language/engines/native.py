"""Imports `xllamacpp` so that its threads sleep while they wait for each other.

llama.cpp's threads meet some hundred times a token. The library that they meet in (libgomp, OpenMP) lets them
run on the spot for a while first, which is faster by little on a machine with nothing else to do; as soon as
another program wants a core, all wait for a thread that does not get one, hundreds of times a token
(docs/performance-language.md has the numbers). Whether they sleep is read from the environment once, when the
library is loaded; so it has to be said before that, and is taken back afterwards.
"""

from __future__ import annotations

import os
import threading
from typing import Any

_SAID_BY_USERS = ("OMP_WAIT_POLICY", "GOMP_SPINCOUNT")
"""https://gcc.gnu.org/onlinedocs/libgomp/Environment-Variables.html"""

_lock = threading.Lock()


def xllamacpp() -> Any:
    """The package. What a user has said of how threads wait is left as it is."""
    with _lock:
        said = any(name in os.environ for name in _SAID_BY_USERS)
        if not said:
            os.environ["OMP_WAIT_POLICY"] = "passive"
        try:
            import xllamacpp as package
        finally:
            if not said:
                del os.environ["OMP_WAIT_POLICY"]
    return package

"""A process that kills itself at a line: of what keeps things, counted as they are run."""

from __future__ import annotations

import itertools
import os
import signal
import sys
import threading
from collections import Counter
from collections.abc import Callable, Sequence
from pathlib import Path
from types import FrameType
from typing import Any

TIMES = 3
"""A line counts so often at most, or loops that look and wait would be all that is ever hit."""


class Lines:
    """Counts the lines that are run in some modules, in this thread and in all that begin after it.

    Args:
        keepers: what the path of a module of Studiolo has in it whose lines count.
        last: the line at which the process dies; None: at none.
        told: hears where that is, as "FILE:LINE", in the last moment.

    Attributes:
        armed: whether lines count now.
        seen: how many have counted.
    """

    def __init__(self, keepers: Sequence[str], last: int | None, told: Callable[[str], object]) -> None:
        self._keepers, self._last, self._told = keepers, last, told
        self._numbers, self._times = itertools.count(1), Counter[tuple[str, int]]()
        self.seen, self.armed = 0, False
        self._ours: dict[str, bool] = {}
        threading.settrace(self._called)
        sys.settrace(self._called)

    def _called(self, frame: FrameType, event: str, _: Any) -> Any:
        path = frame.f_code.co_filename
        if path not in self._ours:
            self._ours[path] = "/studiolo/" in path and any(word in path for word in self._keepers)
        return self._ran if self._ours[path] else None

    def _ran(self, frame: FrameType, event: str, _: Any) -> Any:
        if event == "line" and self.armed:
            place = (frame.f_code.co_filename, frame.f_lineno)
            self._times[place] += 1
            if self._times[place] <= TIMES:
                self.seen = next(self._numbers)
                if self.seen == self._last:
                    self._told(f"{Path(place[0]).name}:{place[1]}")
                    os.kill(os.getpid(), signal.SIGKILL)
        return self._ran

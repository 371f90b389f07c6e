"""What a run folder tells of a training that another process does: steps, previews, checkpoints."""

from __future__ import annotations

import csv
import re
from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

_STEP = re.compile(r"step-(\d+)\.(?:png|ckpt)")
MOST_STEPS = 1000
"""Steps that are told of; of longer trainings every so many-th."""


@dataclass(frozen=True)
class News:
    """`kind` is "step", "preview" or "checkpoint"."""

    kind: str
    step: int
    data: dict[str, Any] = field(default_factory=dict)


@dataclass
class RunWatch:
    """Looks into a run folder for what is new since the last look.

    Args:
        run: the folder; it may come later.
        steps: of the whole training.
        seen: the last step of each kind that is known.

    Attributes:
        step: how far the training is, also where that is no news.
    """

    run: Path
    steps: int
    seen: dict[str, int]
    step: int = 0
    _place: tuple[int, int] = (0, 0)  # which file, how much of it

    def look(self) -> list[News]:
        """What is new, in the order of steps. A resumed run takes steps again; those are no news."""
        found = [
            *self._rows(),
            *self._files("preview", self.run / "previews"),
            *self._files("checkpoint", self.run / "checkpoints"),
        ]
        found = [news for news in found if news.step > self.seen.get(news.kind, -1)]
        for news in found:
            self.seen[news.kind] = max(news.step, self.seen.get(news.kind, -1))
        return sorted(found, key=lambda news: (news.step, news.kind != "step"))

    def _rows(self) -> Iterator[News]:
        """Whole rows of metrics.csv behind those of the last look."""
        path = self.run / "metrics.csv"
        try:
            with path.open(encoding="utf-8", newline="") as file:
                columns = file.readline().rstrip("\n").split(",")
                identity = path.stat().st_ino
                # A resumed run writes another file, with the rows of the old one up to its checkpoint.
                start = self._place[1] if self._place[0] == identity else file.tell()
                file.seek(start)
                text = file.read()
        except FileNotFoundError:
            return
        whole = text[: text.rfind("\n") + 1]
        self._place = (identity, start + len(whole.encode()))
        every = -(-self.steps // MOST_STEPS)
        for row in csv.reader(whole.splitlines()):
            values = dict(zip(columns, map(float, row), strict=True))
            step = self.step = int(values.pop("step"))
            if step % every == 0 or step == self.steps:
                yield News("step", step, values)

    def _files(self, kind: str, folder: Path) -> Iterator[News]:
        for path in folder.glob("step-*"):
            if match := _STEP.fullmatch(path.name):
                yield News(kind, int(match[1]), {"file": path.name})

"""What a run folder tells of a training that another process does: steps, scores, previews, checkpoints."""

from __future__ import annotations

import csv
import os
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
    """`kind` is "step", "score", "preview" or "checkpoint"."""

    kind: str
    step: int
    data: dict[str, Any] = field(default_factory=dict)


class RunWatch:
    """Looks into a run folder for what is new since the last look.

    Args:
        run: the folder; it may come later.
        steps: of the whole training.
        seen: the last step of each kind that is known.
        saved: the step that the process begins with.

    Attributes:
        step: how far the training is, also where that is no news.
        stepping: whether the process has taken a step.
    """

    def __init__(self, run: Path, steps: int, seen: dict[str, int], saved: int = 0) -> None:
        self.run, self.steps, self.seen, self.saved = run, steps, seen, saved
        self.step, self.stepping = 0, False
        self._metrics, self._scores = _Rows(run / "metrics.csv"), _Rows(run / "scores.csv")
        self._left = _identity(run / "metrics.csv")  # by a process that has died

    def look(self) -> list[News]:
        """What is new, in the order of steps. A resumed run takes steps again; those are no news."""
        found = [
            *self._steps(),
            *(News("score", int(row.pop("step")), row) for row in self._scores.new()),
            *self._files("preview", self.run / "previews"),
            *self._files("checkpoint", self.run / "checkpoints"),
        ]
        found = [news for news in found if news.step > self.seen.get(news.kind, -1)]
        for news in found:
            self.seen[news.kind] = max(news.step, self.seen.get(news.kind, -1))
        return sorted(found, key=lambda news: (news.step, news.kind != "step"))

    def _steps(self) -> Iterator[News]:
        every = -(-self.steps // MOST_STEPS)
        for values in self._metrics.new():
            step = self.step = int(values.pop("step"))
            self.stepping |= self._metrics.file != self._left and step > self.saved
            if step % every == 0 or step == self.steps:
                yield News("step", step, values)

    def _files(self, kind: str, folder: Path) -> Iterator[News]:
        for path in folder.glob("step-*"):
            if match := _STEP.fullmatch(path.name):
                yield News(kind, int(match[1]), {"file": path.name})


class _Rows:
    """A file of comma-separated numbers under names, which grows, and which a resumed run writes anew."""

    def __init__(self, path: Path) -> None:
        self._path, self._place = path, 0
        self.file: int | None = None
        """Which one was looked into last."""

    def new(self) -> list[dict[str, float]]:
        """Whole rows behind those of the last time."""
        try:
            with self._path.open(encoding="utf-8", newline="") as file:
                columns = file.readline().rstrip("\n").split(",")
                identity = os.fstat(file.fileno()).st_ino
                # A resumed run writes another file, with the rows of the old one up to its checkpoint.
                start = self._place if self.file == identity else file.tell()
                file.seek(start)
                text = file.read()
        except FileNotFoundError:
            return []
        whole = text[: text.rfind("\n") + 1]
        self.file, self._place = identity, start + len(whole.encode())
        return [dict(zip(columns, map(float, row), strict=True)) for row in csv.reader(whole.splitlines())]


def _identity(path: Path) -> int | None:
    """Which file it is now; None while there is none."""
    try:
        return path.stat().st_ino
    except FileNotFoundError:
        return None

"""What a training shows while it runs: notes, and one live line each for class images and steps."""

from __future__ import annotations

from rich.console import Console
from rich.progress import (
    BarColumn,
    MofNCompleteColumn,
    Progress,
    TaskID,
    TextColumn,
    TimeElapsedColumn,
    TimeRemainingColumn,
)


class Display:
    """Bars with counts, rates and remaining times on `console`; a context manager.

    Two tasks that run at the same time, making class images and training, stand one below the other.
    """

    def __init__(self, console: Console | None = None) -> None:
        self.console = console or Console(stderr=True)
        self._progress = Progress(
            TextColumn("{task.description:>12}"),
            BarColumn(bar_width=32),
            MofNCompleteColumn(),
            TextColumn("{task.fields[detail]}"),
            TimeElapsedColumn(),
            TextColumn("left"),
            TimeRemainingColumn(),
            console=self.console,
        )
        self._tasks: dict[str, TaskID] = {}

    @classmethod
    def silent(cls) -> Display:
        return cls(Console(quiet=True))

    def __enter__(self) -> Display:
        self._progress.start()
        return self

    def __exit__(self, *exception: object) -> None:
        self._progress.stop()

    def note(self, text: str) -> None:
        """A line that stays."""
        self.console.print(text, markup=False, highlight=False, soft_wrap=True)

    def begin(self, task: str, total: int, done: int = 0) -> None:
        """Shows a bar for `task`, of which `done` of `total` units lie behind."""
        self._tasks[task] = self._progress.add_task(task, total=total, completed=done, detail="")

    def advance(self, task: str, done: int, detail: str = "") -> None:
        self._progress.update(self._tasks[task], completed=done, detail=detail)

    def step(self, step: int, loss: float) -> None:
        """The training has done `step` optimizer steps."""
        self.advance("training", step, f"loss {loss:.4f}")

"""Bars for what takes long: how much is done, how fast, how long it will still take."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from studiolo.diffusion.sampling import OnStep, Step
    from studiolo.models.pulling import OnProgress


@contextmanager
def drawing_bar(pictures: int) -> Iterator[OnStep]:
    """Yields what to call after each denoising step of `pictures` pictures; draws on standard error."""
    from rich.console import Console
    from rich.progress import BarColumn, Progress, TextColumn, TimeRemainingColumn

    console = Console(stderr=True)
    progress = Progress(
        TextColumn("drawing"),
        BarColumn(bar_width=32),
        TextColumn("{task.fields[rate]}"),
        TextColumn("left"),
        TimeRemainingColumn(),
        console=console,
        transient=True,
        disable=not console.is_terminal,
    )
    with progress:
        task = progress.add_task("drawing", total=None, rate="")
        row = progress.tasks[0]

        def on_step(step: Step) -> None:
            progress.update(task, advance=len(step.pictures), total=pictures * step.total)
            done = row.completed / step.total
            progress.update(
                task, rate=f"{done:.1f}/{pictures} pictures, {done / (row.elapsed or 1):.2f} a second"
            )

        yield on_step


@contextmanager
def download_bar() -> Iterator[OnProgress]:
    """Yields what to call with a file's name, its bytes that are there and its length; on standard error."""
    from rich.console import Console
    from rich.progress import (
        BarColumn,
        DownloadColumn,
        Progress,
        TaskID,
        TextColumn,
        TimeRemainingColumn,
        TransferSpeedColumn,
    )

    console = Console(stderr=True)
    progress = Progress(
        TextColumn("{task.description}"),
        BarColumn(bar_width=32),
        DownloadColumn(),
        TransferSpeedColumn(),
        TextColumn("left"),
        TimeRemainingColumn(),
        console=console,
        transient=True,
        disable=not console.is_terminal,
    )
    tasks: dict[str, TaskID] = {}
    with progress:

        def on_progress(file: str, done: int, total: int | None) -> None:
            if file not in tasks:
                tasks[file] = progress.add_task(file)
                # What an earlier pull fetched is no part of this one's rate.
                progress.reset(tasks[file], completed=done, total=total)
            progress.update(tasks[file], completed=done, total=total)

        yield on_progress

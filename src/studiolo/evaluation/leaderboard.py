"""The leaderboard of a sweep: leaderboard.txt, .csv and .html, the best first."""

from __future__ import annotations

import csv
import html
import io
from collections.abc import Sequence
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any

from optuna.trial import FrozenTrial, TrialState

from studiolo.evaluation.pages import STYLE, opened, picture
from studiolo.store.files import atomic_path

_SCORES = ("composite", "fidelity", "prompt", "drift", "step", "seconds")
_SHOWN = 20
"""Trials whose pictures are on the page."""


@dataclass
class Leaderboard:
    """The trials of a sweep in `out`; `names` are its parameters."""

    out: Path
    names: Sequence[str]
    trials: Sequence[FrozenTrial]

    @cached_property
    def done(self) -> list[FrozenTrial]:
        """The trials that have a score, the best first; of equal ones the earlier."""
        complete = [trial for trial in self.trials if trial.state == TrialState.COMPLETE]
        return sorted(complete, key=lambda trial: (-_value(trial), trial.number))

    @property
    def failed(self) -> list[FrozenTrial]:
        """Those that could not be trained: settings that are no recipe, or too much for the memory."""
        return [trial for trial in self.trials if "error" in trial.user_attrs]

    @property
    def best(self) -> FrozenTrial | None:
        return self.done[0] if self.done else None

    def table(self) -> list[list[Any]]:
        """Head and rows: rank, number of the trial, scores, settings."""
        rows: list[list[Any]] = [["rank", "trial", *_SCORES, *self.names]]
        for rank, trial in enumerate(self.done, start=1):
            scores = [trial.user_attrs.get(key, "") for key in _SCORES]
            rows.append([rank, trial.number, *scores, *(trial.params.get(name, "") for name in self.names)])
        return rows

    def text(self) -> str:
        """The table for a terminal, with what failed below it."""
        rows = [[_cell(value) for value in row] for row in self.table()]
        widths = [max(len(row[i]) for row in rows) for i in range(len(rows[0]))]
        lines = [
            "  ".join(cell.rjust(width) for cell, width in zip(row, widths, strict=True)) for row in rows
        ]
        lines += [f"trial {trial.number} failed: {trial.user_attrs['error']}" for trial in self.failed]
        return "\n".join(lines) + "\n"

    def save(self) -> None:
        """Writes all three forms, each file whole or not at all."""
        buffer = io.StringIO()
        csv.writer(buffer, lineterminator="\n").writerows(self.table())
        for name, text in (("txt", self.text()), ("csv", buffer.getvalue()), ("html", self.html())):
            with atomic_path(self.out / f"leaderboard.{name}") as temporary:
                temporary.write_text(text, encoding="utf-8")

    def html(self) -> str:
        """A page with the table and the pictures of the best trials, in one file without scripts."""
        head, *rows = ([html.escape(_cell(value)) for value in row] for row in self.table())
        top = "".join(f"<td><b>{cell}</b></td>" for cell in head)
        body = "".join(
            "<tr>" + "".join(f'<td class="number">{cell}</td>' for cell in row) + "</tr>\n" for row in rows
        )
        failed = "".join(
            f"<p>Trial {trial.number} failed: {html.escape(trial.user_attrs['error'])}</p>\n"
            for trial in self.failed
        )
        return (
            '<!DOCTYPE html>\n<html lang="en"><head><meta charset="utf-8"><title>Sweep</title>'
            f"<style>{STYLE}</style></head>\n<body><h1>Sweep</h1>\n<table><tr>{top}</tr>\n{body}</table>\n"
            f"{failed}{''.join(self._sheet(trial) for trial in self.done[:_SHOWN])}</body></html>\n"
        )

    def _sheet(self, trial: FrozenTrial) -> str:
        title = ", ".join(f"{name} {_cell(value)}" for name, value in trial.params.items())
        step = int(trial.user_attrs["step"])
        file = self.out / "trials" / trial.user_attrs["folder"] / "run" / "scores" / f"step-{step:06d}.png"
        shown = picture(opened(file), title) if file.exists() else ""
        return f"<h2>Trial {trial.number}: {html.escape(title)}</h2>\n{shown}\n"


def _value(trial: FrozenTrial) -> float:
    return float("-inf") if trial.value is None else trial.value


def _cell(value: Any) -> str:
    return f"{value:.4g}" if isinstance(value, float) else str(value)

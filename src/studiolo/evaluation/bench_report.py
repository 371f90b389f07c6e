"""What a benchmark leaves: table.txt, table.json, report.html and a sheet of pictures for each subject."""

from __future__ import annotations

import html
import json
from dataclasses import asdict, dataclass
from functools import cached_property
from pathlib import Path
from typing import TYPE_CHECKING, Any

from PIL import Image

from studiolo.drawing.sheet import contact_sheet
from studiolo.evaluation.dreambench import PUBLISHED, Published, plain
from studiolo.evaluation.pages import STYLE, opened, picture, stacked
from studiolo.evaluation.published import PAPERS, TITLES, mean_scores
from studiolo.store.files import atomic_path

if TYPE_CHECKING:
    from studiolo.evaluation.bench import Bench, Lesson

_CELL = 128


@dataclass
class BenchReport:
    """The rows that are there so far: subject, prior, scores."""

    bench: Bench
    rows: list[dict[str, Any]]

    def overall(self, prior: bool) -> dict[str, float]:
        """The means over the subjects."""
        return mean_scores([row["scores"] for row in self.rows if row["prior"] == prior])

    @property
    def columns(self) -> list[str]:
        """The scores that the rows have, and all of the paper's."""
        return [key for key in TITLES if key in PAPERS or any(key in row["scores"] for row in self.rows)]

    def as_dict(self) -> dict[str, Any]:
        """What table.json holds."""
        return {
            "identity": self.bench.identity,
            "rows": self.rows,
            "overall": {_with(prior): self.overall(prior) for prior in self.bench.priors},
            "published": [asdict(one) for one in PUBLISHED],
        }

    def lines(self) -> list[list[str]]:
        """The table: head, a line a subject, the means, the paper's figures."""
        table = [["", *(TITLES[key] for key in self.columns)]]
        for row in self.rows:
            table.append([f"{row['subject']}, {_with(row['prior'])}", *self._cells(row["scores"])])
        for prior in self.bench.priors:
            if overall := self.overall(prior):
                count = sum(row["prior"] == prior for row in self.rows)
                table.append([f"mean of {count}, {_with(prior)}", *self._cells(overall)])
                table.append(["  their real images", *self._cells(_real(overall))])
        table += [[f"paper: {one.method}", *self._cells(_published(one))] for one in PUBLISHED]
        return table

    def _cells(self, scores: dict[str, float]) -> list[str]:
        return [f"{scores[key]:.3f}" if key in scores else "-" for key in self.columns]

    def text(self) -> str:
        """The table for a terminal or a text file."""
        lines = self.lines()
        widths = [max(len(line[i]) for line in lines) for i in range(len(lines[0]))]
        rows = [
            "  ".join(
                [line[0].ljust(widths[0]), *(c.rjust(w) for c, w in zip(line[1:], widths[1:], strict=True))]
            )
            for line in lines
        ]
        return "\n".join(rows) + "\n"

    def save(self) -> Path:
        """Writes everything to the benchmark's folder, each file whole or not at all."""
        out = self.bench.out
        lesson = self._lessons[len(self.rows) - 1]
        with atomic_path(lesson.folder / "sheet.png") as temporary:
            sheet(lesson).save(temporary)
        with atomic_path(out / "table.json") as temporary:
            temporary.write_text(json.dumps(self.as_dict(), indent=2) + "\n", encoding="utf-8")
        with atomic_path(out / "table.txt") as temporary:
            temporary.write_text(self.text(), encoding="utf-8")
        with atomic_path(out / "report.html") as temporary:
            temporary.write_text(self.html(), encoding="utf-8")
        return out

    @cached_property
    def _lessons(self) -> list[Lesson]:
        return self.bench.lessons

    def html(self) -> str:
        """A page with the table and every subject's sheet, in one file without scripts."""
        head, *lines = self.lines()
        cells = "".join(f"<td><b>{html.escape(cell)}</b></td>" for cell in head)
        body = "".join(
            f"<tr><td>{html.escape(line[0])}</td>"
            + "".join(f'<td class="number">{cell}</td>' for cell in line[1:])
            + "</tr>\n"
            for line in lines
        )
        sheets = "".join(
            f"<h2>{html.escape(lesson.title)}</h2>\n"
            + picture(opened(lesson.folder / "sheet.png"), lesson.title)
            for lesson in self._lessons[: len(self.rows)]
        )
        return (
            '<!DOCTYPE html>\n<html lang="en"><head><meta charset="utf-8"><title>DreamBooth benchmark</title>'
            f"<style>{STYLE}</style></head>\n<body><h1>DreamBooth benchmark</h1>\n"
            f"<table><tr>{cells}</tr>\n{body}</table>\n{sheets}</body></html>\n"
        )


def sheet(lesson: Lesson) -> Image.Image:
    """The real pictures, and below them the first picture of each prompt."""
    real = contact_sheet(lesson.real()[:6], columns=6, title=f"{lesson.subject}, as it is", cell=_CELL)
    drawn = [opened(lesson.picture(number, 0)) for number in range(len(lesson.prompts))]
    captions = [plain(prompt, lesson.class_noun) for prompt in lesson.prompts]
    grid = contact_sheet(
        drawn, captions, columns=7, title=f"{lesson.title}, seed {lesson.bench.seed}", cell=_CELL
    )
    return stacked(real, grid)


def _with(prior: bool) -> str:
    return "with prior" if prior else "without prior"


def _real(overall: dict[str, float]) -> dict[str, float]:
    return {key.removeprefix("real_"): value for key, value in overall.items() if key.startswith("real_")}


def _published(one: Published) -> dict[str, float]:
    values = {"dino": one.dino, "clip": one.clip_i, "clip_t": one.clip_t, "pres": one.pres, "div": one.div}
    return {key: value for key, value in values.items() if value is not None}

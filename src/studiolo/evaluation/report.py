"""The report of a score: report.json, a page that needs nothing else, and a contact sheet."""

from __future__ import annotations

import html
import json
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from PIL import Image

from studiolo.drawing.sheet import comparison_table, contact_sheet
from studiolo.evaluation.exam import Exam
from studiolo.evaluation.pages import STYLE, picture, stacked
from studiolo.evaluation.portfolio import Portfolio
from studiolo.store.files import atomic_path

MEANINGS: dict[str, str] = {
    "fidelity.subject": "likeness of the subject's pictures to the training images (higher is better)",
    "fidelity.base": "the same for the base model asked for the class: what the noun alone gives",
    "fidelity.real": "likeness of the training images to each other: what can be reached",
    "context.subject": "share of the subject's pictures on the background that was asked for",
    "context.base": "the same for the base model asked for the class",
    "noun.subject_top1": "share of the subject's pictures in which the eye sees the class noun first",
    "noun.subject_top5": "the same among the first five of its nouns",
    "noun.base_top1": "the first for the base model asked for the class",
    "noun.base_top5": "the second for the base model asked for the class",
    "noun.real_top1": "the first for the training images: what can be reached, if the eye knows such a one",
    "noun.real_top5": "the second for the training images",
    "drift.class_distance": "how far pictures of the class moved, same prompts and seeds (0: not at all)",
    "drift.class_likeness_before": "likeness of the base model's class pictures to the training images",
    "drift.class_likeness": "the same after teaching: above the value before, the class becomes the subject",
    "drift.class_context_before": "share of class pictures on the background asked for, before",
    "drift.class_context": "the same after teaching",
    "drift.class_top1_before": "share of class pictures in which the eye sees the class noun first, before",
    "drift.class_top1": "the same after teaching",
    "drift.unrelated_distance": "how far pictures of unrelated things moved, same prompts and seeds",
    "drift.unrelated_context_before": "share of unrelated pictures on the background asked for, before",
    "drift.unrelated_context": "the same after teaching",
    "drift.unrelated_top1_before": "share of unrelated pictures in which the eye sees the noun first, before",
    "drift.unrelated_top1": "the same after teaching",
    "diversity.class_before": "mean distance among the base model's class pictures",
    "diversity.class": "the same after teaching: a fall says that the class has narrowed",
    "copying.nearest_mean": "likeness of a subject picture to the nearest training image, mean",
    "copying.nearest_max": "the same, largest",
    "copying.pixels_mean": "correlation of its pixels with the nearest training image, mirrored or not, mean",
    "copying.pixels_max": "the same, largest: near 1 is a copy, background and all",
    "copying.base_pixels_max": "the same for the base model, which has not seen them",
}

_CELL = 128


@dataclass(frozen=True)
class Report:
    """`scores` by group and name, the `facts` of how they were made, and the pictures.

    `before` are the base model's pictures, `after` the taught model's.
    """

    facts: dict[str, Any]
    scores: dict[str, dict[str, float]]
    exam: Exam
    training: Sequence[Image.Image]
    before: Portfolio
    after: Portfolio

    def as_dict(self) -> dict[str, Any]:
        """What report.json holds."""
        return {**self.facts, "scores": self.scores}

    def save(self, folder: str | Path) -> Path:
        """Writes report.json, report.html and sheet.png to `folder`, each whole or not at all."""
        folder = Path(folder)
        with atomic_path(folder / "sheet.png") as temporary:
            self.sheet().save(temporary)
        with atomic_path(folder / "report.html") as temporary:
            temporary.write_text(self.html(), encoding="utf-8")
        with atomic_path(folder / "report.json") as temporary:
            temporary.write_text(json.dumps(self.as_dict(), indent=2) + "\n", encoding="utf-8")
        return folder

    def sheet(self) -> Image.Image:
        """The training images; below them, in the contexts and of the first seed, the base's pictures of the
        class, the subject, and the class as it is now."""
        noun, identifier = self.facts["class_noun"], self.facts["identifier"]
        rows = {
            f"{self.facts['base']}: a {noun}": self.before.class_pictures,
            f"{self.facts['model']}: {identifier} {noun} (the subject)": self.after.subject_pictures,
            f"{self.facts['model']}: a {noun}": self.after.class_pictures,
        }
        table = comparison_table(
            [[pictures[part][0] for part in self.exam.columns()] for pictures in rows.values()],
            row_captions=list(rows),
            column_captions=list(self.exam.contexts),
            title=f"{self.facts['model']} against {self.facts['base']}, seed {self.exam.seed}",
            cell=_CELL,
        )
        columns = self.exam.length + 1
        taught = contact_sheet(self.training[:columns], columns=columns, title="What was taught", cell=_CELL)
        return stacked(taught, table)

    def html(self) -> str:
        """A page with every number of report.json and all the pictures, in one file without scripts."""
        title = html.escape(f"{self.facts['model']}: scores")
        embedder = html.escape(self.facts["embedder"])
        return (
            f'<!DOCTYPE html>\n<html lang="en"><head><meta charset="utf-8"><title>{title}</title>'
            f"<style>{STYLE}</style></head>\n<body><h1>{title}</h1>\n"
            f"<p>Likeness is a cosine of embeddings by <b>{embedder}</b>; what is to be seen in a picture "
            f"is judged by the independent eye.</p>\n{picture(self.sheet(), 'base and subject')}\n"
            f"{self._tables()}{self._gallery()}</body></html>\n"
        )

    def _tables(self) -> str:
        tables = {
            group.capitalize(): [
                _row(key.replace("_", " "), value, MEANINGS[f"{group}.{key}"])
                for key, value in values.items()
            ]
            for group, values in self.scores.items()
        }
        tables["How it was made"] = [_row(key, value, "") for key, value in self.facts.items()]
        return "".join(f"<h2>{name}</h2>\n<table>{''.join(rows)}</table>\n" for name, rows in tables.items())

    def _gallery(self) -> str:
        """Every picture: contexts in columns, seeds in rows; what may have drifted, before above after."""
        model, before, after = self.facts["model"], self.before, self.after
        contexts, unrelated = self.exam.contexts, self.exam.unrelated_prompts()
        sheets = {
            "Training images": contact_sheet(self.training, cell=_CELL),
            f"The subject, drawn by {model}": self._table({"": after.subject_pictures}, contexts),
            "The class, before and after teaching": self._table(
                {"before": before.class_pictures, "after": after.class_pictures}, contexts
            ),
            "Unrelated things, before and after teaching": self._table(
                {"before": before.unrelated_pictures, "after": after.unrelated_pictures}, unrelated
            ),
        }
        return "".join(
            f"<h2>{html.escape(name)}</h2>\n{picture(sheet, name)}\n" for name, sheet in sheets.items()
        )

    def _table(self, sets: dict[str, Sequence[Image.Image]], columns: Iterable[str]) -> Image.Image:
        """Sets of pictures of the same prompts and seeds, seed by seed below each other."""
        rows, captions = [], []
        for i in range(self.exam.n):
            for name, pictures in sets.items():
                rows.append([pictures[part][i] for part in self.exam.columns()])
                captions.append(f"{name} seed {self.exam.seed + i}".strip())
        return comparison_table(rows, row_captions=captions, column_captions=list(columns), cell=_CELL)


def _row(name: str, value: object, meaning: str) -> str:
    number = ' class="number"' if isinstance(value, int | float) else ""
    cells = f"<td>{html.escape(name)}</td><td{number}>{html.escape(str(value))}</td>"
    return f"<tr>{cells}<td><small>{html.escape(meaning)}</small></td></tr>\n"

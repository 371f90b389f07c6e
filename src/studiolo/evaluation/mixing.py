"""Several subjects in one model: each scored for itself, and whether they are kept apart."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from html import escape
from pathlib import Path
from typing import Any

import torch
from PIL import Image

from studiolo.drawing.model import ImageModel
from studiolo.errors import StudioloError
from studiolo.evaluation.embedders import Embedder, load_embedder
from studiolo.evaluation.learned import learned_subjects
from studiolo.evaluation.report import STYLE, Report
from studiolo.evaluation.scores import score
from studiolo.store.files import atomic_path


@dataclass(frozen=True)
class Mixing:
    """How like the pictures of each subject are to the training images of each.

    `likeness[asked][seen]` is the mean cosine between the pictures that asked for one and the training images
    of the other; `kept_apart[asked]` the part of its pictures, in [0, 1], that are most like its own images.
    """

    likeness: Mapping[str, Mapping[str, float]]
    kept_apart: Mapping[str, float]

    @classmethod
    def of(
        cls,
        pictures: Mapping[str, Sequence[Image.Image]],
        training: Mapping[str, Sequence[Image.Image]],
        embedder: Embedder,
    ) -> Mixing:
        """Measures pictures that asked for each subject against the training images of all."""
        known = {name: embedder.embed(images) for name, images in training.items()}
        likeness, kept_apart = {}, {}
        for asked, images in pictures.items():
            drawn = embedder.embed(images)
            # [subjects, pictures]: the mean over the training images of each subject
            each = torch.stack([(drawn @ vectors.T).mean(1) for vectors in known.values()])
            means = each.mean(1).tolist()
            likeness[asked] = {seen: round(mean, 4) for seen, mean in zip(known, means, strict=True)}
            own = list(known).index(asked)
            kept_apart[asked] = round(float((each.argmax(0) == own).float().mean()), 4)
        return cls(likeness, kept_apart)


@dataclass(frozen=True)
class Apart:
    """The report on each subject, and their mixing."""

    reports: Mapping[str, Report]
    mixing: Mixing

    def as_dict(self) -> dict[str, Any]:
        """What report.json holds."""
        reports = {name: report.as_dict() for name, report in self.reports.items()}
        return {"subjects": reports, "likeness": self.mixing.likeness, "kept_apart": self.mixing.kept_apart}

    def save(self, folder: str | Path) -> Path:
        """Writes the report on each subject into a folder of its name, and report.json and report.html on
        all of them beside these."""
        folder = Path(folder)
        for name, report in self.reports.items():
            report.save(folder / name)
        with atomic_path(folder / "report.json") as temporary:
            temporary.write_text(json.dumps(self.as_dict(), indent=2) + "\n", encoding="utf-8")
        with atomic_path(folder / "report.html") as temporary:
            temporary.write_text(self.html(), encoding="utf-8")
        return folder

    def html(self) -> str:
        """A page with the table of likenesses and the sheets, which lie beside it."""
        names = list(self.reports)
        head = "".join(f"<th>{escape(name)}</th>" for name in names)
        rows = "".join(
            f"<tr><th>[{escape(asked)}]</th>"
            + "".join(f"<td>{self.mixing.likeness[asked][seen]:.3f}</td>" for seen in names)
            + f"<td>{self.mixing.kept_apart[asked]:.0%}</td></tr>\n"
            for asked in names
        )
        sheets = "".join(
            f'<h2>{escape(name)}</h2><p><a href="{name}/report.html">its scores</a></p>'
            f'<img src="{name}/sheet.png" alt="pictures of {escape(name)}">\n'
            for name in names
        )
        return (
            '<!DOCTYPE html>\n<html lang="en"><head><meta charset="utf-8"><title>Subjects kept apart</title>'
            f"<style>{STYLE}</style></head>\n<body><h1>Subjects kept apart</h1>\n"
            "<p>How like the pictures that asked for one subject (rows) are to the training images of each "
            "(columns), and how many of them are most like their own.</p>\n"
            f"<table><tr><th></th>{head}<th>kept apart</th></tr>\n{rows}</table>\n{sheets}</body></html>\n"
        )


def score_apart(
    model: str | Path | ImageModel,
    *,
    embedder: str | Embedder = "eye",
    out: str | Path | None = None,
    **asked: Any,
) -> Apart:
    """Scores each subject of a model that has learned several, and their mixing.

    Args:
        embedder: what likeness is measured by.
        out: a folder for the reports.
        asked: what else `score` takes.

    Raises:
        StudioloError: as `score`; or the model has learned fewer than two.
    """
    taught = model if isinstance(model, ImageModel) else ImageModel.load(model)
    judge_by = load_embedder(embedder) if isinstance(embedder, str) else embedder
    names = [one.name for one in learned_subjects(taught)]
    if len(names) < 2:
        raise StudioloError("this model has not learned several subjects", where=taught.ref.name)
    reports = {name: score(taught, embedder=judge_by, subject=name, **asked) for name in names}
    pictures = {name: report.after.subject_pictures for name, report in reports.items()}
    training = {name: report.training for name, report in reports.items()}
    found = Apart(reports, Mixing.of(pictures, training, judge_by))
    if out is not None:
        found.save(out)
    return found

"""The demo: the whole way from sample pictures to scores, on the embedded base model."""

from __future__ import annotations

import shutil
from pathlib import Path

from studiolo.dreambooth.progress import Display
from studiolo.dreambooth.recipe import Recipe
from studiolo.dreambooth.run import Run
from studiolo.errors import StudioloError
from studiolo.evaluation.report import Report
from studiolo.evaluation.scores import Bar, score
from studiolo.evaluation.training import train

SUBJECTS = Path(__file__).resolve().parent.parent / "base" / "subjects"
MODEL_NAME = "demo"


def demo(
    out: str | Path = "demo",
    subject: str = "fox",
    *,
    n: int = 2,
    steps: int = 30,
    recipe: Recipe | None = None,
    bar: Bar | None = None,
    display: Display | None = None,
) -> Report:
    """Teaches a sample subject, draws it beside the base model in eight contexts, and scores it.

    `out` then holds sheet.png, report.html, report.json and the run in `run/`; the model is registered as
    `demo`. A demo that was made there before is replaced.

    Args:
        subject: one of the folders beside the base model's weights; its name is the class noun.
        n, steps: of the scores: pictures of each prompt, denoising steps of each picture.
        recipe: of the training; the default one if None.

    Raises:
        StudioloError: there is no such sample subject, or `out`/run is something else than a run.
    """
    out = Path(out)
    images = SUBJECTS / subject
    if not images.is_dir():
        known = ", ".join(sorted(path.name for path in SUBJECTS.glob("*") if path.is_dir()))
        raise StudioloError("no sample subject has this name", where=subject, remedy=f"Use one of: {known}.")
    run = Run(out / "run")
    if run.recipe.exists():
        shutil.rmtree(run.folder)
    model = train(images, subject, MODEL_NAME, recipe=recipe, out=run.folder, replace=True, display=display)
    return score(model, n=n, steps=steps, out=out, bar=bar)

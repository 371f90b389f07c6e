"""`studiolo bench dreambooth`: the paper's benchmark over a folder of subjects, one folder of pictures each.

Every part (a run, a picture, a subject's scores) is a file that is there whole or not at all, so a benchmark
that was stopped goes on where it was.
"""

from __future__ import annotations

import json
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from PIL import Image

from studiolo.diffusion.sampling import SamplerSettings, generate
from studiolo.drawing.model import ImageModel
from studiolo.drawing.prompts import fill_identifier
from studiolo.dreambooth.images import decode, read_bytes
from studiolo.dreambooth.progress import Display
from studiolo.dreambooth.recipe import Recipe, fill
from studiolo.dreambooth.run import Run
from studiolo.dreambooth.sources import find_images
from studiolo.errors import StudioloError
from studiolo.evaluation import training
from studiolo.evaluation.bench_report import BenchReport
from studiolo.evaluation.dreambench import CLASS_NOUNS, plain, prompts_for
from studiolo.evaluation.pages import opened
from studiolo.evaluation.published import Judges
from studiolo.models.registry import remove
from studiolo.store.files import atomic_path

CLASS_PICTURES = 16
"""Pictures of "a photo of a dog" that PRES is measured on."""


@dataclass(frozen=True)
class Bench:
    """What is taught, drawn and measured.

    Args:
        data: a folder with a folder of pictures for each subject.
        subjects: name of a folder -> class noun.
        priors: whether subjects are taught with the prior loss, without, or both one after the other.
        n: pictures of each of the 25 prompts, of seeds seed, seed + 1, ...
    """

    data: Path
    out: Path
    subjects: dict[str, str]
    recipe: Recipe = field(default_factory=Recipe)
    priors: tuple[bool, ...] = (True,)
    n: int = 4
    seed: int = 0
    settings: SamplerSettings = field(default_factory=SamplerSettings)

    @property
    def lessons(self) -> list[Lesson]:
        return [Lesson(self, name, prior) for prior in self.priors for name in self.subjects]

    @property
    def identity(self) -> dict[str, Any]:
        """What makes results comparable: those of another identity do not belong into the same folder."""
        return {
            "recipe": self.recipe.model_dump(mode="json"),
            "n": self.n,
            "seed": self.seed,
            **self.settings.as_dict(),
        }


@dataclass(frozen=True)
class Lesson:
    """One subject, taught with or without the prior loss."""

    bench: Bench
    subject: str
    prior: bool

    @property
    def class_noun(self) -> str:
        return self.bench.subjects[self.subject]

    @property
    def title(self) -> str:
        return f"{self.subject}, {'with' if self.prior else 'without'} the prior loss"

    @property
    def folder(self) -> Path:
        return self.bench.out / self.subject / ("with-prior" if self.prior else "without-prior")

    @property
    def prompts(self) -> tuple[str, ...]:
        return prompts_for(self.class_noun)

    def real(self) -> list[Image.Image]:
        """All photographs of the subject, as large as they are."""
        files, _ = find_images([self.bench.data / self.subject], with_captions=False)
        return [decode(read_bytes(file), file)[0] for file in files if isinstance(file, Path)]

    def teach(self, display: Display) -> ImageModel:
        """The taught model: what is there already, gone on with, or made."""
        run = Run(self.folder / "run")
        if run.model.is_dir():
            return ImageModel.load(run.model)
        if run.record.exists():
            model = training.resume(run.folder, replace=True, display=display)
        else:
            recipe = self.bench.recipe
            recipe = recipe if self.prior else recipe.with_values({"prior_weight": 0})
            model = training.train(
                self.bench.data / self.subject,
                self.class_noun,
                f"bench-{self.subject.replace('_', '-')}-{self.folder.name}",
                recipe=recipe,
                out=run.folder,
                replace=True,
                display=display,
            )
        remove(str(model.ref.card["name"]))  # a result of the benchmark, no model of the user's
        return model

    def picture(self, prompt: int, i: int) -> Path:
        """Picture `i` of a prompt; those of the class stand behind the last prompt."""
        return self.folder / "pictures" / f"{prompt:02d}-{i}.png"

    def draw(self, model: ImageModel) -> None:
        """Makes the pictures that are not there yet."""
        bench = self.bench
        wanted = [
            (
                self.picture(p, i),
                fill_identifier(fill(text, self.class_noun), model.identifier),
                bench.seed + i,
            )
            for p, text in enumerate(self.prompts)
            for i in range(bench.n)
        ]
        of_class = fill("a photo of a {class_noun}", self.class_noun)
        wanted += [
            (self.picture(len(self.prompts), i), of_class, bench.seed + i) for i in range(CLASS_PICTURES)
        ]
        missing = [one for one in wanted if not one[0].exists()]

        def keep(number: int, image: Image.Image) -> None:
            with atomic_path(missing[number][0]) as temporary:
                image.save(temporary, format="PNG")

        texts, seeds = [one[1] for one in missing], [one[2] for one in missing]
        generate(model.components, texts, seeds, bench.settings, on_picture=keep)

    def pictures(self, prompt: int, count: int) -> list[Image.Image]:
        return [opened(self.picture(prompt, i)) for i in range(count)]

    def score(self, judges: Judges) -> dict[str, float]:
        """The scores of the pictures that lie there; kept in scores.json with who judged."""
        file = self.folder / "scores.json"
        by_prompt = {
            plain(prompt, self.class_noun): self.pictures(number, self.bench.n)
            for number, prompt in enumerate(self.prompts)
        }
        found = judges.scores(self.real(), by_prompt, self.pictures(len(self.prompts), CLASS_PICTURES))
        with atomic_path(file) as temporary:
            temporary.write_text(json.dumps(found, indent=2) + "\n", encoding="utf-8")
        return found


def find_subjects(
    data: Path, names: Sequence[str] = (), classes: dict[str, str] | None = None
) -> dict[str, str]:
    """The subjects in `data` that are asked for (all if none is), with their class nouns.

    Args:
        classes: class nouns of folders that are not among the paper's 30, or other nouns for those.

    Raises:
        StudioloError: no such folder, or one whose class nobody knows.
    """
    if not data.is_dir():
        raise StudioloError(
            "there is no such folder", where=data, remedy="Name the folder of subjects: --data."
        )
    known = CLASS_NOUNS | (classes or {})
    chosen = list(names) or sorted(path.name for path in data.iterdir() if path.is_dir())
    if not chosen:
        raise StudioloError("no folder of a subject in here", where=data)
    for name in chosen:
        if not (data / name).is_dir():
            raise StudioloError(f"no subject {name!r}", where=data)
        if name not in known:
            raise StudioloError(
                f"what is {name!r}?", where=data / name, remedy=f"Say its class: --class {name}=dog"
            )
    return {name: known[name] for name in chosen}


def run_bench(
    bench: Bench, judges: Judges, tell: Callable[[str], None] = print, display: Display | None = None
) -> BenchReport:
    """Teaches, draws and scores every subject; writes the table, and what there is of it after each.

    Raises:
        StudioloError: the folder holds the results of other settings; Interrupted, as training does.
    """
    if True in bench.priors and not bench.recipe.prior_weight:
        raise StudioloError(
            "the prior loss has no weight in this recipe",
            where="prior_weight",
            remedy="Set one, or teach without it: --prior without.",
        )
    _check_folder(bench)
    rows: list[dict[str, Any]] = []
    report = BenchReport(bench, rows)
    begun = time.monotonic()
    fresh = 0
    for number, lesson in enumerate(bench.lessons, start=1):
        done = (lesson.folder / "scores.json").exists()
        if not done:
            # The display is a context manager that every training opens for itself.
            model = lesson.teach(display or Display())
            tell(f"[{number}/{len(bench.lessons)}] {lesson.title}: drawing {25 * bench.n + CLASS_PICTURES}")
            lesson.draw(model)
            fresh += 1
        rows.append({"subject": lesson.subject, "prior": lesson.prior, "scores": lesson.score(judges)})
        report.save()
        left = len(bench.lessons) - number
        spent = (time.monotonic() - begun) / max(fresh, 1)
        told = f"[{number}/{len(bench.lessons)}] {lesson.title}: {_told(rows[-1]['scores'])}"
        tell(told + (f"; about {spent * left / 60:.0f} min left" if left and fresh else ""))
    return report


def _told(scores: dict[str, float]) -> str:
    return ", ".join(f"{key} {value:.3f}" for key, value in scores.items())


def _check_folder(bench: Bench) -> None:
    file = bench.out / "bench.json"
    if file.exists():
        before = json.loads(file.read_text(encoding="utf-8"))
        if changed := sorted(key for key, value in bench.identity.items() if before.get(key) != value):
            raise StudioloError(
                f"this folder holds a benchmark with other settings: {', '.join(changed)}",
                where=bench.out,
                remedy="Choose another folder: --out DIR.",
            )
        return
    with atomic_path(file) as temporary:
        temporary.write_text(json.dumps(bench.identity, indent=2) + "\n", encoding="utf-8")

"""Does teaching work, and what does each prior keep? Sample subjects x seeds x priors x steps.

    python benchmarks/dreambooth_table.py --out results --jobs 2 --threads 1

Each run is trained once, to the last milestone; its checkpoints are scored by the exam of `studiolo score`.
A run whose result is in `--out` is not made again. `table.json` and `table.md` hold means and standard
deviations over runs.
"""

from __future__ import annotations

import argparse
import json
import os
import shutil
import statistics
import time
from collections.abc import Iterator, Sequence
from concurrent.futures import ProcessPoolExecutor, as_completed
from dataclasses import dataclass
from multiprocessing import get_context
from pathlib import Path
from typing import Any

MILESTONES = (0, 50, 100, 200, 400)
PRIORS = ("none", "images", "predictions")
COLUMNS = {
    "fidelity.subject": "fidelity",
    "context.subject": "context",
    "noun.subject_top5": "noun",
    "drift.class_distance": "class drift",
    "drift.class_likeness": "class likeness",
    "drift.class_top1": "class noun",
    "drift.unrelated_distance": "unrelated drift",
    "drift.unrelated_top1": "unrelated noun",
    "diversity.class": "diversity",
    "copying.pixels_max": "copying",
}
"""Scores of the table -> heads of its columns."""


@dataclass(frozen=True)
class Plan:
    """What is the same for all runs."""

    out: Path
    base: str
    milestones: tuple[int, ...]
    n: int
    sampler: str
    sampling_steps: int
    threads: int
    settings: tuple[str, ...]


@dataclass(frozen=True)
class Lesson:
    """One run: a sample subject, a seed, and the prior: none, images or predictions."""

    subject: str
    seed: int
    prior: str

    @property
    def name(self) -> str:
        return f"{self.subject}-{self.seed}-{self.prior}"


def carry_out(plan: Plan, lesson: Lesson) -> dict[str, Any]:
    """Trains and scores one run, or reads what an earlier call left in `plan.out`/runs."""
    import torch

    from studiolo.store.files import atomic_path

    torch.set_num_threads(plan.threads)
    result = plan.out / "runs" / f"{lesson.name}.json"
    if result.exists():
        return json.loads(result.read_text(encoding="utf-8"))
    start = time.perf_counter()
    run = plan.out / "work" / lesson.name
    train(plan, lesson, run)
    trained = time.perf_counter() - start
    rows = list(score_milestones(plan, lesson, run))
    found = {
        "subject": lesson.subject, "seed": lesson.seed, "prior": lesson.prior, "milestones": rows,
        "train_seconds": round(trained, 1), "score_seconds": round(time.perf_counter() - start - trained, 1),
    }  # fmt: skip
    with atomic_path(result) as temporary:
        temporary.write_text(json.dumps(found, indent=1) + "\n", encoding="utf-8")
    shutil.rmtree(run)
    return found


def train(plan: Plan, lesson: Lesson, run: Path) -> None:
    """Teaches the subject, with a checkpoint at least at every milestone."""
    from math import gcd

    from studiolo.dreambooth.progress import Display
    from studiolo.dreambooth.recipe import Recipe
    from studiolo.dreambooth.trainer import train
    from studiolo.evaluation.demo import SUBJECTS

    shutil.rmtree(run, ignore_errors=True)
    last, every = plan.milestones[-1], gcd(*plan.milestones)
    recipe = Recipe().with_settings(plan.settings)
    values = {
        "steps": last, "seed": lesson.seed, "checkpoint_every": every, "keep_checkpoints": last // every,
        "trackers": [],
    }  # fmt: skip
    recipe = recipe.with_values(
        values | ({"prior_weight": 0} if lesson.prior == "none" else {"prior": lesson.prior})
    )
    train(
        SUBJECTS / lesson.subject, lesson.subject, lesson.name, plan.base, recipe, run,
        replace=True, display=Display.silent(),
    )  # fmt: skip


def score_milestones(plan: Plan, lesson: Lesson, run: Path) -> Iterator[dict[str, Any]]:
    """The scores at each milestone; step 0 is the untaught base, asked for the same words."""
    examiner = Examiner(plan, lesson, run)
    for step in plan.milestones:
        yield {"step": step, "scores": examiner.scores(_at(examiner.taught, run, step) if step else None)}


class Examiner:
    """Asks what was taught from the images of `run`, and what its base was before."""

    def __init__(self, plan: Plan, lesson: Lesson, run: Path) -> None:
        from studiolo.diffusion.sampling import SamplerSettings
        from studiolo.drawing.model import ImageModel
        from studiolo.evaluation.embedders import load_embedder
        from studiolo.evaluation.exam import Exam
        from studiolo.evaluation.eye import shipped_eye
        from studiolo.evaluation.learned import training_images
        from studiolo.evaluation.scores import Judge

        self.taught, base = ImageModel.load(run / "model"), ImageModel.load(plan.base)
        settings = SamplerSettings(plan.sampler, plan.sampling_steps)
        self.exam = Exam(lesson.subject, plan.n, 1000 * lesson.seed, settings)
        self.judge = Judge(self.exam, training_images(self.taught), load_embedder(), shipped_eye())
        self.before = self.exam.draw(base.components, self.taught.identifier)

    def scores(self, components: Any = None) -> dict[str, Any]:
        """Of a model that was taught the same; without one, of the base."""
        after = self.exam.draw(components, self.taught.identifier) if components else self.before
        return self.judge.scores(self.before, after)


def _at(taught: Any, run: Path, step: int) -> Any:
    """The components as they were at `step`."""
    import torch

    state = torch.load(run / "checkpoints" / f"step-{step:06d}.ckpt", weights_only=True)["state_dict"]
    components = taught.components
    networks = {"denoiser": components.denoiser}
    networks |= {f"text_encoders.{i}": encoder for i, encoder in enumerate(components.text_encoders)}
    for name, network in networks.items():
        prefix = f"{name}."
        own = {key.removeprefix(prefix): value for key, value in state.items() if key.startswith(prefix)}
        network.load_state_dict(own, strict=False)
    return components


def summarise(results: Sequence[dict[str, Any]]) -> list[dict[str, Any]]:
    """One row a (prior, step): mean and standard deviation of every score over the runs."""
    rows = []
    for prior in PRIORS:
        mine = [result for result in results if result["prior"] == prior]
        for number, milestone in enumerate(mine[0]["milestones"] if mine else ()):
            scores = [result["milestones"][number]["scores"] for result in mine]
            row: dict[str, Any] = {"prior": prior, "step": milestone["step"], "runs": len(mine)}
            for key in COLUMNS:
                group, name = key.split(".")
                values = [score[group][name] for score in scores]
                deviation = statistics.stdev(values) if len(values) > 1 else 0.0
                row[key] = {"mean": round(statistics.fmean(values), 4), "sd": round(deviation, 4)}
            rows.append(row)
    return rows


def markdown(rows: Sequence[dict[str, Any]], results: Sequence[dict[str, Any]]) -> str:
    """The table, and the values that it is read against."""
    first = [result["milestones"][0]["scores"] for result in results]
    real, untaught = (statistics.fmean(s["fidelity"][k] for s in first) for k in ("real", "base"))
    named = statistics.fmean(s["noun"]["real_top5"] for s in first)
    diversity = statistics.fmean(s["diversity"]["class_before"] for s in first)
    lines = [f"| prior | step | {' | '.join(COLUMNS.values())} |", "|---|--:|" + "--:|" * len(COLUMNS)]
    for row in rows:
        cells = [f"{row[key]['mean']:.2f} ± {row[key]['sd']:.2f}" for key in COLUMNS]
        lines.append(f"| {row['prior']} | {row['step']} | {' | '.join(cells)} |")
    note = (
        f"Fidelity of the base asked for the class alone: {untaught:.2f}; of the training images to each "
        f"other: {real:.2f}. The eye sees the class noun among its first five in {named:.0%} of the training "
        f"images. Diversity of the base's class pictures: {diversity:.2f}."
    )
    return "\n".join([*lines, "", note]) + "\n"


def write(out: Path, results: Sequence[dict[str, Any]]) -> None:
    from studiolo.store.files import atomic_path

    rows = summarise(results)
    with atomic_path(out / "table.json") as temporary:
        temporary.write_text(
            json.dumps({"rows": rows, "runs": list(results)}, indent=1) + "\n", encoding="utf-8"
        )
    with atomic_path(out / "table.md") as temporary:
        temporary.write_text(markdown(rows, results), encoding="utf-8")


def arguments() -> argparse.Namespace:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--out", type=Path, required=True)
    parser.add_argument("--base", default="studiolo-base")
    parser.add_argument("--subjects", nargs="+", default=["fox", "dog"])
    parser.add_argument("--priors", nargs="+", default=list(PRIORS), choices=PRIORS)
    parser.add_argument("--seeds", nargs="+", type=int, default=[0, 1, 2])
    parser.add_argument(
        "--milestones", nargs="+", type=int, default=MILESTONES, help="the last ends the training"
    )
    parser.add_argument("--set", action="append", default=[], metavar="KEY=VALUE", help="of the recipe")
    parser.add_argument("-n", type=int, default=1, help="pictures of each prompt and run")
    parser.add_argument("--sampler", default="dpm++2m")
    parser.add_argument("--sampling-steps", type=int, default=12)
    parser.add_argument("--jobs", type=int, default=1, help="runs at the same time")
    parser.add_argument("--threads", type=int, default=1, help="threads of each")
    parser.add_argument("--quick", action="store_true", help="one subject, one seed, few steps: a trial")
    chosen = parser.parse_args()
    if chosen.quick:
        chosen.subjects, chosen.seeds, chosen.milestones = chosen.subjects[:1], chosen.seeds[:1], (0, 10, 20)
        chosen.sampling_steps = 8
    return chosen


def main() -> None:
    chosen = arguments()
    for variable in ("OMP_NUM_THREADS", "MKL_NUM_THREADS"):
        os.environ[variable] = str(chosen.threads)
    # The benchmark's models and class images are its own.
    os.environ["STUDIOLO_HOME"] = str((chosen.out / "home").absolute())
    plan = Plan(
        chosen.out.absolute(), chosen.base, tuple(chosen.milestones), chosen.n, chosen.sampler,
        chosen.sampling_steps, chosen.threads, tuple(chosen.set),
    )  # fmt: skip
    # Neighbours differ in the subject, so that no two jobs make the same class images at the same time.
    lessons = [Lesson(s, seed, p) for seed in chosen.seeds for p in chosen.priors for s in chosen.subjects]
    results = []
    with ProcessPoolExecutor(chosen.jobs, mp_context=get_context("spawn")) as pool:
        futures = {pool.submit(carry_out, plan, lesson): lesson for lesson in lessons}
        for done, future in enumerate(as_completed(futures), 1):
            results.append(future.result())
            print(f"{done}/{len(lessons)} {futures[future].name}", flush=True)
            results.sort(key=lambda result: (result["subject"], result["seed"], result["prior"]))
            write(chosen.out, results)
    print((chosen.out / "table.md").read_text(encoding="utf-8"))


if __name__ == "__main__":
    main()

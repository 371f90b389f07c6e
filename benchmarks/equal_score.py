"""Time until a subject is learned, against the steps of diffusers' DreamBooth script.

    python benchmarks/equal_score.py --precision bf16 --subjects fox dog --seeds 0 1 2

All ways teach the same subjects with the same class images, schedule, batch and precision, and are asked the
questions of `studiolo score` at the same milestones; scores are means over subjects and seeds. The script has
one rate for the U-Net and the text encoder (`--rate`); ours runs so, too, and with its own. The score is
fidelity times context: the subject, and in the place that was asked for. What counts is the time of the steps
alone (their median) until the score is what the script's best is, by straight lines between the milestones.
"""

from __future__ import annotations

import argparse
import itertools
import os
import statistics
import tempfile
from collections.abc import Iterable, Iterator
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from training import SUBJECTS, parser, peer_settings, seconds_of, teach

SCRIPT = "diffusers' steps"
KEPT = {"fidelity.subject": "fidelity", "context.subject": "context", "drift.class_distance": "class drift"}
"""Scores of the table -> heads of its columns."""


@dataclass(frozen=True)
class Point:
    """Where one way is after `step` steps, which took `seconds`; `scores` by the keys of KEPT.

    `score` is fidelity times context; a mean over runs has the mean of theirs.
    """

    step: int
    seconds: float
    scores: dict[str, float]
    score: float


def main() -> None:
    options = parse()
    lessons = [(subject, seed) for seed in options.seeds for subject in options.subjects]
    found: dict[str, list[list[Point]]] = {}
    for number, (subject, seed) in enumerate(lessons, 1):
        with tempfile.TemporaryDirectory() as home:
            os.environ["STUDIOLO_HOME"] = home
            options.images, options.noun, options.seed = str(SUBJECTS / subject), subject, seed
            for way, points in compare(options, Path(home)):
                found.setdefault(way, []).append(points)
                told = " ".join(f"{point.score:.2f}" for point in points)
                print(f"{number}/{len(lessons)} {subject}, seed {seed}, {way}: {told}", flush=True)
    show({way: mean(runs) for way, runs in found.items()})


def show(found: dict[str, list[Point]]) -> None:
    for way, points in found.items():
        print(f"\n{way}\n\n| step | s | {' | '.join(KEPT.values())} | score |\n|{'--:|' * (len(KEPT) + 3)}")
        for point in points:
            cells = " | ".join(f"{point.scores[key]:.2f}" for key in KEPT)
            print(f"| {point.step} | {point.seconds:.0f} | {cells} | {point.score:.2f} |")
    untaught, *taught = found[SCRIPT]
    aim = max(point.score for point in taught)
    if aim <= untaught.score:
        print(f"\nThe script's best, {aim:.2f}, is no better than the untaught base.")
        return
    print(f"\n| | s until the score is {aim:.2f} | steps by then | best score |\n|---|--:|--:|--:|")
    for way, points in found.items():
        best = max(point.score for point in points[1:])
        told = " | ".join(f"{number:.0f}" for number in until(points, aim) or ()) or "never | "
        print(f"| {way} | {told} | {best:.2f} |")


def compare(options: argparse.Namespace, home: Path) -> Iterator[tuple[str, list[Point]]]:
    """Each way's points for one subject and seed."""
    from dreambooth_table import Examiner, Lesson, Plan, score_milestones

    milestones = tuple(range(0, options.steps + 1, options.every))
    plan = Plan(home, options.model, milestones, options.n, "dpm++2m", 2 if options.quick else 12, 0, ())
    lesson = Lesson(options.noun, options.seed, "images")
    settings = {"checkpoint_every": options.every, "keep_checkpoints": len(milestones), "seed": options.seed}

    def ours(name: str, **more: Any) -> tuple[Path, list[Point]]:
        run = teach(options, home, name, options.steps, **settings, **more)
        return run, points(score_milestones(plan, lesson, run), seconds_of(options, run))

    run, with_own_rates = ours("own-rates")
    peer = peer_settings(options, home, run)
    peer = replace(peer, seed=options.seed, learning_rate=options.rate or peer.learning_rate)
    examiner = Examiner(plan, lesson, run)
    components, scored = examiner.taught.components, [{"step": 0, "scores": examiner.scores()}]

    def on_step(step: int, unet: Any, text_encoder: Any) -> None:
        if step % options.every == 0:
            components.denoiser.load_state_dict(unet.state_dict())
            components.text_encoder.load_state_dict(text_encoder.state_dict())
            scored.append({"step": step, "scores": examiner.scores(components)})

    from peer_dreambooth import train

    spent = train(peer, on_step)
    yield SCRIPT, points(scored, spent)
    one_rate = {"learning_rate": peer.learning_rate, "text_learning_rate": peer.learning_rate}
    yield "studiolo, the same rate for both", ours("one-rate", **one_rate)[1]
    yield "studiolo", with_own_rates


def points(rows: Iterable[dict[str, Any]], seconds: list[float]) -> list[Point]:
    each = statistics.median(seconds)  # what other programs do meanwhile counts little so
    found = []
    for row in rows:
        scores = {key: row["scores"][key.split(".")[0]][key.split(".")[1]] for key in KEPT}
        score = scores["fidelity.subject"] * scores["context.subject"]
        found.append(Point(row["step"], each * row["step"], scores, score))
    return found


def mean(runs: list[list[Point]]) -> list[Point]:
    """The mean of the points of several runs, milestone by milestone."""
    return [
        Point(
            together[0].step,
            statistics.fmean(point.seconds for point in together),
            {key: statistics.fmean(point.scores[key] for point in together) for key in KEPT},
            statistics.fmean(point.score for point in together),
        )
        for together in zip(*runs, strict=True)
    ]


def until(points: list[Point], aim: float) -> tuple[float, float] | None:
    """(seconds, steps) until the score is `aim` for the first time; None if it never is."""
    for low, high in itertools.pairwise(points):
        if high.score >= aim:
            share = max(0.0, (aim - low.score) / (high.score - low.score)) if high.score > low.score else 0.0
            steps = low.step + share * (high.step - low.step)
            return steps * high.seconds / high.step, steps
    return None


def parse() -> argparse.Namespace:
    more = parser(__doc__)
    more.add_argument("--every", type=int, default=25, help="steps between two exams")
    more.add_argument("-n", type=int, default=2, help="pictures of each question")
    more.add_argument("--subjects", nargs="+", default=["fox"], help="of the sample subjects")
    more.add_argument("--seeds", nargs="+", type=int, default=[0])
    more.add_argument("--rate", type=float, help="of the script; default: ours for the U-Net")
    more.set_defaults(steps=200, class_images=32)
    options = more.parse_args()
    if options.quick:
        options.steps, options.every, options.n, options.class_images = 4, 2, 1, 4
    return options


if __name__ == "__main__":
    main()

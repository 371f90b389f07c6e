"""Seconds a step and peak memory of a training, against the steps of diffusers' DreamBooth script.

    python benchmarks/training.py --steps 20

Both train the U-Net and the text encoder of the same model, on the same instance and class images, in the
same batch, precision and number of threads, with AdamW and clipping: ours as `studiolo train` does it, with
its metrics, and the peer's as `peer_dreambooth.py` has it. Each way is a process of its own, in turn for some
rounds; the median step after the first few counts. The ratio is what matters; the seconds are the machine's.
"""

from __future__ import annotations

import argparse
import csv
import json
import os
import statistics
import subprocess
import sys
import tempfile
from pathlib import Path
from typing import Any

WAYS = ("diffusers' steps", "studiolo", "studiolo, compiled")


def main() -> None:
    options = parse()
    if options.work:
        print(json.dumps(work(options)))
        return
    with tempfile.TemporaryDirectory() as scratch:
        home = options.home or Path(scratch)
        prepare(options, home)
        found: dict[str, list[dict[str, Any]]] = {way: [] for way in options.ways}
        for _ in range(options.rounds):
            for way in options.ways:
                found[way].append(child(way, home))
    show(options, found)


def child(way: str, home: Path) -> dict[str, Any]:
    """What one way measures, in a process of its own."""
    command = [sys.executable, __file__, "--work", way, "--home", str(home), *sys.argv[1:]]
    done = subprocess.run(command, stdout=subprocess.PIPE, text=True, check=True)
    return json.loads(done.stdout.splitlines()[-1])


def prepare(options: argparse.Namespace, home: Path) -> None:
    """Class images and encoded images, which a training makes once: they are there for both ways."""
    os.environ["STUDIOLO_HOME"] = str(home)
    teach(options, home, "prepared", steps=1)


def teach(options: argparse.Namespace, home: Path, name: str, steps: int, **settings: Any) -> Path:
    """`studiolo train`; returns its run folder."""
    from studiolo.dreambooth.progress import Display
    from studiolo.dreambooth.trainer import train

    out = home / "runs" / f"{name}-{os.getpid()}"
    recipe = {
        "steps": steps,
        "batch_size": options.batch,
        "precision": {"fp32": "32-true", "bf16": "bf16-mixed", "fp16": "16-mixed"}[options.precision],
        "class_prompts": ["a photo of a {class_noun}"],
        "class_images": {"count": options.class_images, "steps": 10},
        "trackers": [],
        "checkpoint_every": 1_000_000,
        "accelerator": options.device,
        "train_text_encoder": not options.freeze_text,
    }
    train(
        options.images, options.noun, name, options.model, out=out, replace=True, display=Display.silent(),
        **recipe | settings,
    )  # fmt: skip
    return out


def work(options: argparse.Namespace) -> dict[str, Any]:
    """The median step in seconds and the peak in MiB of one way."""
    os.environ["STUDIOLO_HOME"] = str(options.home)
    import torch

    if options.threads:
        torch.set_num_threads(options.threads)
    from studiolo.dreambooth.metrics import peak_memory_mb

    seconds = peer(options) if options.work == WAYS[0] else ours(options)
    return {"step": statistics.median(seconds[options.warm :]), "peak": peak_memory_mb()}


def ours(options: argparse.Namespace) -> list[float]:
    compiled = {"compile": True} if options.work == WAYS[2] else {}
    run = teach(options, options.home, "ours", options.steps, **compiled)
    with open(run / "metrics.csv", encoding="utf-8", newline="") as file:
        return [2 * options.batch / float(row["images_per_second"]) for row in csv.DictReader(file)]


def peer(options: argparse.Namespace) -> list[float]:
    from peer_dreambooth import Settings, train

    from studiolo.models.registry import resolve

    found = next((options.home / "runs").glob("prepared-*"))
    card = json.loads((found / "model" / "studiolo.json").read_text(encoding="utf-8"))
    (class_images,) = (options.home / "cache" / "class-images").iterdir()
    settings = Settings(
        model=resolve(options.model).path,
        instance_data_dir=Path(options.images),
        class_data_dir=class_images,
        instance_prompt=card["instance_prompt"].replace("[V]", card["identifier"]),
        class_prompt=card["class_prompt"],
        resolution=card["recipe"]["resolution"],
        train_batch_size=options.batch,
        max_train_steps=options.steps,
        learning_rate=card["recipe"]["learning_rate"],
        mixed_precision="no" if options.precision == "fp32" else options.precision,
        train_text_encoder=not options.freeze_text,
    )
    return train(settings)


def show(options: argparse.Namespace, found: dict[str, list[dict[str, Any]]]) -> None:
    """The table: medians over the rounds, and what they are of the peer's."""
    images = 2 * options.batch
    base = statistics.median(result["step"] for result in found[options.ways[0]])
    print(f"{images} images a step, {options.precision}, {options.model}\n")
    print("| steps by | s a step | images/s | of the first | peak, MiB |\n| --- | --: | --: | --: | --: |")
    for way, results in found.items():
        step = statistics.median(result["step"] for result in results)
        peak = statistics.median(result["peak"] for result in results)
        print(f"| {way} | {step:.3f} | {images / step:.2f} | {base / step:.2f} | {peak:,.0f} |")


def parse() -> argparse.Namespace:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    sample = Path(__file__).resolve().parent.parent / "src/studiolo/base/subjects/fox"
    parser.add_argument("--model", default="studiolo-base")
    parser.add_argument("--images", default=str(sample), help="folder of the subject")
    parser.add_argument("--noun", default="fox")
    parser.add_argument("--batch", type=int, default=4, help="instance images a step; as many class images")
    parser.add_argument("--class-images", type=int, default=16)
    parser.add_argument("--steps", type=int, default=20)
    parser.add_argument("--warm", type=int, default=5, help="first steps that do not count")
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--precision", choices=("fp32", "bf16", "fp16"), default="fp32")
    parser.add_argument("--freeze-text", action="store_true", help="train the U-Net alone")
    parser.add_argument("--device", choices=("cpu", "gpu"), default="cpu")
    parser.add_argument("--threads", type=int, help="default: torch's own")
    parser.add_argument("--ways", nargs="+", choices=WAYS, default=list(WAYS[:2]))
    parser.add_argument("--quick", action="store_true", help="as little as shows that it runs")
    parser.add_argument("--work", choices=WAYS, help=argparse.SUPPRESS)
    parser.add_argument("--home", type=Path, help=argparse.SUPPRESS)
    options = parser.parse_args()
    if options.quick:
        options.steps, options.warm, options.rounds, options.class_images = 2, 0, 1, 4
    return options


if __name__ == "__main__":
    main()

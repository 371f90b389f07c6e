"""Seconds a step and peak memory of a training, against the steps of diffusers' DreamBooth script.

    python benchmarks/training.py --steps 20

Both train the U-Net and the text encoder of the same model, on the same instance and class images, in the
same batch, precision and number of threads, with AdamW and clipping: ours as `studiolo train` does it, with
its metrics, and the peer's as `peer_dreambooth.py` has it. Each way is a process of its own, in turn for some
rounds; the median step after the first few counts. The ratio is what matters; the seconds are the machine's.
With `--megapixels 12` the subject's images are enlarged to what a phone's camera makes: the peer reads and
scales them in every step, as the script does, and ours once before the first.
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
from typing import TYPE_CHECKING, Any

from PIL import Image

if TYPE_CHECKING:
    from peer_dreambooth import Settings

WAYS = ("diffusers' steps", "studiolo", "studiolo, compiled")
SUBJECTS = Path(__file__).resolve().parent.parent / "src/studiolo/base/subjects"
PREPARE = "prepare"
"""Makes class images and encodes images, which a training does once: they are there for all ways."""


def main() -> None:
    options = parse()
    if options.work:
        print(json.dumps(work(options)))
        return
    with tempfile.TemporaryDirectory() as scratch:
        home = options.home or Path(scratch)
        photos = enlarged(options, home)
        child(PREPARE, home, photos)  # a process begins with the peak of the one that starts it
        found: dict[str, list[dict[str, Any]]] = {way: [] for way in options.ways}
        for _ in range(options.rounds):
            for way in options.ways:
                found[way].append(child(way, home, photos))
    show(options, found)


def child(way: str, home: Path, photos: Path) -> dict[str, Any]:
    """What one way measures, in a process of its own."""
    own = ["--work", way, "--home", str(home), "--images", str(photos)]
    command = [sys.executable, __file__, *sys.argv[1:], *own]
    done = subprocess.run(command, stdout=subprocess.PIPE, text=True, check=True)
    return json.loads(done.stdout.splitlines()[-1])


def enlarged(options: argparse.Namespace, home: Path) -> Path:
    """The folder of the subject's images, each as large as `--megapixels` says."""
    if options.megapixels is None:
        return Path(options.images)
    folder = home / "photos"
    folder.mkdir(exist_ok=True)
    for path in sorted(Path(options.images).iterdir()):
        if path.suffix.lower() in (".jpg", ".jpeg", ".png", ".webp"):
            with Image.open(path) as image:
                scale = (options.megapixels * 1e6 / (image.width * image.height)) ** 0.5
                size = (round(image.width * scale), round(image.height * scale))
                large = image.convert("RGB").resize(size, Image.Resampling.BICUBIC)
                large.save(folder / f"{path.stem}.jpg", quality=92)
    return folder


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
        "resolution": options.resolution,
    }
    train(
        options.images, options.noun, name, options.model, out=out, replace=True, display=Display.silent(),
        **recipe | settings,
    )  # fmt: skip
    return out


def work(options: argparse.Namespace) -> dict[str, Any]:
    """The median step in seconds and the peak in MiB of one way."""
    os.environ["STUDIOLO_HOME"] = str(options.home)
    if options.work == PREPARE:
        teach(options, options.home, "prepared", steps=1)
        return {}
    import torch

    if options.threads:
        torch.set_num_threads(options.threads)
    from studiolo.dreambooth.metrics import peak_memory_mb

    seconds = peer(options) if options.work == WAYS[0] else ours(options)
    return {"step": statistics.median(seconds[options.warm :]), "peak": peak_memory_mb()}


def ours(options: argparse.Namespace) -> list[float]:
    compiled = {"compile": True} if options.work == WAYS[2] else {}
    return seconds_of(options, teach(options, options.home, "ours", options.steps, **compiled))


def seconds_of(options: argparse.Namespace, run: Path) -> list[float]:
    """Of each step of a run, as its metrics have it."""
    with open(run / "metrics.csv", encoding="utf-8", newline="") as file:
        return [2 * options.batch / float(row["images_per_second"]) for row in csv.DictReader(file)]


def peer(options: argparse.Namespace) -> list[float]:
    from peer_dreambooth import train

    return train(peer_settings(options, options.home, next((options.home / "runs").glob("prepared-*"))))


def peer_settings(options: argparse.Namespace, home: Path, run: Path) -> Settings:
    """The script's arguments for what `run` was taught."""
    from peer_dreambooth import Settings

    from studiolo.models.registry import resolve

    card = json.loads((run / "model" / "studiolo.json").read_text(encoding="utf-8"))
    (class_images,) = (home / "cache" / "class-images").iterdir()
    return Settings(
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


def show(options: argparse.Namespace, found: dict[str, list[dict[str, Any]]]) -> None:
    """The table: medians over the rounds, and what they are of the peer's."""
    images = 2 * options.batch
    base = statistics.median(result["step"] for result in found[options.ways[0]])
    size = "" if options.megapixels is None else f", photos of {options.megapixels:g} megapixels"
    print(f"{images} images a step, {options.precision}, {options.model}{size}\n")
    print("| steps by | s a step | images/s | of the first | peak, MiB |\n| --- | --: | --: | --: | --: |")
    for way, results in found.items():
        step = statistics.median(result["step"] for result in results)
        peak = statistics.median(result["peak"] for result in results)
        print(f"| {way} | {step:.3f} | {images / step:.2f} | {base / step:.2f} | {peak:,.0f} |")


def parser(doc: str | None) -> argparse.ArgumentParser:
    """What any comparison with the script's steps takes."""
    parser = argparse.ArgumentParser(description=doc, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--model", default="studiolo-base")
    parser.add_argument("--batch", type=int, default=4, help="instance images a step; as many class images")
    parser.add_argument("--resolution", type=int, help="default: the model's own")
    parser.add_argument("--class-images", type=int, default=16)
    parser.add_argument("--steps", type=int, default=20)
    parser.add_argument("--precision", choices=("fp32", "bf16", "fp16"), default="fp32")
    parser.add_argument("--freeze-text", action="store_true", help="train the U-Net alone")
    parser.add_argument("--device", choices=("cpu", "gpu"), default="cpu")
    parser.add_argument("--quick", action="store_true", help="as little as shows that it runs")
    parser.add_argument("--home", type=Path, help=argparse.SUPPRESS)
    return parser


def parse() -> argparse.Namespace:
    more = parser(__doc__)
    more.add_argument("--images", default=str(SUBJECTS / "fox"), help="folder of the subject")
    more.add_argument("--noun", default="fox")
    more.add_argument("--megapixels", type=float, help="enlarge the images to so many")
    more.add_argument("--warm", type=int, default=5, help="first steps that do not count")
    more.add_argument("--rounds", type=int, default=3)
    more.add_argument("--threads", type=int, help="default: torch's own")
    more.add_argument("--ways", nargs="+", choices=WAYS, default=list(WAYS[:2]))
    more.add_argument("--work", choices=(*WAYS, PREPARE), help=argparse.SUPPRESS)
    options = more.parse_args()
    if options.quick:
        options.steps, options.warm, options.rounds, options.class_images = 2, 0, 1, 4
    return options


if __name__ == "__main__":
    main()

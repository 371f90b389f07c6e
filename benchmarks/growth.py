"""How the cost of drawing grows: pictures a second and memory against batch and resolution.

    python benchmarks/growth.py

Each point is a process of its own, so that its peak of memory is its own. On a GPU with a model of Stable
Diffusion's size: `--model FOLDER --device cuda --batches 1 2 4 8 16 --sizes 512 768 1024`.
"""

from __future__ import annotations

import argparse
import json
import subprocess
import sys
import time


def main() -> None:
    options = parse()
    if options.point:
        print(json.dumps(point(options, *options.point)))
        return
    points = [(batch, options.sizes[0]) for batch in options.batches]
    points += [(options.batches[0], size) for size in options.sizes[1:]]
    print(f"{options.model}, {options.steps} steps of ddim, guidance 5\n")
    print(
        "| batch | pixels | pictures/s | of the first, a pixel | peak, MiB |\n| --: | --: | --: | --: | --: |"
    )
    first = 0.0
    for batch, size in points:
        found = child(batch, size)
        rate = found["rate"] * size * size
        first = first or rate
        cells = [
            batch,
            f"{size} x {size}",
            f"{found['rate']:.3f}",
            f"{rate / first:.2f}",
            f"{found['peak']:,.0f}",
        ]
        print("| " + " | ".join(map(str, cells)) + " |", flush=True)


def child(batch: int, size: int) -> dict[str, float]:
    """What one point measures, in a process of its own."""
    command = [sys.executable, __file__, *sys.argv[1:], "--point", str(batch), str(size)]
    done = subprocess.run(command, stdout=subprocess.PIPE, text=True, check=True)
    return json.loads(done.stdout.splitlines()[-1])


def point(options: argparse.Namespace, batch: int, size: int) -> dict[str, float]:
    """Pictures a second, the best of some rounds, and the peak of memory in MiB."""
    from studiolo.diffusion.sampler_settings import SamplerSettings
    from studiolo.diffusion.sampling import generate
    from studiolo.drawing.model import ImageModel
    from studiolo.dreambooth.metrics import peak_memory_mb

    components = ImageModel.load(options.model, device=options.device, dtype=options.dtype).components
    settings = SamplerSettings("ddim", options.steps)
    prompts = ["a photo of a fox on the moon"] * batch
    best = float("inf")
    for _ in range(options.rounds + 1):  # the first one warms up
        began = time.perf_counter()
        generate(components, prompts, range(batch), settings, height=size, width=size, batch_size=batch)
        best = min(best, time.perf_counter() - began)
    return {"rate": batch / best, "peak": peak_memory_mb()}


def parse() -> argparse.Namespace:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--model", default="studiolo-base")
    parser.add_argument("--device", default="cpu")
    parser.add_argument("--dtype", default="float32")
    parser.add_argument("--batches", nargs="+", type=int, default=[1, 2, 4, 8, 16])
    parser.add_argument("--sizes", nargs="+", type=int, default=[64, 96, 128, 192])
    parser.add_argument("--steps", type=int, default=10)
    parser.add_argument("--rounds", type=int, default=2)
    parser.add_argument("--quick", action="store_true", help="as little as shows that it runs")
    parser.add_argument("--point", nargs=2, type=int, help=argparse.SUPPRESS)
    options = parser.parse_args()
    if options.quick:
        options.batches, options.sizes, options.steps, options.rounds = [1, 2], [64, 96], 2, 1
    return options


if __name__ == "__main__":
    main()

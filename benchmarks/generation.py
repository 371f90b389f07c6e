"""Pictures a second of our loop against diffusers' StableDiffusionPipeline on the same weights and noise.

    python benchmarks/generation.py --model studiolo-base --pictures 8 --steps 20

All ways draw the same pictures in turn (their largest difference is printed): ours with its prompts packed
into batches, as `studiolo generate` does it, the pipeline with all prompts in one call, and the pipeline
called once a prompt, as its documentation shows it. The median of several rounds counts; the best is told,
too. The ratio is what matters; the rate is the machine's.
"""

from __future__ import annotations

import argparse
import statistics
import time
from collections.abc import Callable

import numpy as np
import torch
from diffusers import StableDiffusionPipeline
from PIL import Image

from studiolo.diffusion.components import Components
from studiolo.diffusion.noise import generators
from studiolo.diffusion.samplers import SAMPLERS, SamplerSettings, make_scheduler
from studiolo.diffusion.sampling import generate
from studiolo.drawing.model import ImageModel


def main() -> None:
    options = parse()
    components = ImageModel.load(options.model, device=options.device).components
    settings = SamplerSettings(options.sampler, options.steps, options.guidance)
    prompts, seeds = [options.prompt] * options.pictures, list(range(options.pictures))
    pipeline = StableDiffusionPipeline(
        vae=components.vae,
        text_encoder=components.text_encoder,
        tokenizer=components.tokenizer,
        unet=components.denoiser,
        scheduler=make_scheduler(components.scheduler_config, settings),
        safety_checker=None,
        feature_extractor=None,
        requires_safety_checker=False,
    )
    pipeline.set_progress_bar_config(disable=True)

    def ours(components: Components = components) -> np.ndarray:
        return np.stack(generate(components, prompts, seeds, settings, batch_size=options.pictures))

    def call(prompts: list[str], seeds: list[int]) -> list[Image.Image]:
        return pipeline(
            prompts,
            num_inference_steps=settings.steps,
            guidance_scale=settings.guidance_scale,
            generator=generators(seeds),
        ).images

    def one_call() -> np.ndarray:
        return np.stack(call(prompts, seeds))

    def one_by_one() -> np.ndarray:
        return np.stack([call([p], [s])[0] for p, s in zip(prompts, seeds, strict=True)])

    ways = {"studiolo": ours, "pipeline, one call": one_call, "pipeline, a call a prompt": one_by_one}
    if options.compile:
        compiled = ImageModel.load(options.model, device=options.device, compiled=True).components
        ways["studiolo --compile"] = lambda: ours(compiled)
    drawn = {name: draw().astype(int) for name, draw in ways.items()}  # this round also warms them up
    apart = max(np.abs(drawn["studiolo"] - pictures).max() for pictures in drawn.values())
    seconds = measured(options.rounds, ways)
    what = f"{settings.steps} steps of {settings.sampler}, guidance {settings.guidance_scale}"
    print(f"{options.pictures} pictures, {what}")
    print(f"{components.device}, {torch.get_num_threads()} threads; pictures at most {apart} of 255 apart")
    print("\n| | pictures/s | best | studiolo against it |\n|---|--:|--:|--:|")
    own = statistics.median(seconds["studiolo"])
    for name, taken in seconds.items():
        middle, best = (options.pictures / s for s in (statistics.median(taken), min(taken)))
        print(f"| {name} | {middle:.2f} | {best:.2f} | {statistics.median(taken) / own:.2f} |")


def measured(rounds: int, calls: dict[str, Callable[[], object]]) -> dict[str, list[float]]:
    """Seconds of `rounds` runs of each call, run in turn."""
    seconds: dict[str, list[float]] = {name: [] for name in calls}
    for _ in range(rounds):
        for name, call in calls.items():
            start = time.perf_counter()
            call()
            seconds[name].append(time.perf_counter() - start)
    return seconds


def parse() -> argparse.Namespace:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--model", default="studiolo-base")
    parser.add_argument("--prompt", default="a photo of a fox on the moon")
    parser.add_argument("--pictures", type=int, default=8)
    parser.add_argument("--steps", type=int, default=20)
    parser.add_argument("--guidance", type=float, default=5.0)
    parser.add_argument("--sampler", choices=SAMPLERS, default="ddim")
    parser.add_argument("--rounds", type=int, default=9)
    parser.add_argument("--device", default=None)
    parser.add_argument("--compile", action="store_true", help="also with compiled blocks")
    return parser.parse_args()


if __name__ == "__main__":
    main()

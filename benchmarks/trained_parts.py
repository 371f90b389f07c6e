"""Memory and time of each choice of what is trained, and of what saves memory.

    python benchmarks/trained_parts.py
    python benchmarks/trained_parts.py --model sd1 --batch 1 --precision bf16-mixed     # on a GPU

Each choice is a process of its own, so that peaks are its own. The model is studiolo-base, or one of the
published sizes with random weights (benchmarks/fullsize.py); images and class images are random latents,
since neither matters to memory or time. "above the model" is the peak over what the loaded model takes: of a
GPU what PyTorch has allocated, else of the process. A step's time is the median after the first two; on a CPU
it is CPU time, which other programs disturb least. "of the matrix rate" is the operations a second of a
step's matrix products, convolutions and attention, counted by PyTorch, over those of one large matrix product
in the same float type, measured in the same process; on CPUs both are of one thread's time.
"""

from __future__ import annotations

import argparse
import json
import resource
import statistics
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

import torch
from torch.utils.flop_counter import FlopCounterMode

from studiolo.training.steps import MovingAverage, StepCallback

NO_TEXT = {"train_text_encoder": False}
LORA = {"adapter": {"kind": "lora"}}
CHOICES: dict[str, dict[str, Any]] = {
    "full": {},
    "U-Net alone": NO_TEXT,
    "LoRA": LORA,
    "LoRA, U-Net alone": LORA | NO_TEXT,
    "DoRA": {"adapter": {"kind": "dora"}},
    "token": NO_TEXT | {"train_unet": False, "train_token_embedding": True},
    "pivotal": LORA | NO_TEXT | {"train_token_embedding": True},
    "full, checkpointing": {"gradient_checkpointing": True},
    "LoRA, checkpointing": LORA | {"gradient_checkpointing": True},
    "full, 8-bit AdamW": {"optimizer": "adamw8bit"},
    "full, Adafactor": {"optimizer": "adafactor"},
    "full, Prodigy": {"optimizer": "prodigy"},
    "full, moving average": {"ema_decay": 0.99},
    "full, channels last": {"channels_last": True},
    "full, compiled": {"compile": True},
}
MATRIX_TYPES = {"32-true": torch.float32, "bf16-mixed": torch.bfloat16, "16-mixed": torch.float16}


def main() -> None:
    options = parse()
    if options.work:
        print(json.dumps(work(options)))
        return
    found = {}
    for name in options.choices:
        command = [sys.executable, __file__, "--work", name, *sys.argv[1:]]
        done = subprocess.run(command, capture_output=True, text=True)
        if done.returncode:
            print(f"{name}: {done.stderr.strip().splitlines()[-1]}", file=sys.stderr)
            continue
        found[name] = json.loads(done.stdout.splitlines()[-1])
        print(name, found[name], file=sys.stderr)
    if not found:
        sys.exit("nothing ran")
    print(table(found))


def work(options: argparse.Namespace) -> dict[str, float]:
    """What one choice takes, in this process."""
    from studiolo.dreambooth.personalize import Personalization
    from studiolo.dreambooth.recipe import Recipe
    from studiolo.training.quiet import quiet
    from studiolo.training.trainer import plain_trainer

    device = "cuda" if torch.cuda.is_available() else "cpu"
    if options.cast:
        Recipe.halves_frozen = False  # type: ignore[assignment, method-assign]
    recipe = Recipe.build({
        **CHOICES[options.work], "steps": options.steps, "batch_size": options.batch,
        "precision": options.precision, "warmup_steps": 0,
    })  # fmt: skip
    components = load(options.model, device)
    batches = random_batches(components, recipe)
    held = memory(device)
    row = components.text_encoder.get_input_embeddings().num_embeddings - 3
    tokens = [tuple(row for _ in components.text_encoders)]
    prompts = ["a photo of a dog", "a dog on the beach"]
    module = Personalization(components, recipe, prompts, tokens, batches)
    clock = Clock(device, count=not recipe.compile)
    callbacks = [clock, *([MovingAverage(recipe.ema_decay)] if recipe.ema_decay else [])]
    with quiet():
        trainer = plain_trainer(
            Path(), recipe.steps, callbacks, accelerator="auto", devices=1, precision=recipe.precision
        )
        trainer.fit(module)
    trained = sum(module.parts.report["trained"].values())
    taken = {"trained": trained, "held": held, "peak": memory(device), "step": clock.median}
    return taken | {
        "operations": clock.operations,
        "rate": matrix_rate(device, MATRIX_TYPES[options.precision]),
    }


def matrix_rate(device: str, dtype: torch.dtype) -> float:
    """Operations a second of a square matrix product, the best of some."""
    side = 8192 if device == "cuda" else 2048
    left, right = (torch.randn(side, side, device=device, dtype=dtype) for _ in range(2))
    best = float("inf")
    for _ in range(10):
        began = now(device)
        left @ right
        best = min(best, now(device) - began)
    return 2 * side**3 / best


def load(name: str, device: str) -> Any:
    from fullsize import NAMES, full_size

    if name in NAMES:
        return full_size(name, device=device)
    from studiolo.formats.opening import open_components

    return open_components(name, device=device)


def random_batches(components: Any, recipe: Any) -> Any:
    from studiolo.dreambooth.batches import Batches, Half
    from studiolo.dreambooth.examples import ExampleSet

    shape = (4, 1, *components.latent_shape())
    sizes = components.family.sizes(components.image_size, components.image_size)
    told = {} if sizes is None else {"sizes": sizes.expand(4, 1, -1)}

    def half(stream: str, row: int) -> Half:
        examples = ExampleSet(torch.randn(shape), torch.full(shape, -3.0), **told)
        return Half(stream, examples, recipe.batch_size, torch.tensor([row]))

    halves, levels = (half("instance", 0), half("class", 1)), components.schedule.num_steps
    return lambda start, rank, world: Batches(recipe, *halves, levels, start=start, rank=rank, world=world)


def memory(device: str) -> float:
    """The most that was used so far, in MiB."""
    if device == "cuda":
        return torch.cuda.max_memory_allocated() / 2**20
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 2**10


def now(device: str) -> float:
    if device == "cuda":
        torch.cuda.synchronize()
        return time.perf_counter()
    return time.process_time()


class Clock(StepCallback):
    """When each step ended, and, with `count`, the operations of the first."""

    def __init__(self, device: str, count: bool) -> None:
        self.device = device
        self.times: list[float] = []
        self._counter = FlopCounterMode(display=False) if count else None

    @property
    def operations(self) -> int:
        return self._counter.get_total_flops() if self._counter else 0

    def on_train_batch_start(self, trainer: Any, pl_module: Any, batch: Any, batch_idx: int) -> None:
        if batch_idx == 0 and self._counter:
            self._counter.__enter__()

    def on_step(self, trainer: Any, module: Any, step: int) -> None:
        if step == 1 and self._counter:
            self._counter.__exit__(None, None, None)
        self.times.append(now(self.device))

    @property
    def median(self) -> float:
        """Seconds a step, the first two left out."""
        seconds = [after - before for before, after in zip(self.times, self.times[1:], strict=False)]
        return statistics.median(seconds[1:] or seconds)


def table(found: dict[str, dict[str, float]]) -> str:
    first, against = next(iter(found.items()))
    lines = [
        f"| trained | numbers | peak, MiB | above the model | of {first} | step, s | of {first} "
        "| of the matrix rate |",
        "|---|--:|--:|--:|--:|--:|--:|--:|",
    ]
    for name, row in found.items():
        above, whole = row["peak"] - row["held"], against["peak"] - against["held"]
        # What is compiled cannot be counted, but does what is not compiled does.
        share = (row["operations"] or against["operations"]) / row["step"] / row["rate"]
        lines.append(
            f"| {name} | {row['trained']:,.0f} | {row['peak']:,.0f} | {above:,.0f} | {above / whole:.0%} "
            f"| {row['step']:.3f} | {row['step'] / against['step']:.2f} | {share:.0%} |"
        )
    return "\n".join(lines)


def parse() -> argparse.Namespace:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--model", default="studiolo-base", help="or another, or one of NAMES in fullsize.py")
    parser.add_argument("--batch", type=int, default=4, help="instance images, and class images, a step")
    parser.add_argument("--steps", type=int, default=6)
    parser.add_argument("--precision", default="32-true")
    parser.add_argument(
        "--cast", action="store_true", help="keep frozen layers in float32 and cast them, as they once were"
    )
    parser.add_argument("--choices", nargs="+", choices=CHOICES, default=list(CHOICES), metavar="CHOICE")
    parser.add_argument("--quick", action="store_true", help="as little as shows that it runs")
    parser.add_argument("--work", help=argparse.SUPPRESS)
    options = parser.parse_args()
    if options.quick:
        options.steps, options.batch, options.choices = 3, 1, ["full", "LoRA"]
    return options


if __name__ == "__main__":
    main()

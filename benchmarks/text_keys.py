"""What is saved by computing the text's cross-attention keys and values once instead of at every step?

    python benchmarks/text_keys.py --model studiolo-base --batch 16

Times these projections alone and a whole U-Net call, in turn: their share is what remembering them
saves at each step but the first. See docs/decisions/text-keys.md.
"""

from __future__ import annotations

import argparse
import time
from collections.abc import Callable

import torch

from studiolo.drawing.model import ImageModel


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--model", default="studiolo-base")
    parser.add_argument(
        "--batch", type=int, default=16, help="rows of a call: twice the pictures, with guidance"
    )
    parser.add_argument("--rounds", type=int, default=15)
    options = parser.parse_args()
    components = ImageModel.load(options.model).components
    unet, length = components.denoiser, components.tokenizer.model_max_length
    noise = torch.randn(options.batch, *components.latent_shape(), device=components.device)
    text = torch.randn(options.batch, length, unet.config.cross_attention_dim, device=components.device)
    layers = [module for name, module in unet.named_modules() if name.endswith("attn2")]
    projections = [projection for layer in layers for projection in (layer.to_k, layer.to_v)]
    with torch.no_grad():
        call, keys = fastest(
            options.rounds,
            lambda: unet(noise, 500, text),
            lambda: [projection(text) for projection in projections],
        )
    print(f"{len(projections)} projections, batch {options.batch}, {torch.get_num_threads()} threads")
    print(f"share of a U-Net call: {100 * keys / call:.2f} %")


def fastest(rounds: int, *calls: Callable[[], object]) -> list[float]:
    """Seconds of the fastest of `rounds` runs of each call, run in turn."""
    best = [float("inf")] * len(calls)
    for _ in range(rounds):
        for i, call in enumerate(calls):
            start = time.perf_counter()
            call()
            best[i] = min(best[i], time.perf_counter() - start)
    return best


if __name__ == "__main__":
    main()

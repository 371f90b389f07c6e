"""How near are estimates to what trainings take? Memory and time, expected and taken, over several recipes.

    python benchmarks/estimates.py --out results

Each recipe is estimated and trained in processes of its own, one after the other, with the embedded base.
Ratios are expected / taken.
"""

from __future__ import annotations

import argparse
import json
import os
import subprocess
import sys
from pathlib import Path

RECIPES: dict[str, list[str]] = {
    "defaults": [],
    "batch of 16": ["batch_size=16"],
    "no prior": ["prior_weight=0"],
    "LoRA": ["adapter.kind=lora"],
    "checkpointing, batch of 16": ["gradient_checkpointing=true", "batch_size=16"],
    "average, accumulated": ["ema_decay=0.99", "accumulate=2"],
}
SUBJECT = Path(__file__).parent.parent / "src" / "studiolo" / "base" / "subjects" / "fox"


def measure(name: str, settings: list[str], out: Path, steps: int) -> dict[str, object]:
    """One recipe: the estimate, then the run."""
    home = out / "homes" / name.replace(" ", "-").replace(",", "")
    # Both in one home: the batch of class images that the estimate makes is one less for the run, as it says.
    asked = [*settings, f"steps={steps}", "class_images.count=16", "trackers=[]"]
    words = [str(SUBJECT), "--class", "fox", *(f"--set={text}" for text in asked)]
    told = json.loads(_run(["estimate", *words, "--json"], home))
    _run(["train", *words, "--name", "measured", "--out", str(home / "run")], home)
    outcome = json.loads((home / "run" / "run.json").read_text(encoding="utf-8"))["outcome"]
    return {
        "recipe": name,
        "memory_mb": outcome["memory_mb"],
        "memory_ratio": round(told["memory_mb"] / outcome["memory_mb"], 2),
        "seconds": outcome["seconds"],
        "seconds_ratio": round(told["seconds"] / outcome["seconds"], 2),
        "forecast_ratio": round(outcome["seconds_expected"] / outcome["seconds"], 2),
    }


def _run(words: list[str], home: Path) -> str:
    done = subprocess.run(
        [sys.executable, "-m", "studiolo.cli.main", *words],
        env={**os.environ, "STUDIOLO_HOME": str(home)}, capture_output=True, text=True, check=False,
    )  # fmt: skip
    if done.returncode:
        raise SystemExit(done.stderr)
    return done.stdout


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--out", type=Path, required=True)
    parser.add_argument("--steps", type=int, default=30)
    parser.add_argument("--quick", action="store_true", help="one recipe, few steps: a trial")
    chosen = parser.parse_args()
    recipes = dict(list(RECIPES.items())[:1]) if chosen.quick else RECIPES
    rows = []
    for name, settings in recipes.items():
        rows.append(measure(name, settings, chosen.out.absolute(), 4 if chosen.quick else chosen.steps))
        print(json.dumps(rows[-1]), flush=True)
    (chosen.out / "estimates.json").write_text(json.dumps(rows, indent=1) + "\n", encoding="utf-8")


if __name__ == "__main__":
    main()

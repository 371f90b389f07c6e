"""The training of a tuning that may kill itself, in the place of `python -m studiolo.jobs.leash FOLDER`.

    python benchmarks/stub_training.py --told FILE [--crash N] FOLDER

The first life of it dies by SIGKILL at the N-th line of what keeps things, and writes where that is into
FILE; without --crash it writes how many lines there were. Where FILE is there already, it is a training like
others.
"""

from __future__ import annotations

import argparse
from pathlib import Path

from killing import Lines

from studiolo.jobs import leash

KEEPERS = (
    "studiolo/store/", "studiolo/training/", "studiolo/formats/", "models/registry", "dreambooth/run",
    "dreambooth/metrics", "dreambooth/trainer", "dreambooth/teaching", "dreambooth/callbacks",
    "dreambooth/prior",
)  # fmt: skip


def main() -> None:
    parser = argparse.ArgumentParser()
    parser.add_argument("folder", type=Path)
    parser.add_argument("--told", type=Path, required=True)
    parser.add_argument("--crash", type=int)
    options = parser.parse_args()
    if options.told.exists():
        leash.main(options.folder)
        return
    lines = Lines(KEEPERS, options.crash, options.told.write_text)
    lines.armed = True
    try:
        leash.main(options.folder)
    finally:
        lines.armed = False
        options.told.write_text(f"lines {lines.seen}")


if __name__ == "__main__":
    main()

"""How long the facts of a GGUF file take to read: our reader against the `gguf` package.

    python benchmarks/gguf_header.py

Processor time on the same file in one process, in turns; medians. See docs/decisions/gguf-header.md.
"""

from __future__ import annotations

import time
from collections.abc import Callable

from gguf import GGUFReader
from measuring import arguments, median, table, weights

from studiolo.models.gguf import read_header


def main() -> None:
    parser = arguments(__doc__)
    options = parser.parse_args()
    path = weights(options.model)
    readers: dict[str, Callable[[], object]] = {
        "the facts": lambda: read_header(path),
        "the facts and the vocabulary": lambda: read_header(path, arrays=True),
        "gguf.GGUFReader": lambda: GGUFReader(path),
    }
    found: dict[str, list[float]] = {name: [] for name in readers}
    for _ in range(1 if options.quick else 7):
        for name, read in readers.items():
            start = time.process_time()
            read()
            found[name].append(time.process_time() - start)
    best = median(found["the facts"])
    rows = [[name, f"{median(took):.3f}", f"{median(took) / best:.0f}"] for name, took in found.items()]
    print(table(["reader", "seconds", "of the first"], rows))


if __name__ == "__main__":
    main()

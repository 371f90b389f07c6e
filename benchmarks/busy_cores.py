"""What becomes of speed when another program wants one of the cores, by how threads wait for each other.

    python benchmarks/busy_cores.py [--draw]

Bare xllamacpp, all cores, one request of a few tokens, or with --draw a picture of `studiolo-base` in 5
steps, with and without a program beside it that counts for ever: as libgomp has it by default (threads run on
the spot for long), with GOMP_SPINCOUNT=300 (for a moment, which is what Studiolo sets where it speaks or
draws: studiolo.language.engines.native), with OMP_WAIT_POLICY=passive (they sleep at once), and with one
thread. In turn, several times; the table has the medians and the best.
"""

from __future__ import annotations

import os
import subprocess
import sys

from measuring import arguments, median, table, weights

WAYS = {
    "by default": ({}, 0),
    "300 turns": ({"GOMP_SPINCOUNT": "300"}, 0),
    "sleeping": ({"OMP_WAIT_POLICY": "passive"}, 0),
    "one thread": ({}, 1),
}
PROGRAM = """
import sys, xllamacpp
params = xllamacpp.CommonParams()
params.model.path, params.hostnames, params.port, params.verbosity = sys.argv[1], ["127.0.0.1"], 0, 0
params.n_ctx = 512
if threads := int(sys.argv[2]):
    params.cpuparams.n_threads = params.cpuparams_batch.n_threads = threads
server = xllamacpp.Server(params)
ask = lambda text: server.handle_completions({"prompt": text, "max_tokens": 8, "temperature": 0})["timings"]
ask("Hello")
print(ask("It was a dark and stormy night")["predicted_per_token_ms"])
"""
DRAWING = """
import sys, time, torch
from studiolo.drawing.model import ImageModel
if threads := int(sys.argv[2]):
    torch.set_num_threads(threads)
model = ImageModel.load(sys.argv[1])
model.generate("a fox", steps=1)
began = time.perf_counter()
model.generate("a fox", steps=5)
print(1000 * (time.perf_counter() - began))
"""


def main() -> None:
    parser = arguments(__doc__)
    parser.add_argument("--repeats", type=int, default=5)
    parser.add_argument("--draw", action="store_true", help="draw, in place of speaking")
    options = parser.parse_args()
    given = (DRAWING, "studiolo-base") if options.draw else (PROGRAM, str(weights(options.model)))
    rows = []
    for beside in (0, 1):
        found: dict[str, list[float]] = {way: [] for way in WAYS}
        others = [subprocess.Popen([sys.executable, "-c", "while True: pass"]) for _ in range(beside)]
        try:
            for _ in range(1 if options.quick else options.repeats):
                for way in WAYS:
                    found[way].append(milliseconds(*given, way))
        finally:
            for other in others:
                other.kill()
                other.wait()
        rows += [[way, beside, f"{median(of):.1f}", f"{min(of):.1f}"] for way, of in found.items()]
    measured = "ms a picture" if options.draw else "ms a token"
    print(table(("threads wait", "programs beside it", f"{measured}, median", "best"), rows))


def milliseconds(program: str, model: str, way: str) -> float:
    """A token, or a picture, takes so long in a process of its own."""
    said, threads = WAYS[way]
    clean = {name: value for name, value in os.environ.items() if not name.startswith(("OMP_", "GOMP_"))}
    command = [sys.executable, "-c", program, model, str(threads)]
    done = subprocess.run(command, env=clean | said, capture_output=True, text=True, check=True)
    return float(done.stdout.split()[-1])


if __name__ == "__main__":
    main()

"""A server in a process of its own whose engine says its next piece when a line comes in at standard input.

python slow_server.py HOME DRAIN
"""

from __future__ import annotations

import asyncio
import sys
from pathlib import Path

sys.path[:0] = [str(Path(__file__).parent), str(Path(__file__).parent.parent)]

from serving import stub_studio  # noqa: E402

from language.stub import Reply, StubEngine  # noqa: E402
from studiolo.server import starting  # noqa: E402


async def a_line() -> None:
    # A thread that waits for input would hold up the end of the process; this one reads when there is some.
    loop, here = asyncio.get_running_loop(), asyncio.Event()
    loop.add_reader(0, here.set)
    try:
        await here.wait()
        sys.stdin.buffer.raw.read(1)
    finally:
        loop.remove_reader(0)


def main() -> None:
    home, drain = Path(sys.argv[1]), float(sys.argv[2])
    engine = StubEngine(lambda _: Reply(pieces=("one", " two", " three")), pause=a_line)
    studio = stub_studio(home, {"stub": engine}, drain=drain)

    async def park() -> None:
        print("parked", flush=True)

    studio.closing.append(park)
    listener = starting.bind(studio.settings)
    print(listener.getsockname()[1], flush=True)
    starting.serve(studio, listener)
    print("ended", flush=True)


main()

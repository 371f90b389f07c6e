"""A process that works off tunings until none is left: python tuning_worker.py URL PYTHON-THAT-TRAINS."""

from __future__ import annotations

import asyncio
import sys

from studiolo.jobs import tunings as trainings
from studiolo.jobs.queue import Queue
from studiolo.jobs.tuning_table import UNDER_WAY
from studiolo.jobs.tunings import Tunings
from studiolo.store.database import Database


async def main(url: str) -> None:
    queue = Queue(database := Database(url), worker="test", poll=0.02)
    tunings = Tunings(database, queue, None, every=0.02)
    await queue.start()
    await tunings.start()
    while any(record.state in UNDER_WAY for record in await tunings.page(None)):
        await asyncio.sleep(0.02)
    await queue.close()


if __name__ == "__main__":
    trainings.LEASH[0] = sys.argv[2]
    asyncio.run(main(sys.argv[1]))

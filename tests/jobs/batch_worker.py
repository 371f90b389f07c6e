"""Processes that work off batches until none is left, and write down every item that they compute.

    python batch_worker.py

Each line `URL COMPUTED [ITEMS]` on its input starts one, by a fork, which costs no imports. With ITEMS it
takes in a batch of so many before. Its id is printed, `created` when the batch is taken in, and how it ended.
"""

from __future__ import annotations

import asyncio
import os
import sys

from studiolo.jobs.batches import Batches
from studiolo.jobs.queue import Queue
from studiolo.jobs.room import Room
from studiolo.store.database import Database


async def main(url: str, computed: str, count: int = 0) -> None:
    database = Database(url)
    queue = Queue(database, worker="test", poll=0.02)
    batches = Batches(database, queue, Room(), concurrency=4, lives=1000)
    log = os.open(computed, os.O_WRONLY | os.O_APPEND | os.O_CREAT)

    async def answer(kind: str, body: dict, owner: str | None) -> dict:
        os.write(log, b"%d\n" % body["n"])
        await asyncio.sleep(0)
        if body["n"] % 10 == 9:
            return {"error": {"message": f"no {body['n']}"}}
        usage = {"prompt": 2, "answer": 1}
        return {"response": {"square": body["n"] ** 2}, "usage": usage}

    batches.answerers["test"] = answer
    await queue.start()
    await batches.start()
    if count:
        items = ((f"key-{n}", {"n": n}) for n in range(count))
        await batches.create(owner=None, kind="test", model="m", items=items)
        print("created", flush=True)
    while any(batch.ended is None for batch in await batches.page(None)):
        await asyncio.sleep(0.02)
    await queue.close()


def serve() -> None:
    import dbos  # noqa: F401 (before the forks)

    for line in sys.stdin:
        url, computed, *count = line.split()
        process = os.fork()
        if not process:
            asyncio.run(main(url, computed, *map(int, count)))
            os._exit(0)
        print(process, flush=True)
        _, status = os.waitpid(process, 0)
        print("ended", os.waitstatus_to_exitcode(status), flush=True)


if __name__ == "__main__":
    serve()

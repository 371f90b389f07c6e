"""Processes that answer a batch of a key's, and may kill themselves while they keep an answer.

    python charged_worker.py

Each line `URL HOME OWNER [before | after]` on its input starts one, by a fork, which costs no imports; how it
ended is printed. It takes in a batch of `ITEMS`, unless there is one, and works until that is over. At its
third answer it dies in the transaction that keeps it, when the charge is written, or right behind it.
"""

from __future__ import annotations

import asyncio
import os
import signal
import sys
from pathlib import Path

sys.path[:0] = [str(Path(__file__).parent), str(Path(__file__).parent.parent)]

from charges import ITEMS, PRICE, USAGE  # noqa: E402
from serving import stub_studio  # noqa: E402

from studiolo.jobs.items import BatchTable  # noqa: E402
from studiolo.server import shelf  # noqa: E402
from studiolo.server.keys import KeyStore  # noqa: E402
from studiolo.server.studio import Studio  # noqa: E402


def dies_at_the_third(kind: type, name: str) -> None:
    """The process ends when the method of that name returns for the third time."""
    method, times = getattr(kind, name), iter(range(2))

    def dying(*args: object, **named: object) -> object:
        result = method(*args, **named)
        if next(times, None) is None:
            os.kill(os.getpid(), signal.SIGKILL)
        return result

    setattr(kind, name, dying)


async def answered(kind: str, body: dict[str, int], owner: str | None) -> dict[str, object]:
    return {"response": body, "usage": USAGE.model_dump(), "model": "stub"}


async def work(studio: Studio, owner: str) -> None:
    studio.batches.answerers["test"] = answered
    await studio.open()
    if not await studio.batches.page(owner):
        items = ((None, {"n": n}) for n in range(ITEMS))
        await studio.batches.create(owner=owner, kind="test", model="stub", items=items)
    while any(batch.ended is None for batch in await studio.batches.page(owner)):
        await asyncio.sleep(0.02)
    await studio.close()


def main(url: str, home: str, owner: str, *dies: str) -> None:
    shelf.price_of = lambda model: PRICE  # type: ignore[assignment]
    if dies == ("before",):
        dies_at_the_third(KeyStore, "add")
    elif dies == ("after",):
        dies_at_the_third(BatchTable, "record")
    asyncio.run(work(stub_studio(Path(home), {}, jobs=True, database=url), owner))


def serve() -> None:
    import dbos  # noqa: F401 (before the forks)

    for line in sys.stdin:
        process = os.fork()
        if not process:
            main(*line.split())
            os._exit(0)
        print(os.waitstatus_to_exitcode(os.waitpid(process, 0)[1]), flush=True)


if __name__ == "__main__":
    serve()

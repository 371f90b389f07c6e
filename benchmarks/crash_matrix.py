"""Kills the server at any line of what keeps things, starts it again, and sees what its client finds.

    python benchmarks/crash_matrix.py [--points 20] [--seed 1] [--only STORY] [--url postgresql://USER@HOST/NAME]

A story (`crash_stories.py`) is what a careful client does: uploads in pieces, batches, contexts, tunings, and
after a broken connection it asks how far things are and goes on from there. The server (`stub_server.py`), or
the training that it has begun, kills itself by SIGKILL at a line chosen by the seed, and is started again. A
story ends with an error if something that was acknowledged is lost, happens twice or is not whole. Then the
server is stopped, the clock is put two days ahead, and what is on the disk is compared with what the database
tells (`crash_house.py`).

The database is SQLite, or, with `--url`, a new one of that server of PostgreSQL for each point.
"""

from __future__ import annotations

import argparse
import os
import random
import sys
import tempfile
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import sqlalchemy as sa
from crash_house import Crash, played
from crash_stories import STORIES
from measuring import table

from studiolo.store.database import Database


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--points", type=int, default=20)
    parser.add_argument("--seed", type=int, default=1)
    parser.add_argument("--only", choices=STORIES)
    parser.add_argument("--url", help="of a server of PostgreSQL")
    parser.add_argument("--count", action="store_true", help="tell how many lines each story is")
    options = parser.parse_args()
    names = [options.only] if options.only else list(STORIES)
    dice, rows = random.Random(options.seed), []
    for number in range(len(names) if options.count else options.points):
        name = names[number % len(names)]
        line = dice.randrange(1, STORIES[name].lines)
        rows.append(_row(number + 1, name, None if options.count else line, options.url))
        print(rows[-1], file=sys.stderr, flush=True)
    print(table(("point", "story", "killed in line", "which is", "seconds", "found"), rows))


def _row(number: int, name: str, line: int | None, server: str | None) -> list[str]:
    began, found, place = time.perf_counter(), "all well", "-"
    story = STORIES[name]
    story.before()
    with tempfile.TemporaryDirectory() as folder, _database(Path(folder) / "home", server, number) as url:
        try:
            house = played(story.play, Path(folder) / "home", url, Crash(story.victim, line))
            place = house.place or "not reached"
            found = "all well" if line else f"{house.lines} lines"
        except AssertionError as error:
            print(error, file=sys.stderr)
            found = f"WRONG: {error}".splitlines()[0][:200]
    return [str(number), name, str(line), place, f"{time.perf_counter() - began:.0f}", found]


@contextmanager
def _database(home: Path, server: str | None, number: int) -> Iterator[str]:
    """The URL of a new one."""
    if server is None:
        yield f"sqlite:///{home / 'studiolo.sqlite'}"
        return
    address, name = Database(server), f"crash_{os.getpid()}_{number}"
    engine = sa.create_engine(address.url, isolation_level="AUTOCOMMIT")
    address.close()
    with engine.connect() as connection:
        connection.execute(sa.text(f"CREATE DATABASE {name}"))
        try:
            yield engine.url.set(database=name).render_as_string(hide_password=False)
        finally:
            connection.execute(sa.text(f"DROP DATABASE {name} WITH (FORCE)"))
    engine.dispose()


if __name__ == "__main__":
    main()

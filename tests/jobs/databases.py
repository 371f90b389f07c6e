"""Databases to test on: a file of SQLite, and a server of PostgreSQL that lives as long as the tests."""

from __future__ import annotations

import itertools
import os
import pwd
import shutil
import subprocess
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import sqlalchemy as sa

_number = itertools.count()
USERS = ("postgres", "nobody")
"""Whom the server is run as where the tests run as root, whom it refuses."""


class NoServerError(Exception):
    """PostgreSQL cannot be run here, and why."""


@contextmanager
def postgres() -> Iterator[str]:
    """The URL of an empty server, on a Unix socket in a folder of its own."""
    programs = {name: shutil.which(name) for name in ("initdb", "pg_ctl", "postgres")}
    if missing := [name for name, path in programs.items() if path is None]:
        raise NoServerError(f"not installed: {', '.join(missing)}")
    user = _user()
    folder = Path(tempfile.mkdtemp(prefix="pg-", dir="/tmp"))  # a socket's path is short
    if user is not None:
        os.chown(folder, user.pw_uid, user.pw_gid)
    data = folder / "data"
    control = [programs["pg_ctl"], "-D", str(data), "-w", "-l", str(folder / "log")]
    try:
        _run([programs["initdb"], "-D", str(data), "-A", "trust", "-U", "studiolo", "-N"], user, folder)
        options = f"-h '' -k {folder} -c fsync=off -c max_connections=200"
        _run([*control, "-o", options, "start"], user, folder)
        try:
            yield f"postgresql+psycopg://studiolo@/postgres?host={folder}"
        finally:
            _run([*control, "-m", "immediate", "stop"], user, folder)
    finally:
        shutil.rmtree(folder, ignore_errors=True)


def _user() -> pwd.struct_passwd | None:
    """Whom to run it as; None: as we are."""
    if os.geteuid() != 0:
        return None
    known = {entry.pw_name: entry for entry in pwd.getpwall()}
    found = next((known[name] for name in USERS if name in known), None)
    if found is None:
        raise NoServerError(f"it refuses root, and there is no user {' or '.join(USERS)}")
    return found


def _run(command: list[str | None], user: pwd.struct_passwd | None, folder: Path) -> None:
    identity = {} if user is None else {"user": user.pw_uid, "group": user.pw_gid, "extra_groups": []}
    with open(folder / "output", "w+") as output:  # a pipe would be held open by the server
        done = subprocess.run(command, stdout=output, stderr=output, cwd=folder, check=False, **identity)  # type: ignore[arg-type, call-overload]
        if done.returncode:
            output.seek(0)
            raise NoServerError(output.read())


def new_database(server: str) -> str:
    """The URL of a new database on that server."""
    name = f"test_{os.getpid()}_{next(_number)}"
    engine = sa.create_engine(server, isolation_level="AUTOCOMMIT")
    with engine.connect() as connection:
        connection.execute(sa.text(f"CREATE DATABASE {name}"))
    engine.dispose()
    return sa.make_url(server).set(database=name).render_as_string(hide_password=False)

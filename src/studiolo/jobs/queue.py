"""The queue of durable jobs: what was put into it runs to its end, also when the process dies on the way.

DBOS (https://docs.dbos.dev) keeps it, in tables of its own beside ours in the one database: which jobs wait,
in which order, how many run at once, and which were running when the process ended. What a job has done, and
whether it is to be cancelled, is in the tables of whoever runs it: see docs/decisions/jobs.md.
"""

from __future__ import annotations

import asyncio
import logging
import platform
import threading
from collections.abc import Awaitable, Callable
from typing import Any

import sqlalchemy as sa

from studiolo.errors import ConflictError
from studiolo.store.database import Database

Run = Callable[[str], Awaitable[None]]
"""Does the job of that id; called again for one that was interrupted, maybe also for one that is done."""

FIRST, BULK = 1, 100
"""Priorities: lower ones go first."""

_UNDER_WAY = ("ENQUEUED", "PENDING", "DELAYED")
_WAITS = (1.0, 4.0, 16.0, 60.0, 60.0)
"""Seconds after each time that a job breaks off; after the last it is left to the next start."""

_one = threading.Lock()  # DBOS is one a process
_log = logging.getLogger(__name__)


class Queue:
    """The queue of one database, in this process; there can be one at a time.

    Args:
        database: where it is kept.
        worker: who this is. What was running under this name when it died is taken up at the next `start`,
            so no two processes that share a database have the same.
        poll: seconds between two looks for work.
        sleep: waits, for tests.
    """

    def __init__(
        self,
        database: Database,
        *,
        worker: str | None = None,
        poll: float = 1.0,
        sleep: Callable[[float], Awaitable[None]] = asyncio.sleep,
    ) -> None:
        self.database, self.poll, self._sleep = database, poll, sleep
        self.worker = worker or platform.node() or "local"
        self._lines: dict[str, tuple[Run, int]] = {}
        self._tasks: set[asyncio.Task[None]] = set()
        self._dbos: Any = None

    def carry(self, kind: str, run: Run, at_once: int) -> None:
        """Jobs of this kind are done by `run`, at most so many at once. To be called before `start`."""
        self._lines[kind] = (run, at_once)

    async def start(self) -> None:
        """Takes up what was left, and what comes; jobs run on the loop that this is called on.

        Raises:
            ConflictError: another queue is at work in this process.
        """
        if not _one.acquire(blocking=False):
            raise ConflictError("jobs are carried in this process already", remedy="Close that queue first.")
        self._loop = asyncio.get_running_loop()
        try:
            # In a thread: on a loop, DBOS would take that loop's threads for its own, and end them.
            await asyncio.to_thread(self._launch)
        except BaseException:
            _one.release()
            raise

    async def put(self, kind: str, job: str, priority: int = BULK) -> None:
        """Queues a job; one that waits or runs stays as it is, one that ended is begun again.

        Raises:
            ConflictError: the queue is not at work.
        """
        if self._dbos is None:
            raise ConflictError("no jobs are carried now", remedy="Start the queue.")
        await asyncio.to_thread(self._put, kind, job, priority)

    async def forget(self, kind: str, job: str) -> None:
        """Removes what is kept of a job that has ended."""
        if self._dbos is not None:
            await asyncio.to_thread(self._dbos.delete_workflow, f"{kind}:{job}")

    async def close(self) -> None:
        """Interrupts what is running, which goes on at the next start."""
        if self._dbos is None:
            return
        dbos, self._dbos = self._dbos, None
        for task in self._tasks:
            task.cancel()
        await asyncio.gather(*self._tasks, return_exceptions=True)
        await asyncio.to_thread(dbos.destroy)
        self._engine.dispose()
        _one.release()

    def _launch(self) -> None:
        from dbos import DBOS

        self._engine = _engine(self.database)
        DBOS(
            config={
                "name": "studiolo",
                "system_database_engine": self._engine,
                "application_version": "1",  # else a new version of the program would leave jobs behind
                "executor_id": self.worker,
                "log_level": "CRITICAL",
                "console_log_level": "CRITICAL",
                "use_listen_notify": False,
            }
        )

        async def job(kind: str, job: str) -> None:
            await self._carried(kind, job)

        self._job = DBOS.workflow(name="studiolo.job", max_recovery_attempts=None)(job)
        DBOS.launch()
        for kind, (_, at_once) in self._lines.items():
            DBOS.register_queue(
                kind, worker_concurrency=at_once, polling_interval_sec=self.poll, on_conflict="always_update"
            )
        self._dbos = DBOS

    def _put(self, kind: str, job: str, priority: int) -> None:
        from dbos import SetEnqueueOptions, SetWorkflowID

        identity = f"{kind}:{job}"
        known = self._dbos.get_workflow_status(identity)
        if known is not None and known.status not in _UNDER_WAY:
            self._dbos.delete_workflow(identity)
        with SetWorkflowID(identity), SetEnqueueOptions(priority=priority):
            self._dbos.enqueue_workflow(kind, self._job, kind, job)

    async def _carried(self, kind: str, job: str) -> None:
        """On DBOS's loop: waits for the job on ours. Cancelled, it stays unfinished for DBOS."""
        work = asyncio.run_coroutine_threadsafe(self._run(kind, job), self._loop)
        await asyncio.wrap_future(work)

    async def _run(self, kind: str, job: str) -> None:
        task = asyncio.current_task()
        assert task is not None
        self._tasks.add(task)
        try:
            for wait in _WAITS:
                try:
                    return await self._lines[kind][0](job)
                except Exception:
                    # Whoever runs it writes down what failed; what comes here nobody foresaw, such as a
                    # database that is away for a moment.
                    _log.exception("the job %s:%s broke off", kind, job)
                await self._sleep(wait)
        finally:
            self._tasks.discard(task)


def _engine(database: Database) -> sa.Engine:
    """Connections for DBOS, which begins its transactions of SQLite by itself."""
    if not database.is_sqlite:
        return sa.create_engine(database.url, pool_pre_ping=True, pool_size=5)
    engine = sa.create_engine(database.url, pool_size=5)
    sa.event.listen(engine, "connect", _prepare_sqlite)
    return engine


def _prepare_sqlite(connection: Any, _: object) -> None:
    connection.isolation_level = "IMMEDIATE"
    for pragma in ("busy_timeout = 30000", "journal_mode = WAL", "synchronous = NORMAL", "foreign_keys = ON"):
        connection.execute(f"PRAGMA {pragma}")

"""Bulk pictures: prompts x seeds, drawn in the background, as files in the data folder.

A picture is done when its file is there, whole. Pictures are drawn in batches that always begin at the same
places, so what is drawn again after a crash has the same bytes.
"""

from __future__ import annotations

import asyncio
import secrets
import shutil
from collections.abc import Callable, Sequence
from datetime import UTC, datetime
from pathlib import Path
from typing import Any, Literal

import sqlalchemy as sa
from pydantic import Field

from studiolo.errors import ConflictError, NotFoundError, StudioloError
from studiolo.jobs.artist import BATCH, Artist, Order
from studiolo.jobs.queue import BULK, Queue
from studiolo.language.conversation import Value
from studiolo.language.errors import InvalidRequestError
from studiolo.models import registry
from studiolo.store.database import Database, Moment, metadata
from studiolo.store.files import atomic_path
from studiolo.store.paths import home

State = Literal["queued", "running", "cancelling", "succeeded", "failed", "cancelled"]
UNDER_WAY = ("queued", "running", "cancelling")
KIND = "pictures"
MOST = 100_000

PICTURES = sa.Table(
    "pictures",
    metadata,
    sa.Column("id", sa.String(64), primary_key=True),
    sa.Column("owner", sa.String(64), index=True),
    sa.Column("model", sa.Text, nullable=False),
    sa.Column("wish", sa.JSON, nullable=False),
    sa.Column("total", sa.Integer, nullable=False),
    sa.Column("state", sa.String(16), nullable=False),
    sa.Column("problem", sa.Text),
    sa.Column("created", Moment, nullable=False),
    sa.Column("ended", Moment),
)


class Wish(Value):
    """Each prompt with each seed, prompt by prompt; the rest as `studiolo generate` has it."""

    prompts: tuple[str, ...] = Field(min_length=1)
    seeds: tuple[int, ...] = Field(min_length=1)
    negative: str = ""
    width: int | None = None
    height: int | None = None
    steps: int = 30
    guidance: float = 5.0
    sampler: str = "ddim"

    @property
    def requests(self) -> list[tuple[str, int]]:
        return [(prompt, seed) for prompt in self.prompts for seed in self.seeds]


class PicturesRecord(Value):
    """What is told of such a job. `done` of `total` pictures are there."""

    id: str
    owner: str | None
    model: str
    wish: Wish
    total: int
    done: int
    state: State
    problem: str | None
    created: datetime
    ended: datetime | None


class Pictures:
    """The bulk pictures of one database.

    Args:
        queue: carries them; not yet started.
        artist: draws them, when nobody who waits in front of it wants a picture.
        folder: where each job has a folder of its own; by default `pictures` in the data folder.
        clock: the time now.
    """

    def __init__(
        self,
        database: Database,
        queue: Queue,
        artist: Artist,
        *,
        folder: Path | None = None,
        clock: Callable[[], datetime] = lambda: datetime.now(UTC),
    ) -> None:
        self._database, self._queue, self._artist, self._clock = database, queue, artist, clock
        self.folder = folder or home() / "pictures"
        database.make(PICTURES)
        queue.carry(KIND, self._run, 1)

    async def start(self) -> None:
        """After the queue's: queues what a process that died had taken in, but not queued yet."""
        for identity in await asyncio.to_thread(self._under_way):
            await self._queue.put(KIND, identity)

    async def create(
        self, *, owner: str | None, model: str, wish: Wish, priority: int = BULK
    ) -> PicturesRecord:
        """Queues a job.

        Raises:
            InvalidRequestError: too many pictures.
            NoSuchModelError: there is no such model to draw with.
        """
        if (total := len(wish.prompts) * len(wish.seeds)) > MOST:
            raise InvalidRequestError(f"{total:,} pictures", remedy=f"Ask for at most {MOST:,}.")
        if not any(ref.name == model for ref in await asyncio.to_thread(registry.list_models)):
            raise registry.NoSuchModelError("no model of this name draws", where=model)
        identity = secrets.token_hex(12)
        values = {"id": identity, "owner": owner, "model": model, "wish": wish.model_dump(mode="json")}
        state = {"total": total, "state": "queued", "created": self._clock()}
        await asyncio.to_thread(self._write, PICTURES.insert().values(**values, **state))
        await self._queue.put(KIND, identity, priority)
        return await self.get(identity, owner)

    async def get(self, id: str, owner: str | None) -> PicturesRecord:  # noqa: A002
        """Raises NotFoundError: there is none, or it is another's."""
        record = await asyncio.to_thread(self._load, id)
        if record is None or record.owner != owner:
            raise NotFoundError("no pictures of this id", where=id)
        return record

    async def cancel(self, id: str, owner: str | None) -> PicturesRecord:  # noqa: A002
        """Draws no more of it; pictures that are there stay. Raises ConflictError: it is over."""
        record = await self.get(id, owner)
        waited = await asyncio.to_thread(self._move, id, ("queued",), "cancelled", ended=self._clock())
        if not waited and not await asyncio.to_thread(
            self._move, id, ("running", "cancelling"), "cancelling"
        ):
            raise ConflictError(f"this job is over: {record.state}", where=id)
        return await self.get(id, owner)

    async def delete(self, id: str, owner: str | None) -> None:  # noqa: A002
        """Removes a job that is over, with its pictures. Raises ConflictError: it is under way."""
        record = await self.get(id, owner)
        if record.state in UNDER_WAY:
            raise ConflictError(f"this job is {record.state}", where=id, remedy="Cancel it first.")
        await asyncio.to_thread(shutil.rmtree, self.folder / id, True)
        await asyncio.to_thread(self._write, PICTURES.delete().where(PICTURES.c.id == id))
        await self._queue.forget(KIND, id)

    def files(self, id: str) -> list[Path]:  # noqa: A002
        """The pictures that are there, `00000.png`, ..., in the order of the requests."""
        return sorted((self.folder / id).glob("[0-9]*.png"))

    async def _run(self, identity: str) -> None:
        await asyncio.to_thread(self._move, identity, ("queued",), "running")
        record = await asyncio.to_thread(self._load, identity)
        if record is None or record.state not in UNDER_WAY:
            return
        requests = record.wish.requests
        try:
            for start in range(0, len(requests), BATCH):
                if await asyncio.to_thread(self._state, identity) == "cancelling":
                    await asyncio.to_thread(self._end, identity, "cancelled")
                    return
                await self._draw(record, start, requests[start : start + BATCH])
        except StudioloError as error:
            await asyncio.to_thread(self._end, identity, "failed", str(error).replace("\n", " "))
            return
        await asyncio.to_thread(self._end, identity, "succeeded")

    async def _draw(self, record: PicturesRecord, start: int, requests: Sequence[tuple[str, int]]) -> None:
        """One batch, unless all of it is there."""
        paths = [self.folder / record.id / f"{start + i:05d}.png" for i in range(len(requests))]
        if all(path.exists() for path in paths):
            return
        how = record.wish.model_dump(exclude={"prompts", "seeds"})
        drawn = await self._artist.carry_out(record.model, Order(requests, **how), BULK)
        for path, picture in zip(paths, drawn, strict=True):
            await asyncio.to_thread(_write, path, picture.png)

    def _end(self, identity: str, state: str, problem: str | None = None) -> None:
        self._move(identity, ("running", "cancelling"), state, problem=problem, ended=self._clock())

    def _move(self, identity: str, old: tuple[str, ...], new: str, **values: Any) -> bool:
        mine = (PICTURES.c.id == identity, PICTURES.c.state.in_(old))
        return bool(self._write(PICTURES.update().where(*mine).values(state=new, **values)))

    def _write(self, statement: sa.Insert | sa.Update | sa.Delete) -> int:
        with self._database.begin() as connection:
            return connection.execute(statement).rowcount

    def _state(self, identity: str) -> str | None:
        with self._database.read() as connection:
            return connection.scalar(sa.select(PICTURES.c.state).where(PICTURES.c.id == identity))

    def _load(self, identity: str) -> PicturesRecord | None:
        with self._database.read() as connection:
            wanted = sa.select(PICTURES).where(PICTURES.c.id == identity)
            row = connection.execute(wanted).mappings().one_or_none()
        if row is None:
            return None
        return PicturesRecord(**row, done=len(self.files(identity)))

    def _under_way(self) -> list[str]:
        with self._database.read() as connection:
            return list(connection.scalars(sa.select(PICTURES.c.id).where(PICTURES.c.state.in_(UNDER_WAY))))


def _write(path: Path, data: bytes) -> None:
    with atomic_path(path) as temporary:
        temporary.write_bytes(data)

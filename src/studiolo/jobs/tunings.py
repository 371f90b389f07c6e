"""Tunings: subjects that are taught in the background, one training at a time a device.

A training is `studiolo train` in a process of its own (`jobs/leash.py`). When it or the server dies, it goes
on with `--resume`, which is exact; what it tells while it runs is kept as events.
"""

from __future__ import annotations

import asyncio
import os
import re
import secrets
import shutil
import signal
import subprocess
import sys
import time
from collections.abc import AsyncIterator, Callable, Mapping
from contextlib import asynccontextmanager
from datetime import UTC, datetime
from pathlib import Path
from typing import Any, Protocol

import sqlalchemy as sa
from pydantic import Field

from studiolo.errors import ConflictError, NotFoundError, StudioloError
from studiolo.jobs.photos import unpack
from studiolo.jobs.queue import BULK, Queue
from studiolo.jobs.runwatch import RunWatch
from studiolo.jobs.sharing import Sharing, Training
from studiolo.jobs.tuning_table import DELETING, UNDER_WAY, TuningEvent, TuningRecord, TuningTable
from studiolo.language.conversation import Value
from studiolo.language.engines.native import waiting
from studiolo.language.errors import InvalidRequestError
from studiolo.models import registry
from studiolo.store.database import Database
from studiolo.store.paths import home

KIND = "tunings"
STALE = 3600.0
"""Seconds after which nobody is taking a tuning in any more."""
PREVIEWS = 4
"""So often a training draws its previews, where the recipe does not say."""
LEASH = [sys.executable, "-m", "studiolo.jobs.leash"]
"""What trains, given the folder of a tuning."""
_OURS = ("name", "base", "class_noun")
_PATHS = ("images", "masks", "subjects", "scores.weights", "scores.text_weights")
"""Fields of a recipe that no client sets: what has a place of its own, and paths on this machine."""


class TuningSpec(Value):
    """What to teach, and how.

    Attributes:
        name: of the subject as a model; by default made of the class noun.
        files: ids of uploaded files: images, or ZIP archives of them.
        recipe: any field of `dreambooth.recipe.Recipe` by its name.
    """

    name: str | None = None
    title: str = ""
    base: str = registry.BASE_NAME
    class_noun: str
    files: tuple[str, ...] = Field(min_length=1)
    recipe: dict[str, Any] = Field(default_factory=dict)
    owner: str | None = None


class Files(Protocol):
    """Where uploaded files are (`store.uploads.Uploads`)."""

    def get(self, id: str, *, owner: str | None) -> Any: ...  # noqa: A002

    def path(self, id: str) -> Path: ...  # noqa: A002


class Tunings:
    """The tunings of one database.

    Args:
        queue: carries them; not yet started.
        folder: where each has a folder of its own; by default `tunings` in the data folder.
        sharing: who else uses the GPU; by default nobody.
        devices: trainings at once.
        crashes: how often the training may die without having come any further, before it is given up.
        every: seconds between two looks at a training.
        grace: seconds that a training has to save its step when it is cancelled.
        clock: the time now.
    """

    def __init__(
        self,
        database: Database,
        queue: Queue,
        files: Files,
        *,
        folder: Path | None = None,
        sharing: Sharing | None = None,
        devices: int = 1,
        crashes: int = 3,
        every: float = 1.0,
        grace: float = 30.0,
        clock: Callable[[], datetime] = lambda: datetime.now(UTC),
    ) -> None:
        self._table, self._queue, self._files = TuningTable(database, clock), queue, files
        self.folder, self._sharing = folder or home() / "tunings", sharing or Sharing()
        self._crashes, self._every, self._grace, self._clock = crashes, every, grace, clock
        self._cancels: dict[str, asyncio.Event] = {}
        queue.carry(KIND, self._run, devices)

    async def start(self) -> None:
        """After the queue's: queues what a process that died had taken in, but not queued yet; what it had
        only unpacked, or begun to delete, goes."""
        await asyncio.to_thread(self._sweep)
        for identity in await asyncio.to_thread(self._table.under_way):
            await self._queue.put(KIND, identity)

    async def create(
        self,
        spec: TuningSpec,
        priority: int = BULK,
        beside: Callable[[sa.Connection, str], None] = lambda *_: None,
    ) -> TuningRecord:
        """Checks everything that can be checked before a training begins, and queues it.

        Args:
            beside: writes what its caller keeps of it, given its id, in the same transaction: a process that
                dies leaves both or neither.

        Raises:
            StudioloError: naming the field or the file that is wrong.
            ConflictError: the name is taken.
            NotFoundError: no such file, or no such base.
        """
        identity = secrets.token_hex(12)
        await asyncio.to_thread(self._take_in, identity, spec, beside)
        await self._queue.put(KIND, identity, priority)
        return await self.get(identity, spec.owner)

    async def get(self, id: str, owner: str | None) -> TuningRecord:  # noqa: A002
        """Raises NotFoundError: there is none, or it is another's."""
        record = await asyncio.to_thread(self._table.load, id)
        if record is None or record.owner != owner:
            raise NotFoundError("no tuning of this id", where=id)
        return record

    async def page(
        self, owner: str | None, size: int = 50, after: str | None = None
    ) -> tuple[TuningRecord, ...]:
        """The owner's tunings, the newest first, from the one behind the tuning `after` on."""
        last = None if after is None else await self.get(after, owner)
        return tuple(await asyncio.to_thread(self._table.page, owner, size, last))

    async def named(self, name: str) -> TuningRecord | None:
        """The tuning that made the subject of this name, if one did; whoever's it is."""
        return await asyncio.to_thread(self._table.named, name)

    async def cancel(self, id: str, owner: str | None) -> TuningRecord:  # noqa: A002
        """Ends it: at once if it waits, else when its step is saved.

        Raises:
            ConflictError: it is over.
        """
        await self.get(id, owner)
        if not await asyncio.to_thread(self._table.move, id, ("queued",), "cancelled", ended=self._clock()):
            if not await asyncio.to_thread(self._table.move, id, ("running",), "cancelling"):
                state = (await self.get(id, owner)).state
                if state != "cancelling":
                    raise ConflictError(f"this tuning is over: {state}", where=id)
            if id in self._cancels:
                self._cancels[id].set()
        return await self.get(id, owner)

    async def retitle(self, id: str, owner: str | None, title: str) -> TuningRecord:  # noqa: A002
        """Gives it another title; its name stays."""
        await self.get(id, owner)
        await asyncio.to_thread(self._table.retitle, id, title)
        return await self.get(id, owner)

    async def delete(self, id: str, owner: str | None) -> None:  # noqa: A002
        """Removes a tuning that is over: the subject, its name among the models, its run and its events.

        From the first moment on nobody sees it any more; what a process that dies has left of it goes at the
        next start.

        Raises:
            ConflictError: it is under way.
        """
        record = await self.get(id, owner)
        if record.state in UNDER_WAY:
            raise ConflictError(f"this tuning is {record.state}", where=id, remedy="Cancel it first.")
        await asyncio.to_thread(self._table.move, id, (record.state,), DELETING)
        await asyncio.to_thread(self._remove, id, record.name)
        await self._queue.forget(KIND, id)

    async def events(self, id: str, after: int = 0, size: int = 1000) -> tuple[TuningEvent, ...]:  # noqa: A002
        """What happened behind the event number `after`, in order."""
        return tuple(await asyncio.to_thread(self._table.events, id, after, size))

    async def scores(self, id: str) -> tuple[TuningEvent, ...]:  # noqa: A002
        """The events of kind "score", in order; that of step 0 is the base's, before it was taught."""
        return tuple(await asyncio.to_thread(self._table.events, id, kind="score"))

    async def checkpoints(self, id: str) -> tuple[tuple[int, Path], ...]:  # noqa: A002
        """Step and file of each checkpoint that is kept, the oldest first."""
        return await asyncio.to_thread(_numbered, self._run_of(id) / "checkpoints", "*.ckpt")

    async def previews(self, id: str) -> tuple[tuple[int, Path], ...]:  # noqa: A002
        """Step and file of each preview, the oldest first: PNG files of the prompts at fixed seeds."""
        return await asyncio.to_thread(_numbered, self._run_of(id) / "previews", "*.png")

    # --- taking in ----------------------------------------------------------------------------------------

    def _take_in(
        self, identity: str, spec: TuningSpec, beside: Callable[[sa.Connection, str], None] = lambda *_: None
    ) -> None:
        recipe = self._recipe(spec)
        name = spec.name or f"{re.sub(r'[^a-z0-9]+', '-', recipe.class_noun)}-{identity[:6]}"
        recipe = recipe.with_values({"name": name})
        self._check_name(name)
        folder = self.folder / identity
        try:
            sources = [
                (self._files.get(file, owner=spec.owner).name, self._files.path(file)) for file in spec.files
            ]
            unpack(sources, folder / "images")
            _preflight(folder / "images", recipe)
            recipe.with_values({"images": [str(folder / "images")]}).save(folder / "recipe.yaml")
            told = {"name": name, "class_noun": recipe.class_noun, "steps": recipe.steps}
            self._table.add(identity, spec.model_dump(mode="json") | told, beside)
        except BaseException:
            shutil.rmtree(folder, ignore_errors=True)
            raise

    def _sweep(self) -> None:
        """Ends what was being deleted, and removes folders without a record; another process may be about to
        write that of a young one."""
        for identity, name in self._table.deleting():
            self._remove(identity, name)
        known = self._table.all_ids()
        for folder in self.folder.glob("*"):
            if folder.name not in known and time.time() - folder.stat().st_mtime > STALE:
                shutil.rmtree(folder, ignore_errors=True)

    def _check_name(self, name: str) -> None:
        if self._table.is_being_taught(name):
            raise ConflictError("a subject of this name is being taught", where=name)
        registry.check_name(name)

    def _recipe(self, spec: TuningSpec) -> Any:
        from studiolo.dreambooth.recipe import Recipe
        from studiolo.dreambooth.subject import check_class_noun

        if not any(ref.name == spec.base for ref in registry.list_models()):
            raise NotFoundError("no model of this name can be taught", where=spec.base)
        if ours := [key for key in (*_OURS, *_PATHS) if _is_set(spec.recipe, key)]:
            raise InvalidRequestError("not to be set here", where=f"recipe.{ours[0]}", remedy="Leave it out.")
        noun, _ = check_class_noun(spec.class_noun)
        try:
            recipe = Recipe().with_values(spec.recipe | {"class_noun": noun, "base": spec.base})
            # Where it says nothing of them: previews on the way, and what it is worth at the end.
            usual = {
                "previews": {"every": max(1, recipe.steps // PREVIEWS)},
                "scores": {"every": recipe.steps},
            }
            if recipe.strategy == "fsdp":  # nobody can draw in the midst of that
                return recipe
            return recipe.with_values({name: of for name, of in usual.items() if name not in spec.recipe})
        except StudioloError as error:
            raise InvalidRequestError(error.message, where="recipe", remedy=error.remedy) from error

    # --- the job ------------------------------------------------------------------------------------------

    async def _run(self, identity: str) -> None:
        """Trains until it is done, given up or cancelled; interrupted itself, it lets the training save."""
        await asyncio.to_thread(self._table.move, identity, ("queued",), "running", started=self._clock())
        cancelled, alone = asyncio.Event(), False
        self._cancels[identity] = cancelled
        try:
            while True:
                record = await asyncio.to_thread(self._table.load, identity)
                if record is None or record.state not in UNDER_WAY:
                    return None
                if record.state == "cancelling":
                    return await asyncio.to_thread(self._table.end, identity, "cancelled")
                watch = await asyncio.to_thread(self._watch, record)
                async with self._on_device(record, alone) as training:
                    code = await self._train(identity, watch, cancelled, training)
                further = self._saved(identity) > watch.saved
                alone = await asyncio.to_thread(self._judge, identity, code, further, training)
        finally:
            del self._cancels[identity]

    @asynccontextmanager
    async def _on_device(self, record: TuningRecord, alone: bool) -> AsyncIterator[Training]:
        """For one life of the training, which shares the GPU where it uses it."""
        if record.recipe.get("accelerator", "auto") not in ("auto", "gpu"):
            yield Training()
            return
        async with self._sharing.teaching(alone=alone) as training:
            yield training

    async def _train(
        self, identity: str, watch: RunWatch, cancelled: asyncio.Event, training: Training
    ) -> int:
        """One life of the process; what it exited with (minus the signal that ended it)."""
        folder = self.folder / identity
        with open(folder / "train.log", "wb") as log:  # of its last life
            process = subprocess.Popen(
                [*LEASH, str(folder)],
                stdin=subprocess.PIPE, stdout=log, stderr=log,
                # The cores are shared with the server.
                env={**os.environ, **waiting(os.environ), "STUDIOLO_HOME": str(home())},
            )  # fmt: skip
        ended = asyncio.ensure_future(asyncio.to_thread(process.wait))
        stop: asyncio.Future[Any] = asyncio.ensure_future(cancelled.wait())
        try:
            while not ended.done() and not stop.done():
                await asyncio.wait([ended, stop], timeout=self._every, return_when=asyncio.FIRST_COMPLETED)
                await asyncio.to_thread(self._keep_news, identity, watch)
                training.settled = watch.stepping
            return await asyncio.shield(ended) if ended.done() else await self._stop(process, ended)
        except asyncio.CancelledError:
            await self._stop(process, ended)
            raise
        finally:
            stop.cancel()
            if process.stdin:
                process.stdin.close()
            if ended.done():
                await asyncio.to_thread(self._keep_news, identity, watch)

    async def _stop(self, process: subprocess.Popen[bytes], ended: asyncio.Future[int]) -> int:
        """Asks it to save its step and end; makes it, if it does not."""
        process.send_signal(signal.SIGTERM)
        done, _ = await asyncio.wait([ended], timeout=self._grace)
        if not done:
            process.kill()
        return await ended

    def _saved(self, identity: str) -> int:
        """The step of the newest checkpoint."""
        checkpoints = _numbered(self._run_of(identity) / "checkpoints", "*.ckpt")
        return checkpoints[-1][0] if checkpoints else 0

    def _judge(self, identity: str, code: int, further: bool, training: Training) -> bool:
        """What the end of a process means: done, failed, cancelled, or to be gone on with.

        Returns:
            whether it is to go on with the GPU for itself.
        """
        now = self._table.load(identity)
        if now is None or now.state == "cancelling":
            return training.alone
        if code == 0:
            self._table.end(identity, "succeeded")
        elif code in (1, 2):
            log = (self.folder / identity / "train.log").read_text("utf-8", "replace")
            if not (training.shared and "out of memory" in log.lower()):
                self._table.end(identity, "failed", _reason(log))
                return training.alone
            told = "the GPU's memory did not suffice beside drawings; the training goes on, and they wait"
            self._table.crashed(identity, told, further=further)
            return True
        elif self._table.crashed(identity, "the training died and goes on", further=further) > self._crashes:
            self._table.end(
                identity, "failed", f"the training died {self._crashes + 1} times ({_signal(code)})"
            )
        return training.alone

    def _watch(self, record: TuningRecord) -> RunWatch:
        """Knows what was told before, so that nothing is told twice."""
        seen = self._table.last_steps(record.id)
        return RunWatch(self._run_of(record.id), record.steps, seen, self._saved(record.id))

    def _keep_news(self, identity: str, watch: RunWatch) -> None:
        before, found = watch.step, watch.look()
        if found or watch.step != before:
            self._table.add_news(identity, found, watch.step)

    # --- the folder of a tuning ---------------------------------------------------------------------------

    def _run_of(self, identity: str) -> Path:
        return self.folder / identity / "run"

    def _remove(self, identity: str, name: str) -> None:
        """The name first: a name whose folder is gone would be worse than a folder without a name."""
        from studiolo.dreambooth.run import Run

        if Run(self._run_of(identity)).has_name(name):
            registry.remove(name)
        shutil.rmtree(self.folder / identity, ignore_errors=True)
        self._table.forget(identity)


def _preflight(images: Path, recipe: Any) -> None:
    """The checks of `studiolo train`, without the paths of this machine in what is told."""
    from studiolo.dreambooth.subject import load_subject

    try:
        load_subject(images, recipe.class_noun, min_size=recipe.resolution or 8, captions=recipe.captions)
    except StudioloError as error:
        where = None if error.where is None else Path(error.where).name
        message = error.message.replace(f"{images}{os.sep}", "")
        raise InvalidRequestError(message, where=where, remedy=error.remedy) from error


def _is_set(recipe: Mapping[str, Any], key: str) -> bool:
    """Whether a recipe has the field of that dotted name."""
    name, _, rest = key.partition(".")
    if not rest or name not in recipe:
        return name in recipe
    return isinstance(recipe[name], Mapping) and _is_set(recipe[name], rest)


def _reason(log: str) -> str:
    """Why a training failed, in one line: its error as it was told, or else the last line."""
    lines = [line.rstrip() for line in log.splitlines() if line.strip()]
    starts = [i for i, line in enumerate(lines) if line.startswith("Error: ")]
    if not starts:
        return lines[-1].strip() if lines else "it ended without a word"
    told = [lines[starts[-1]].removeprefix("Error: ")]
    for line in lines[starts[-1] + 1 :]:
        if not line.startswith("  "):
            break
        told.append(line.strip())
    return "; ".join(told)


def _signal(code: int) -> str:
    number = -code if code < 0 else code - 128
    try:
        return signal.Signals(number).name
    except ValueError:
        return f"exit status {code}"


def _numbered(folder: Path, pattern: str) -> tuple[tuple[int, Path], ...]:
    found = ((re.fullmatch(r"step-(\d+)", path.stem), path) for path in folder.glob(pattern))
    return tuple(sorted((int(match[1]), path) for match, path in found if match))

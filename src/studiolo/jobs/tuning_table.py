"""What the database tells of tunings, and of what happened in each."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping, Sequence
from datetime import datetime
from typing import Any, Literal

import sqlalchemy as sa

from studiolo.errors import ConflictError
from studiolo.jobs.runwatch import News
from studiolo.language.conversation import Value
from studiolo.store.database import Database, Moment, metadata

State = Literal["queued", "running", "cancelling", "succeeded", "failed", "cancelled"]
UNDER_WAY = ("queued", "running", "cancelling")
DELETING = "deleting"
"""State of what nobody sees any more."""

TUNINGS = sa.Table(
    "tunings",
    metadata,
    sa.Column("id", sa.String(64), primary_key=True),
    sa.Column("owner", sa.String(64), index=True),
    sa.Column("name", sa.String(64), nullable=False),
    sa.Column("title", sa.Text, nullable=False),
    sa.Column("base", sa.Text, nullable=False),
    sa.Column("class_noun", sa.Text, nullable=False),
    sa.Column("files", sa.JSON, nullable=False),
    sa.Column("recipe", sa.JSON, nullable=False),
    sa.Column("steps", sa.Integer, nullable=False),
    sa.Column("step", sa.Integer, nullable=False, default=0),
    sa.Column("crashes", sa.Integer, nullable=False, default=0),
    sa.Column("state", sa.String(16), nullable=False),
    sa.Column("problem", sa.Text),
    sa.Column("created", Moment, nullable=False),
    sa.Column("started", Moment),
    sa.Column("ended", Moment),
)
EVENTS = sa.Table(
    "tuning_events",
    metadata,
    sa.Column("number", sa.Integer, primary_key=True, autoincrement=True),
    sa.Column("tuning", sa.String(64), nullable=False, index=True),
    sa.Column("kind", sa.String(16), nullable=False),
    sa.Column("step", sa.Integer),
    sa.Column("message", sa.Text, nullable=False),
    sa.Column("data", sa.JSON, nullable=False),
    sa.Column("created", Moment, nullable=False),
    sa.UniqueConstraint("tuning", "kind", "step"),
)


class TuningRecord(Value):
    """What is told of a tuning. `step` of `steps` are done; `problem` says in one line why it failed."""

    id: str
    owner: str | None
    name: str
    title: str
    base: str
    class_noun: str
    files: tuple[str, ...]
    recipe: dict[str, Any]
    steps: int
    step: int
    state: State
    problem: str | None
    created: datetime
    started: datetime | None
    ended: datetime | None


class TuningEvent(Value):
    """Something that happened. `kind` is "state", "step" (`data` are its losses), "score" (those of a
    step, and whether it is the best so far), "preview" or "checkpoint" (`data` names its file)."""

    number: int
    kind: str
    step: int | None
    message: str
    data: dict[str, Any]
    created: datetime


def taught_score(record: TuningRecord, scores: Sequence[TuningEvent]) -> TuningEvent | None:
    """The score of the step whose weights the subject has: the best, unless the recipe wants the last."""
    best = [event for event in scores if event.data.get("best")]
    if record.state != "succeeded" or not scores:
        return None
    return scores[-1] if record.recipe.get("scores", {}).get("export") == "last" or not best else best[-1]


class TuningTable:
    """The tables of tunings and their events. Every call waits for the disk.

    Args:
        clock: the time now.
    """

    def __init__(self, database: Database, clock: Callable[[], datetime]) -> None:
        self._database, self._clock = database, clock
        database.make(TUNINGS, EVENTS)

    def add(
        self, identity: str, values: Mapping[str, Any], beside: Callable[[sa.Connection, str], None]
    ) -> None:
        """A new one, queued, and what `beside` writes, in one transaction.

        Raises:
            ConflictError: a subject of its name is being taught.
        """
        with self._database.begin() as connection:
            if not self._database.is_sqlite:  # which has one writer at a time
                connection.execute(sa.text("LOCK TABLE tunings IN SHARE ROW EXCLUSIVE MODE"))
            if connection.scalar(_taught(values["name"])) is not None:
                raise ConflictError("a subject of this name is being taught", where=values["name"])
            connection.execute(
                TUNINGS.insert().values(id=identity, state="queued", created=self._clock(), **values)
            )
            beside(connection, identity)
            self._tell(connection, identity, "state", None, "queued", {})

    def load(self, identity: str) -> TuningRecord | None:
        with self._database.read() as connection:
            wanted = sa.select(TUNINGS).where(TUNINGS.c.id == identity, TUNINGS.c.state != DELETING)
            row = connection.execute(wanted).mappings().one_or_none()
        return None if row is None else _record(row)

    def page(self, owner: str | None, size: int, last: TuningRecord | None) -> list[TuningRecord]:
        """An owner's, the newest first, from the one behind `last` on."""
        mine = TUNINGS.c.owner.is_(None) if owner is None else TUNINGS.c.owner == owner
        wanted = sa.select(TUNINGS).where(mine, TUNINGS.c.state != DELETING)
        wanted = wanted.order_by(TUNINGS.c.created.desc(), TUNINGS.c.id.desc())
        if last is not None:
            place = sa.tuple_(sa.literal(last.created, Moment), sa.literal(last.id))
            wanted = wanted.where(sa.tuple_(TUNINGS.c.created, TUNINGS.c.id) < place)
        with self._database.read() as connection:
            return [_record(row) for row in connection.execute(wanted.limit(size)).mappings()]

    def named(self, name: str) -> TuningRecord | None:
        """The newest that has taught a subject of that name."""
        wanted = sa.select(TUNINGS).where(TUNINGS.c.name == name, TUNINGS.c.state == "succeeded")
        with self._database.read() as connection:
            row = connection.execute(wanted.order_by(TUNINGS.c.ended.desc())).mappings().first()
        return None if row is None else _record(row)

    def is_being_taught(self, name: str) -> bool:
        """Whether one of that name is under way."""
        with self._database.read() as connection:
            return connection.scalar(_taught(name)) is not None

    def under_way(self) -> list[str]:
        """Ids, the oldest first."""
        wanted = sa.select(TUNINGS.c.id).where(TUNINGS.c.state.in_(UNDER_WAY)).order_by(TUNINGS.c.created)
        with self._database.read() as connection:
            return list(connection.scalars(wanted))

    def all_ids(self) -> set[str]:
        with self._database.read() as connection:
            return set(connection.scalars(sa.select(TUNINGS.c.id)))

    def deleting(self) -> list[tuple[str, str]]:
        """Id and name of those that are being deleted."""
        going = sa.select(TUNINGS.c.id, TUNINGS.c.name).where(TUNINGS.c.state == DELETING)
        with self._database.read() as connection:
            return [(row.id, row.name) for row in connection.execute(going)]

    def move(self, identity: str, old: Iterable[str], new: str, **values: Any) -> bool:
        """Gives one in a state of `old` the state `new`, and an event; whether there was one."""
        change = TUNINGS.update().where(TUNINGS.c.id == identity, TUNINGS.c.state.in_(tuple(old)))
        with self._database.begin() as connection:
            moved = bool(connection.execute(change.values(state=new, **values)).rowcount)
            if moved:
                told = f"{new}: {values['problem']}" if values.get("problem") else new
                self._tell(connection, identity, "state", None, told, {})
        return moved

    def end(self, identity: str, state: str, problem: str | None = None) -> None:
        self.move(identity, ("running", "cancelling"), state, problem=problem, ended=self._clock())

    def retitle(self, identity: str, title: str) -> None:
        with self._database.begin() as connection:
            connection.execute(TUNINGS.update().where(TUNINGS.c.id == identity).values(title=title))

    def forget(self, identity: str) -> None:
        with self._database.begin() as connection:
            connection.execute(EVENTS.delete().where(EVENTS.c.tuning == identity))
            connection.execute(TUNINGS.delete().where(TUNINGS.c.id == identity))

    def crashed(self, identity: str, told: str, *, further: bool) -> int:
        """Counts a crash; how many there were since the training last came further."""
        count = 1 if further else TUNINGS.c.crashes + 1
        mine = TUNINGS.c.id == identity
        with self._database.begin() as connection:
            connection.execute(TUNINGS.update().where(mine).values(crashes=count))
            self._tell(connection, identity, "state", None, told, {})
            return connection.execute(sa.select(TUNINGS.c.crashes).where(mine)).scalar_one()

    def add_news(self, identity: str, found: Iterable[News], step: int) -> None:
        """What is new of a training that has come to this step."""
        with self._database.begin() as connection:
            for news in found:
                self._tell(connection, identity, news.kind, news.step, _message(news), news.data)
            connection.execute(TUNINGS.update().where(TUNINGS.c.id == identity).values(step=step))

    def last_steps(self, identity: str) -> dict[str, int]:
        """The last step that was told of, by the kind of event."""
        last = sa.select(EVENTS.c.kind, sa.func.max(EVENTS.c.step).label("last")).group_by(EVENTS.c.kind)
        with self._database.read() as connection:
            rows = connection.execute(last.where(EVENTS.c.tuning == identity, EVENTS.c.step.is_not(None)))
            return {row.kind: row.last for row in rows}

    def events(
        self, identity: str, after: int = 0, size: int | None = None, kind: str | None = None
    ) -> list[TuningEvent]:
        """Those behind the number `after`, in order."""
        wanted = sa.select(EVENTS).where(EVENTS.c.tuning == identity, EVENTS.c.number > after)
        if kind is not None:
            wanted = wanted.where(EVENTS.c.kind == kind)
        with self._database.read() as connection:
            rows = connection.execute(wanted.order_by(EVENTS.c.number).limit(size)).mappings()
            return [TuningEvent(**{key: row[key] for key in TuningEvent.model_fields}) for row in rows]

    def _tell(
        self, connection: sa.Connection, identity: str, kind: str, step: int | None, message: str,
        data: Mapping[str, Any],
    ) -> None:  # fmt: skip
        values = {"tuning": identity, "kind": kind, "step": step, "message": message, "data": dict(data)}
        connection.execute(EVENTS.insert().values(**values, created=self._clock()))


def _taught(name: str) -> sa.Select[tuple[str]]:
    """The one of that name that is under way."""
    return sa.select(TUNINGS.c.id).where(TUNINGS.c.name == name, TUNINGS.c.state.in_(UNDER_WAY))


def _record(row: sa.RowMapping) -> TuningRecord:
    return TuningRecord(**{key: row[key] for key in TuningRecord.model_fields})


def _message(news: News) -> str:
    if news.kind == "step":
        return f"step {news.step}: loss {news.data['loss']:.4f}"
    if news.kind == "score":
        told = ", ".join(f"{name} {value:.3f}" for name, value in news.data.items() if name != "best")
        return f"scores at step {news.step}: {told}{' (best so far)' if news.data.get('best') else ''}"
    return f"{news.kind} at step {news.step}"

"""Keys: who may call, how much, and what they have spent.

A key is shown once, when it is made. What is kept is a salted hash, so that who reads the database cannot
call; a key has 256 random bits, so that a slow hash would protect nothing more.
"""

from __future__ import annotations

import hashlib
import hmac
import re
import secrets
from collections.abc import Callable, Iterable
from dataclasses import dataclass
from datetime import UTC, datetime, timedelta
from typing import Any

import sqlalchemy as sa
from pydantic import Field
from sqlalchemy.dialects import postgresql, sqlite

from studiolo.errors import NotFoundError, StudioloError
from studiolo.language.conversation import Usage, Value
from studiolo.store.database import Database, Moment, metadata

PREFIX = "sk-studiolo-"
_KEY = re.compile(rf"{PREFIX}([0-9a-f]{{12}})-([A-Za-z0-9_-]{{43}})")

_keys = sa.Table(
    "keys",
    metadata,
    sa.Column("id", sa.String(12), primary_key=True),
    sa.Column("name", sa.Text, nullable=False, unique=True),
    sa.Column("salt", sa.LargeBinary, nullable=False),
    sa.Column("hash", sa.LargeBinary, nullable=False),
    sa.Column("limits", sa.JSON, nullable=False),
    sa.Column("created", Moment, nullable=False),
    sa.Column("expires", Moment),
    sa.Column("revoked", Moment),
)
_COUNTS = ("requests", "prompt", "cached", "answer", "thoughts")
_spending = sa.Table(
    "spending",
    metadata,
    sa.Column("key", sa.String(12), primary_key=True),  # "" is for calls without one
    sa.Column("day", sa.Date, primary_key=True),  # of UTC
    sa.Column("model", sa.String(200), primary_key=True),
    sa.Column("batch", sa.Boolean, primary_key=True),
    *(sa.Column(name, sa.BigInteger, nullable=False) for name in _COUNTS),
    sa.Column("dollars", sa.Float, nullable=False),
)


class KeyLimits(Value):
    """What a key may; None is without limit. Days and months are those of UTC."""

    requests_per_minute: float | None = Field(default=None, gt=0)
    tokens_per_minute: float | None = Field(default=None, gt=0)
    concurrent: int | None = Field(default=None, ge=1)
    dollars_per_day: float | None = Field(default=None, ge=0)
    dollars_per_month: float | None = Field(default=None, ge=0)


@dataclass(frozen=True)
class Key:
    """What is told of a key. `id` is no secret: it is a part of the key, of records and of logs."""

    id: str
    name: str
    limits: KeyLimits
    created: datetime
    expires: datetime | None
    revoked: datetime | None


@dataclass(frozen=True)
class Spent:
    """US dollars of a key, in the present day and month."""

    today: float = 0.0
    month: float = 0.0


@dataclass(frozen=True)
class Entry:
    """What one answer took; `key` is "" for a call without one."""

    key: str
    moment: datetime
    model: str
    usage: Usage
    dollars: float
    batch: bool = False


class KeyStore:
    """The keys and their accounts in the database. Every call waits for the disk.

    Args:
        clock: the time now, with a zone.
    """

    def __init__(
        self, database: Database, *, clock: Callable[[], datetime] = lambda: datetime.now(UTC)
    ) -> None:
        self._database, self.clock = database, clock
        database.make(_keys, _spending)

    def create(
        self, name: str, *, limits: KeyLimits = KeyLimits(), lifetime: timedelta | None = None
    ) -> tuple[str, Key]:
        """A new key and what is kept of it. The key itself cannot be had again.

        Raises:
            StudioloError: no name, or one that another key has.
        """
        if not name.strip() or len(name) > 100 or not name.isprintable():
            raise StudioloError("the name of a key has 1 to 100 printable characters", where=repr(name[:100]))
        id, secret, salt = secrets.token_hex(6), secrets.token_urlsafe(32), secrets.token_bytes(16)  # noqa: A001
        now = self.clock()
        key = Key(id, name, limits, now, now + lifetime if lifetime else None, None)
        row = {**key.__dict__, "limits": limits.model_dump(), "salt": salt, "hash": _hash(salt, secret)}
        with self._database.begin() as connection:
            if connection.execute(sa.select(_keys.c.id).where(_keys.c.name == name)).first():
                raise StudioloError("a key of this name exists", where=name, remedy="Choose another name.")
            connection.execute(_keys.insert().values(row))
        return f"{PREFIX}{id}-{secret}", key

    def check(self, key: str) -> Key | None:
        """What is kept of a key; None if it is none of ours. Whether it has expired is for the caller to see.

        The time that it takes tells nothing of how much of a wrong key is right.
        """
        parts = _KEY.fullmatch(key)
        if parts is None:
            return None
        with self._database.read() as connection:
            row = connection.execute(sa.select(_keys).where(_keys.c.id == parts[1])).one_or_none()
        salt, kept = (row.salt, row.hash) if row else (b"", b"")
        return _key(row) if hmac.compare_digest(_hash(salt, parts[2]), kept) and row else None

    def list(self) -> list[Key]:
        """All keys in the order they were made, the revoked too."""
        with self._database.read() as connection:
            return [_key(row) for row in connection.execute(sa.select(_keys).order_by(_keys.c.created))]

    def find(self, name: str) -> Key:
        """The key of that name or id.

        Raises:
            NotFoundError: there is none.
        """
        with self._database.read() as connection:
            wanted = sa.or_(_keys.c.name == name, _keys.c.id == name)
            row = connection.execute(sa.select(_keys).where(wanted)).first()
        if row is None:
            raise NotFoundError("no key of this name", where=name, remedy="studiolo keys list")
        return _key(row)

    def of(self, id: str) -> Key | None:  # noqa: A002
        """The key of that id; None if it is none of ours."""
        with self._database.read() as connection:
            row = connection.execute(sa.select(_keys).where(_keys.c.id == id)).one_or_none()
        return None if row is None else _key(row)

    def limit(self, name: str, **limits: Any) -> Key:
        """Sets those limits that are named; None takes one away."""
        key = self.find(name)
        changed = KeyLimits.model_validate({**key.limits.model_dump(), **limits})
        self._change(key, limits=changed.model_dump())
        return self.find(key.id)

    def revoke(self, name: str) -> Key:
        """From now on this key is none. It stays in the list, with what it has spent."""
        key = self.find(name)
        self._change(key, revoked=key.revoked or self.clock())
        return self.find(key.id)

    def spent(self, key: str) -> Spent:
        """What a key (its id) has spent."""
        today = self.clock().date()
        day, dollars = _spending.c.day, _spending.c.dollars
        with self._database.read() as connection:
            rows = connection.execute(
                sa.select(day, sa.func.sum(dollars))
                .where(_spending.c.key == key, day >= today.replace(day=1))
                .group_by(day)
            ).all()
        return Spent(sum(sum_ for when, sum_ in rows if when == today), sum(sum_ for _, sum_ in rows))

    def record(self, entries: Iterable[Entry]) -> None:
        """Adds to the accounts, all or none of them."""
        with self._database.begin() as connection:
            # In one order, so that two processes never wait for each other.
            for entry in sorted(entries, key=lambda entry: (entry.key, entry.model, entry.batch)):
                self.add(connection, entry)

    def add(self, connection: sa.Connection, entry: Entry) -> None:
        """Adds to an account, in a transaction of the caller's."""
        make: Any = sqlite.insert if self._database.is_sqlite else postgresql.insert
        insert = make(_spending)
        added = {name: _spending.c[name] + insert.excluded[name] for name in (*_COUNTS, "dollars")}
        place = [_spending.c.key, _spending.c.day, _spending.c.model, _spending.c.batch]
        connection.execute(insert.on_conflict_do_update(index_elements=place, set_=added), _row(entry))

    def _change(self, key: Key, **values: Any) -> None:
        with self._database.begin() as connection:
            connection.execute(_keys.update().where(_keys.c.id == key.id).values(**values))


def looks_like_one(key: str) -> bool:
    """Whether it has the form of a key of ours; clients must send some key, also where none is needed."""
    return key.startswith(PREFIX)


def _hash(salt: bytes, secret: str) -> bytes:
    return hashlib.blake2b(secret.encode(), key=salt, digest_size=32).digest()


def _key(row: sa.Row[Any]) -> Key:
    limits = KeyLimits.model_validate(row.limits)
    return Key(row.id, row.name, limits, row.created, row.expires, row.revoked)


def _row(entry: Entry) -> dict[str, Any]:
    usage = entry.usage
    return {
        "key": entry.key, "day": entry.moment.astimezone(UTC).date(), "model": entry.model[:200],
        "batch": entry.batch, "requests": 1, "prompt": usage.prompt, "cached": usage.cached,
        "answer": usage.answer, "thoughts": usage.thoughts + usage.summaries, "dollars": entry.dollars,
    }  # fmt: skip

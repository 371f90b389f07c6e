"""Responses that are kept, so that a later one can go on from them.

Each is kept with the items that were sent for it, and the name of the one before: a conversation is read by
going back from response to response.
"""

from __future__ import annotations

import json
import re
from collections.abc import Callable
from dataclasses import dataclass
from datetime import UTC, datetime, timedelta
from typing import Any
from weakref import WeakKeyDictionary

import sqlalchemy as sa

from studiolo.errors import NotFoundError
from studiolo.store.database import Database, Moment, metadata

JSON = dict[str, Any]

LIFETIME = timedelta(days=30)
"""As with OpenAI."""

_ID = re.compile(r"resp_[0-9a-z]{1,64}")
_table = sa.Table(
    "responses",
    metadata,
    sa.Column("id", sa.String(80), primary_key=True),
    sa.Column("owner", sa.String(80)),
    sa.Column("previous", sa.String(80)),
    sa.Column("expires", Moment, nullable=False, index=True),
    sa.Column("response", sa.Text, nullable=False),
    sa.Column("items", sa.Text, nullable=False),
)


@dataclass(frozen=True)
class Kept:
    """One of them: the response as it was answered, and the items that were sent for it."""

    response: JSON
    items: list[JSON]
    previous: str | None


class KeptResponses:
    """All of them, in the database. Every call waits for the disk. Nobody sees those of another key."""

    def __init__(
        self, database: Database, *, clock: Callable[[], datetime] = lambda: datetime.now(UTC)
    ) -> None:
        self._database, self._clock = database, clock
        database.make(_table)

    def keep(self, owner: str | None, response: JSON, items: list[JSON]) -> None:
        """Keeps a response for its lifetime; those whose lifetime is over go."""
        now = self._clock()
        row = {
            "id": response["id"], "owner": owner, "previous": response["previous_response_id"],
            "expires": now + LIFETIME, "response": json.dumps(response), "items": json.dumps(items),
        }  # fmt: skip
        with self._database.begin() as connection:
            connection.execute(sa.delete(_table).where(_table.c.expires <= now))
            connection.execute(sa.insert(_table).values(row))

    def get(self, id_: str, owner: str | None, *, where: str | None = None) -> Kept:
        """
        Raises:
            NotFoundError: there is none of this owner's, or no longer; `where` is the field that names it.
        """
        with self._database.read() as connection:
            return self._get(connection, id_, owner, where)

    def conversation(self, id_: str, owner: str | None, *, where: str) -> list[Kept]:
        """The responses up to this one, the first one first.

        Raises:
            NotFoundError: one of them is not there.
        """
        found: list[Kept] = []
        at: str | None = id_
        with self._database.read() as connection:
            while at is not None:
                found.append(self._get(connection, at, owner, where))
                at = found[-1].previous
        return found[::-1]

    def delete(self, id_: str, owner: str | None) -> None:
        """Forgets it, and with it the way back from those that followed it; raises as `get` does."""
        with self._database.begin() as connection:
            self._get(connection, id_, owner, None)
            connection.execute(sa.delete(_table).where(_table.c.id == id_))

    def _get(self, connection: sa.Connection, id_: str, owner: str | None, where: str | None) -> Kept:
        unknown = NotFoundError(
            f"no response {id_[:80]!r} is kept", where=where, remedy="Send the whole conversation."
        )
        if not _ID.fullmatch(id_):
            raise unknown
        row = connection.execute(
            sa.select(_table).where(
                _table.c.id == id_,
                _table.c.owner.is_(None) if owner is None else _table.c.owner == owner,
                _table.c.expires > self._clock(),
            )
        ).one_or_none()
        if row is None:
            raise unknown
        return Kept(json.loads(row.response), json.loads(row.items), row.previous)


_of: WeakKeyDictionary[Database, KeptResponses] = WeakKeyDictionary()


def kept_in(database: Database) -> KeptResponses:
    """Those of a database, whose table is made on first use."""
    if database not in _of:
        _of[database] = KeptResponses(database)
    return _of[database]

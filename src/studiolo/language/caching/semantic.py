"""An index of earlier requests by meaning, to answer a rephrased question as it was answered before.

Two requests may share an answer only if all is equal but the user's last text: model, system text, settings
and earlier turns by hash, and of the text itself what an embedding does not see (see `guard`).
"""

from __future__ import annotations

import asyncio
import sqlite3
import threading
from collections.abc import Iterable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from studiolo.errors import StudioloError
from studiolo.language.caching.guard import difference
from studiolo.language.conversation import FinishReason, Request, Response, Role, Text, Thought, Threshold
from studiolo.language.embedders import Embedder
from studiolo.store.files import sha256_json
from studiolo.store.paths import cache_dir

_VERSION = 1
_TABLE = """
CREATE TABLE IF NOT EXISTS answers (
    id INTEGER PRIMARY KEY, settings TEXT NOT NULL, used INTEGER NOT NULL, size INTEGER NOT NULL,
    text TEXT NOT NULL, vector BLOB NOT NULL, response TEXT NOT NULL, UNIQUE (settings, text)
);
CREATE INDEX IF NOT EXISTS by_use ON answers (used);
"""


@dataclass(frozen=True)
class Hit:
    """An earlier answer, the question that it answered, and the cosine of the two questions' vectors."""

    response: Response
    text: str
    similarity: float


class SemanticIndex:
    """Answers by the meaning of their questions, in one SQLite file; the least recently used make room.

    An answer given to one user may reach another through it: have an index for each circle of users that
    may see each other's answers.

    Args:
        file: by default in the data folder's cache. It may be deleted at any time.
        entries, size: at most so many answers with so many bytes are kept.
    """

    def __init__(
        self, embedder: Embedder, file: Path | None = None, *, entries: int = 10_000, size: int = 256 * 2**20
    ) -> None:
        self.embedder, self.entries, self.size = embedder, entries, size
        self.file = cache_dir("answers") / "answers.sqlite" if file is None else file
        self._lock = threading.Lock()
        self._database = _opened(self.file)

    async def find(self, request: Request, threshold: float) -> Hit | None:
        """The closest earlier answer at `threshold` (a cosine) or above that nothing tells apart from it."""
        text = request.contents[-1].text
        if not await self.embedder.reads(text):
            return None
        rows = await asyncio.to_thread(self._candidates, self._settings(request))
        if not rows:
            return None
        vector = (await self.embedder.embed([text]))[0]
        similarities = np.stack([np.frombuffer(blob, np.float32) for _, _, blob in rows]) @ vector
        for i in np.argsort(-similarities):
            if similarities[i] < threshold:
                return None
            if difference(text, rows[i][1]) is None:
                response = await asyncio.to_thread(self._use, rows[i][0])
                similarity = min(1.0, float(similarities[i]))  # rounding may carry it beyond
                return Hit(response, rows[i][1], similarity) if response else None
        return None

    async def add(self, request: Request, response: Response) -> bool:
        """Keeps an answer; one to the same text is replaced. Says whether it was kept (see `keepable`)."""
        text = request.contents[-1].text
        if not (keepable(response) and await self.embedder.reads(text)):
            return False
        vector = (await self.embedder.embed([text]))[0]
        body = response.model_dump_json()
        blob = np.ascontiguousarray(vector, np.float32).tobytes()
        size = len(text.encode()) + len(body.encode()) + len(blob)
        if size > self.size:
            return False
        await asyncio.to_thread(self._insert, self._settings(request), size, text, blob, body)
        return True

    def clear(self) -> None:
        """Forgets all answers."""
        with self._lock, self._database as database:
            database.execute("DELETE FROM answers")

    def close(self) -> None:
        with self._lock:
            self._database.close()

    def __len__(self) -> int:
        with self._lock:
            return int(self._database.execute("SELECT count(*) FROM answers").fetchone()[0])

    def _settings(self, request: Request) -> str:
        """The hash of all that must be equal."""
        told = request.model_dump(mode="json", exclude={"contents"})
        earlier = [content.model_dump(mode="json") for content in request.contents[:-1]]
        return sha256_json({"embedder": self.embedder.name, "request": told, "earlier": earlier})

    def _candidates(self, settings: str) -> list[tuple[int, str, bytes]]:
        with self._lock:
            rows = self._database.execute(
                "SELECT id, text, vector FROM answers WHERE settings = ?", (settings,)
            )
            return rows.fetchall()

    def _use(self, row: int) -> Response | None:
        """Its answer, marked as used just now; None if another process has just removed it."""
        with self._lock, self._database as database:
            database.execute(
                "UPDATE answers SET used = (SELECT max(used) + 1 FROM answers) WHERE id = ?", (row,)
            )
            found = database.execute("SELECT response FROM answers WHERE id = ?", (row,)).fetchone()
        return Response.model_validate_json(found[0]) if found else None

    def _insert(self, *values: Any) -> None:
        with self._lock, self._database as database:
            database.execute(
                "INSERT OR REPLACE INTO answers (settings, size, text, vector, response, used) "
                "VALUES (?, ?, ?, ?, ?, (SELECT coalesce(max(used), 0) + 1 FROM answers))",
                values,
            )
            # Keeps the newest uses whose running count and sum are within bounds.
            database.execute(
                "DELETE FROM answers WHERE id IN (SELECT id FROM (SELECT id, "
                "row_number() OVER newest AS place, sum(size) OVER newest AS total "
                "FROM answers WINDOW newest AS (ORDER BY used DESC)) WHERE place > ? OR total > ?)",
                (self.entries, self.size),
            )


def reusable(request: Request, *, sampled: bool = False) -> bool:
    """Whether a request may be answered by another's answer.

    Not with tools (a call acts, or asks of a changing world), with parts that are not text, with
    log-probabilities or a bias, with a context written elsewhere, with safety settings (this question is to
    be judged, not only the earlier one), or (unless `sampled`) when the temperature is not 0: who asks for
    variety does not want the same answer again. No temperature given means the model's own, which is not 0.
    """
    last, config = request.contents[-1], request.config
    return (
        not request.tools
        and request.cache is None
        and all(setting.threshold is Threshold.OFF for setting in request.safety)
        and (sampled or config.temperature == 0)
        and config.logprobs is None
        and not config.bias
        and config.modalities == ("text",)
        and last.role is Role.USER
        and bool(last.text.strip())
        and _only_words(part for content in request.contents for part in content.parts)
    )


def keepable(response: Response) -> bool:
    """Whether an answer may be given again: whole, not refused, and of words alone."""
    return (
        response.blocked is None
        and bool(response.candidates)
        and all(candidate.finish is FinishReason.STOP for candidate in response.candidates)
        and all(candidate.text.strip() for candidate in response.candidates)
        and not any(verdict.blocked for candidate in response.candidates for verdict in candidate.verdicts)
        and _only_words(part for candidate in response.candidates for part in candidate.content.parts)
    )


def _only_words(parts: Iterable[Any]) -> bool:
    return all(isinstance(part, Text | Thought) for part in parts)


def _opened(file: Path) -> sqlite3.Connection:
    file.parent.mkdir(parents=True, exist_ok=True)
    try:
        database = sqlite3.connect(file, check_same_thread=False)
        database.execute("PRAGMA journal_mode = WAL")  # readers of other processes need not wait
        database.execute("PRAGMA synchronous = NORMAL")
        (version,) = database.execute("PRAGMA user_version").fetchone()
        if version not in (0, _VERSION):
            raise sqlite3.DatabaseError(f"version {version}, and {_VERSION} is known")
        database.executescript(f"{_TABLE} PRAGMA user_version = {_VERSION};")
    except sqlite3.DatabaseError as error:
        raise StudioloError(
            f"not an index of answers ({error})", where=file, remedy="Delete it: it is only a cache."
        ) from error
    return database

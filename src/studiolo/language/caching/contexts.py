"""Explicit contexts: what many requests have in common, named, kept as text, and used for a time.

The semantics are those of Gemini's cachedContents (https://ai.google.dev/api/caching): the prefix never
changes, only its expiry does, and a request that names one brings no system text or tools of its own.
"""

from __future__ import annotations

import re
import secrets
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any

from filelock import FileLock
from pydantic import ValidationError

from studiolo.errors import TooLargeError
from studiolo.language.caching import context_files
from studiolo.language.caching.prefix import Context, Prefix
from studiolo.language.conversation import Request
from studiolo.language.errors import InvalidRequestError, RateLimitError, UnknownContextError
from studiolo.store.paths import home

__all__ = ["Context", "Contexts", "Limits", "Page", "Prefix"]

Clock = Callable[[], datetime]

# A name is a file name, also where file systems do not tell cases apart.
_NAME = re.compile(r"[a-z0-9][a-z0-9-]{0,62}")
_WRITTEN = 3600.0  # seconds within which every file is written


@dataclass(frozen=True)
class Limits:
    """How much is kept. `size` (of one) and `total` are in bytes of JSON, `title` is in letters."""

    number: int = 256
    size: int = 32 * 2**20
    total: int = 512 * 2**20
    title: int = 128  # as with Google
    lifetime: timedelta = timedelta(days=365)


@dataclass(frozen=True)
class Page:
    """Some contexts, and the token of the page after them (None: there is none)."""

    contexts: tuple[Context, ...]
    next: str | None = None


class Contexts:
    """The contexts of one folder. Files are the only state: several processes may share it.

    Args:
        folder: by default `contexts` in the data folder.
        among: bytes of all contexts in and below a folder that this one lies in, and that folder; None: only
            those of this folder are bounded.
        clock: the time now, with a time zone.
    """

    def __init__(
        self,
        folder: Path | None = None,
        *,
        limits: Limits = Limits(),
        among: tuple[int, Path] | None = None,
        clock: Clock = lambda: datetime.now(UTC),
    ) -> None:
        self.folder = home() / "contexts" if folder is None else folder
        self.limits = limits
        self._among = among
        self._clock = clock

    def create(
        self,
        prefix: Prefix,
        *,
        model: str,
        ttl: timedelta,
        tokens: int,
        name: str | None = None,
        title: str = "",
    ) -> Context:
        """Keeps a prefix for `ttl`; expired contexts are removed for it.

        Raises:
            InvalidRequestError: the prefix is empty or too large, the name is none or taken, the title is too
                long, or the time to live is not within limits.
            RateLimitError: there is no room; `retry_after` is when the next one expires.
            TooLargeError: there is none among those of others.
        """
        name = secrets.token_hex(10) if name is None else _checked(name)
        body = self.check(prefix, title)
        now = self._clock()
        context = Context(
            name=name, model=model, title=title, created=now, updated=now,
            expires=self._expiry(now, ttl), tokens=tokens, size=len(body),
        )  # fmt: skip
        with self._alone():
            self.expire()
            self._admit(context)
            self._write(context, body)
        return context

    def check(self, prefix: Prefix, title: str = "") -> bytes:
        """The prefix as it would be kept; for who is about to spend more on it than to look at it.

        Raises:
            InvalidRequestError: it is empty or too large, or the title too long.
        """
        if not (prefix.contents or prefix.system or prefix.tools):
            raise InvalidRequestError("an empty context", remedy="Give it contents, a system text or tools.")
        if len(title) > self.limits.title:
            raise InvalidRequestError(
                f"a title has at most {self.limits.title} letters, and this one {len(title):,}", where="title"
            )
        body = prefix.model_dump_json().encode()
        if len(body) > self.limits.size:
            raise InvalidRequestError(
                f"the context has {len(body):,} bytes, and at most {self.limits.size:,} are kept",
                where="contents",
                remedy="Shorten it, or send it with each request.",
            )
        return body

    def get(self, name: str) -> Context:
        """What is told of the context of this name.

        Raises:
            UnknownContextError: there is none of this name, or no longer.
        """
        return self._read(name)[0]

    def prefix(self, name: str) -> Prefix:
        """What the context `name` holds; raises as `get` does."""
        context, body = self._read(name)
        try:
            return Prefix.model_validate_json(body)
        except ValidationError as error:
            raise context_files.damaged(self._file(context.name)) from error

    def resolve(self, request: Request) -> Request:
        """The request with the context that it names written out; unchanged if it names none, or one of an
        upstream's own (their names have a slash: Google's are `cachedContents/...`).

        Raises:
            UnknownContextError: no such context, or no longer.
            InvalidRequestError: it is another model's, or the request contradicts it (see `Prefix.before`).
        """
        if request.cache is None or "/" in request.cache:
            return request
        context = self.get(request.cache)
        if context.model != request.model:
            raise InvalidRequestError(
                f"this context was made for {context.model}, and the request is for {request.model}",
                where=f"cache={request.cache}",
                remedy=f"Ask {context.model}, or create the context for {request.model}.",
            )
        return self.prefix(request.cache).before(request)

    def page(self, size: int = 50, token: str | None = None) -> Page:
        """Live contexts in the order they were made, `size` at a time; `token` is the last page's `next`.

        Contexts that come or go between two pages shift none of the others.
        """
        if size < 1:
            raise InvalidRequestError("a page has at least one entry", where=f"page size {size}")
        after = _from_token(token) if token else None
        now = self._clock()
        live = sorted((c for c in self._all() if c.expires > now), key=_order)
        rest = [context for context in live if after is None or _order(context) > after]
        shown = tuple(rest[:size])
        return Page(shown, _to_token(shown[-1]) if len(rest) > size else None)

    def extend(self, name: str, ttl: timedelta) -> Context:
        """Gives it a new expiry, `ttl` from now (sooner or later than the old one)."""
        now = self._clock()
        return self._change(name, updated=now, expires=self._expiry(now, ttl))

    def recount(self, name: str, tokens: int) -> Context:
        """Sets how many tokens it has, for who learns that only after it was made."""
        return self._change(name, tokens=tokens)

    def delete(self, name: str) -> Context:
        """Forgets it at once; raises as `get` does."""
        self.get(name)
        with self._alone():
            context = self.get(name)
            self._file(name).unlink(missing_ok=True)
        return context

    def expire(self) -> tuple[Context, ...]:
        """Removes what has expired, oldest expiry first, and tells what that was."""
        now = self._clock()
        gone = sorted((c for c in self._all() if c.expires <= now), key=lambda context: context.expires)
        for context in gone:
            self._file(context.name).unlink(missing_ok=True)
        for file in self.folder.glob(".tmp-*"):  # of a process that died while it wrote
            with suppress(FileNotFoundError):
                if now.timestamp() - file.stat().st_mtime > _WRITTEN:
                    file.unlink()
        return tuple(gone)

    def _admit(self, new: Context) -> None:
        kept = self._all()
        if any(context.name == new.name for context in kept):
            raise InvalidRequestError(
                "a context of this name exists", where=new.name, remedy="Choose another, or delete it first."
            )
        total = sum(context.size for context in kept)
        if len(kept) < self.limits.number and total + new.size <= self.limits.total:
            self._admit_among_others(new)
            return
        wait = min((context.expires for context in kept), default=new.created) - new.created
        raise RateLimitError(
            f"no room for another context: there are {len(kept)} (at most {self.limits.number}) with "
            f"{total:,} bytes (at most {self.limits.total:,}), and this one has {new.size:,}",
            where=self.folder,
            remedy="Delete one that is no longer needed, or wait until one expires.",
            retry_after=wait.total_seconds(),
        )

    def _admit_among_others(self, new: Context) -> None:
        if self._among is None:
            return
        most, root = self._among
        left = most - sum(map(context_files.size, root.rglob("*.jsonl")))
        if new.size > left:
            raise TooLargeError(
                f"no room for {new.size:,} more bytes of contexts: {max(left, 0):,} are left for everybody",
                remedy="Delete those that are no longer needed.",
            )

    def _change(self, name: str, **update: Any) -> Context:
        self.get(name)  # else who asks for one that there is not would make a folder
        with self._alone():
            context, body = self._read(name)
            context = context.model_copy(update=update)
            self._write(context, body)
        return context

    @contextmanager
    def _alone(self) -> Iterator[None]:
        """From finding room to taking it, and from reading to writing, nobody else, in any process, changes
        anything where room is shared: else two who come together would be one too many."""
        folder = self.folder if self._among is None else self._among[1]
        folder.mkdir(parents=True, exist_ok=True)
        with FileLock(folder / ".lock"):
            yield

    def _expiry(self, now: datetime, ttl: timedelta) -> datetime:
        if not timedelta(0) < ttl <= self.limits.lifetime:
            raise InvalidRequestError(
                f"a context lives for more than 0 s and at most {self.limits.lifetime.total_seconds():.0f} s",
                where=f"time to live of {ttl.total_seconds():g} s",
            )
        return now + ttl

    def _all(self) -> list[Context]:
        """Every record, expired ones too."""
        found = []
        for file in self.folder.glob("*.jsonl"):
            # Files that are still being written have names that are none.
            if _NAME.fullmatch(file.stem) and (context := context_files.record(file)):
                found.append(context)
        return found

    def _read(self, name: str) -> tuple[Context, bytes]:
        unknown = UnknownContextError(
            "no context of this name, or it has expired", where=name, remedy="Create it (again)."
        )
        if not _NAME.fullmatch(name):
            raise unknown
        try:
            context, body = context_files.read(self._file(name), self.limits.size)
        except FileNotFoundError:
            raise unknown from None
        if context.expires <= self._clock():
            raise unknown
        return context, body

    def _write(self, context: Context, body: bytes) -> None:
        context_files.write(self._file(context.name), context, body)

    def _file(self, name: str) -> Path:
        return self.folder / f"{name}.jsonl"


def _checked(name: str) -> str:
    if not _NAME.fullmatch(name):
        raise InvalidRequestError(
            "not a name for a context",
            where=repr(name),
            remedy="Use 1 to 63 lower-case letters, digits or '-', starting with a letter or digit.",
        )
    return name


def _order(context: Context) -> tuple[datetime, str]:
    return context.created, context.name


def _to_token(context: Context) -> str:
    return f"{context.created.isoformat()}~{context.name}"


def _from_token(token: str) -> tuple[datetime, str]:
    created, _, name = token.partition("~")
    try:
        after = datetime.fromisoformat(created)
    except ValueError:
        after = None
    if after is None or after.tzinfo is None:
        raise InvalidRequestError(
            "not the token of a page", where=repr(token), remedy="Use `next` of the page before."
        )
    return after, name

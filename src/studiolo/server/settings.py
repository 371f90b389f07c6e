"""How a server is set up: what `studiolo serve` was told, and what else bounds it."""

from __future__ import annotations

import ipaddress
from pathlib import Path

from pydantic import Field

from studiolo.language import DEFAULT_MODEL
from studiolo.language.conversation import Value
from studiolo.store.paths import home

DEFAULT_PORT = 8484
MIB, GIB = 2**20, 2**30


class Settings(Value):
    """Sizes are in bytes, times in seconds.

    Attributes:
        data: the data folder; files, contexts, models and runs lie below it.
        database: an SQLAlchemy URL; None is `studiolo.sqlite` in the data folder.
        model: what answers where no other is named.
        preload: load it at the start; the server is not ready before.
        memory: what loaded models may take together; None: without limit.
        largest_body: of a request that is no upload.
        largest_depth: how deep the JSON of a request may be nested.
        largest_file: of one uploaded file.
        all_files: of all uploaded files together.
        all_contexts: of the explicit contexts of all keys together.
        file_lifetime: of files that come by the Gemini dialect, as Google has it.
        cors: origins whose pages may call this server from a browser; "*" is any.
        hosts: names by which it is called beside those of loopback, without a port; "*" is any.
        drain: how long answers under way may take to end after the server is told to stop.
        log_prompts: write the bodies of requests into the log.
    """

    host: str = "127.0.0.1"
    port: int = Field(default=DEFAULT_PORT, ge=0, le=65535)
    data: Path = Field(default_factory=home)
    database: str | None = None
    model: str = DEFAULT_MODEL
    preload: bool = False
    memory: int | None = Field(default=None, gt=0)
    largest_body: int = Field(default=64 * MIB, gt=0)
    largest_depth: int = Field(default=64, gt=0)
    largest_file: int = Field(default=2 * GIB, gt=0)
    all_files: int = Field(default=20 * GIB, gt=0)
    all_contexts: int = Field(default=4 * GIB, gt=0)
    file_lifetime: float = Field(default=48 * 3600, gt=0)
    cors: tuple[str, ...] = ()
    hosts: tuple[str, ...] = ()
    drain: float = Field(default=30, ge=0)
    log_prompts: bool = False

    @property
    def database_url(self) -> str:
        return self.database or f"sqlite:///{self.data / 'studiolo.sqlite'}"

    @property
    def is_loopback(self) -> bool:
        """Only this machine can reach it."""
        return is_loopback(self.host)


def is_loopback(host: str) -> bool:
    """Whether a name or an address is this machine's own, whoever is asked."""
    if host == "localhost":
        return True
    try:
        return ipaddress.ip_address(host).is_loopback
    except ValueError:
        return False

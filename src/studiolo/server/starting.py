"""From settings to a server that answers, and how it ends."""

from __future__ import annotations

import math
import os
import socket
import time
from collections.abc import Callable
from types import FrameType

import uvicorn

from studiolo.errors import StudioloError
from studiolo.jobs.artist import Artist
from studiolo.jobs.batches import Batches
from studiolo.jobs.queue import Queue
from studiolo.jobs.room import Room
from studiolo.jobs.sharing import Sharing
from studiolo.jobs.tunings import Tunings
from studiolo.language import opening
from studiolo.language.caching.contexts import Contexts
from studiolo.models import registry
from studiolo.server import shelf
from studiolo.server.app import create_app
from studiolo.server.drawing import Drawing, Subject
from studiolo.server.keys import KeyStore
from studiolo.server.limits import Keys
from studiolo.server.logs import write_json_lines
from studiolo.server.metrics import Metrics
from studiolo.server.pool import EnginePool, ModelInfo, Open
from studiolo.server.settings import Settings
from studiolo.server.studio import Studio
from studiolo.store.database import Database
from studiolo.store.uploads import Uploads


def open_studio(
    settings: Settings,
    *,
    models: Callable[[], list[ModelInfo]] | None = None,
    open_engine: Open | None = None,
    poll: float = 1.0,
) -> Studio:
    """The rooms of a server, opened; nothing is loaded yet.

    Args:
        models: tells what there is to ask, in place of what is on the shelf.
        open_engine: opens one of them.
        poll: seconds between two looks for jobs, and at a training.

    Raises:
        StudioloError: the database cannot be used.
    """
    database, metrics = Database(settings.database_url), Metrics()
    contexts = Contexts(settings.data / "contexts", among=(settings.all_contexts, settings.data / "contexts"))
    studio: Studio
    sharing = Sharing()
    artist = Artist(memory=settings.memory, sharing=sharing)
    engines = EnginePool(
        models or shelf.models,
        open_engine or opening.opened,
        lambda owner: studio.contexts_of(owner),
        metrics=metrics,
        size=shelf.bytes_of,
        memory=settings.memory,
        draws=lambda engine, name: Drawing(engine, _subject(artist, metrics, name)),
    )
    room, queue = Room(), Queue(database, poll=poll)
    keys = Keys(KeyStore(database), needed=not settings.is_loopback)
    batches = Batches(
        database,
        queue,
        room,
        price=lambda model: shelf.price_of(model),
        charge=keys.charge_item,
        allow=keys.check_unattended,
    )
    files = Uploads(
        database, settings.data / "files", largest=settings.largest_file, total=settings.all_files
    )
    tunings = Tunings(database, queue, files, folder=settings.data / "tunings", sharing=sharing, every=poll)
    studio = Studio(
        settings=settings,
        database=database,
        engines=engines,
        contexts=contexts,
        keys=keys,
        files=files,
        metrics=metrics,
        room=room,
        batches=batches,
        tunings=tunings,
        artist=artist,
        opening=[queue.start, batches.start, tunings.start],
        closing=[queue.close],
    )
    return studio


def _subject(artist: Artist, metrics: Metrics, name: str) -> Subject:
    """What a chat model can draw with the model of that name."""

    async def draw(prompt: str) -> bytes:
        began = time.perf_counter()
        pictures = await artist.draw(name, prompt)
        metrics.drawn(name, time.perf_counter() - began)
        return pictures[0].png

    return Subject(name, registry.resolve(name).card.get("class_noun"), draw)


def check_exposed(settings: Settings, store: KeyStore) -> None:
    """Refuses to answer others than this machine while everybody would be let in.

    Raises:
        StudioloError: the host is not loopback, and there is no key that is good.
    """
    now = store.clock()
    good = any(key.revoked is None and (key.expires is None or key.expires > now) for key in store.list())
    if not settings.is_loopback and not good:
        raise StudioloError(
            "others than this machine can reach this host, and no key has been made yet",
            where=f"--host {settings.host}",
            remedy="Make one first: studiolo keys create NAME. Or leave --host out.",
        )


def bind(settings: Settings) -> socket.socket:
    """The socket that clients connect to.

    Raises:
        StudioloError: the address is not this machine's, or the port is taken.
    """
    family = socket.AF_INET6 if ":" in settings.host else socket.AF_INET
    # Named as TCP's, so that asyncio knows it for one and sends what there is at once (TCP_NODELAY): without,
    # clients wait 40 ms for each answer's second packet.
    listener = socket.socket(family, socket.SOCK_STREAM, socket.IPPROTO_TCP)
    try:
        if os.name == "posix":  # elsewhere it would let two servers share a port
            listener.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        listener.bind((settings.host, settings.port))
        listener.listen(2048)
        return listener
    except OSError as error:
        listener.close()
        raise StudioloError(
            f"cannot listen there ({error.strerror or error})",
            where=f"{settings.host}, port {settings.port}",
            remedy="Give another --port, or 0 for any that is free.",
        ) from error


def address(settings: Settings, listener: socket.socket) -> str:
    """How clients on this machine reach it."""
    host = "127.0.0.1" if settings.host == "0.0.0.0" else "::1" if settings.host == "::" else settings.host
    return f"http://{f'[{host}]' if ':' in host else host}:{listener.getsockname()[1]}"


def serve(studio: Studio, listener: socket.socket) -> None:
    """Answers until it is told to stop, by SIGTERM or Ctrl-C.

    Then it accepts nothing more, lets the answers under way end for at most `settings.drain` seconds, parks
    the jobs and unloads the models. A second signal ends the process at once; whatever is on the disk is
    whole all the same.
    """
    write_json_lines(messages=studio.settings.log_prompts)
    config = uvicorn.Config(
        create_app(studio),
        log_config=None,
        access_log=False,
        server_header=False,
        timeout_graceful_shutdown=math.ceil(studio.settings.drain),
    )
    _Server(config).run(sockets=[listener])


class _Server(uvicorn.Server):
    def handle_exit(self, sig: int, frame: FrameType | None) -> None:
        if self.should_exit:
            os._exit(128 + sig)
        self.should_exit = True

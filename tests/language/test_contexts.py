"""Explicit contexts: what goes before a request, how long it lives, and that it outlives the process."""

from __future__ import annotations

import asyncio
import os
import signal
import subprocess
import sys
import threading
from collections.abc import AsyncGenerator
from concurrent.futures import ThreadPoolExecutor
from contextlib import suppress
from datetime import UTC, datetime, timedelta

import pytest

from studiolo.errors import StudioloError, TooLargeError
from studiolo.language.caching.cached import Cached
from studiolo.language.caching.contexts import Contexts, Limits, Prefix
from studiolo.language.caching.pins import Pins, Warming
from studiolo.language.conversation import (
    Delta,
    FinishReason,
    Request,
    Text,
    Tool,
    ToolChoice,
    ToolMode,
    Usage,
    model,
    user,
)
from studiolo.language.engines.base import Capabilities
from studiolo.language.engines.completer import Completion, Piece
from studiolo.language.errors import InvalidRequestError, RateLimitError, UnknownContextError

HOUR = timedelta(hours=1)
BOOK = Prefix(
    contents=(user("Call me Ishmael."), model("Very well.")),
    system="Answer in one word.",
    tools=(Tool(name="look_up"),),
    tool_choice=ToolChoice(mode=ToolMode.NONE),
)


class Clock:
    """A time that passes when told to."""

    def __init__(self) -> None:
        self.now = datetime(2026, 11, 21, 12, tzinfo=UTC)

    def __call__(self) -> datetime:
        return self.now

    def wait(self, time: timedelta) -> None:
        self.now += time


@pytest.fixture
def clock() -> Clock:
    return Clock()


@pytest.fixture
def contexts(tmp_path, clock) -> Contexts:
    return Contexts(tmp_path, clock=clock)


def kept(contexts: Contexts, prefix: Prefix = BOOK, **told):
    return contexts.create(prefix, **{"model": "m", "ttl": HOUR, "tokens": 7, **told})


def asking(text: str, **told) -> Request:
    return Request(**{"model": "m", "contents": (user(text),), **told})


def test_a_context_goes_before_the_request(contexts):
    name = kept(contexts).name
    config = {"temperature": 0.5}
    assert contexts.resolve(asking("Who?", cache=name, config=config)) == Request(
        model="m",
        contents=(*BOOK.contents, user("Who?")),
        system=BOOK.system,
        tools=BOOK.tools,
        tool_choice=BOOK.tool_choice,
        config=config,
    )
    plain = asking("Who?")
    assert contexts.resolve(plain) is plain


@pytest.mark.parametrize(
    ("own", "word"),
    [
        ({"system": "Answer in two words."}, "system"),
        ({"tools": (Tool(name="other"),)}, "tools"),
        ({"tool_choice": ToolChoice(mode=ToolMode.ANY)}, "tool_choice"),
        ({"model": "other"}, "made for m"),
    ],
)
def test_a_request_that_contradicts_its_context_is_refused(contexts, own, word):
    with pytest.raises(InvalidRequestError, match=word):
        contexts.resolve(asking("Who?", cache=kept(contexts).name, **own))


def test_what_is_told_of_a_context(contexts, clock):
    context = kept(contexts, name="moby-dick", title="Moby Dick")
    assert (context.name, context.title, context.model, context.tokens) == ("moby-dick", "Moby Dick", "m", 7)
    assert (context.created, context.expires) == (clock.now, clock.now + HOUR)
    assert context.size == len(BOOK.model_dump_json().encode())
    assert contexts.get("moby-dick") == context
    assert contexts.prefix("moby-dick") == BOOK


def test_it_lives_as_long_as_it_was_given_and_not_longer(contexts, clock):
    name = kept(contexts).name
    clock.wait(HOUR - timedelta(microseconds=1))
    assert contexts.get(name).name == name
    clock.wait(timedelta(microseconds=1))
    for use in (contexts.get, contexts.prefix, contexts.delete, lambda n: contexts.extend(n, HOUR)):
        with pytest.raises(UnknownContextError):
            use(name)
    with pytest.raises(UnknownContextError):
        contexts.resolve(asking("Who?", cache=name))
    assert contexts.page().contexts == ()


def test_it_can_be_given_more_or_less_time(contexts, clock):
    name = kept(contexts).name
    clock.wait(HOUR / 2)
    longer = contexts.extend(name, 2 * HOUR)
    assert (longer.expires, longer.updated) == (clock.now + 2 * HOUR, clock.now)
    assert contexts.get(name) == longer
    assert contexts.prefix(name) == BOOK
    assert contexts.extend(name, HOUR / 4).expires == clock.now + HOUR / 4


@pytest.mark.parametrize("ttl", [timedelta(0), -HOUR, timedelta(days=366), timedelta.max])
def test_a_time_to_live_out_of_range_is_refused(contexts, ttl):
    with pytest.raises(InvalidRequestError, match="lives for"):
        kept(contexts, ttl=ttl)


@pytest.mark.parametrize("name", ["", "A", "../up", "a/b", ".hidden", "a" * 64, "ü", "a\n"])
def test_names_that_are_no_file_names_are_refused(contexts, name):
    with pytest.raises(InvalidRequestError, match="not a name"):
        kept(contexts, name=name)
    with pytest.raises(UnknownContextError):
        contexts.get(name)


def test_names_are_made_up_if_not_given_and_never_taken_twice(contexts):
    assert kept(contexts).name != kept(contexts).name
    kept(contexts, name="one")
    with pytest.raises(InvalidRequestError, match="exists"):
        kept(contexts, name="one")


def test_an_empty_context_is_refused(contexts):
    with pytest.raises(InvalidRequestError, match="empty"):
        kept(contexts, Prefix())
    assert contexts.prefix(kept(contexts, Prefix(system="Be brief.")).name).system == "Be brief."


def test_pages_hold_each_context_once_while_others_come_and_go(contexts, clock):
    names = []
    for _ in range(7):
        names.append(kept(contexts).name)
        clock.wait(timedelta(seconds=1))
    seen, token = [], None
    while True:
        page = contexts.page(3, token)
        seen += [context.name for context in page.contexts]
        if (token := page.next) is None:
            break
        contexts.delete(seen[-1])
        names.append(kept(contexts).name)
        clock.wait(timedelta(seconds=1))
    assert seen == names


def test_a_page_needs_a_size_and_a_token_of_its_own(contexts):
    for bad in ("x", "2026-11-21T12:00:00~a"):
        with pytest.raises(InvalidRequestError, match="token"):
            contexts.page(token=bad)
    with pytest.raises(InvalidRequestError, match="page"):
        contexts.page(0)


def test_when_full_the_expired_make_room_and_the_living_do_not(tmp_path, clock):
    contexts = Contexts(tmp_path, clock=clock, limits=Limits(number=2))
    kept(contexts, name="short", ttl=HOUR)
    kept(contexts, name="long", ttl=3 * HOUR)
    with pytest.raises(RateLimitError, match="no room") as told:
        kept(contexts, name="third")
    assert told.value.retry_after == HOUR.total_seconds()
    clock.wait(HOUR)
    kept(contexts, name="third")
    assert {context.name for context in contexts.page().contexts} == {"long", "third"}


def test_bytes_are_bounded_of_one_and_of_all(tmp_path, clock):
    size = len(BOOK.model_dump_json().encode())
    with pytest.raises(InvalidRequestError, match="bytes"):
        kept(Contexts(tmp_path, limits=Limits(size=size - 1), clock=clock))
    contexts = Contexts(tmp_path, limits=Limits(size=size, total=2 * size), clock=clock)
    kept(contexts), kept(contexts)
    with pytest.raises(RateLimitError, match="no room"):
        kept(contexts)


def test_who_come_together_are_not_one_too_many(tmp_path, monkeypatch):
    """Each has contexts of its own on the folder, as each request with a key has."""
    admit, both = Contexts._admit, threading.Barrier(2)

    def slowly(self, context):
        admit(self, context)
        with suppress(threading.BrokenBarrierError):
            both.wait(0.5)  # in vain while one waits for the other

    monkeypatch.setattr(Contexts, "_admit", slowly)

    def make(number: int) -> str:
        try:
            return kept(Contexts(tmp_path, limits=Limits(number=1))).name
        except RateLimitError:
            return ""

    with ThreadPoolExecutor(2) as pool:
        made = list(pool.map(make, range(2)))
    assert sorted(map(bool, made)) == [False, True]
    assert len(Contexts(tmp_path).page().contexts) == 1


def test_those_of_all_are_bounded_together(tmp_path):
    def of(name: str, most: int) -> Contexts:
        return Contexts(tmp_path / name, among=(most, tmp_path))

    kept(of("anna", 10_000))
    whole = sum(file.stat().st_size for file in tmp_path.rglob("*.jsonl"))
    size = len(BOOK.model_dump_json().encode())
    with pytest.raises(
        TooLargeError, match=f"no room for {size} more bytes of contexts: {size - 1} are left"
    ):
        kept(of("ben", whole + size - 1))
    kept(of("ben", whole + size))
    with pytest.raises(TooLargeError, match="0 are left"):
        kept(of("anna", whole))


def test_a_title_is_bounded(contexts):
    """It is in what lists read."""
    assert kept(contexts, title="é" * 128).title == "é" * 128
    with pytest.raises(InvalidRequestError, match="title has at most 128 letters, and this one 129"):
        kept(contexts, title="é" * 129)


def test_a_file_that_has_grown_is_not_read_whole(tmp_path, clock):
    size = len(BOOK.model_dump_json().encode())
    contexts = Contexts(tmp_path, limits=Limits(size=size), clock=clock)
    name = kept(contexts).name
    assert contexts.prefix(name) == BOOK
    with (tmp_path / f"{name}.jsonl").open("ab") as file:
        file.write(b" " * 2**17)
    with pytest.raises(StudioloError, match=r"damaged context: more than [\d,]+ bytes(.|\n)*Delete"):
        contexts.prefix(name)


def test_what_expired_is_removed_oldest_first(contexts, clock):
    for name, hours in (("b", 2), ("c", 3), ("a", 1)):
        kept(contexts, name=name, ttl=hours * HOUR)
    clock.wait(2 * HOUR)
    assert [context.name for context in contexts.expire()] == ["a", "b"]
    assert [file.name for file in contexts.folder.glob("[!.]*")] == ["c.jsonl"]


def test_a_deleted_context_is_gone(contexts):
    name = kept(contexts).name
    contexts.delete(name)
    with pytest.raises(UnknownContextError):
        contexts.delete(name)


_WRITER = """
import os, signal, sys
from datetime import timedelta
from pathlib import Path
from studiolo.language.caching.contexts import Contexts, Prefix
contexts = Contexts(Path(sys.argv[1]))
contexts.create(Prefix(system="Be brief."), model="m", ttl=timedelta(hours=1), tokens=3, name="kept")
os.fsync = lambda file: os.kill(os.getpid(), signal.SIGKILL)
contexts.create(Prefix(system="Be long."), model="m", ttl=timedelta(hours=1), tokens=3, name="half")
"""


def test_contexts_outlive_the_process_whole_or_not_at_all(tmp_path):
    done = subprocess.run([sys.executable, "-c", _WRITER, str(tmp_path)], check=False, env=dict(os.environ))
    assert done.returncode == -signal.SIGKILL
    contexts = Contexts(tmp_path)
    assert [context.name for context in contexts.page().contexts] == ["kept"]
    assert contexts.prefix("kept").system == "Be brief."


def test_a_damaged_file_is_named(contexts):
    name = kept(contexts).name
    file = contexts.folder / f"{name}.jsonl"
    file.write_text(file.read_text().splitlines()[0] + "\n{")
    with pytest.raises(StudioloError, match=r"damaged(.|\n)*Delete"):
        contexts.prefix(name)
    file.write_text("{}")
    with pytest.raises(StudioloError, match="damaged"):
        contexts.page()


# --- with an engine ---------------------------------------------------------------------------------------


class Letters:
    """A completer whose tokens are letters and that, like llama.cpp, keeps the last prompt it has read."""

    model = "m"
    capabilities = Capabilities(context=200)

    def __init__(self) -> None:
        self.kept: tuple[int, ...] = ()

    async def complete(self, completion: Completion) -> AsyncGenerator[Piece]:
        same = 0
        for old, new in zip(self.kept, completion.prompt, strict=False):
            if old != new:
                break
            same += 1
        self.kept = completion.prompt
        yield Piece(text="x", tokens=(120,), cached=same, end="length")


def letters(request: Request) -> tuple[int, ...]:
    """A template whose end is not the end of the contents."""
    turns = "".join(f"<{content.role}>{content.text}" for content in request.contents)
    return tuple(map(ord, f"[{request.system or ''}]{turns}<model>"))


class Engine:
    """An engine on it."""

    model = "m"
    capabilities = Letters.capabilities

    def __init__(self) -> None:
        self.letters = Letters()

    async def generate(self, request: Request) -> AsyncGenerator[Delta]:
        prompt = letters(request)
        async for piece in self.letters.complete(Completion(prompt=prompt, max_tokens=1)):
            usage = Usage(prompt=len(prompt), cached=piece.cached or 0, answer=1)
            yield Delta(part=Text(text=piece.text), finish=FinishReason.STOP, usage=usage)

    async def count_tokens(self, request: Request) -> int:
        return len(letters(request))

    async def embed(self, texts, *, dimensions=None):
        return [[1.0] for _ in texts]

    async def close(self) -> None: ...


CALM = Prefix(contents=(user("A long book."),), system="Be calm.")
READ = "[Be calm.]<user>A long book.<user>"  # what all prompts with it begin with


async def usage_of(cached: Cached, text: str, name: str) -> Usage:
    return [delta.usage async for delta in cached.generate(asking(text, cache=name))][-1]


def test_a_pinned_context_is_there_for_the_first_request_and_counted_exactly(contexts):
    async def run():
        engine = Engine()
        cached = Cached(engine, contexts, Warming(engine.letters, letters))
        context = await cached.create(CALM, ttl=HOUR)
        assert context.tokens == len(READ)
        assert contexts.get(context.name) == context
        usage = await usage_of(cached, "Who?", context.name)
        assert (usage.cached, usage.prompt) == (len(READ), len(READ + "Who?<model>"))
        assert await cached.count_tokens(asking("Who?", cache=context.name)) == usage.prompt

    asyncio.run(run())


def test_after_a_restart_contexts_are_pinned_again(contexts):
    async def run():
        first = Engine()
        name = (await Cached(first, contexts, Warming(first.letters, letters)).create(CALM, ttl=HOUR)).name
        kept(contexts, model="another")
        second = Engine()
        cached = Cached(
            second, Contexts(contexts.folder, clock=contexts._clock), Warming(second.letters, letters)
        )
        assert await cached.restore() == 1
        assert (await usage_of(cached, "Who?", name)).cached == len(READ)

    asyncio.run(run())


def test_without_pins_a_context_is_text_and_nothing_is_claimed(contexts):
    async def run():
        cached = Cached(Engine(), contexts)
        assert cached.pins is None
        context = await cached.create(CALM, ttl=HOUR)
        assert context.tokens == len(READ + ".<model>")
        assert (await usage_of(cached, "Who?", context.name)).cached == 0
        assert (await usage_of(cached, "Where?", context.name)).cached == len(READ + "Wh")

    asyncio.run(run())


def test_a_context_that_leaves_no_room_is_refused(contexts):
    async def run():
        with pytest.raises(InvalidRequestError, match="200"):
            await Cached(Engine(), contexts).create(Prefix(system="x" * 200), ttl=HOUR)
        assert contexts.page().contexts == ()

    asyncio.run(run())


def test_what_is_too_large_is_refused_before_it_is_counted(tmp_path):
    class Never(Engine):
        async def count_tokens(self, request: Request) -> int:
            raise AssertionError("this takes long")

    async def run():
        cached = Cached(Never(), Contexts(tmp_path, limits=Limits(size=1000)))
        for prefix, title in ((Prefix(system="x" * 1000), ""), (CALM, "x" * 129), (Prefix(), "")):
            with pytest.raises(InvalidRequestError):
                await cached.create(prefix, ttl=HOUR, title=title)

    asyncio.run(run())


class Pinning(Engine):
    """An engine that pins by itself, until it fails."""

    def __init__(self) -> None:
        super().__init__()
        self.pinned: list[str] = []
        self.fails = False

    async def pin(self, name: str, model: str, prefix: Prefix) -> int:
        if self.fails:
            raise OSError("no room")
        self.pinned.append(name)
        return 3

    async def unpin(self, name: str) -> None:
        self.pinned.remove(name)


def test_an_engine_that_pins_is_told_of_all_that_goes(contexts, clock):
    async def run():
        engine = Pinning()
        assert isinstance(engine, Pins)
        cached = Cached(engine, contexts)
        await cached.create(CALM, ttl=HOUR, name="one")
        await cached.create(CALM, ttl=HOUR, name="two")
        await cached.delete("one")
        assert engine.pinned == ["two"]
        clock.wait(HOUR)
        await cached.create(CALM, ttl=HOUR, name="three")
        assert engine.pinned == ["three"]
        engine.fails = True
        with pytest.raises(OSError, match="no room"):
            await cached.create(CALM, ttl=HOUR, name="four")
        assert [context.name for context in contexts.page().contexts] == ["three"]

    asyncio.run(run())

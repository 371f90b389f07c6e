"""What an answer has taken is known wherever its reader goes."""

from __future__ import annotations

import asyncio
from contextlib import aclosing, suppress

import pytest

from language.stub import Noise, StubCompleter
from studiolo.language import metering
from studiolo.language.collect import collected
from studiolo.language.conversation import GenerationConfig, Request, Usage, user
from studiolo.language.engines.completer import Piece
from studiolo.language.engines.local import LocalEngine
from studiolo.language.metering import Meter, metered

ASKED = Request(model="stub", contents=(user("How are you?"),))


async def tokens_of(engine: LocalEngine, request: Request = ASKED) -> int:
    return await engine.count_tokens(request)


async def read_on(engine, meter, deltas, request=ASKED):
    """Reads so many deltas and goes."""
    async with aclosing(metered(engine.generate(request), meter)) as stream:
        for _ in range(deltas):
            await anext(stream)


@pytest.mark.parametrize("deltas", [1, 3, 5])
def test_who_goes_early_has_taken_the_prompt_and_what_was_made(deltas):
    async def play():
        completer, meter = StubCompleter(["abcdefgh"]), Meter()
        engine = LocalEngine(completer)
        await read_on(engine, meter, deltas)
        return meter.usage, await tokens_of(engine), completer.made

    usage, prompt, made = asyncio.run(play())
    assert deltas <= made < 8
    assert usage == Usage(prompt=prompt, answer=made, prompt_by_modality={"text": prompt})


def test_the_whole_answer_is_what_its_last_delta_tells():
    async def play():
        engine, meter = LocalEngine(StubCompleter(["abc"])), Meter()
        deltas = [delta async for delta in metered(engine.generate(ASKED), meter)]
        return meter.usage, deltas[-1].usage

    noted, told = asyncio.run(play())
    assert noted == told
    assert told.answer == 3


def test_thoughts_that_are_not_shown_are_taken_too():
    """The reader waits for the answer, and has seen nothing of the thought when it goes."""

    async def play():
        made = asyncio.Event()

        async def pause():
            if len(completer.seen[0].tokens) == 7:
                made.set()
                await asyncio.Event().wait()

        completer = StubCompleter([Noise(seed=1, tokens=("x",))], pause=pause)
        engine, meter = LocalEngine(completer), Meter()
        config = GenerationConfig(thinking={"mode": "budget", "budget": 50}, max_tokens=100)
        reading = asyncio.create_task(read_on(engine, meter, 1, ASKED.model_copy(update={"config": config})))
        await made.wait()
        reading.cancel()
        with suppress(asyncio.CancelledError):
            await reading
        return meter.usage

    usage = asyncio.run(play())
    assert (usage.thoughts, usage.answer) == (7, 0)
    assert usage.prompt > 0


class Reading(StubCompleter):
    """Tells that it has read so many tokens of the prompt, and reads on for ever."""

    def __init__(self, *read):
        super().__init__()
        self.read, self.here = read, asyncio.Event()

    async def complete(self, completion):
        for number, read in enumerate(self.read):
            yield Piece(cached=None if number else 2, read=read)
        self.here.set()
        await asyncio.Event().wait()


@pytest.mark.parametrize(("read", "told"), [((), 0), ((4,), 4), ((4, 9), 9), ((4, 10_000), None)])
def test_of_a_prompt_that_is_still_being_read_what_has_been_read_is_taken(read, told):
    async def play():
        completer, meter = Reading(*read), Meter()
        engine = LocalEngine(completer)
        reading = asyncio.create_task(read_on(engine, meter, 1))
        await completer.here.wait()
        reading.cancel()
        with suppress(asyncio.CancelledError):
            await reading
        return meter.usage, await tokens_of(engine)

    usage, prompt = asyncio.run(play())
    expected = prompt if told is None else told
    modalities = {"text": expected} if read else {}
    assert usage == Usage(prompt=expected, cached=2 if read else 0, prompt_by_modality=modalities)


def test_a_stream_that_goes_from_task_to_task_is_metered_all_the_same():
    async def play():
        completer, meter = StubCompleter(["abcdefgh"]), Meter()
        stream = metered(LocalEngine(completer).generate(ASKED), meter)
        for _ in range(2):
            await asyncio.create_task(anext(stream))
        await asyncio.create_task(stream.aclose())
        return meter.usage.answer, completer.made

    answer, made = asyncio.run(play())
    assert 2 <= answer == made < 8


def test_an_estimate_is_four_bytes_a_token():
    request = Request(model="m", contents=(user("x" * 30),), system="y" * 10)
    assert metering.estimated(request, 9) == Usage(prompt=10, answer=3)


def test_usages_add_up():
    one = Usage(prompt=1, cached=1, prompt_by_modality={"text": 1})
    other = Usage(prompt=5, answer=2, thoughts=3, summaries=4, prompt_by_modality={"text": 3, "image": 2})
    both = {"text": 4, "image": 2}
    assert one + other == Usage(
        prompt=6, cached=1, answer=2, thoughts=3, summaries=4, prompt_by_modality=both
    )


def test_nothing_is_noted_where_nobody_meters():
    async def play():
        engine = LocalEngine(StubCompleter(["abc"]))
        return await collected(engine.generate(ASKED))

    assert asyncio.run(play()).usage.answer == 3

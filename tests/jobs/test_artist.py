"""Drawing for many: the bytes of the command line, one at a time, cancelled between two steps."""

from __future__ import annotations

import asyncio
import io

import pytest
from PIL import Image
from typer.testing import CliRunner

from studiolo.cli.main import app
from studiolo.drawing.provenance import read_provenance
from studiolo.errors import StudioloError
from studiolo.jobs.artist import Artist, size_of
from studiolo.jobs.turns import Turns
from studiolo.models.registry import NoSuchModelError, register
from tiny import tiny_folder


@pytest.fixture
def tiny(tmp_path):
    register(tiny_folder(tmp_path / "one"), "tiny")
    register(tiny_folder(tmp_path / "two", seed=1), "other")
    return "tiny"


def test_the_same_bytes_as_the_command_line(tiny, tmp_path):
    told = ["generate", "a fox", "--model", tiny, "-n", "10", "--seed", "7", "--steps", "3", "--no-grid"]
    done = CliRunner().invoke(app, [*told, "--negative", "snow", "--guidance", "3", "--out", str(tmp_path)])
    files = [tmp_path / f"{i:03d}-seed{7 + i}.png" for i in range(10)]
    assert done.exit_code == 0, done.output
    drawing = Artist().draw(tiny, "a fox", n=10, seed=7, steps=3, negative="snow", guidance=3.0)
    pictures = asyncio.run(drawing)
    assert [picture.png for picture in pictures] == [file.read_bytes() for file in files]
    assert [picture.seed for picture in pictures] == list(range(7, 17))
    record = read_provenance(io.BytesIO(pictures[0].png))
    assert (record.request.prompt, record.model.name) == ("a fox", tiny)


def test_sizes_and_random_seeds(tiny):
    one, two = asyncio.run(Artist().draw(tiny, "a fox", n=2, width=48, height=24, steps=1))
    assert Image.open(io.BytesIO(one.png)).size == (48, 24) == (one.width, one.height)
    assert two.seed == one.seed + 1


def test_progress_counts_the_steps_of_all_pictures(tiny):
    seen = []
    asyncio.run(Artist().draw(tiny, "a fox", n=9, steps=2, progress=lambda *step: seen.append(step)))
    assert seen == [(1, 4), (2, 4), (3, 4), (4, 4)]


def test_calls_of_samplers_with_two_a_step_are_counted(tiny):
    seen = []
    drawing = Artist().draw(
        tiny,
        "a fox",
        steps=3,
        sampler="heun",
        more={"spacing": "trailing"},
        progress=lambda *s: seen.append(s),
    )
    (picture,) = asyncio.run(drawing)
    assert seen == [(i, 5) for i in range(1, 6)]
    record = read_provenance(io.BytesIO(picture.png))
    assert (record.settings["sampler"], record.settings["spacing"]) == ("heun", "trailing")


def test_a_picture_within_a_mask(tiny):
    def file(image):
        buffer = io.BytesIO()
        image.save(buffer, format="PNG")
        return buffer.getvalue()

    photo, mask = Image.new("RGB", (32, 32), "red"), Image.new("L", (32, 32))
    mask.paste(255, (16, 0, 32, 32))
    drawing = Artist().draw(tiny, "a fox", init=file(photo), mask=file(mask), strength=0.9, steps=3)
    (picture,) = asyncio.run(drawing)
    image = Image.open(io.BytesIO(picture.png))
    assert image.crop((0, 0, 16, 32)).getcolors() == [(16 * 32, (255, 0, 0))]
    assert len(image.crop((16, 0, 32, 32)).getcolors(512)) > 9
    with pytest.raises(StudioloError, match="32x32"):
        asyncio.run(Artist().draw(tiny, "a fox", init=file(photo), mask=file(mask.resize((8, 8)))))


def test_sketches_come_before_the_picture_and_change_nothing(tiny):
    seen = []
    sketched = Artist().draw(
        tiny, "a fox", n=9, seed=1, steps=6, sketches=2, on_sketch=lambda *s: seen.append(s)
    )
    pictures = asyncio.run(sketched)
    assert [(picture, number) for picture, number, _ in seen] == [
        *((i, 0) for i in range(8)), *((i, 1) for i in range(8)), (8, 0), (8, 1),
    ]  # fmt: skip
    assert all(Image.open(io.BytesIO(png)).size == (32, 32) for _, _, png in seen)
    assert len({png for _, _, png in seen}) == 18
    alone = asyncio.run(Artist().draw(tiny, "a fox", n=9, seed=1, steps=6))
    assert [picture.png for picture in pictures] == [picture.png for picture in alone]


def test_no_larger_than_memory_bears(tiny):
    with pytest.raises(StudioloError, match="128 at most"):
        asyncio.run(Artist().draw(tiny, "a fox", width=136, steps=1))


def test_cancelled_between_two_steps_it_gives_its_turn_to_the_next(tiny):
    async def main():
        artist, seen = Artist(), []

        def progress(step, total):
            seen.append(step)
            drawing.cancel()

        drawing = asyncio.create_task(artist.draw(tiny, "a fox", steps=500, progress=progress))
        with pytest.raises(asyncio.CancelledError):
            await drawing
        ended = len(seen)
        assert len(await artist.draw(tiny, "a fox", steps=1)) == 1
        assert ended == len(seen) < 500

    asyncio.run(main())


def test_interactive_before_bulk_and_one_at_a_time():
    async def main():
        turns, order, at_work = Turns(), [], 0
        first = asyncio.Event()

        async def take(name, priority):
            nonlocal at_work
            async with turns.turn(priority):
                at_work += 1
                assert at_work == 1
                order.append(name)
                await first.wait()
                at_work -= 1

        tasks = [asyncio.create_task(take(*given)) for given in
                 [("at work", 100), ("bulk", 100), ("chat", 1), ("gone", 1), ("chat 2", 1)]]  # fmt: skip
        await asyncio.sleep(0)
        assert turns.waiting == 4
        tasks[3].cancel()
        await asyncio.sleep(0)
        first.set()
        await asyncio.gather(*tasks, return_exceptions=True)
        assert order == ["at work", "chat", "chat 2", "bulk"]
        assert turns.waiting == 0

    asyncio.run(main())


def test_a_turn_that_is_cancelled_as_it_comes_is_not_lost():
    async def main():
        turns = Turns()

        async def take():
            async with turns.turn(1):
                pass

        async with turns.turn(1):
            waiting = [asyncio.create_task(take()) for _ in range(2)]
            await asyncio.sleep(0)
        waiting[0].cancel()  # its ticket has been given, but it has not run since
        await asyncio.gather(*waiting, return_exceptions=True)
        async with turns.turn(1):
            pass

    asyncio.run(main())


def test_the_least_recently_used_model_is_unloaded(tiny):
    async def main():
        artist = Artist()
        for name in (tiny, "other", tiny):
            await artist.draw(name, "a fox", steps=1)
        assert artist.loaded == ["other", tiny]
        artist.memory = size_of(artist._models[tiny][1])
        await artist.draw("other", "a fox", steps=1)
        assert artist.loaded == ["other"]

    asyncio.run(main())


def test_a_model_that_was_taught_anew_is_loaded_anew(tiny, tmp_path):
    async def main():
        artist = Artist()
        (old,) = await artist.draw(tiny, "a fox", seed=1, steps=1)
        register(tiny_folder(tmp_path / "new", seed=2), tiny, replace=True)
        (new,) = await artist.draw(tiny, "a fox", seed=1, steps=1)
        assert old.png != new.png

    asyncio.run(main())


@pytest.mark.parametrize(
    ("told", "error", "words"),
    [
        ({"model": "tinny"}, NoSuchModelError, "tiny"),
        ({"model": "../tiny"}, NoSuchModelError, "no model"),
        ({"n": 0}, StudioloError, "n: 0 pictures"),
        ({"n": 129}, StudioloError, "129 pictures"),
        ({"seed": -1}, StudioloError, "seed"),
        ({"steps": 0}, StudioloError, "steps"),
        ({"sampler": "eulera"}, StudioloError, "euler_a"),
        ({"prompt": "a [V] fox"}, StudioloError, "learned no subject"),
    ],
)
def test_wrong_input_is_told(tiny, told, error, words):
    with pytest.raises(error) as caught:
        asyncio.run(Artist().draw(**{"model": tiny, "prompt": "a fox", "steps": 1} | told))
    assert words in str(caught.value)

"""One GPU for drawing and for teaching; the GPU is a stub that counts bytes."""

from __future__ import annotations

import asyncio
import threading

import pytest
import torch

from studiolo.errors import TooLargeError
from studiolo.jobs.artist import Artist
from studiolo.jobs.runwatch import RunWatch
from studiolo.jobs.sharing import RESERVE, Cuda, Sharing
from studiolo.language.errors import OverloadedError
from studiolo.models.registry import register
from tiny import tiny_folder


class StubGpu:
    """`elsewhere` is what other processes have, `own` what this one does."""

    total = 1000

    def __init__(self) -> None:
        self.elsewhere, self.own, self.limits, self.given_back = 0, 0, [], 0

    def free(self) -> int:
        return self.total - self.elsewhere - self.own

    def held(self) -> int:
        return self.own

    def limit(self, most: int | None) -> None:
        self.limits.append(most)

    def give_back(self) -> None:
        self.given_back += 1
        self.own = 0

    def take(self, size: int) -> None:
        """What an allocation does: it keeps to the limit of the process."""
        most = self.total if self.limits[-1] is None else self.limits[-1]
        if self.own + size > most:
            raise torch.OutOfMemoryError("CUDA out of memory.")
        self.own += size


@pytest.fixture
def gpu():
    return StubGpu()


@pytest.fixture
def artist(gpu, tmp_path):
    register(tiny_folder(tmp_path / "tiny"), "tiny")
    register(tiny_folder(tmp_path / "other", seed=1), "other")
    return Artist(device="cpu", sharing=Sharing(lambda: gpu))


def drawn(artist, model="tiny", **told):
    return artist.draw(model, "a fox", steps=1, **told)


def test_without_a_gpu_both_go_on(artist):
    async def main():
        cpu = Sharing(lambda: None)
        artist._sharing = cpu
        cpu.make_way = artist._make_way
        await drawn(artist)
        async with cpu.teaching():
            assert artist.loaded == ["tiny"]
            assert await drawn(artist)
            assert await drawn(artist, interactive=False)

    asyncio.run(main())


def test_a_training_begins_when_the_drawing_at_work_has_ended_and_its_models_are_gone(artist, gpu):
    async def main():
        drawing = asyncio.create_task(artist.draw("tiny", "a fox", steps=20))
        while not artist.loaded:
            await asyncio.sleep(0)
        async with artist._sharing.teaching():
            assert drawing.done()
            assert artist.loaded == []
            assert gpu.given_back == 1

    asyncio.run(main())


def test_while_it_begins_nothing_is_drawn_and_what_nobody_waits_for_comes_when_it_is_over(artist, gpu):
    async def main():
        bulk = []
        async with artist._sharing.teaching() as training:
            with pytest.raises(OverloadedError, match="begins to be taught") as told:
                await drawn(artist)
            assert 0 < told.value.retry_after <= 60
            bulk.append(asyncio.create_task(drawn(artist, interactive=False)))
            training.settled = True
            assert len(await drawn(artist)) == 1
            assert not bulk[0].done()
        assert len(await bulk[0]) == 1
        assert gpu.limits[-1] is None

    asyncio.run(main())


def test_one_of_a_batch_that_waited_for_its_turn_waits_for_the_training_too(artist):
    async def main():
        first, more, order = threading.Event(), threading.Event(), []
        draw = artist._draw

        def noted(model, asked, on_step):
            first.set()
            assert more.wait(60)
            order.append(asked.requests[0][1])
            return draw(model, asked, on_step)

        artist._draw = noted
        tasks = [asyncio.create_task(drawn(artist, seed=n, interactive=False)) for n in range(2)]
        assert await asyncio.to_thread(first.wait, 60)
        teaching = artist._sharing.teaching()
        entering = asyncio.create_task(teaching.__aenter__())
        await asyncio.sleep(0)
        more.set()
        await entering
        assert order == [0]
        await teaching.__aexit__(None, None, None)
        await asyncio.gather(*tasks)
        assert order == [0, 1]

    asyncio.run(main())


def test_beside_a_training_there_is_what_it_leaves_but_a_reserve(artist, gpu):
    async def main():
        gpu.elsewhere, gpu.own = 600, 100
        async with artist._sharing.teaching() as training:
            gpu.own = 100
            training.settled = True
            await drawn(artist)
            assert gpu.limits == [1000 - 600 - RESERVE * 1000]
            assert gpu.own == 0  # given back when it was drawn
            assert training.shared

    asyncio.run(main())


@pytest.mark.parametrize(
    ("elsewhere", "size", "error"), [(700, 250, OverloadedError), (0, 1001, TooLargeError)]
)
def test_what_does_not_fit_is_told(artist, gpu, monkeypatch, elsewhere, size, error):
    tries = []

    def draw(*_):
        tries.append(list(artist.loaded))
        gpu.take(size)

    async def main():
        await drawn(artist, "other")
        monkeypatch.setattr(artist, "_draw", draw)
        with pytest.raises(error, match="fewer or smaller"):
            await drawn(artist)
        assert tries == [["other", "tiny"], ["tiny"]]
        assert artist.loaded == []

    async def beside():
        gpu.elsewhere = elsewhere
        async with artist._sharing.teaching() as training:
            training.settled = True
            await main()

    asyncio.run(beside() if elsewhere else main())


def test_one_that_has_died_of_it_has_the_gpu_for_itself(artist):
    async def main():
        async with artist._sharing.teaching(alone=True) as training:
            training.settled = True
            with pytest.raises(OverloadedError, match="too little memory"):
                await drawn(artist)

    asyncio.run(main())


def test_a_process_has_taken_a_step_when_its_own_file_tells_of_one_behind_its_beginning(tmp_path):
    path = tmp_path / "metrics.csv"

    def write(*steps):
        new = tmp_path / "new"
        new.write_text("step,loss\n" + "".join(f"{step},1.0\n" for step in steps))
        new.replace(path)

    fresh = RunWatch(tmp_path, 10, {})
    fresh.look()
    assert not fresh.stepping
    write(1, 2, 3)
    fresh.look()
    assert fresh.stepping
    again = RunWatch(tmp_path, 10, {}, saved=2)
    again.look()
    assert (again.step, again.stepping) == (3, False)  # the step that was lost
    write(1, 2)
    again.look()
    assert not again.stepping
    with path.open("a") as file:
        file.write("3,1.0\n")
    again.look()
    assert again.stepping


@pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a GPU")
def test_a_limit_holds_on_a_real_gpu():
    gpu = Cuda()
    gpu.limit(gpu.held() + 2**26)
    with pytest.raises(torch.OutOfMemoryError):
        torch.empty(2**28, dtype=torch.uint8, device="cuda")
    gpu.limit(None)
    assert torch.empty(2**28, dtype=torch.uint8, device="cuda").numel() == 2**28
    gpu.give_back()
    assert 0 < gpu.free() <= gpu.total

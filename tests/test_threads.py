"""A CPU draws rows on threads of their own; what it draws is the same."""

from __future__ import annotations

import os
import threading
from concurrent.futures import ThreadPoolExecutor

import numpy as np
import pytest
import torch

from studiolo.diffusion.autoencoding import decode_latents
from studiolo.diffusion.compiling import compile_blocks
from studiolo.diffusion.conditioning import encode_prompts
from studiolo.diffusion.predictor import Predictor
from studiolo.diffusion.sampler_settings import SamplerSettings
from studiolo.diffusion.sampling import generate
from studiolo.diffusion.threads import MOST, best_sharing, on_threads, sharing_threads, torch_threads
from tiny import tiny_components
from tiny_families import tiny_sd1, tiny_sd3, tiny_sdxl

PROMPTS = ["a photo of a fox on the moon", "a red dog", "snow", "a cat", "the beach at night"]


@pytest.fixture(params=[2, 3, 4])
def threads(request):
    with torch_threads(request.param):
        yield request.param


def conditioning_of(components, rows):
    told = encode_prompts(components, PROMPTS[:rows])
    return told.sized(components.family.sizes(64, 64))


@pytest.mark.parametrize("make", [tiny_sd1, tiny_sdxl, tiny_sd3])
@pytest.mark.parametrize("rows", [1, 2, 5])
@torch.no_grad()
def test_predictions_are_those_of_the_whole_batch(make, rows, threads):
    components = make()
    told = conditioning_of(components, rows)
    noisy = torch.randn(rows, *components.latent_shape())
    predictor = Predictor(components, told)
    assert len(predictor._parts) == best_sharing(rows, threads)
    for times in (torch.tensor(400), torch.arange(rows) * 100 + 7):
        expected = components.predict(noisy, times, told)
        torch.testing.assert_close(predictor(noisy, times), expected, rtol=1e-4, atol=1e-5)


def test_pictures_are_the_same_on_one_thread_and_on_several(threads):
    components, settings = tiny_components(), SamplerSettings(steps=4)

    def draw():
        return np.stack(generate(components, PROMPTS, range(5), settings)).astype(int)

    several = draw()
    assert np.array_equal(several, draw())  # to the bit, whichever thread is first
    torch.set_num_threads(1)
    assert np.abs(several - draw()).max() <= 1


def test_latents_are_decoded_the_same(threads, monkeypatch):
    components = tiny_components()
    latents = torch.randn(5, *components.latent_shape())
    several = decode_latents(components, latents).astype(int)
    monkeypatch.setattr("studiolo.diffusion.autoencoding.AT_ONCE", 1)
    one_by_one = decode_latents(components, latents).astype(int)
    assert several.shape == one_by_one.shape
    torch.set_num_threads(1)
    monkeypatch.undo()
    assert np.abs(several - decode_latents(components, latents)).max() <= 1


def test_the_threads_share_out_those_of_torch(threads):
    at_once = threading.Barrier(2, timeout=60)

    def look():
        at_once.wait()  # both run at the same time
        return threading.get_ident(), torch.get_num_threads(), torch.is_grad_enabled()

    with torch.no_grad():
        (first, one, grad), (second, other, _) = on_threads([look, look], 2)
    assert len({first, second, threading.get_ident()}) == 3
    assert one == other == threads // 2
    assert not grad
    assert torch.get_num_threads() == threads
    with ThreadPoolExecutor(1) as later:
        assert later.submit(torch.get_num_threads).result() == threads


@pytest.mark.parametrize(
    ("rows", "cores", "threads"),
    [
        *[(2, 2, 2), (16, 2, 2), (8, 4, 4), (2, 8, 2), (64, 64, MOST), (1, 4, 1), (8, 1, 1)],
        *[(8, 6, 2), (5, 4, 1), (2, 3, 1)],  # further threads would leave cores idle
    ],
)
def test_most_of_the_cores_are_busy(rows, cores, threads):
    assert best_sharing(rows, cores) == threads


def test_an_error_comes_out_when_no_other_call_runs_any_more(threads):
    failed, done = threading.Event(), []

    def fails():
        failed.set()
        raise KeyError

    def lasts():
        failed.wait(60)
        for _ in range(50):
            torch.randn(300, 300) @ torch.randn(300, 300)
        done.append(True)

    with pytest.raises(KeyError):
        on_threads([fails, lasts], 2)
    assert done == [True]


def test_results_come_in_order_and_errors_come_out(threads):
    assert on_threads([lambda i=i: i for i in range(9)], 2) == list(range(9))
    with pytest.raises(ZeroDivisionError):
        on_threads([lambda: 1, lambda: 1 // 0], 2)
    with torch.inference_mode():
        assert on_threads([lambda: torch.ones(1).is_inference()] * 2, 2) == [True, True]


def test_where_rows_stay_together(threads):
    cpu = torch.device("cpu")
    assert sharing_threads(cpu, 8) == 1  # under autograd
    with torch.no_grad():
        assert sharing_threads(cpu, 12) == threads
        assert sharing_threads(cpu, 1) == 1
        assert sharing_threads(torch.device("cuda"), 8) == 1
        with torch.autocast("cpu", torch.bfloat16):
            assert sharing_threads(cpu, 8) == 1


@torch.no_grad()
def test_compiled_blocks_stay_together(monkeypatch):
    real = torch.nn.Module.compile
    monkeypatch.setattr(torch.nn.Module, "compile", lambda block: real(block, backend="eager"))
    components = tiny_components()
    compile_blocks(components.denoiser)
    with torch_threads(2):
        assert len(Predictor(components, conditioning_of(components, 4))._parts) == 1


def test_a_fork_has_threads_of_its_own(threads):
    with torch.no_grad():
        assert on_threads([os.getpid] * 2, 2) == [os.getpid()] * 2
        child = os.fork()
        if child == 0:
            alarm = threading.Timer(60, os._exit, [1])  # waiting for the parent's threads would be for ever
            alarm.start()
            os._exit(0 if on_threads([os.getpid] * 2, 2) == [os.getpid()] * 2 else 1)
    assert os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]) == 0

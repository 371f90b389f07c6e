"""Pixels to latents and back: what diffusers' VAE says, in pieces that memory can hold."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
import torch

import studiolo
from studiolo.diffusion import autoencoding, packing
from studiolo.diffusion.autoencoding import decode_latents, encode_pixels
from studiolo.diffusion.noise import generators
from studiolo.diffusion.packing import fitting_batch
from studiolo.drawing.given import give
from studiolo.drawing.model import ImageModel
from tiny import tiny_components

GRID = Path(studiolo.__file__).parent / "base" / "grid.png"


@pytest.fixture(scope="module")
def base():
    return ImageModel.load().components


@pytest.fixture(scope="module")
def pixels() -> torch.Tensor:
    """A picture of 256 x 256, larger than the base model was trained for."""
    return give(GRID).fitted(256, 256).start.pixels


def spied(monkeypatch, part) -> list[tuple[int, ...]]:
    """The shapes that a network is called with."""
    seen: list[tuple[int, ...]] = []
    forward = part.forward
    monkeypatch.setattr(
        part, "forward", lambda x, *a, **k: seen.append(tuple(x.shape)) or forward(x, *a, **k)
    )
    return seen


def test_latents_are_drawn_as_the_library_draws_them(base, pixels):
    ours = encode_pixels(base, pixels, generators([3, 4]))
    with torch.no_grad():
        posterior = base.vae.encode(pixels).latent_dist
    for row, seed in zip(ours, (3, 4), strict=True):
        theirs = posterior.sample(generator=torch.Generator().manual_seed(seed))[0]
        torch.testing.assert_close(row, theirs * base.vae.config.scaling_factor)


@pytest.mark.usefixtures("one_thread")
def test_few_pictures_at_a_time_are_the_same_pictures(base, pixels, monkeypatch):
    latents = encode_pixels(base, pixels, generators(range(5)))
    together = decode_latents(base, latents)
    monkeypatch.setattr(autoencoding, "AT_ONCE", 2 * 256 * 256)
    seen = spied(monkeypatch, base.vae.decoder)
    assert np.abs(together.astype(int) - decode_latents(base, latents)).max() <= 1
    assert [shape[0] for shape in seen] == [2, 2, 1]


def test_a_large_picture_goes_in_tiles(base, pixels, monkeypatch):
    """They differ from the whole where normalization sees only its tile: little, and at no border more."""
    latents = encode_pixels(base, pixels, generators([0]))
    whole = decode_latents(base, latents).astype(int)
    monkeypatch.setattr(autoencoding, "AT_ONCE", 128 * 128)
    monkeypatch.setattr(autoencoding, "TILE", 128)
    encoder, decoder = spied(monkeypatch, base.vae.encoder), spied(monkeypatch, base.vae.decoder)
    tiled = encode_pixels(base, pixels, generators([0]))
    assert (tiled - latents).abs().mean() < 0.1 * latents.std()
    apart = np.abs(decode_latents(base, latents) - whole)
    assert apart.mean() < 2.5
    assert apart.max() < 40
    assert len(encoder) == len(decoder) == 9
    assert max(side for shape in encoder for side in shape[2:]) == 128
    assert max(side for shape in decoder for side in shape[2:]) == 128 // base.vae_factor
    assert not base.vae.use_tiling


def test_pictures_of_common_sizes_are_not_cut(base, pixels, monkeypatch):
    seen = spied(monkeypatch, base.vae.decoder)
    decode_latents(base, torch.zeros(1, 4, 64, 64))
    assert seen == [(1, 4, 64, 64)]


def test_as_many_pictures_at_once_as_fit(monkeypatch):
    components = tiny_components()
    shape = components.latent_shape()
    assert fitting_batch(components, shape) == packing.ON_CPU
    sizes = []
    for memory in (1, 1 << 28, 1 << 40):
        monkeypatch.setattr(packing, "_free_memory", lambda device, memory=memory: memory)
        sizes.append([fitting_batch(components, (4, side, side)) for side in (8, 256, 2048)])
    assert sizes[0] == [1, 1, 1]
    assert sizes[2] == [8, 8, 8]
    assert all(1 <= few <= many <= 8 for few, many in zip(sizes[0], sizes[1], strict=True))
    assert sizes[1][0] >= sizes[1][1] >= sizes[1][2]


def test_a_gpu_is_kept_busy(monkeypatch):
    class Elsewhere(type(tiny_components())):
        device = torch.device("cuda")

    tiny = tiny_components()
    components = Elsewhere(**{name: getattr(tiny, name) for name in tiny.__dataclass_fields__})
    monkeypatch.setattr(packing, "_free_memory", lambda device: 80 << 30)
    assert fitting_batch(components, (4, 16, 16)) == packing.MOST
    assert fitting_batch(components, (4, 64, 64)) == 16
    assert fitting_batch(components, (4, 128, 128)) == 4

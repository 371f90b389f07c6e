"""Pixels to latents and back, in pieces that memory can hold."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from functools import partial
from typing import Any

import numpy as np
import torch

from studiolo.diffusion.components import Components
from studiolo.diffusion.noise import draw_noise
from studiolo.diffusion.threads import on_threads, sharing_threads

AT_ONCE = 1 << 20
"""Pixels that go through the VAE in one call: one picture of 1024 x 1024, or four of 512 x 512."""
TILE = 512
"""Side in pixels of the tiles of a larger picture; a quarter of it is blended with the next tile."""


@torch.no_grad()
def decode_latents(components: Components, latents: torch.Tensor) -> np.ndarray:
    """Scaled latents [B, C, h, w] to pixels, uint8 [B, H, W, 3] in numpy.

    At most AT_ONCE pixels at a time; a larger picture in overlapping tiles, which do not see each other.
    """
    pixels = latents.shape[-2] * latents.shape[-1] * components.vae_factor**2
    at_once = max(1, AT_ONCE // pixels)
    threads = sharing_threads(components.vae.device, min(len(latents), at_once))
    parts = latents.split(min(-(-len(latents) // threads), at_once // threads))
    with _tiles(components, pixels):
        decoded = on_threads([partial(_decode, components, part) for part in parts], threads)
    return np.concatenate(decoded)


@torch.no_grad()
def encode_pixels(
    components: Components, pixels: torch.Tensor, sources: Sequence[torch.Generator]
) -> torch.Tensor:
    """One picture [1, 3, H, W] in -1..1 to scaled latents [B, C, h, w], drawn from what the VAE says of it
    (Kingma & Welling 2014) by each generator of `sources`."""
    vae, config = components.vae, components.vae.config
    with _tiles(components, pixels.shape[-2] * pixels.shape[-1]):
        posterior = vae.encode(pixels.to(vae.device, vae.dtype)).latent_dist
    noise = draw_noise(tuple(posterior.mean.shape[1:]), sources).to(posterior.mean)
    latents = posterior.mean + posterior.std * noise
    return (latents - (config.get("shift_factor") or 0.0)) * config.scaling_factor


def _decode(components: Components, latents: torch.Tensor) -> np.ndarray:
    vae = components.vae
    images = vae.decode(components.unscaled(latents.to(vae.device, vae.dtype))).sample
    pixels = ((images.float() / 2 + 0.5).clamp(0, 1) * 255).round().to(torch.uint8)
    return pixels.permute(0, 2, 3, 1).cpu().numpy()


@contextmanager
def _tiles(components: Components, pixels: int) -> Iterator[None]:
    """Within, the VAE takes pictures of more than AT_ONCE pixels apart into tiles."""
    if pixels <= AT_ONCE:
        yield
        return
    vae: Any = components.vae
    before = vae.use_tiling, vae.tile_sample_min_size, vae.tile_latent_min_size, vae.tile_overlap_factor
    vae.use_tiling, vae.tile_sample_min_size = True, TILE
    vae.tile_latent_min_size, vae.tile_overlap_factor = TILE // components.vae_factor, 0.25
    try:
        yield
    finally:
        vae.use_tiling, vae.tile_sample_min_size, vae.tile_latent_min_size, vae.tile_overlap_factor = before

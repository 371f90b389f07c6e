"""How many pictures are drawn at once: as many as make the device busy and fit into its memory."""

from __future__ import annotations

import os
import re
from pathlib import Path

import torch

from studiolo.diffusion.autoencoding import AT_ONCE
from studiolo.diffusion.components import Components
from studiolo.diffusion.text_keys import kept_bytes

ON_CPU = 8
"""Pictures at once on a CPU: more are no faster, and memory is better left to others."""
CELLS = 16 * 64 * 64
"""Latent cells at once on a GPU, in one batch: sixteen pictures of 512 x 512, or 128 of 64 x 64."""
MOST = 128


def fitting_batch(components: Components, shape: tuple[int, ...]) -> int:
    """Pictures of latents `shape` [C, h, w] that are drawn at once, at least one, MOST at most.

    A rough count: two rows of the denoiser for each picture, at their widest, may take half of the memory
    that is free, beside the VAE, which decodes AT_ONCE pixels at a time.
    """
    cells = shape[-2] * shape[-1]
    busy = ON_CPU if components.device.type == "cpu" else max(1, CELLS // cells)
    room = _free_memory(components.device) // 2 - _decoding(components)
    return max(1, min(busy, MOST, room // _row(components, cells) // 2))


def _row(components: Components, cells: int) -> int:
    """Bytes that one row takes in the denoiser: about 24 activations as wide as its blocks are narrow, for
    what waits for the way up, and for the feed-forward layers; and the text's keys and values, half as many
    again where guidance is for a part of the steps only."""
    config = components.denoiser.config
    channels = config.get("block_out_channels")
    width = channels[0] if channels else config.num_attention_heads * config.attention_head_dim
    return 24 * cells * width * components.dtype.itemsize + kept_bytes(components) * 3 // 2


def _decoding(components: Components) -> int:
    """Bytes that the VAE takes: about four activations of its second-narrowest block, at full size."""
    channels = components.vae.config.block_out_channels
    return 4 * AT_ONCE * channels[min(1, len(channels) - 1)] * components.vae.dtype.itemsize


def _free_memory(device: torch.device) -> int:
    if device.type == "cuda":
        return torch.cuda.mem_get_info(device)[0]
    try:
        told = re.search(r"MemAvailable:\s+(\d+) kB", Path("/proc/meminfo").read_text())
    except OSError:
        told = None
    physical = os.sysconf("SC_PHYS_PAGES") * os.sysconf("SC_PAGE_SIZE")
    return int(told[1]) * 1024 if told else physical // 2

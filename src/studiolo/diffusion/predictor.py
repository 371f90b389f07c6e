"""A denoiser asked again and again under the same conditioning, as a drawing asks it."""

from __future__ import annotations

from functools import partial

import torch

from studiolo.diffusion.compiling import is_compiled
from studiolo.diffusion.components import Components
from studiolo.diffusion.conditioning import Conditioning
from studiolo.diffusion.threads import equal_parts, on_threads, sharing_threads


class Predictor:
    """The predictions of `components` under `conditioning`, B rows of it; on a CPU by several threads.

    The tensors of the conditioning are the same ones at every call, which `text_read_once` goes by.
    """

    def __init__(self, components: Components, conditioning: Conditioning) -> None:
        self._components = components
        rows = len(conditioning)
        compiled = is_compiled(components.denoiser)  # for the threads that it was compiled with
        self._threads = 1 if compiled else sharing_threads(components.device, rows)
        self._parts = [conditioning[part] for part in equal_parts(rows, self._threads)]

    def __call__(self, noisy: torch.Tensor, times: torch.Tensor) -> torch.Tensor:
        """The prediction [B, C, h, w] for `noisy` latents at `times`, [B] or one for all."""
        rows = [len(part) for part in self._parts]
        asked = zip(noisy.split(rows), times.expand(len(noisy)).split(rows), self._parts, strict=True)
        calls = [partial(self._components.predict, *part) for part in asked]
        return torch.cat(on_threads(calls, self._threads))

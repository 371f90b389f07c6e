"""The text's keys and values, computed once for all steps of a drawing.

A U-Net's cross-attention projects the text, which is the same at every denoising step, anew at each.
"""

from __future__ import annotations

import copy
import os
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from threading import Lock
from typing import Any

import torch
from diffusers.models.attention_processor import Attention
from torch.utils.weak import WeakTensorKeyDictionary

from studiolo.diffusion.compiling import is_compiled
from studiolo.diffusion.components import Components

_installing = Lock()
if hasattr(os, "register_at_fork"):
    os.register_at_fork(after_in_child=_installing._at_fork_reinit)  # type: ignore[attr-defined]


class _Remembering:
    """A projection that computes what it makes of a tensor once, and keeps it for as long as that lives."""

    def __init__(self, project: Callable[[torch.Tensor], torch.Tensor]) -> None:
        self._project = project
        self._made = WeakTensorKeyDictionary()

    def __call__(self, text: torch.Tensor) -> torch.Tensor:
        if torch.is_grad_enabled():
            return self._project(text)
        made = self._made.get(text)
        if made is None:
            made = self._made[text] = self._project(text)
        return made

    def __deepcopy__(self, memo: dict[int, Any]) -> Any:
        """A network that is copied meanwhile gets the projection alone, its own."""
        return copy.deepcopy(self._project, memo)


@contextmanager
def text_read_once(denoiser: Any) -> Iterator[None]:
    """Within, cross-attention projects each tensor of text once, adapters and all; the weights stand still.

    Others may draw with the same network meanwhile: who comes first remembers for all, until they leave. A
    transformer that carries the text along from block to block (SD3) has nothing to remember, and compiled
    blocks are left as they are.
    """
    with _installing:
        free = (
            [] if is_compiled(denoiser) else [p for p in _projections(denoiser) if "forward" not in vars(p)]
        )
        for projection in free:
            projection.forward = _Remembering(projection.forward)
    try:
        yield
    finally:
        for projection in free:
            del projection.forward


def kept_bytes(components: Components) -> int:
    """What a row keeps of its text, in the denoiser's own float type."""
    tokens = components.family.lengths(components.tokenizers)[0]
    width = sum(projection.out_features for projection in _projections(components.denoiser))
    return width * tokens * components.denoiser.dtype.itemsize


def _projections(denoiser: Any) -> list[Any]:
    readers = [m for m in denoiser.modules() if isinstance(m, Attention) and m.is_cross_attention]
    return [projection for reader in readers for projection in (reader.to_k, reader.to_v)]

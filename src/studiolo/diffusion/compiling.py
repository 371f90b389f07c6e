"""Compiled denoisers (torch.compile), for training and for drawing."""

from __future__ import annotations

import torch

from studiolo.errors import StudioloError

_BLOCKS = {"BasicTransformerBlock", "ResnetBlock2D", "JointTransformerBlock"}


def compile_blocks(denoiser: torch.nn.Module) -> None:
    """Compiles the blocks that make up the denoiser, each kind once for each of its shapes.

    Not the whole: that takes minutes more, and PyTorch 2.13 then gives wrong gradients of a U-Net on CPUs.

    Raises StudioloError where there is no C++ compiler, which the first call on a CPU would need.
    """
    if next(denoiser.parameters()).device.type == "cpu":
        _check_compiler()
    torch._dynamo.config.recompile_limit = 64  # shapes of one kind of block; the default is for one or two
    for block in denoiser.modules():
        if type(block).__name__ in _BLOCKS:
            block.compile()


def _check_compiler() -> None:
    from torch._inductor.cpp_builder import get_cpp_compiler  # takes a second or two
    from torch._inductor.exc import InvalidCxxCompiler

    try:
        get_cpp_compiler()
    except InvalidCxxCompiler as error:
        raise StudioloError(
            "there is no C++ compiler", where="compile", remedy="Install g++, or do not compile."
        ) from error


def is_compiled(denoiser: torch.nn.Module) -> bool:
    """Whether any block is."""
    return any(block._compiled_call_impl is not None for block in denoiser.modules())

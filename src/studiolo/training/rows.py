"""Rows of a batch on threads of their own, forward and back: how a CPU trains a small network.

See `studiolo.diffusion.threads`, which does the same for drawing.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from contextlib import AbstractContextManager, contextmanager
from functools import partial
from typing import Any

import torch
from torch.autograd.function import once_differentiable

from studiolo.diffusion.conditioning import Conditioning
from studiolo.diffusion.threads import MOST, best_sharing, equal_parts, on_threads, several_processes

Predict = Callable[[torch.Tensor, torch.Tensor, Conditioning], torch.Tensor]
"""(noisy latents, times, conditioning) -> prediction, all of the same rows."""

_SPARE = 256 << 20
"""Bytes for further copies of the gradients: each thread has its own, and they are added in order."""


def threads_for(network: torch.nn.Module, rows: int) -> int:
    """How many threads may share `rows` of this network out; 1 where these have to stay together.

    So they do on a GPU, where several processes train, where layers drop out (threads would take their random
    numbers in any order), compiled or checkpointed blocks, and networks whose gradients would not fit in
    `_SPARE`: those compute long enough at a time.
    """
    on_cpu = next(network.parameters()).device.type == "cpu"
    if not on_cpu or several_processes() or any(map(_bound, network.modules())):
        return 1
    copies = _SPARE // max(1, _gradient_bytes(network))
    return best_sharing(rows, torch.get_num_threads(), min(MOST, 1 + copies))


def copied_bytes(network: torch.nn.Module, rows: int, accumulate: int = 1) -> int:
    """What the threads' own gradients take, beside those that a step makes anyway.

    All are there before any is added to those of the micro-batches before.
    """
    threads = threads_for(network, rows)
    copies = threads - 1 + (accumulate > 1) if threads > 1 else 0
    return copies * _gradient_bytes(network)


def _gradient_bytes(network: torch.nn.Module) -> int:
    return sum(p.nbytes for p in network.parameters() if p.requires_grad)


def _bound(layer: Any) -> bool:
    dropping = isinstance(layer, torch.nn.modules.dropout._DropoutNd) and layer.training and layer.p > 0
    return (
        dropping or layer._compiled_call_impl is not None or getattr(layer, "gradient_checkpointing", False)
    )


def predict_on_threads(
    predict: Predict,
    noisy: torch.Tensor,
    times: torch.Tensor,
    conditioning: Conditioning,
    parameters: Sequence[torch.nn.Parameter],
    threads: int,
) -> torch.Tensor:
    """`predict` of all B rows, by so many threads; `parameters` are those that it has gradients for.

    Differentiable once, in these and in the conditioning. Deterministic: gradients are added in the order of
    the rows.
    """
    if threads == 1 or not torch.is_grad_enabled():
        return predict(noisy, times, conditioning)
    told = (conditioning.tokens, conditioning.pooled, conditioning.sizes, conditioning.guidance)
    return _Shared.apply(predict, threads, noisy, times, *told, *parameters)


class _Shared(torch.autograd.Function):
    """Inputs: predict, threads, noisy, times, the four of Conditioning, and the parameters."""

    @staticmethod
    def forward(
        ctx: Any, predict: Predict, threads: int, noisy: torch.Tensor, times: torch.Tensor, *others: Any
    ) -> torch.Tensor:
        told, ctx.parameters, ctx.threads = others[:4], others[4:], threads
        parts, calls = equal_parts(len(noisy), threads), []
        ctx.told = []
        """What each part is told, as leaves of its own graph."""
        for rows in parts:
            ctx.told.append(
                [
                    None if tensor is None else tensor[rows].detach().requires_grad_(wanted)
                    for tensor, wanted in zip(told, ctx.needs_input_grad[4:8], strict=True)
                ]
            )
            calls.append(partial(predict, noisy[rows], times[rows], Conditioning(*ctx.told[-1])))
        ctx.predictions = on_threads(calls, threads, _as_here())
        return torch.cat([prediction.detach() for prediction in ctx.predictions])

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, gradient: torch.Tensor) -> tuple[torch.Tensor | None, ...]:
        gradients = gradient.split([len(prediction) for prediction in ctx.predictions])
        calls = [
            partial(_gradients, prediction, [*told, *ctx.parameters], part)
            for prediction, told, part in zip(ctx.predictions, ctx.told, gradients, strict=True)
        ]
        found = on_threads(calls, ctx.threads, _as_here())
        ctx.predictions = ctx.told = None  # their graphs go
        by_input = list(zip(*found, strict=True))
        told = [None if None in rows else torch.cat(rows) for rows in by_input[:4]]
        return (*[None] * 4, *told, *map(_sum, by_input[4:]))


def _gradients(
    prediction: torch.Tensor, inputs: Sequence[torch.Tensor | None], gradient: torch.Tensor
) -> list[torch.Tensor | None]:
    wanted = [tensor for tensor in inputs if tensor is not None and tensor.requires_grad]
    found = dict(
        zip(wanted, torch.autograd.grad(prediction, wanted, gradient, allow_unused=True), strict=True)
    )
    return [None if tensor is None else found.get(tensor) for tensor in inputs]


def _sum(gradients: Sequence[torch.Tensor | None]) -> torch.Tensor | None:
    there = [gradient for gradient in gradients if gradient is not None]
    return sum(there[1:], start=there[0]) if there else None  # not in place: two inputs may share a gradient


def _as_here() -> Callable[[], AbstractContextManager[None]]:
    """Autograd, and the autocast of this thread, whose cast weights all threads share."""
    enabled, dtype = torch.is_autocast_enabled("cpu"), torch.get_autocast_dtype("cpu")

    @contextmanager
    def within() -> Iterator[None]:
        with torch.enable_grad(), torch.autocast("cpu", dtype, enabled=enabled):
            yield

    return within

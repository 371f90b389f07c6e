"""Fully sharded training (FSDP2): each process keeps a part of every weight, gradient and moment.

A layer's weights are gathered for its forward and backward pass and let go again (Zhao et al. 2023). Names
of parameters stay; the parameters become `DTensor`s. Without such tensors all functions here do what their
plain counterparts do.
"""

from __future__ import annotations

import math
from collections.abc import Iterable, Sequence
from typing import Any

import torch
from torch.distributed.tensor import DTensor, distribute_tensor


def shard(module: Any, mesh: Any, *, bf16: bool = False) -> None:
    """Shares the weights of a network of diffusers or transformers out over `mesh`, in place.

    Its blocks, as the network names them, are gathered one at a time; `bf16` computes in bfloat16.
    """
    from torch.distributed.fsdp import MixedPrecisionPolicy, fully_shard

    policy = MixedPrecisionPolicy(torch.bfloat16, torch.float32) if bf16 else MixedPrecisionPolicy()
    blocks = set(getattr(module, "_no_split_modules", None) or ())
    # From the inside out: what an inner block takes, an outer one leaves alone.
    for part in reversed(list(module.modules())):
        if type(part).__name__ in blocks:
            fully_shard(part, mesh=mesh, mp_policy=policy)
    # What is left stays gathered: some of it is read apart from the network's own forward pass.
    fully_shard(module, mesh=mesh, mp_policy=policy, reshard_after_forward=False)


def average_gradients(parameters: Iterable[torch.nn.Parameter]) -> None:
    """Has gradients of parameters that every process keeps whole averaged over all of them."""
    for parameter in parameters:
        parameter.register_hook(_mean_over_processes)


def _mean_over_processes(gradient: torch.Tensor) -> torch.Tensor:
    summed = gradient.clone()
    torch.distributed.all_reduce(summed)
    return summed / torch.distributed.get_world_size()


def whole(tensor: torch.Tensor) -> torch.Tensor:
    """The full tensor; of a shared one every process has to ask."""
    return tensor.full_tensor() if isinstance(tensor, DTensor) else tensor


def like(tensor: torch.Tensor, other: torch.Tensor) -> torch.Tensor:
    """A full `tensor` on the device of `other`, and shared out as it is; always a copy."""
    if not isinstance(other, DTensor) or isinstance(tensor, DTensor):
        return tensor.to(other.device, copy=True)
    return distribute_tensor(tensor.to(other.device), other.device_mesh, other.placements)


@torch.no_grad()
def clip_gradients(parameters: Sequence[torch.nn.Parameter], limit: float) -> torch.Tensor:
    """Scales all gradients down so that their norm together is at most `limit`; the norm before that."""
    having = [parameter for parameter in parameters if parameter.grad is not None]
    shared = [parameter for parameter in having if isinstance(parameter.grad, DTensor)]
    own = [parameter for parameter in having if not isinstance(parameter.grad, DTensor)]
    groups = [group for group in (shared, own) if group]  # PyTorch takes one kind at a time
    gradients = [[p.grad for p in group if p.grad is not None] for group in groups]
    norms = [whole(torch.nn.utils.get_total_norm(some)) for some in gradients]
    norm = norms[0] if len(norms) == 1 else torch.stack(norms).norm()
    if limit < math.inf:
        for group in groups:
            torch.nn.utils.clip_grads_with_norm_(group, limit, norm)
    return norm.detach()

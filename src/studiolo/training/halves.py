"""Frozen weights in half precision, while what is trained is float32.

Mixed precision (Micikevicius et al. 2018) casts the weights of linear and convolutional layers to half
precision for each product. Those that never change can as well be kept so: the products are the same, bit for
bit, and the weights take half the room.
"""

from __future__ import annotations

import weakref
from collections.abc import Callable, MutableMapping
from typing import Any

import torch
from torch import nn
from torch.utils.weak import WeakTensorKeyDictionary

HALVES = {"bf16-mixed": torch.bfloat16, "16-mixed": torch.float16}
"""The float type of the products of a mixed precision, by Lightning's name for it."""

_known: MutableMapping[torch.Tensor, weakref.ref[nn.Parameter]] = WeakTensorKeyDictionary()
"""The halves of parameters."""


def halve(network: nn.Module, dtype: torch.dtype, *, frozen: bool = True) -> None:
    """Keeps the linear and convolutional layers of `network` in `dtype`, in place: the frozen ones, or all.

    Under autocast to `dtype` the network computes what it did. Elsewhere these layers compute in `dtype`
    what comes to them in float32, and give float32 back. Parameters are replaced, not changed: who shares
    them keeps the float32 ones; and who halves a parameter that two share, shares its half.
    """
    for layer in network.modules():
        if type(layer) in _HALVED and not (frozen and any(p.requires_grad for p in layer.parameters())):
            layer.__class__ = _HALVED[type(layer)]
            for name, parameter in list(layer.named_parameters(recurse=False)):
                setattr(layer, name, _half(parameter, dtype))


def make_whole(network: nn.Module, original: nn.Module) -> None:
    """Gives the layers that `halve` halved the parameters of `original` again, in place.

    `original` is the network as it was before; peft's layers need not be in it.
    """
    wholes = {half: whole for whole, half in _HALVED.items()}
    for name, layer in network.named_modules():
        if type(layer) in wholes:
            layer.__class__ = wholes[type(layer)]
            known = original.get_submodule(name.removesuffix(".base_layer"))
            device = next(layer.parameters()).device
            for key, parameter in known.named_parameters(recurse=False):
                setattr(layer, key, nn.Parameter(parameter.detach().to(device), requires_grad=False))


def is_halved(network: nn.Module) -> bool:
    """Whether `halve` has found anything in `network`."""
    return any(type(layer) in _HALVED.values() for layer in network.modules())


def _half(parameter: nn.Parameter, dtype: torch.dtype) -> nn.Parameter:
    known = _known[parameter]() if parameter in _known else None
    if known is None or known.dtype != dtype:
        known = nn.Parameter(parameter.detach().to(dtype), requires_grad=False)
        _known[parameter] = weakref.ref(known)  # as long as anybody has it
    return known


class _HalfLinear(nn.Linear):
    def forward(self, input: torch.Tensor) -> torch.Tensor:  # noqa: A002  (its name in PyTorch)
        return _in_half(self, super().forward, input)


class _HalfConv2d(nn.Conv2d):
    def forward(self, input: torch.Tensor) -> torch.Tensor:  # noqa: A002
        return _in_half(self, super().forward, input)


_HALVED: dict[type, Any] = {nn.Linear: _HalfLinear, nn.Conv2d: _HalfConv2d}


def _in_half(
    layer: Any, compute: Callable[[torch.Tensor], torch.Tensor], value: torch.Tensor
) -> torch.Tensor:
    kind = value.device.type
    if torch.amp.is_autocast_available(kind) and torch.is_autocast_enabled(kind):  # it sees to it itself
        return compute(value)
    return compute(value.to(layer.weight.dtype)).to(value.dtype)

"""Muon: momentum whose matrices are made orthogonal before they move the weights.

Jordan et al. 2024, https://kellerjordan.github.io/posts/muon/; the size of the steps as in Liu et al. 2025,
"Muon is Scalable for LLM Training" (arXiv 2502.16982), section 2.2. `torch.optim.Muon` takes matrices
only, and most of a U-Net's weights are kernels of convolutions.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable
from typing import Any

import torch
from torch import Tensor, nn

_NEWTON_SCHULZ = (3.4445, -4.7750, 2.0315)
"""The quintic a x + b x^3 + c x^5 that brings singular values near 1 in few steps (Jordan et al. 2024)."""
_ROUNDS = 5


class Muon(torch.optim.Optimizer):
    """Muon for `matrices` (two axes or more, flattened to [out, rest]), AdamW for `others`.

    Args:
        matrices: weights of linear layers and convolutions.
        others: biases, norms, embeddings, first and last layers.
        lr: rate of the matrices; a step moves each entry by about 0.2 lr.
        others_lr: rate of AdamW for the others.
        momentum: of the matrices' Nesterov momentum.
        betas: AdamW's.
        weight_decay: decoupled, for both.
    """

    def __init__(
        self,
        matrices: Iterable[nn.Parameter],
        others: Iterable[nn.Parameter],
        lr: float,
        others_lr: float,
        momentum: float = 0.95,
        betas: tuple[float, float] = (0.9, 0.99),
        weight_decay: float = 0.01,
    ) -> None:
        groups: list[dict[str, Any]] = [
            {"params": [*matrices], "lr": lr, "momentum": momentum},
            {"params": [*others], "lr": others_lr, "betas": betas},
        ]
        super().__init__(groups, {"weight_decay": weight_decay})

    @torch.no_grad()
    def step(self, closure: Callable[[], Any] | None = None) -> Any:
        loss = None
        if closure is not None:
            with torch.enable_grad():
                loss = closure()
        for group in self.param_groups:
            move = self._orthogonal if "momentum" in group else self._adam
            for parameter in group["params"]:
                if parameter.grad is not None:
                    parameter.mul_(1 - group["lr"] * group["weight_decay"])
                    move(parameter, parameter.grad, group)
        return loss

    def _orthogonal(self, parameter: nn.Parameter, gradient: Tensor, group: dict[str, Any]) -> None:
        state = self.state[parameter]
        average = state.setdefault("momentum", torch.zeros_like(parameter))
        average.lerp_(gradient, 1 - group["momentum"])
        update = orthogonalised(gradient.lerp(average, group["momentum"]).flatten(1))
        scale = 0.2 * max(update.shape) ** 0.5  # entries about as large as AdamW's steps are
        parameter.add_(update.view_as(parameter), alpha=-group["lr"] * scale)

    def _adam(self, parameter: nn.Parameter, gradient: Tensor, group: dict[str, Any]) -> None:
        state = self.state[parameter]
        first = state.setdefault("first", torch.zeros_like(parameter))
        second = state.setdefault("second", torch.zeros_like(parameter))
        state["step"] = state.get("step", 0) + 1
        fast, slow = group["betas"]
        first.lerp_(gradient, 1 - fast)
        second.lerp_(gradient.square(), 1 - slow)
        spread = (second / (1 - slow ** state["step"])).sqrt_().add_(1e-8)
        parameter.addcdiv_(first, spread, value=-group["lr"] / (1 - fast ** state["step"]))


def orthogonalised(matrix: Tensor) -> Tensor:
    """[M, N] with the same singular vectors and all singular values that are not tiny in about [0.7, 1.2]."""
    if matrix.shape[0] > matrix.shape[1]:
        return orthogonalised(matrix.mT).mT
    a, b, c = _NEWTON_SCHULZ
    x = (matrix / (matrix.norm() + 1e-7)).bfloat16()
    for _ in range(_ROUNDS):
        gram = x @ x.mT
        x = a * x + (b * gram + c * gram @ gram) @ x
    return x.to(matrix.dtype)

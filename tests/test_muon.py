"""The base model's optimizer against torch's own Muon and AdamW, and against the singular values."""

from __future__ import annotations

import pytest
import torch

from studiolo.base.muon import Muon, orthogonalised


def _weights(*shapes: tuple[int, ...]) -> list[torch.nn.Parameter]:
    generator = torch.Generator().manual_seed(0)
    return [torch.nn.Parameter(torch.randn(shape, generator=generator)) for shape in shapes]


def _steps(optimizer: torch.optim.Optimizer, weights: list[torch.nn.Parameter], count: int = 5) -> None:
    """Some steps along gradients that are a function of the weights and the step."""
    for step in range(count):
        for weight in weights:
            weight.grad = torch.sin(weight.detach() * (step + 1)) + 0.1
        optimizer.step()


@pytest.mark.parametrize("shape", [(16, 16), (8, 40), (40, 8)])
def test_matrices_move_as_with_torchs_own_muon(shape: tuple[int, int]) -> None:
    ours, theirs = _weights(shape), _weights(shape)
    _steps(Muon(ours, [], lr=0.01, others_lr=0, weight_decay=0.1), ours)
    _steps(torch.optim.Muon(theirs, lr=0.01, weight_decay=0.1, adjust_lr_fn="match_rms_adamw"), theirs)
    torch.testing.assert_close(ours[0], theirs[0], rtol=0, atol=2e-3)


def test_a_kernel_moves_as_the_matrix_of_its_rows() -> None:
    kernel, (matrix,) = _weights((8, 4, 3, 3)), _weights((8, 36))
    _steps(Muon(kernel, [], lr=0.01, others_lr=0), kernel)
    _steps(Muon([matrix], [], lr=0.01, others_lr=0), [matrix])
    assert torch.equal(kernel[0].flatten(1), matrix)


def test_the_others_move_as_with_adamw() -> None:
    ours, theirs = _weights((7,), (3, 2)), _weights((7,), (3, 2))
    _steps(Muon([], ours, lr=0, others_lr=0.01, weight_decay=0.1), ours)
    _steps(torch.optim.AdamW(theirs, lr=0.01, betas=(0.9, 0.99), weight_decay=0.1), theirs)
    torch.testing.assert_close(ours, theirs)


@pytest.mark.parametrize("shape", [(24, 24), (16, 200), (200, 16)])
def test_singular_vectors_stay_and_values_come_near_one(shape: tuple[int, int]) -> None:
    (matrix,) = _weights(shape)
    left, values, right = torch.linalg.svd(matrix.detach(), full_matrices=False)
    after = left.T @ orthogonalised(matrix.detach()) @ right.T
    large = values > 0.05 * values.max()
    assert ((after.diagonal()[large] > 0.6) & (after.diagonal()[large] < 1.3)).all()
    assert (after - after.diagonal().diag()).abs().max() < 0.1


def test_no_direction_at_all_is_no_movement_and_no_nan() -> None:
    assert torch.equal(orthogonalised(torch.zeros(4, 9)), torch.zeros(4, 9))
    flat = orthogonalised(torch.ones(8, 50))  # of rank one
    assert torch.isfinite(flat).all()
    assert flat.norm() < 1.3

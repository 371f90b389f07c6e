"""Optimizers and schedules against those of other libraries; every optimizer goes on exactly."""

from __future__ import annotations

import io
import itertools

import pytest
import torch
from diffusers.optimization import get_scheduler
from transformers import Adafactor

from studiolo.errors import StudioloError
from studiolo.training.optimizers import ParameterGroup, found_rate, make_optimizer, rate_factor

NAMES = ["adamw", "adamw8bit", "adafactor", "prodigy"]


def parameters() -> list[torch.nn.Parameter]:
    """One large enough for 8-bit moments, one that is not, one that begins at zero as an adapter's B does."""
    generator = torch.Generator().manual_seed(0)
    return [
        torch.nn.Parameter(torch.randn(96, 64, generator=generator)),
        torch.nn.Parameter(torch.randn(10, generator=generator)),
        torch.nn.Parameter(torch.zeros(64, 8)),
    ]


def optimizer(name: str, params: list[torch.nn.Parameter]) -> torch.optim.Optimizer:
    rate = 1.0 if name == "prodigy" else 1e-2
    groups = [ParameterGroup("unet", params[:1], rate, 0.01), ParameterGroup("text", params[1:], rate, 0.0)]
    return make_optimizer(name, groups)


def take_step(params: list[torch.nn.Parameter], chosen: torch.optim.Optimizer, step: int) -> None:
    generator = torch.Generator().manual_seed(step + 1)
    for param in params:
        param.grad = param.detach() + torch.randn(param.shape, generator=generator)
    chosen.step()


@pytest.mark.parametrize("name", NAMES)
def test_an_optimizer_read_back_goes_on_exactly(name):
    if name == "adamw8bit":
        pytest.importorskip("bitsandbytes")
    params = parameters()
    chosen = optimizer(name, params)
    for step in range(3):
        take_step(params, chosen, step)
    file = io.BytesIO()
    torch.save(chosen.state_dict(), file)
    copies = [torch.nn.Parameter(param.detach().clone()) for param in params]
    other = optimizer(name, copies)
    file.seek(0)
    other.load_state_dict(torch.load(file, weights_only=True))
    for step in range(3, 6):
        take_step(params, chosen, step)
        take_step(copies, other, step)
    assert all(torch.equal(one, two) for one, two in zip(params, copies, strict=True))
    assert not torch.equal(params[0], parameters()[0])


def test_eight_bits_are_close_to_adamw_and_a_fraction_of_its_state():
    pytest.importorskip("bitsandbytes")
    params, exact = parameters(), parameters()
    eight, whole = optimizer("adamw8bit", params), optimizer("adamw", exact)
    for step in range(10):
        take_step(params, eight, step)
        take_step(exact, whole, step)
    moved = (exact[0] - parameters()[0]).norm()
    assert (params[0] - exact[0]).norm() < 0.05 * moved
    kept = [sum(t.nbytes for t in chosen.state[p[0]].values() if isinstance(t, torch.Tensor) and t.ndim)
            for chosen, p in ((eight, params), (whole, exact))]  # fmt: skip
    tables = 2 * 4 * 256  # bitsandbytes counts its two maps of codes to each parameter, and shares them
    assert kept[0] - tables < 0.3 * kept[1]


def test_adafactor_follows_that_of_transformers():
    params, theirs = parameters()[:1], parameters()[:1]
    mine = make_optimizer("adafactor", [ParameterGroup("unet", params, 1e-3, 0.0)])
    other = Adafactor(theirs, lr=1e-3, scale_parameter=True, relative_step=False, weight_decay=0.0)
    for step in range(5):
        take_step(params, mine, step)
        take_step(theirs, other, step)
    moved = (theirs[0] - parameters()[0]).norm()
    assert (params[0] - theirs[0]).norm() < 0.05 * moved


def test_prodigy_finds_a_rate_by_itself():
    params = parameters()
    chosen = optimizer("prodigy", params)
    start = found_rate(chosen)
    for step in range(50):
        for param in params:
            param.grad = param.detach() - 1
        chosen.step()
        if step == 0:
            first = sum((param - 1).square().mean() for param in params)
    assert found_rate(chosen) > 100 * start
    assert sum((param - 1).square().mean() for param in params) < first
    assert found_rate(optimizer("adamw", parameters())) == 1


def test_prodigy_takes_one_rate():
    params = parameters()
    with pytest.raises(StudioloError, match="prodigy finds one rate"):
        make_optimizer(
            "prodigy", [ParameterGroup("a", params[:1], 1.0, 0), ParameterGroup("b", params[1:], 0.1, 0)]
        )


def test_an_optimizer_that_is_not_installed_is_told(monkeypatch):
    monkeypatch.setitem(__import__("sys").modules, "bitsandbytes.optim", None)
    with pytest.raises(StudioloError, match="not installed"):
        optimizer("adamw8bit", parameters())


@pytest.mark.parametrize(
    ("schedule", "theirs", "settings", "options"),
    [
        ("constant", "constant", {}, {}),
        ("linear", "linear", {}, {}),
        ("cosine", "cosine", {}, {}),
        ("cosine_restarts", "cosine_with_restarts", {"num_cycles": 3}, {"cycles": 3}),
        ("polynomial", "polynomial", {"power": 2.0}, {"power": 2.0}),
    ],
)
def test_schedules_are_those_of_diffusers(schedule, theirs, settings, options):
    chosen = torch.optim.SGD([torch.nn.Parameter(torch.zeros(1))], lr=1.0)
    reference = get_scheduler(theirs, chosen, num_warmup_steps=0, num_training_steps=30, **settings)
    for step in range(30):
        expected = chosen.param_groups[0]["lr"]
        assert rate_factor(schedule, step, 30, **options) == pytest.approx(expected, abs=1e-5), step
        chosen.step()
        reference.step()


@pytest.mark.parametrize(
    ("schedule", "warmup"),
    list(itertools.product(["constant", "linear", "cosine", "cosine_restarts", "polynomial"], [0, 5])),
)
def test_schedules_stay_in_bounds_and_begin_with_the_warm_up(schedule, warmup):
    factors = [rate_factor(schedule, step, 20, warmup=warmup, cycles=2, power=3) for step in range(20)]
    assert all(0 < factor <= 1 for factor in factors)
    assert factors[:warmup] == pytest.approx([(step + 1) / (warmup + 1) for step in range(warmup)])
    assert factors[warmup] == 1

"""A CPU trains rows on threads of their own: the same losses and gradients, always in the same order."""

from __future__ import annotations

import gc
import weakref

import pytest
import torch
from peft import LoraConfig

import test_teaching_families as families
from studiolo.diffusion.conditioning import Conditioning, encode_prompts
from studiolo.diffusion.threads import torch_threads
from studiolo.dreambooth import personalize
from studiolo.training.rows import copied_bytes, predict_on_threads, threads_for
from test_parts import CHOICES, fit, loss_and_gradients, module_of, quick
from tiny import tiny_components


@pytest.fixture(params=[2, 4])
def threads(request):
    with torch_threads(request.param):
        yield request.param


def learned(recipe, family):
    """The loss and the gradients of a step."""
    if family is None:
        return loss_and_gradients(module_of(recipe))
    components = families.TINY[family]()
    module = families.make_module(components, recipe)
    loss = module.training_step(families.make_batches(components, recipe)[0], 0)["loss"]
    loss.backward()
    return loss.item(), {n: p.grad for n, p in module.named_parameters() if p.grad is not None}


def alone(recipe, family):
    """The same from one call with all rows."""
    with torch_threads(1):
        return learned(recipe, family)


@pytest.mark.parametrize(
    ("name", "family"), [(name, None) for name in CHOICES] + [("full", "sdxl"), ("full", "sd3")]
)
def test_loss_and_gradients_are_those_of_one_call(name, family, threads, monkeypatch):
    recipe = quick(**CHOICES[name], batch_size=2)
    loss, expected = alone(recipe, family)
    shares = spied(monkeypatch)
    found, gradients = learned(recipe, family)
    assert shares == [threads]
    assert found == pytest.approx(loss, rel=1e-5)
    assert gradients.keys() == expected.keys()
    for key in expected:
        torch.testing.assert_close(gradients[key], expected[key], rtol=1e-3, atol=1e-6)
    again, same = learned(recipe, family)
    assert again == found
    assert all(torch.equal(gradients[key], same[key]) for key in expected)  # whichever thread is first


def spied(monkeypatch):
    """The number of threads of each step."""
    shares = []

    def predict(*arguments):
        shares.append(arguments[-1])
        return predict_on_threads(*arguments)

    monkeypatch.setattr(personalize, "predict_on_threads", predict)
    return shares


@pytest.mark.parametrize("precision", ["32-true", "bf16-mixed"])
def test_trainings_agree_and_repeat(precision, threads, monkeypatch):
    shares = spied(monkeypatch)
    recipe = quick(batch_size=2, accumulate=2, precision=precision)

    def trained():
        module = module_of(recipe)
        fit(module)
        return module.state_dict()

    several, again = trained(), trained()
    assert set(shares) == {threads}
    assert all(torch.equal(several[key], again[key]) for key in several)
    with torch_threads(1):
        whole = trained()
    # AdamW moves a weight whose gradient is nothing but rounding by whole steps of the rate: few are so
    moved = torch.cat([(whole[key].float() - several[key].float()).abs().flatten() for key in whole])
    assert moved.mean() < (2e-5 if precision == "32-true" else 1e-3)


def test_where_rows_stay_together(threads):
    unet = tiny_components().denoiser
    assert threads_for(unet, 8) == threads
    assert threads_for(unet, 1) == 1
    unet.enable_gradient_checkpointing()
    assert threads_for(unet, 8) == 1
    unet.disable_gradient_checkpointing()
    unet.add_adapter(LoraConfig(r=2, target_modules=["to_q"], lora_dropout=0.1))
    assert threads_for(unet.train(), 8) == 1
    assert threads_for(unet.eval(), 8) == threads


def test_gradients_have_a_limit(threads, monkeypatch):
    unet = tiny_components().denoiser
    size = sum(p.nbytes for p in unet.parameters())
    assert copied_bytes(unet, 8) == (threads - 1) * size
    monkeypatch.setattr("studiolo.training.rows._SPARE", size)
    assert threads_for(unet, 8) == 2
    monkeypatch.setattr("studiolo.training.rows._SPARE", size - 1)
    assert (threads_for(unet, 8), copied_bytes(unet, 8)) == (1, 0)


@pytest.mark.parametrize("shape", [(3,), ()])
def test_inputs_that_share_a_gradient_have_it_each(shape, threads):
    a, b = (torch.nn.Parameter(torch.ones(shape)) for _ in range(2))
    noisy = torch.ones(4, 3)
    told = Conditioning(torch.ones(4, 1, 1, requires_grad=True))
    given = noisy, noisy[:, 0], told, [a, b], threads
    predict_on_threads(lambda n, *_: n * (a + b).sum(), *given).sum().backward()
    assert torch.equal(a.grad, torch.full(shape, 12.0))
    assert torch.equal(b.grad, a.grad)
    assert told.tokens.grad is None


def test_without_gradients_nothing_is_kept(threads):
    asked = []

    def predict(noisy, *_):
        asked.append((len(noisy), torch.is_grad_enabled()))
        return noisy

    told = Conditioning(torch.ones(4, 1))
    with torch.no_grad():
        predict_on_threads(predict, torch.ones(4, 3), torch.zeros(4), told, [], threads)
    assert asked == [(4, False)]


def test_graphs_go_with_the_way_back(threads):
    kept = []

    def predict(noisy, times, told):
        prediction = noisy * weight
        kept.append(weakref.ref(prediction))  # which holds its graph
        return prediction

    weight = torch.nn.Parameter(torch.ones(3))
    given = torch.ones(4, 3), torch.zeros(4), Conditioning(torch.ones(4, 1))
    loss = predict_on_threads(predict, *given, [weight], threads).sum()
    assert None not in [prediction() for prediction in kept]
    loss.backward()
    gc.collect()
    assert [prediction() for prediction in kept] == [None] * threads


def test_an_error_in_a_thread_is_the_steps_own(threads):
    def fails(*_):
        raise ZeroDivisionError

    components = tiny_components()
    told = encode_prompts(components, ["a fox", "a dog", "snow", "a cat"])
    with pytest.raises(ZeroDivisionError):
        predict_on_threads(fails, torch.randn(4, 4, 8, 8), torch.zeros(4), told, [], threads)

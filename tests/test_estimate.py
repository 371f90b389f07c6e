"""Estimates against what outside observers see: the memory profiler of torch, and a run that took place."""

from __future__ import annotations

import io
import json
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace

import pytest
import torch
from rich.console import Console
from torch.profiler import ProfilerActivity, profile
from torch.testing._internal.distributed.fake_pg import FakeStore
from typer.testing import CliRunner

from lessons import QUICK, lesson, teach
from studiolo.cli.main import app
from studiolo.dreambooth import estimate as estimating
from studiolo.dreambooth import forecast, teaching
from studiolo.dreambooth.memory import Memory, _inputs, _MicroBatch, estimate_memory
from studiolo.dreambooth.parts import left_alone
from studiolo.dreambooth.personalize import Personalization
from studiolo.dreambooth.prior import ClassImageSet
from studiolo.dreambooth.progress import Display
from studiolo.dreambooth.recipe import Recipe
from studiolo.dreambooth.run import Run
from studiolo.dreambooth.trainer import prepare, train
from tiny_families import TINY

PRECISIONS = "32-true", "bf16-mixed"
RATES = {"learning_rate": 1e-4, "text_learning_rate": 1e-4}


@pytest.fixture(scope="module")
def given(tmp_path_factory) -> dict[str, Path]:
    return lesson(tmp_path_factory.mktemp("lesson"))


def profiled_peak(module: torch.nn.Module, inputs: tuple) -> float:
    """Most bytes that torch's CPU allocator had given out at one moment, above what it had before."""
    with profile(activities=[ProfilerActivity.CPU], profile_memory=True) as seen:
        module(*inputs)
    totals = [
        event.extra_fields.total_allocated
        for event in _flat(seen.profiler.kineto_results.experimental_event_tree())
        if event.name == "[memory]"
    ]
    changes = [
        event.extra_fields.alloc_size
        for event in _flat(seen.profiler.kineto_results.experimental_event_tree())
        if event.name == "[memory]"
    ]
    return max(totals) - (totals[0] - changes[0])


def _flat(events):
    found = []
    todo = list(events)
    while todo:
        event = todo.pop()
        found.append(event)
        todo += event.children
    return sorted(found, key=lambda event: event.start_time_ns)


@pytest.mark.usefixtures("one_thread")  # what the others take beside it: test_rows.py
@pytest.mark.parametrize(
    ("family", "settings"),
    [
        ("sd1", {}),
        ("sd1", {"batch_size": 7, "prior_weight": 0}),
        ("sd1", {"train_text_encoder": False}),
        ("sd1", {"gradient_checkpointing": True}),
        ("sd1", {"adapter": {"kind": "lora", "rank": 4}}),
        ("sd1", {"precision": "bf16-mixed"}),
        ("sd1", {"precision": "bf16-mixed", "adapter": {"kind": "lora", "rank": 4}}),
        ("sdxl", {}),
        ("sd3", {}),
    ],
    ids=str,
)
def test_the_memory_of_a_step_is_what_the_allocator_gives_out(family, settings):
    recipe = Recipe().with_values(RATES | settings)
    components = TINY[family]()
    module = Personalization(components, recipe, ["a fox"], [], None)
    expected = estimate_memory(module, components, recipe)
    count = recipe.batch_size * (2 if recipe.prior_weight else 1)
    dtype = torch.bfloat16 if recipe.precision == "bf16-mixed" else None
    with torch.autocast("cpu", dtype, enabled=dtype is not None):
        taken = profiled_peak(_MicroBatch(module), _inputs(components, recipe, count)) / 2**20
    assert expected.step == pytest.approx(taken, rel=0.05)


@pytest.fixture
def four_processes() -> Iterator[torch.distributed.device_mesh.DeviceMesh]:
    """The mesh of the first of four processes, the others of which are not there: nothing is exchanged."""
    torch.distributed.init_process_group("fake", rank=0, world_size=4, store=FakeStore())
    try:
        yield torch.distributed.device_mesh.init_device_mesh("cpu", (4,), mesh_dim_names=("data_parallel",))
    finally:
        torch.distributed.destroy_process_group()


@pytest.mark.parametrize(
    ("family", "settings"),
    [("sd1", {}), ("sd1", {"train_text_encoder": False}), ("sdxl", {}), ("sd3", {})],
    ids=str,
)
def test_of_what_is_shared_out_a_process_has_its_part(family, settings, four_processes):
    """Against a module that torch has shared out, and the bytes that a step of it takes."""
    alone = Recipe().with_values(RATES | {"batch_size": 1, "prior_weight": 0} | settings)
    recipe = alone.with_values({"strategy": "fsdp", "devices": 4, "ema_decay": 0.9})
    components = TINY[family]()
    module = Personalization(components, recipe, ["a fox"], [], None)
    whole = sum(p.numel() for p in module.parameters())
    expected = estimate_memory(module, components, recipe)
    module._device_mesh = four_processes
    module.configure_model()
    own = [getattr(p, "_local_tensor", p) for p in module.parameters() if p.requires_grad]
    every = [getattr(p, "_local_tensor", p) for p in module.parameters()]
    trained, kept = (sum(p.numel() for p in some) for some in (own, every))
    assert expected.optimizer == pytest.approx(8 * trained / 2**20, rel=0.01)
    assert expected.average == pytest.approx(4 * trained / 2**20, rel=0.01)
    assert expected.whole - expected.held == pytest.approx(4 * (whole - kept) / 2**20, rel=0.01)
    taken = profiled_peak(_MicroBatch(module), _inputs(components, recipe, 1)) / 2**20
    assert taken <= expected.step <= 1.5 * taken


def test_the_command_estimates_one_process_of_fsdp(given, studiolo_home):
    arguments = ["estimate", str(given["images"]), "--class", "fox", "--base", str(given["base"])]
    arguments += [
        f"--set={key}={json.dumps(value)}" for key, value in (QUICK | {"accelerator": "cpu"}).items()
    ]
    arguments += ["--set=devices=2"]
    found = {}
    for strategy in ("ddp", "fsdp"):
        result = CliRunner().invoke(app, [*arguments, f"--set=strategy={strategy}", "--json"])
        assert result.exit_code == 0, result.output
        found[strategy] = json.loads(result.stdout)
    parts = {strategy: one["memory_parts_mb"] for strategy, one in found.items()}
    assert parts["fsdp"]["optimizer"] == pytest.approx(parts["ddp"]["optimizer"] / 2, abs=0.2)
    assert found["ddp"]["seconds"] > 0
    assert found["fsdp"]["seconds"] is None
    result = CliRunner().invoke(app, [*arguments, "--set=strategy=fsdp"])
    assert "time: not estimated" in result.output


def test_what_each_process_holds_at_first_counts_too():
    memory = Memory(held=10, optimizer=4, average=0, step=6, class_images=0, whole=40)
    assert (memory.total, memory.parts) == (40, {"whole": 40})
    assert replace(memory, whole=19).total == 20


@pytest.mark.parametrize("drawn", ["32-true", "bf16-mixed"])
@pytest.mark.parametrize(
    "settings",
    [{}, {"train_text_encoder": False}, *({"adapter": {"kind": "lora"}, "precision": p} for p in PRECISIONS)],
    ids=str,
)
def test_class_images_take_what_training_does_not_have(settings, drawn, tmp_path):
    """The storages that they alone are made with."""
    recipe = Recipe().with_values(RATES | settings | {"class_images": {"precision": drawn}})
    components = TINY["sd1"]()
    artist = ClassImageSet(recipe.class_images, ["a fox"], "", 32, tmp_path).artist(
        components, left_alone(components, recipe)
    )
    module = Personalization(components, recipe, ["a fox"], [], None)
    own, trained = (
        {p.data_ptr(): p.nbytes for m in c.modules.values() for p in m.parameters()}
        for c in (artist, components)
    )
    taken = sum(size for place, size in own.items() if place not in trained) / 2**20
    alone, both = (estimate_memory(module, components, recipe, a) for a in (None, artist))
    assert both.class_images > taken
    assert both.held + taken == pytest.approx(alone.held, rel=0.02)  # of the process, which goes on
    whole = sum(p.nbytes for p in TINY["sd1"]().denoiser.parameters()) / 2**20
    if drawn == "bf16-mixed":
        assert taken < (0.1 if settings.get("precision") == drawn else 0.75) * whole


def test_what_is_counted_follows_the_recipe():
    def parts(**settings) -> Memory:
        components = TINY["sd1"]()
        recipe = Recipe().with_values(RATES | settings)
        module = Personalization(components, recipe, ["a fox"], [], None)
        return estimate_memory(module, components, recipe)

    plain = parts()
    trained = sum(
        p.numel() for part in ("unet", "text_encoder") for p in TINY["sd1"]().modules[part].parameters()
    )
    assert plain.optimizer == pytest.approx(8 * trained / 2**20)
    assert parts(ema_decay=0.9).average == pytest.approx(4 * trained / 2**20)
    assert parts(batch_size=8).step > 1.5 * plain.step
    assert parts(adapter={"kind": "lora"}).optimizer < plain.optimizer / 5
    assert parts(gradient_checkpointing=True).step < plain.step
    assert replace(plain, held=1).total == pytest.approx(1 + plain.optimizer + plain.step)


def test_the_command_estimates_and_leaves_its_class_images(given, studiolo_home):
    arguments = [
        "estimate", str(given["images"]), "--class", "fox", "--base", str(given["base"]), "--json",
        *(f"--set={key}={json.dumps(value)}" for key, value in (QUICK | {"steps": 50}).items()),
    ]  # fmt: skip
    result = CliRunner().invoke(app, arguments)
    assert result.exit_code == 0, result.output
    found = json.loads(result.stdout)
    assert found["fits"]
    assert found["seconds"] == pytest.approx(sum(found["seconds_parts"].values()), abs=0.2)
    assert len(list(studiolo_home.glob("cache/class-images/*/*.png"))) == 4
    assert "class_images" in found["seconds_parts"]  # a second batch is missing
    assert not list(studiolo_home.glob("runs/*"))


def test_it_takes_the_words_of_train(given, studiolo_home):
    """Two subjects of two classes: twice as much is drawn to score them."""
    scores = {"every": 1, "n": 1, "contexts": 1, "steps": 1}
    settings = [f"--set={key}={json.dumps(value)}" for key, value in (QUICK | {"scores": scores}).items()]
    words = ["--name", "pair", "--base", str(given["base"]), *settings]
    images = str(given["images"])
    found = []
    for subjects in (
        [images, "--class", "fox", "--identifier", "zwx"],
        [f"--subject=vix=fox:{images}", f"--subject=rex=dog:{images}"],
    ):
        result = CliRunner().invoke(app, ["estimate", *subjects, *words, "--json"])
        assert result.exit_code == 0, result.output
        found.append(json.loads(result.stdout))
    assert found[1]["memory_mb"] == pytest.approx(found[0]["memory_mb"], rel=0.01)
    assert found[1]["seconds_parts"]["scores"] > 0
    made = [json.loads(file.read_text()) for file in studiolo_home.glob("cache/class-images/*/made-by.json")]
    assert sorted(len(one["prompts"]) for one in made) == [4, 8]  # of one class, and of two


@pytest.mark.parametrize(
    ("settings", "part", "files"),
    [
        ({"clip_skip": 1}, "class_images", "class-images/*/*.png"),
        ({"prior": "predictions", "class_predictions": {"count": 4, "steps": 2, "batch_size": 2}},
         "class_predictions", "class-predictions/*/*.safetensors"),
    ],
)  # fmt: skip
def test_what_is_made_for_the_prior_is_what_the_training_takes(
    given, tmp_path, studiolo_home, settings, part, files
):
    changed = QUICK | {"steps": 1} | settings
    arguments = ["estimate", str(given["images"]), "--class", "fox", "--base", str(given["base"]), "--json"]
    result = CliRunner().invoke(
        app, [*arguments, *(f"--set={key}={json.dumps(value)}" for key, value in changed.items())]
    )
    assert result.exit_code == 0, result.output
    assert part in json.loads(result.stdout)["seconds_parts"]
    before = {file: file.stat().st_mtime_ns for file in studiolo_home.glob(f"cache/{files}")}
    assert before
    teach(given, tmp_path / "run", **{"steps": 1} | settings)
    assert len({file.parent for file in studiolo_home.glob(f"cache/{files}")}) == 1
    assert {file: file.stat().st_mtime_ns for file in before} == before


@pytest.mark.parametrize("train_text_encoder", [True, False])
def test_what_is_measured_lies_on_the_device_that_trains(given, tmp_path, monkeypatch, train_text_encoder):
    """On "meta", which is no CPU, as a GPU is none: there it begins as the trainer would begin it."""
    settings = QUICK | {"precision": "bf16-mixed", "train_text_encoder": train_text_encoder}
    asked = Recipe().with_values(
        settings
        | {"images": [str(given["images"])], "class_noun": "fox", "base": str(given["base"])}
        | {"identifier": "qqvv"}  # no token yet
    )
    ready = prepare(asked, Run(tmp_path), Display.silent(), None)
    attention = [type(one) for one in ready.components.denoiser.attn_processors.values()]
    meta = torch.device("meta")
    for part in ready.components.modules.values():
        part.to(meta)
    seen = []
    monkeypatch.setattr(estimating, "_prior", lambda *parts: ({}, 0.1, None))
    monkeypatch.setattr(estimating, "estimate_memory", lambda *parts, **more: Memory(0, 0, 0, 0, 0))
    monkeypatch.setattr(estimating, "available_memory", lambda device: 1.0)
    monkeypatch.setattr(estimating, "_step", lambda module, *rest: seen.append(module) or 0.5)
    trainer = SimpleNamespace(strategy=SimpleNamespace(root_device=meta))
    elsewhere = SimpleNamespace(
        recipe=ready.recipe, components=ready.components, taught=ready.taught, trainer=trainer
    )
    assert estimating._measured(elsewhere, asked).device == "meta"
    (module,) = seen
    assert module.device == meta
    assert {ids.device for ids in module._prompt_ids} == {meta}
    assert (module._conditioning is None) == train_text_encoder
    assert {value.device for value in (*module.parameters(), *module.buffers())} == {meta}
    assert [type(one) for one in module.denoiser.attn_processors.values()] == attention


def test_what_does_not_fit_is_said_with_another_exit_code(given, monkeypatch):
    from studiolo.dreambooth import estimate

    monkeypatch.setattr(estimate, "available_memory", lambda device: 10.0)
    settings = [f"--set={key}={json.dumps(value)}" for key, value in QUICK.items()]
    result = CliRunner().invoke(
        app, ["estimate", str(given["images"]), "--class", "fox", "--base", str(given["base"]), *settings]
    )
    assert result.exit_code == 3
    assert "adapter.kind=lora" in result.output


def test_the_record_compares_what_was_expected_with_what_was(given, tmp_path, monkeypatch):
    monkeypatch.setattr(teaching, "_LARGE", 0)
    taught = teach(given, tmp_path / "run", steps=12)
    assert taught.ref.card["step"] == 12
    found = json.loads((tmp_path / "run" / "run.json").read_text())["outcome"]
    assert found["steps"] == 12
    assert found["memory_mb_expected"] == pytest.approx(found["memory_mb"], rel=0.5)
    assert found["seconds_expected"] > 0
    assert found["seconds"] > 0


def test_steps_beside_other_work_are_no_forecast(tmp_path, monkeypatch):
    """Five steps of 9 s beside class images, then steps of 2 s: what is left is told by the latter."""
    clock, told = iter([0.0, 9, 18, 27, 36, 45, 47, 49, 51, 53]), []
    monkeypatch.setattr(forecast.time, "perf_counter", lambda: next(clock))
    display = Display.silent()
    display.note = told.append
    watch = forecast.Forecast(Run(tmp_path), display)
    trainer = SimpleNamespace(is_global_zero=True, max_steps=68)
    watch.on_train_start(trainer, None)
    for step in range(1, 10):
        watch.is_slowed = lambda step=step: step <= 5
        watch.on_step(trainer, None, step)
    assert told == ["about 2.00 s a step; 2.0 min for all that is left"]
    assert watch.outcome()["seconds_expected"] == 51 + 2 * 60


def test_a_training_that_needs_more_than_there_is_says_so(given, tmp_path, monkeypatch):
    monkeypatch.setattr(teaching, "_LARGE", 0)
    monkeypatch.setattr(teaching, "available_memory", lambda device: 5.0)
    console = Console(file=io.StringIO(), width=200)
    train(**given, class_noun="fox", name="small", out=tmp_path / "run", display=Display(console), **QUICK)
    assert "more than there is" in console.file.getvalue()

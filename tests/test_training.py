"""Whole trainings: what they leave behind, and that nothing that interrupts them changes what comes out."""

from __future__ import annotations

import json
import math
import os
import re
import shutil
import signal
import subprocess
import threading
from pathlib import Path

import numpy as np
import pytest
import torch
import yaml
from PIL import Image

from lessons import QUICK, lesson, losses, rows, same_weights, teach, weights
from studiolo.drawing.model import ImageModel
from studiolo.dreambooth import callbacks, prior
from studiolo.dreambooth.personalize import Personalization
from studiolo.dreambooth.prior import ClassImageMaker
from studiolo.dreambooth.progress import Display
from studiolo.dreambooth.rates import check_rate
from studiolo.dreambooth.recipe import Recipe
from studiolo.dreambooth.trainer import Interrupted, resume, train
from studiolo.errors import StudioloError
from studiolo.evaluation import exam
from studiolo.evaluation.training import training_scorer
from studiolo.formats.diffusers_folder import load_components
from studiolo.models.registry import resolve
from studiolo.store import paths
from tiny import tiny_components


@pytest.fixture(scope="module")
def given(tmp_path_factory) -> dict[str, Path]:
    return lesson(tmp_path_factory.mktemp("lesson"))


def at_step(monkeypatch, step: int, act) -> None:
    """Calls `act` right after optimizer step number `step`, before its checkpoint."""
    original = callbacks.Recorder.on_step

    def on_step(self, trainer, module, now):
        original(self, trainer, module, now)
        if now == step:
            act()

    monkeypatch.setattr(callbacks.Recorder, "on_step", on_step)


@pytest.fixture(scope="module")
def unbroken(given, tmp_path_factory) -> Path:
    """A run of 6 steps that nothing interrupts."""
    folder = tmp_path_factory.mktemp("unbroken")
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("STUDIOLO_HOME", str(folder / "home"))
        teach(given, folder / "run", ema_decay=0.9)
    return folder / "run"


def test_the_run_folder(given, tmp_path):
    model = teach(given, tmp_path / "run", previews={"every": 3, "steps": 1}, trackers=["tensorboard"])
    run = tmp_path / "run"
    assert [row[0] for row in rows(run)] == ["1", "2", "3", "4", "5", "6"]
    assert sorted(path.name for path in (run / "previews").iterdir()) == [
        f"step-00000{i}.png" for i in (0, 3, 6)
    ]
    assert [path.name for path in (run / "checkpoints").iterdir()] == ["step-000006.ckpt"]
    card = json.loads((run / "model" / "studiolo.json").read_text())
    base = tiny_components()
    assert card["base"]["fingerprint"] == base.fingerprint()
    assert card["fingerprint"] == load_components(run / "model").fingerprint() == model.fingerprint
    assert (card["name"], card["class_noun"], card["identifier"]) == ("run", "fox", model.identifier)
    assert [image["file"] for image in card["data"]["images"]] == ["0.png", "1.png", "2.png"]
    assert card["recipe"] == yaml.safe_load((run / "recipe.yaml").read_text())
    assert resolve("run").path == run / "model"
    assert model.generate("a [V] fox", steps=1)[0].image.size == (32, 32)


def test_the_base_is_left_as_it_was(given, unbroken):
    assert load_components(given["base"]).fingerprint() == tiny_components().fingerprint()
    assert not same_weights(given["base"], unbroken / "model")


def test_the_same_recipe_repeats_the_run(unbroken, tmp_path):
    train(recipe=unbroken / "recipe.yaml", name="again", out=tmp_path / "again", display=Display.silent())
    assert rows(tmp_path / "again") == rows(unbroken)
    assert same_weights(tmp_path / "again" / "model", unbroken / "model")


def test_another_seed_does_not(given, unbroken, tmp_path):
    teach(given, tmp_path / "other", ema_decay=0.9, seed=1)
    assert not np.allclose(losses(tmp_path / "other"), losses(unbroken))


@pytest.mark.parametrize("signum", [signal.SIGINT, signal.SIGTERM])
def test_an_interrupted_run_saves_its_step_and_goes_on_exactly(
    given, unbroken, tmp_path, monkeypatch, signum
):
    run = tmp_path / "run"
    with monkeypatch.context() as patch:
        at_step(patch, 3, lambda: os.kill(os.getpid(), signum))
        with pytest.raises(Interrupted, match="--resume") as stopped:
            teach(given, run, ema_decay=0.9)
    assert stopped.value.signum == signum
    assert [path.name for path in (run / "checkpoints").iterdir()] == ["step-000003.ckpt"]
    assert not (run / "model").exists()
    assert signal.getsignal(signal.SIGINT) is signal.default_int_handler
    resume(run, display=Display.silent())
    assert rows(run) == rows(unbroken)
    assert same_weights(run / "model", unbroken / "model")


KILLED = """
import os, signal, sys
sys.path.insert(0, {tests!r})
from pathlib import Path
from lessons import teach
from studiolo.dreambooth import callbacks

original = callbacks.Recorder.on_step
def on_step(self, trainer, module, now):
    original(self, trainer, module, now)
    if now == 5:
        os.kill(os.getpid(), signal.SIGKILL)
callbacks.Recorder.on_step = on_step
given = {{"images": Path({images!r}), "base": Path({base!r})}}
teach(given, Path({run!r}), ema_decay=0.9, checkpoint_every=2)
"""


def as_text(given: dict[str, Path]) -> dict[str, str]:
    return {key: str(value) for key, value in given.items()}


def child_env() -> dict[str, str]:
    """The arithmetic of a child must run on as many threads as ours to give the same bits."""
    threads = str(torch.get_num_threads())
    return os.environ | {"OMP_NUM_THREADS": threads, "MKL_NUM_THREADS": threads}


def test_a_killed_process_goes_on_exactly(given, unbroken, tmp_path, warm_python):
    run = tmp_path / "run"
    code = KILLED.format(
        tests=str(Path(__file__).parent), run=str(run), **{k: str(v) for k, v in given.items()}
    )
    killed = subprocess.run([warm_python, "-c", code], env=child_env(), capture_output=True, text=True)
    assert killed.returncode == -signal.SIGKILL, killed.stderr
    assert [row[0] for row in rows(run)] == ["1", "2", "3", "4", "5"]
    assert [path.name for path in sorted((run / "checkpoints").iterdir())] == [
        "step-000002.ckpt",
        "step-000004.ckpt",
    ]
    told = rows(run, "images_per_second")
    resume(run, display=Display.silent())
    assert rows(run, "images_per_second")[:4] == told[:4], "steps before the checkpoint are not taken again"
    assert rows(run) == rows(unbroken)
    assert same_weights(run / "model", unbroken / "model")


TWO = """
import sys
sys.path.insert(0, {tests!r})
from pathlib import Path
from lessons import teach

given = {{"images": Path({images!r}), "base": Path({base!r})}}
teach(given, Path({run!r}), batch_size=2, devices=2, accelerator="cpu", **{settings!r})
"""


def test_two_processes_equal_one_with_the_doubled_batch(given, tmp_path, warm_python):
    settings = {"learning_rate": 1e-4, "text_learning_rate": 1e-4, "text_encoder_stop_step": 4}
    teach(given, tmp_path / "one", batch_size=4, **settings)
    script = tmp_path / "two.py"
    script.write_text(
        TWO.format(
            tests=str(Path(__file__).parent), run=str(tmp_path / "two"), **as_text(given), settings=settings
        )
    )
    env = child_env() | {"STUDIOLO_HOME": str(tmp_path / "home")}  # so that the ranks make class images too
    done = subprocess.run([warm_python, str(script)], env=env, capture_output=True, text=True, timeout=300)
    assert done.returncode == 0, done.stderr
    assert [row[0] for row in rows(tmp_path / "two")] == ["1", "2", "3", "4", "5", "6"]
    np.testing.assert_allclose(losses(tmp_path / "two"), losses(tmp_path / "one"), rtol=1e-4)
    one, two = (load_components(tmp_path / name / "model") for name in ("one", "two"))
    for part, module in one.modules.items():
        for mine, other in zip(module.parameters(), two.modules[part].parameters(), strict=True):
            torch.testing.assert_close(mine, other, rtol=1e-3, atol=1e-5)


def test_the_moving_average_is_exported_and_resumed(given, unbroken, tmp_path):
    teach(given, tmp_path / "plain")
    assert rows(tmp_path / "plain") == rows(unbroken)
    assert not same_weights(tmp_path / "plain" / "model", unbroken / "model")


def test_an_interruption_while_waiting_for_class_images_saves_too(given, unbroken, tmp_path, monkeypatch):
    run = tmp_path / "run"

    waiting, made, wait = threading.Event(), prior.generate, ClassImageMaker.wait

    def stuck_after_the_first(components, prompts, seeds, *args, on_step, **kwargs):
        if seeds[0] == 0:
            return made(components, prompts, seeds, *args, on_step=on_step, **kwargs)
        waiting.wait()
        os.kill(os.getpid(), signal.SIGTERM)
        while True:  # until the maker is told to stop
            on_step()

    def wait_and_tell(self, index, *args):
        if index == 4:  # the first of the second batch, wanted in step 3
            waiting.set()
        return wait(self, index, *args)

    with monkeypatch.context() as patch:
        patch.setattr(prior, "generate", stuck_after_the_first)
        patch.setattr(ClassImageMaker, "wait", wait_and_tell)
        with pytest.raises(Interrupted):
            teach(given, run, ema_decay=0.9)
    assert [path.name for path in (run / "checkpoints").iterdir()] == ["step-000002.ckpt"]
    resume(run, display=Display.silent())
    assert rows(run) == rows(unbroken)
    assert same_weights(run / "model", unbroken / "model")


def test_checkpoints_hold_what_is_trained_and_run_no_code(given, tmp_path):
    teach(given, tmp_path / "run", train_text_encoder=False)
    (file,) = (tmp_path / "run" / "checkpoints").iterdir()
    state = torch.load(file, weights_only=True)["state_dict"]
    assert state
    assert all(name.startswith("denoiser.") for name in state)


def test_old_checkpoints_go(given, tmp_path):
    teach(given, tmp_path / "run", checkpoint_every=1, keep_checkpoints=2)
    names = sorted(path.name for path in (tmp_path / "run" / "checkpoints").iterdir())
    assert names == ["step-000005.ckpt", "step-000006.ckpt"]


def test_a_finished_run_can_be_resumed_to_no_effect(unbroken):
    before = (unbroken / "model" / "unet" / "diffusion_pytorch_model.safetensors").read_bytes()
    assert isinstance(resume(unbroken, replace=True, display=Display.silent()), ImageModel)
    assert (unbroken / "model" / "unet" / "diffusion_pytorch_model.safetensors").read_bytes() == before


def test_bf16_teaches_what_float32_teaches(given, tmp_path):
    """Losses to the rounding of bf16 (2^-8), and what has moved has moved the same way."""
    moved = []
    for precision in ("32-true", "bf16-mixed"):
        run = tmp_path / precision
        teach(given, run, precision=precision, learning_rate=1e-4, text_learning_rate=1e-4, steps=4)
        before, after = weights(given["base"]), weights(run / "model")
        names = [name for name in before if name.startswith("unet.")]
        moved.append(torch.cat([(after[name] - before[name]).flatten() for name in names]))
    np.testing.assert_allclose(losses(tmp_path / "bf16-mixed"), losses(tmp_path / "32-true"), rtol=2**-6)
    assert torch.cosine_similarity(*moved, dim=0) > 0.9
    assert not torch.equal(*moved)


def test_a_loss_that_is_no_number_ends_the_run(given, tmp_path, monkeypatch):
    step = Personalization.training_step

    def broken(self, batch, index):
        losses = step(self, batch, index)
        return {name: loss * (math.nan if index == 2 else 1) for name, loss in losses.items()}

    monkeypatch.setattr(Personalization, "training_step", broken)
    with pytest.raises(StudioloError, match="nan in step 3") as caught:
        teach(given, tmp_path / "run", checkpoint_every=1)
    assert "rate_multiplier" in caught.value.remedy
    assert not (tmp_path / "run" / "model").exists()
    newest = max((tmp_path / "run" / "checkpoints").iterdir())
    state = torch.load(newest, weights_only=True)["state_dict"]
    assert all(tensor.isfinite().all() for tensor in state.values())


def test_a_full_memory_is_told_with_what_takes_less(given, tmp_path, monkeypatch):
    def full(*given):
        raise torch.OutOfMemoryError("CUDA out of memory")

    monkeypatch.setattr(Personalization, "training_step", full)
    with pytest.raises(StudioloError, match="memory of cpu is full") as caught:
        teach(given, tmp_path / "run")
    assert "gradient_checkpointing" in caught.value.remedy


def test_previews_and_scores_have_the_size_of_the_training(given, tmp_path, monkeypatch):
    sizes = []
    for module in (callbacks, exam):
        draw = module.generate
        monkeypatch.setattr(
            module,
            "generate",
            lambda *a, draw=draw, **k: sizes.append((k["height"], k["width"])) or draw(*a, **k),
        )
    teach(
        given, tmp_path / "run", steps=1, resolution=16, scorer=training_scorer,
        previews={"every": 1, "steps": 1}, scores={"every": 1, "steps": 1, "n": 1, "contexts": 1},
    )  # fmt: skip
    assert len(sizes) > 2
    assert set(sizes) == {(16, 16)}


@pytest.mark.skipif(not Path("/proc/cpuinfo").exists(), reason="only Linux tells what its processor can do")
def test_the_machine_chooses_the_precision_and_the_recipe_keeps_it(given, tmp_path):
    teach(given, tmp_path / "run", precision="auto", accelerator="cpu", steps=1)
    has_bf16 = re.search(r"\b(avx512|amx)_bf16\b", Path("/proc/cpuinfo").read_text())
    recipe = yaml.safe_load((tmp_path / "run" / "recipe.yaml").read_text())
    assert recipe["precision"] == ("bf16-mixed" if has_bf16 else "32-true")


def test_without_prior_no_class_image_is_made(given, tmp_path, studiolo_home):
    teach(given, tmp_path / "run", prior_weight=0, steps=2)
    assert not (studiolo_home / "cache" / "class-images").exists()
    assert rows(tmp_path / "run", "loss") == rows(tmp_path / "run", "loss_instance")


def test_images_in_memory_are_kept_with_the_run(given, tmp_path):
    pictures = [Image.open(path) for path in sorted(given["images"].iterdir())]
    teach({"images": pictures, "base": given["base"]}, tmp_path / "run", steps=1)
    assert sorted(path.name for path in (tmp_path / "run" / "images").iterdir()) == [
        "000.png",
        "001.png",
        "002.png",
    ]


def test_a_run_that_began_elsewhere_goes_on_from_anywhere(given, tmp_path, monkeypatch):
    """Images, masks and base are given by paths that are right from one place alone."""
    place = tmp_path / "place"
    shutil.copytree(given["images"], place / "photos")
    shutil.copytree(given["base"], place / "base")
    (place / "masks").mkdir()
    for i in range(3):
        Image.new("L", (40, 40), 255).save(place / "masks" / f"{i}.png")
    monkeypatch.chdir(place)
    with monkeypatch.context() as patch:
        at_step(patch, 2, lambda: os.kill(os.getpid(), signal.SIGTERM))
        with pytest.raises(Interrupted):
            teach({"images": "photos", "base": "base"}, tmp_path / "run", ema_decay=0.9, masks="masks",
                  adapter={"kind": "lora"})  # fmt: skip
    monkeypatch.chdir(tmp_path)
    model = resume(tmp_path / "run", display=Display.silent())
    assert model.generate("a [V] fox", steps=1)[0].image.size == (32, 32)
    again = tmp_path / "again"
    train(recipe=tmp_path / "run" / "recipe.yaml", name="again", out=again, display=Display.silent())
    assert rows(again) == rows(tmp_path / "run")


@pytest.fixture
def broken_off(given, tmp_path, monkeypatch) -> Path:
    """A run that was interrupted after its second step."""
    with monkeypatch.context() as patch:
        at_step(patch, 2, lambda: os.kill(os.getpid(), signal.SIGTERM))
        with pytest.raises(Interrupted):
            teach(given, tmp_path / "run")
    return tmp_path / "run"


def test_resume_refuses_another_recipe(broken_off):
    recipe = broken_off / "recipe.yaml"
    recipe.write_text(recipe.read_text().replace("steps: 6", "steps: 9"))
    with pytest.raises(StudioloError, match="changed since the run began: steps"):
        resume(broken_off, display=Display.silent())


def test_a_run_from_before_a_setting_was_there_goes_on(broken_off):
    record, file = json.loads((broken_off / "run.json").read_text()), broken_off / "run.json"
    for key in ("color_jitter", "scores"):
        del record["recipe"][key]
    del record["recipe"]["class_images"]["negative_prompt"]
    file.write_text(json.dumps(record))
    assert resume(broken_off, display=Display.silent()).ref.card["step"] == 6


def test_a_run_from_before_class_images_had_a_precision_goes_on_with_its_own(given, tmp_path, monkeypatch):
    run = tmp_path / "run"
    with monkeypatch.context() as patch:
        at_step(patch, 2, lambda: os.kill(os.getpid(), signal.SIGTERM))
        with pytest.raises(Interrupted):
            teach(
                given,
                run,
                precision="bf16-mixed",
                class_images=QUICK["class_images"] | {"precision": "32-true"},
            )
    recipe, record = run / "recipe.yaml", json.loads((run / "run.json").read_text())
    told = yaml.safe_load(recipe.read_text())
    del told["class_images"]["precision"], record["recipe"]["class_images"]["precision"]
    recipe.write_text(yaml.safe_dump(told))
    (run / "run.json").write_text(json.dumps(record))
    folders = set(paths.cache_dir("class-images").iterdir())
    assert resume(run, display=Display.silent()).ref.card["recipe"]["class_images"]["precision"] == "32-true"
    assert set(paths.cache_dir("class-images").iterdir()) == folders


def test_resume_refuses_other_images(broken_off, given, tmp_path):
    recipe, record = broken_off / "recipe.yaml", broken_off / "run.json"
    record.write_text(record.read_text().replace('"sha256": "', '"sha256": "0', 1))
    assert recipe.exists()
    with pytest.raises(StudioloError, match=r"not those that the run began with: 0\.png"):
        resume(broken_off, display=Display.silent())


def test_resume_refuses_another_image_of_a_name_that_is_there_twice(given, tmp_path, monkeypatch):
    folders = []
    for i, file in enumerate(sorted(given["images"].iterdir())):
        (tmp_path / str(i)).mkdir()
        shutil.copy(file, tmp_path / str(i) / "same.png")
        folders.append(tmp_path / str(i))
    with monkeypatch.context() as patch:
        at_step(patch, 2, lambda: os.kill(os.getpid(), signal.SIGTERM))
        with pytest.raises(Interrupted):
            teach({"images": folders, "base": given["base"]}, tmp_path / "run")
    Image.linear_gradient("L").convert("RGB").save(tmp_path / "0" / "same.png")
    with pytest.raises(StudioloError, match=r"not those that the run began with: same\.png"):
        resume(tmp_path / "run", display=Display.silent())


def test_resume_refuses_another_base(broken_off):
    record = json.loads((broken_off / "run.json").read_text())
    record["base"]["fingerprint"] = "0" * 64
    (broken_off / "run.json").write_text(json.dumps(record))
    with pytest.raises(StudioloError, match="base model is not the one"):
        resume(broken_off, display=Display.silent())


def test_resume_names_a_damaged_checkpoint(broken_off):
    (file,) = (broken_off / "checkpoints").iterdir()
    for damaged in (file.read_bytes()[:1000], b"nothing", b""):
        file.write_bytes(damaged)
        with pytest.raises(StudioloError, match="checkpoint cannot be read"):
            resume(broken_off, display=Display.silent())


def test_resume_of_what_is_no_run(tmp_path):
    with pytest.raises(StudioloError, match="not a run folder"):
        resume(tmp_path)


@pytest.mark.parametrize(
    ("changed", "told"),
    [
        ({"class_noun": None}, "--class"),
        ({"name": None}, "--name"),
        ({"images": None}, "images"),
        ({"name": "studiolo-base"}, "base model"),
        ({"precision": "16-mixed"}, "GPU"),
        ({"accelerator": "gpu"}, "this machine cannot"),
        ({"devices": 2, "out": None}, "--out"),
        ({"resolution": 33}, "multiple"),
        ({"buckets": True, "bucket_step": 10}, "bucket_step: 10 pixels"),
        ({"identifier": "fox"}, "class noun"),
        ({"noise_levels": {"mean": 0.5}}, "density"),
        ({"class_images": {"sampler": "euler", "eta": 0.5}}, "class_images.eta"),
        ({"previews": {"every": 1, "sampler": "lcm", "steps": 60}}, "previews.steps"),
        ({"stepps": 3}, "did you mean 'steps'"),
    ],
    ids=str,
)
def test_what_cannot_be_taught_is_refused(given, tmp_path, changed, told):
    if changed.keys() & {"precision", "accelerator"} and torch.cuda.is_available():
        pytest.skip("there is a GPU")
    arguments = {**given, "class_noun": "fox", "name": "rex", "out": tmp_path / "run", "steps": 1} | changed
    with pytest.raises(StudioloError, match=told):
        train(**arguments, display=Display.silent())
    assert not (tmp_path / "run").exists(), "the folder can be used again"


def test_a_used_run_folder_is_refused(unbroken, given):
    with pytest.raises(StudioloError, match="--resume"):
        teach(given, unbroken)


def test_rates_that_destroy_large_models_are_refused():
    with pytest.raises(StudioloError, match="about 2e-6"):
        check_rate(Recipe(learning_rate=4e-4), 860_000_000)
    check_rate(Recipe(learning_rate=4e-4), 12_500_000)
    check_rate(Recipe(learning_rate=4e-4, adapter={"kind": "lora"}), 860_000_000)
    check_rate(Recipe(learning_rate=2e-6), 860_000_000)
    check_rate(Recipe(), 860_000_000)

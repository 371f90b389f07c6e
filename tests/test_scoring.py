"""Scores while training: the best step is exported, patience ends a run, and a kill changes nothing."""

from __future__ import annotations

import csv
import os
import signal
import subprocess
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image

from lessons import lesson, same_weights, teach, weights
from studiolo.diffusion.conditioning import encode_prompts
from studiolo.diffusion.sampling import SamplerSettings, generate
from studiolo.dreambooth.progress import Display
from studiolo.dreambooth.recipe import Recipe
from studiolo.dreambooth.scoring import Marks
from studiolo.dreambooth.trainer import Interrupted
from studiolo.errors import StudioloError
from studiolo.evaluation import training
from studiolo.evaluation.eye import shipped_eye
from studiolo.evaluation.training import training_scorer
from studiolo.formats.diffusers_folder import load_components
from studiolo.formats.opening import open_components
from studiolo.models.registry import resolve

QUICK = {"n": 1, "contexts": 2, "steps": 1}


@pytest.fixture(scope="module")
def given(tmp_path_factory) -> dict[str, Path]:
    return lesson(tmp_path_factory.mktemp("lesson"))


class Scripted:
    """Gives the fidelities that it is told to give, one a scoring; the untaught base has the first."""

    def __init__(self, *fidelities: float, act=lambda calls: None) -> None:
        self.fidelities, self.act, self.calls = fidelities, act, 0
        self.seen: list[dict[str, torch.Tensor]] = []

    def marks(self, components, baseline):
        self.seen.append({n: p.detach().clone() for n, p in components.denoiser.named_parameters()})
        assert not components.denoiser.training
        fidelity = self.fidelities[self.calls]
        self.calls += 1
        self.act(self.calls)
        return marks(fidelity, baseline=baseline or {"first": torch.tensor([fidelity])})


def marks(fidelity: float, prompt: float = 1.0, drift: float = 0.0, baseline=None) -> Marks:
    picture = Image.new("RGB", (8, 8))
    return Marks(fidelity, prompt, drift, ["beach"], {"the subject": [picture]}, baseline or {})


def scores(run: Path) -> list[dict[str, float]]:
    with open(run / "scores.csv", encoding="utf-8", newline="") as file:
        return [{key: float(value) for key, value in row.items()} for row in csv.DictReader(file)]


def taught(given, out, judge, **settings):
    return teach(given, out, scorer=lambda recipe, images: judge, **settings)


def test_the_composite_is_the_weighted_mean():
    weights = {"fidelity_weight": 2, "prompt_weight": 1, "drift_weight": 0.5}
    recipe = Recipe().with_values({"scores": {"every": 5, **weights}})
    assert marks(0.6, 0.9, 0.25).composite(recipe.scores) == pytest.approx((2 * 0.6 + 0.9 + 0.5 * 0.75) / 3.5)


def test_the_best_step_is_exported_and_the_last_beside_it(given, tmp_path, monkeypatch):
    told: list[str] = []
    monkeypatch.setattr(Display, "note", lambda self, text: told.append(text))
    judge = Scripted(0.9, 0.1, 0.5, 0.3)  # the untaught base counts for nothing, however good
    taught(given, tmp_path / "run", judge, scores={"every": 2}, ema_decay=0.9)
    table = scores(tmp_path / "run")
    assert [row["step"] for row in table] == [0, 2, 4, 6]
    assert [row["fidelity"] for row in table] == [0.9, 0.1, 0.5, 0.3]
    assert [row["best"] for row in table] == [0, 1, 1, 0]
    best, last = (weights(tmp_path / "run" / folder) for folder in ("model", "last"))
    for name, value in judge.seen[2].items():  # the averaged weights were scored, and those are exported
        torch.testing.assert_close(best[f"unet.{name}"], value, rtol=0, atol=0)
    for name, value in judge.seen[3].items():
        torch.testing.assert_close(last[f"unet.{name}"], value, rtol=0, atol=0)
    card = resolve("run").card
    assert card["step"] == card["scores"]["step"] == 4
    assert card["scores"]["fidelity"] == 0.5
    assert card["fingerprint"] == load_components(tmp_path / "run" / "model").fingerprint()
    assert [file.name for file in (tmp_path / "run" / "best").iterdir()] == ["step-000004.safetensors"]
    assert len(list((tmp_path / "run" / "scores").glob("step-*.png"))) == 4
    line = "step 4: composite 0.714, fidelity 0.500, prompt 1.000, drift 0.000 (best so far)"
    assert line in told


def test_the_last_step_on_request_and_when_it_is_the_best(given, tmp_path):
    taught(given, tmp_path / "one", Scripted(0, 0.5, 0.4), scores={"every": 3, "export": "last"})
    taught(given, tmp_path / "two", Scripted(0, 0.3, 0.4), scores={"every": 3})
    assert same_weights(tmp_path / "one" / "model", tmp_path / "two" / "model")
    assert not (tmp_path / "one" / "last").exists()
    assert not (tmp_path / "two" / "last").exists()


def test_scores_change_nothing_of_the_training(given, tmp_path):
    taught(given, tmp_path / "scored", Scripted(0, 0.1, 0.2), scores={"every": 3})
    teach(given, tmp_path / "plain")
    assert same_weights(tmp_path / "scored" / "model", tmp_path / "plain" / "model")


def test_patience_ends_the_run_and_it_stays_ended(given, tmp_path):
    judge = Scripted(0, 0.5, 0.49, 0.505, 0.9, 0.9)
    settings = {"every": 1, "patience": 2, "min_gain": 0.01}
    taught(given, tmp_path / "run", judge, scores=settings)
    assert [row["step"] for row in scores(tmp_path / "run")] == [0, 1, 2, 3]  # 0.505 is no gain of 0.01
    assert resolve("run").card["step"] == 1
    assert (tmp_path / "run" / "checkpoints" / "step-000003.ckpt").exists()
    before = weights(tmp_path / "run" / "model")
    again = Scripted(*[1.0] * 9)
    trained = training.trainer.resume(
        tmp_path / "run", display=Display.silent(), scorer=lambda recipe, images: again
    )
    assert again.calls == 0
    assert trained.ref.card["step"] == 1
    assert all(torch.equal(value, before[key]) for key, value in weights(tmp_path / "run" / "model").items())


def test_what_makes_no_sense_is_refused():
    for wrong, told in (
        ({"patience": 2}, "scores.every"),
        ({"fidelity_weight": 0, "prompt_weight": 0, "drift_weight": 0}, "no weight"),
        ({"export": "first"}, "export"),
    ):
        with pytest.raises(StudioloError, match=told):
            Recipe().with_values({"scores": wrong})


def test_weights_that_are_missing_are_told_before_the_run_begins(given, tmp_path):
    settings = {"every": 3, "embedder": "dino"}
    settings |= {"weights": str(tmp_path / "nothing"), "text_weights": str(tmp_path / "nothing")}
    with pytest.raises(StudioloError, match="weights cannot be had"):
        teach(given, tmp_path / "run", scorer=training_scorer, scores=settings)
    assert not (tmp_path / "run").exists()
    with pytest.raises(StudioloError, match="judges"):
        teach(given, tmp_path / "run", scores={"every": 3})


def test_marks_are_those_of_the_pictures(given, tmp_path):
    """Against a derivation of its own: drawn by `generate`, looked at by the eye, compared pair by pair."""
    images = [Image.open(path).convert("RGB") for path in sorted(given["images"].iterdir())]
    wanted = {"every": 1, "n": 2, "contexts": 2, "steps": 2, "seed": 5, "sampler": "ddim"}
    subject = {"images": str(given["images"]), "class_noun": "fox", "identifier": "zwx"}
    judge = training_scorer(Recipe().with_values(subject | {"scores": wanted}), [images])
    untaught = load_components(given["base"])
    first = judge.marks(untaught, None)
    now = load_components(given["base"])
    with torch.no_grad():
        now.denoiser.conv_out.weight.add_(0.05)
    second = judge.marks(now, first.baseline)

    def drawn(components, subject: str):
        prompts = [f"a photo of {subject} {where}" for where in ("on the moon", "in the snow")]
        words = [prompt for prompt in prompts for _ in range(2)]
        return generate(components, words, [5, 6, 5, 6], SamplerSettings("ddim", 2, 5.0))

    eye = shipped_eye()
    mine, old, new = drawn(now, "zwx fox"), drawn(untaught, "a fox"), drawn(now, "a fox")
    cosines = [float(one @ other) for one in eye.embed(mine).double() for other in eye.embed(images).double()]
    assert second.fidelity == pytest.approx(np.mean(cosines), abs=1e-3)  # bytes of a batch of four or eight
    moved = [1 - float(a @ b) for a, b in zip(eye.embed(old), eye.embed(new), strict=True)]
    assert second.drift == pytest.approx(np.mean(moved), abs=1e-3)
    assert second.drift > first.drift == pytest.approx(0, abs=1e-6)
    asked = ["moon", "moon", "snow", "snow"]

    def right(pictures) -> float:
        seen = eye.classify(pictures).background.argmax(1)
        return np.mean([eye.backgrounds[i] == want for i, want in zip(seen, asked, strict=True)])

    expected = min(1, right(mine) / right(old)) if right(old) else 1
    assert second.prompt == pytest.approx(expected)


def test_marks_of_several_subjects_are_means_of_those_of_each(given):
    images = [Image.open(path).convert("RGB") for path in sorted(given["images"].iterdir())]
    learned = {"rex": images[:1], "vix": images[1:]}
    nouns = {"rex": "dog", "vix": "fox"}
    each = [
        {"name": name, "images": ["there"], "class_noun": nouns[name], "identifier": f"{name}q"}
        for name in learned
    ]
    scores = {"scores": QUICK | {"every": 1}}
    judge = training_scorer(Recipe().with_values({"subjects": each} | scores), list(learned.values()))
    untaught, now = load_components(given["base"]), load_components(given["base"])
    with torch.no_grad():
        now.denoiser.conv_out.weight.add_(0.05)
    found = judge.marks(now, judge.marks(untaught, None).baseline)

    alone = []
    for one in each:
        recipe = Recipe().with_values({key: value for key, value in one.items() if key != "name"} | scores)
        of_one = training_scorer(recipe, [learned[one["name"]]])
        alone.append(of_one.marks(now, of_one.marks(untaught, None).baseline))
    for mark in ("fidelity", "prompt", "drift"):
        assert getattr(found, mark) == pytest.approx(np.mean([getattr(m, mark) for m in alone]), abs=1e-6)
    assert alone[0].fidelity != alone[1].fidelity
    rows = [f"{name}: the {which}, seed 0" for name in ("rex", "vix") for which in ("subject", "class")]
    assert list(found.rows) == rows
    assert found.sheet("both").height > alone[0].sheet("one").height


KILLED = """
import os, signal, sys
sys.path.insert(0, {tests!r})
from pathlib import Path
from lessons import teach
from studiolo.dreambooth import callbacks
from studiolo.evaluation.training import training_scorer

original = callbacks.Recorder.on_step
def on_step(self, trainer, module, now):
    original(self, trainer, module, now)
    if now == 5:
        os.kill(os.getpid(), signal.SIGKILL)
callbacks.Recorder.on_step = on_step
given = {{"images": Path({images!r}), "base": Path({base!r})}}
teach(given, Path({run!r}), scorer=training_scorer, scores={scores!r}, ema_decay=0.9, checkpoint_every=2)
"""


def test_a_killed_run_has_the_same_scores_and_the_same_best(given, tmp_path, warm_python):
    wanted = {"every": 1, **QUICK}
    teach(given, tmp_path / "whole", scorer=training_scorer, scores=wanted, ema_decay=0.9)
    run = tmp_path / "run"
    code = KILLED.format(
        tests=str(Path(__file__).parent), run=str(run), scores=wanted, **{k: str(v) for k, v in given.items()}
    )
    threads = str(torch.get_num_threads())
    env = os.environ | {"OMP_NUM_THREADS": threads, "MKL_NUM_THREADS": threads}
    done = subprocess.run([warm_python, "-c", code], env=env, check=False, capture_output=True, text=True)
    assert done.returncode == -signal.SIGKILL, done.stderr
    assert [row["step"] for row in scores(run)] == [0, 1, 2, 3, 4]
    training.resume(run, display=Display.silent())
    assert scores(run) == scores(tmp_path / "whole")
    assert same_weights(run / "model", tmp_path / "whole" / "model")
    one, two = (resolve(name).card["scores"] for name in ("run", "whole"))
    assert one == two


def test_a_best_of_before_the_last_checkpoint_survives_a_kill(given, tmp_path, monkeypatch):
    """Best at 2 (checkpointed at 3), a better one at 5 that the crash forgets: 2 is exported."""
    told = [0, 0.1, 0.5, 0.2, 0.3, 0.9]

    def crash(calls: int) -> None:
        if calls == 6:
            raise Interrupted(signal.SIGTERM, between_steps=False)

    settings = {"scores": {"every": 1}, "checkpoint_every": 3}
    with pytest.raises(Interrupted):
        taught(given, tmp_path / "run", Scripted(*told, act=crash), **settings)
    files = sorted(file.name for file in (tmp_path / "run" / "best").iterdir())
    assert "step-000002.safetensors" in files
    after = Scripted(0.3, 0.3, 0.3)  # steps 4, 5, 6, which now are no better
    training.trainer.resume(tmp_path / "run", display=Display.silent(), scorer=lambda recipe, images: after)
    assert resolve("run").card["step"] == 2
    assert [row["fidelity"] for row in scores(tmp_path / "run")] == [0, 0.1, 0.5, 0.2, 0.3, 0.3, 0.3]


@pytest.mark.parametrize("export", ["adapter", "merged"])
def test_the_best_of_an_adapter_is_exported_and_the_last_beside_it(given, tmp_path, export):
    """What was scored at each step is what the two exported models are, opened again."""
    judge = Outputs(0, 0.5, 0.4)
    settings = {"adapter": {"kind": "lora", "rank": 2}, "export": export, "steps": 2, "learning_rate": 1e-2}
    taught(given, tmp_path / "run", judge, scores={"every": 1}, **settings)
    for folder, told in (("model", judge.predictions[1]), ("last", judge.predictions[2])):
        found = judge.predict(open_components(tmp_path / "run" / folder))
        torch.testing.assert_close(found, told, rtol=1e-4, atol=1e-4)
    assert not torch.allclose(judge.predictions[1], judge.predictions[2], rtol=1e-3, atol=1e-3)


class Outputs(Scripted):
    """Scripted, and remembers what the model predicted at each scoring."""

    def __init__(self, *fidelities: float) -> None:
        super().__init__(*fidelities)
        self.predictions: list[torch.Tensor] = []

    def marks(self, components, baseline):
        self.predictions.append(self.predict(components))
        return super().marks(components, baseline)

    @staticmethod
    @torch.no_grad()
    def predict(components) -> torch.Tensor:
        noise = torch.randn(1, *components.latent_shape(), generator=torch.Generator().manual_seed(0))
        return components.predict(noise, torch.tensor([500]), encode_prompts(components, ["a fox"]))

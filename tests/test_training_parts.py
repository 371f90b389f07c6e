"""Whole trainings of adapters and tokens, by every optimizer and strategy: what they leave; exact resume."""

from __future__ import annotations

import json
import os
import signal
import subprocess
from pathlib import Path

import numpy as np
import pytest
import torch
from diffusers import StableDiffusionPipeline
from safetensors.torch import load_file

from lessons import lesson, losses, rows, teach, weights
from studiolo.diffusion.conditioning import encode_prompts
from studiolo.dreambooth.progress import Display
from studiolo.dreambooth.trainer import Interrupted, resume
from studiolo.formats.diffusers_folder import load_components
from studiolo.formats.opening import open_components
from test_training import TWO, as_text, at_step, child_env
from tiny_families import TINY

LORA = {"adapter": {"kind": "lora", "rank": 4, "alpha": 8}}
DORA = {"adapter": {"kind": "dora", "rank": 4}}
TOKEN = {"train_text_encoder": False, "train_token_embedding": True, "token_vectors": 2}
PIVOTAL = LORA | TOKEN | {"unet_start_step": 2}


@pytest.fixture(scope="module")
def given(tmp_path_factory) -> dict[str, Path]:
    return lesson(tmp_path_factory.mktemp("lesson"))


def says(model: Path | str, prompt: str = "a photo of a fox on the beach") -> torch.Tensor:
    components = open_components(model)
    noisy = torch.randn(1, *components.latent_shape(), generator=torch.Generator().manual_seed(0))
    told = encode_prompts(components, [prompt]).sized(components.family.sizes(32, 32))
    with torch.no_grad():
        return components.predict(noisy, torch.tensor([400]), told)


def card_of(folder: Path) -> dict:
    return json.loads((folder / "studiolo.json").read_text())


def test_an_adapter_is_exported_beside_its_base(given, tmp_path):
    before = weights(given["base"])
    model = teach(given, tmp_path / "run", **LORA, steps=2)
    folder = tmp_path / "run" / "model"
    assert sorted(file.name for file in folder.iterdir()) == [
        "pytorch_lora_weights.safetensors",
        "studiolo.json",
    ]
    card = card_of(folder)
    record = json.loads((tmp_path / "run" / "run.json").read_text())
    state = load_file(folder / "pytorch_lora_weights.safetensors")
    unet = sum(tensor.numel() for name, tensor in state.items() if name.startswith("unet."))
    assert record["parts"]["trained"] == {"unet": unet, "text": sum(t.numel() for t in state.values()) - unet}
    assert (card["kind"], card["fingerprint"]) == ("adapter", model.fingerprint)
    assert all(torch.equal(before[name], tensor) for name, tensor in weights(given["base"]).items())
    assert model.generate("a [V] fox", steps=1)[0].image.size == (32, 32)


def test_diffusers_draws_with_the_files_what_we_draw(given, tmp_path):
    teach(given, tmp_path / "run", **LORA | TOKEN, steps=3, learning_rate=0.05, text_learning_rate=0.05)
    folder = tmp_path / "run" / "model"
    theirs = StableDiffusionPipeline.from_pretrained(given["base"])
    theirs.load_lora_weights(folder)
    theirs.load_textual_inversion(folder / "learned_embeds.safetensors")
    (word,) = load_file(folder / "learned_embeds.safetensors")
    ours = open_components(folder)
    said = encode_prompts(ours, [f"a photo of {word} {word}1 fox"]).tokens
    expected = theirs.encode_prompt(f"a photo of {word} fox", "cpu", 1, False)[0]
    torch.testing.assert_close(said, expected, rtol=1e-4, atol=1e-5)
    noisy = torch.randn(1, 4, 8, 8, generator=torch.Generator().manual_seed(0))
    with torch.no_grad():
        mine = ours.denoiser(noisy, 400, said).sample
        other = theirs.unet(noisy, 400, expected).sample
        base = load_components(given["base"]).denoiser(noisy, 400, said).sample
    torch.testing.assert_close(mine, other, rtol=1e-4, atol=1e-5)
    assert (mine - base).abs().max() > 100 * (mine - other).abs().max()


@pytest.mark.parametrize("parts", [LORA, DORA, PIVOTAL], ids=["lora", "dora", "pivotal"])
def test_a_merged_model_is_the_base_with_the_adapter(given, tmp_path, parts):
    teach(given, tmp_path / "beside", **parts, steps=3)
    teach(given, tmp_path / "merged", **parts, steps=3, export="merged")
    assert (tmp_path / "merged" / "model" / "model_index.json").exists()
    word = json.loads((tmp_path / "merged" / "model" / "studiolo.json").read_text())["identifier"]
    for prompt in ("a photo of a fox on the beach", f"a photo of {word} fox"):
        one, two = (says(tmp_path / name / "model", prompt) for name in ("beside", "merged"))
        torch.testing.assert_close(one, two, rtol=1e-4, atol=1e-5)


def test_a_token_alone_is_some_numbers(given, tmp_path):
    teach(given, tmp_path / "run", **TOKEN, train_unet=False, steps=3)
    folder = tmp_path / "run" / "model"
    assert sorted(file.name for file in folder.iterdir()) == ["learned_embeds.safetensors", "studiolo.json"]
    ((word, vectors),) = load_file(folder / "learned_embeds.safetensors").items()
    assert vectors.shape == (2, 32)
    base, taught = (load_components(given["base"]), open_components(folder))
    tables = [c.text_encoder.get_input_embeddings().weight for c in (base, taught)]
    changed = (tables[0] != tables[1][: len(tables[0])]).any(1).nonzero().flatten().tolist()
    ids = taught.tokenizer(f"{word} {word}1", add_special_tokens=False).input_ids
    assert len(ids) == 2
    assert set(changed) == {i for i in ids if i < len(tables[0])}
    assert says(folder).equal(says(given["base"])), "without the word nothing has changed"
    assert card_of(folder)["recipe"]["prior_weight"] == 0, "pictures of the class teach no word"
    (file,) = (tmp_path / "run" / "checkpoints").iterdir()
    assert [*torch.load(file, weights_only=True)["state_dict"]] == ["tokens.0.vectors"]


STATES = {
    "lora": LORA | {"ema_decay": 0.9},
    "pivotal": PIVOTAL,
    "prodigy": LORA | {"optimizer": "prodigy", "learning_rate": None, "text_learning_rate": None},
    "adafactor": {"optimizer": "adafactor"},
    "adamw8bit": {"optimizer": "adamw8bit"},
    "checkpointing": DORA
    | {"gradient_checkpointing": True, "lr_schedule": "cosine_restarts", "lr_cycles": 2},
}


@pytest.mark.parametrize("name", STATES)
def test_a_run_that_was_stopped_goes_on_exactly(given, tmp_path, monkeypatch, name):
    if name == "adamw8bit":
        pytest.importorskip("bitsandbytes")
    settings = STATES[name] | {"steps": 4}
    teach(given, tmp_path / "whole", **settings)
    with monkeypatch.context() as patch:
        at_step(patch, 2, lambda: os.kill(os.getpid(), signal.SIGTERM))
        with pytest.raises(Interrupted):
            teach(given, tmp_path / "run", **settings)
    resume(tmp_path / "run", display=Display.silent())
    assert rows(tmp_path / "run") == rows(tmp_path / "whole")
    one, two = ({n: t for f in sorted((tmp_path / r / "model").rglob("*.safetensors"))
                 for n, t in load_file(f).items()} for r in ("run", "whole"))  # fmt: skip
    assert one.keys() == two.keys()
    assert all(torch.equal(one[key], two[key]) for key in one)


SHARED = {
    "lora, ddp": LORA,
    "pivotal, ddp": LORA | TOKEN,
    "full, fsdp": {"strategy": "fsdp", "ema_decay": 0.9, "clip_norm": 0.5},
    "pivotal, fsdp": LORA | TOKEN | {"strategy": "fsdp"},
    "clip_skip, fsdp": {"strategy": "fsdp", "clip_skip": 1},
    "sdxl, fsdp": {"strategy": "fsdp"},
    "sdxl, ddp": {},
    "sd3, lora, fsdp": LORA | {"strategy": "fsdp"},
}
"""Settings by name, in which the family of the base comes first, if it is not Stable Diffusion 1."""


@pytest.mark.parametrize("name", SHARED)
def test_two_processes_equal_one_with_the_doubled_batch(given, tmp_path, warm_python, name):
    if (family := name.split(",")[0]) in TINY:
        given = lesson(tmp_path / "lesson", TINY[family]())
    settings = {"learning_rate": 1e-4, "text_learning_rate": 1e-4, "steps": 3} | SHARED[name]
    teach(given, tmp_path / "one", batch_size=4, **settings | {"strategy": "auto"})
    script = tmp_path / "two.py"
    script.write_text(
        TWO.format(
            tests=str(Path(__file__).parent), run=str(tmp_path / "two"), **as_text(given), settings=settings
        )
    )
    env = child_env() | {"STUDIOLO_HOME": str(tmp_path / "home")}
    done = subprocess.run([warm_python, str(script)], env=env, capture_output=True, text=True, timeout=300)
    assert done.returncode == 0, done.stderr
    np.testing.assert_allclose(losses(tmp_path / "two"), losses(tmp_path / "one"), rtol=1e-4)
    norms = [np.array([float(n) for (n,) in rows(tmp_path / run, "grad_norm")]) for run in ("one", "two")]
    np.testing.assert_allclose(norms[0], norms[1], rtol=1e-4)
    torch.testing.assert_close(
        says(tmp_path / "two" / "model"), says(tmp_path / "one" / "model"), rtol=1e-3, atol=1e-4
    )


STOPPED = """
import sys
sys.path.insert(0, {tests!r})
from pathlib import Path
from lessons import teach
from studiolo.dreambooth import callbacks
from studiolo.dreambooth.progress import Display
from studiolo.dreambooth.trainer import Interrupted, resume

original = callbacks.Recorder.on_step
def on_step(self, trainer, module, now):
    original(self, trainer, module, now)
    if now == 2 and trainer.is_global_zero and {stop}:
        import os, signal
        os.kill(os.getpid(), signal.SIGTERM)
callbacks.Recorder.on_step = on_step
given = {{"images": Path({images!r}), "base": Path({base!r})}}
try:
    if {stop}:
        teach(given, Path({run!r}), devices=2, accelerator="cpu", **{settings!r})
    else:
        resume(Path({run!r}), display=Display.silent())
except Interrupted:
    pass
"""


def test_a_sharded_run_goes_on_from_its_checkpoint(given, tmp_path, warm_python):
    settings = LORA | {"strategy": "fsdp", "ema_decay": 0.9, "steps": 4, "learning_rate": 1e-3}
    env = child_env() | {"STUDIOLO_HOME": str(tmp_path / "home")}
    told = {"tests": str(Path(__file__).parent), "settings": settings, **as_text(given)}
    for run, stops in (("whole", [None]), ("run", [True, False])):
        for stop in stops:
            script = tmp_path / f"{run}-{stop}.py"
            text = TWO if stop is None else STOPPED
            script.write_text(text.format(run=str(tmp_path / run), stop=stop, **told))
            done = subprocess.run([warm_python, str(script)], env=env, capture_output=True, text=True)
            assert done.returncode == 0, done.stderr
    assert [row[0] for row in rows(tmp_path / "run")] == ["1", "2", "3", "4"]
    np.testing.assert_allclose(losses(tmp_path / "run"), losses(tmp_path / "whole"), rtol=1e-5)
    torch.testing.assert_close(
        says(tmp_path / "run" / "model"), says(tmp_path / "whole" / "model"), rtol=1e-4, atol=1e-5
    )

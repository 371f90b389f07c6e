"""Several taught adapters on one model: weights, words, record, the same bytes again."""

from __future__ import annotations

import json
from itertools import permutations
from typing import Literal

import numpy as np
import pytest
import torch
from diffusers import DiffusionPipeline
from safetensors.torch import save_file
from typer.testing import CliRunner

from studiolo.cli.main import app
from studiolo.diffusion.adapters import AdapterSettings, adapter_state, inject, merge
from studiolo.drawing.adapters import parse_adapter
from studiolo.drawing.model import ImageModel
from studiolo.drawing.provenance import read_provenance
from studiolo.drawing.reproduction import reproduce
from studiolo.errors import StudioloError
from studiolo.formats.adapter_folder import Adapter, save_adapter
from studiolo.formats.merging import merge as merge_models
from studiolo.models.registry import register
from tiny import tiny_components, tiny_folder


def state(seed: int, kind: Literal["lora", "dora"] = "lora") -> dict[str, torch.Tensor]:
    """The state of an adapter that has learned something."""
    components = tiny_components()
    inject(components, AdapterSettings(kind, rank=2, seed=seed))
    source = torch.Generator().manual_seed(seed)
    learned = {".lora_B.": 0.3, ".lora_magnitude_vector.": 0.1}
    return {
        name: tensor * (".lora_m" in name) + scale * torch.randn(tensor.shape, generator=source)
        if (scale := next((scale for mark, scale in learned.items() if mark in name), None))
        else tensor
        for name, tensor in adapter_state(components).items()
    }


@pytest.fixture
def house(tmp_path, monkeypatch):
    """The names "tiny" (a whole model), "my-fox" and "my-dog" (adapters on it) are registered."""
    monkeypatch.setenv("STUDIOLO_HOME", str(tmp_path / "home"))
    monkeypatch.chdir(tmp_path)
    register(tiny_folder(tmp_path), "tiny")
    base = {"name": "tiny", "fingerprint": tiny_components().fingerprint()}
    for seed, (name, word) in enumerate({"my-fox": "zwx", "my-dog": "sks"}.items()):
        folder = tmp_path / name
        save_adapter(Adapter(state(seed)), folder)
        card = {"name": name, "kind": "adapter", "class_noun": name[3:], "identifier": word, "base": base}
        (folder / "studiolo.json").write_text(json.dumps(card))
        register(folder, name)
    return tmp_path


def weights(components) -> dict[str, torch.Tensor]:
    return components.denoiser.state_dict()


def test_adapters_are_added_with_their_weights(house):
    model = ImageModel.load("tiny", adapters=[("my-fox", 0.8), "my-dog"])
    expected = tiny_components()
    merge(expected, state(0), 0.8)
    merge(expected, state(1), 1.0)
    for name, tensor in weights(expected).items():
        torch.testing.assert_close(weights(model.components)[name], tensor, msg=name)
    assert model.fingerprint == tiny_components().fingerprint()


def test_each_subject_has_its_word(house):
    model = ImageModel.load("tiny", adapters=["my-fox", "my-dog"])
    assert model.request("a [my-fox] fox with a [my-dog] dog").prompt == "a zwx fox with a sks dog"
    with pytest.raises(StudioloError, match=r"2 subjects\n.*\[my-fox\], \[my-dog\]"):
        model.request("a [V] fox")
    assert ImageModel.load("tiny", adapters=["my-dog"]).request("a [V] dog").prompt == "a sks dog"
    on_top = ImageModel.load("my-fox", adapters=["my-dog"])
    assert on_top.request("[my-fox] and [my-dog]").prompt == "zwx and sks"


def test_subjects_with_one_word_are_noted(house):
    card = json.loads((house / "my-dog/studiolo.json").read_text()) | {"identifier": "zwx"}
    (house / "my-dog/studiolo.json").write_text(json.dumps(card))
    model = ImageModel.load("tiny", adapters=["my-fox", "my-dog"])
    with pytest.warns(UserWarning, match="my-fox and my-dog have the same word, 'zwx'"):
        model.generate("a [my-fox] fox", steps=1)


def test_the_record_names_them_and_reproduces(house):
    model = ImageModel.load("tiny", adapters=[("my-fox", 0.5), "my-dog"])
    (picture,) = model.generate("a [my-fox] fox", steps=3)
    file = picture.save(house / "fox.png")
    record = read_provenance(file)
    assert [(one.name, one.weight) for one in record.model.adapters] == [("my-fox", 0.5), ("my-dog", 1.0)]
    assert len({one.sha256 for one in record.model.adapters}) == 2
    assert "Adapter my-fox: 0.5" in record.parameters()
    assert reproduce(file).identical
    (plain,) = ImageModel.load("tiny").generate("a zwx fox", steps=3)
    assert np.asarray(plain.image).tobytes() != np.asarray(picture.image).tobytes()
    assert "adapters" not in plain.provenance["model"]


def test_adapters_taught_anew_or_gone_are_told(house):
    (picture,) = ImageModel.load("tiny", adapters=["my-fox"]).generate("a fox", steps=1)
    file = picture.save(house / "fox.png")
    (house / "my-fox").rename(house / "old")
    save_adapter(Adapter(state(5)), house / "my-fox")
    (house / "my-fox/studiolo.json").write_text((house / "old/studiolo.json").read_text())
    with pytest.raises(StudioloError, match="the adapter 'my-fox' has other weights now"):
        reproduce(file)
    assert reproduce(file, adapters=[house / "old"]).identical
    with pytest.raises(StudioloError, match="1 adapters, and 2 are given"):
        reproduce(file, adapters=["my-fox", "my-dog"])


def test_a_file_of_lora_from_elsewhere(house):
    save_file(state(0), house / "style.safetensors")
    model = ImageModel.load("tiny", adapters=[(house / "style.safetensors", 0.8)])
    same = ImageModel.load("tiny", adapters=[("my-fox", 0.8)])
    for name, tensor in weights(same.components).items():
        torch.testing.assert_close(weights(model.components)[name], tensor, msg=name)
    (picture,) = model.generate("a fox", steps=2)
    file = picture.save(house / "fox.png")
    with pytest.raises(StudioloError, match="adapter 'style', which is not registered"):
        reproduce(file)
    assert reproduce(file, adapters=[house / "style.safetensors"]).identical


def test_from_the_command_line(house):
    def run(*arguments: str):
        return CliRunner().invoke(app, list(arguments))

    options = ["--adapter", "my-fox:0.8", "--adapter", "my-dog", "--model", "tiny", "--steps", "2"]
    drawn = run("generate", "a [my-fox] fox and a [my-dog] dog", *options)
    assert drawn.exit_code == 0, drawn.output
    record = read_provenance("pictures/000-seed0.png")
    assert record.request.prompt == "a zwx fox and a sks dog"
    assert run("reproduce", "pictures/000-seed0.png").stdout == "identical\n"


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("my-fox", ("my-fox", 1.0)),
        ("my-fox:0.8", ("my-fox", 0.8)),
        ("my-fox:-1", ("my-fox", -1.0)),
        ("/a/b.safetensors:0.5", ("/a/b.safetensors", 0.5)),
        ("C:\\loras\\a.safetensors", ("C:\\loras\\a.safetensors", 1.0)),
    ],
)
def test_names_with_weights(text, expected):
    assert parse_adapter(text) == expected


@pytest.mark.parametrize("text", ["my-fox:nan", "my-fox:inf", "my-fox:11"])
def test_weights_that_are_none(text):
    with pytest.raises(StudioloError, match="no weight"):
        parse_adapter(text)


def test_a_whole_model_is_no_adapter(house):
    with pytest.raises(StudioloError, match="a whole model, not an adapter"):
        ImageModel.load("tiny", adapters=["tiny"])


@pytest.fixture
def doras(house):
    """Files of two DoRAs and a LoRA on the same layers."""
    kinds = {"one": "dora", "two": "dora", "three": "lora"}
    files = [house / f"{name}.safetensors" for name in kinds]
    for seed, (file, kind) in enumerate(zip(files, kinds.values(), strict=True)):
        save_file(state(seed, kind), file)
    return files


def drawn(*adapters) -> dict[str, torch.Tensor]:
    return weights(ImageModel.load("tiny", adapters=adapters).components)


def alike(ours, theirs) -> None:
    for name, tensor in theirs.items():
        torch.testing.assert_close(ours[name], tensor, msg=name)


def test_weight_0_of_a_dora_is_the_base(doras):
    for name, tensor in drawn((doras[0], 0.0)).items():
        assert torch.equal(tensor, weights(tiny_components())[name]), name


def test_weight_1_of_a_dora_is_what_diffusers_draws_with(doras, house):
    pipeline = DiffusionPipeline.from_pretrained(house / "model")
    pipeline.load_lora_weights(house, weight_name=doras[0].name)
    pipeline.fuse_lora()
    pipeline.unload_lora_weights()
    alike(drawn(doras[0]), pipeline.unet.state_dict())


def test_a_dora_counts_as_much_as_its_weight(doras):
    base, whole, half = weights(tiny_components()), drawn(doras[0]), drawn((doras[0], 0.4))
    alike(half, {name: base[name] + 0.4 * (whole[name] - base[name]) for name in base})


def test_the_order_of_adapters_does_not_matter(doras, house):
    base = weights(tiny_components())
    shares = [0.7, 1.0, 0.5]
    alone = [drawn(file) for file in doras]
    expected = {
        name: base[name] + sum(w * (one[name] - base[name]) for w, one in zip(shares, alone, strict=True))
        for name in base
    }
    for order in permutations(zip(doras, shares, strict=True)):
        alike(drawn(*order), expected)
    merged = merge_models(["tiny", *zip(doras, shares, strict=True)], house / "merged")
    alike(weights(ImageModel.load(merged.path).components), expected)


def test_the_adapter_that_does_not_fit_is_named(doras, house):
    save_file(
        {name: tensor[:, :3].contiguous() for name, tensor in state(4).items()}, house / "other.safetensors"
    )
    with pytest.raises(StudioloError, match=r"other\.safetensors: the adapter does not fit"):
        drawn(doras[0], house / "other.safetensors")

"""convert and merge: equal to what they are made from, by closed forms and by the reference library."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
import torch
from diffusers import StableDiffusionPipeline
from safetensors.torch import load_file, save_file
from typer.testing import CliRunner

import studiolo
from lessons import lesson, teach
from studiolo.cli.main import app
from studiolo.cli.merge import _split
from studiolo.diffusion.adapters import AdapterSettings, adapter_state, inject, remove
from studiolo.drawing.model import ImageModel
from studiolo.errors import ConflictError, StudioloError
from studiolo.formats.adapter_folder import Adapter, save_adapter
from studiolo.formats.diffusers_folder import load_components, save_components
from studiolo.formats.embeddings import read_embedding
from studiolo.formats.lora import read_adapter, write_adapter
from studiolo.formats.opening import native_size, open_components
from studiolo.formats.single_file import write_single_file
from studiolo.models import registry
from tiny import tiny_components
from tiny_families import TINY


def state_of(components, seed=0):
    inject(components, AdapterSettings(rank=2, text_rank=2, seed=seed))
    state = adapter_state(components)
    remove(components)
    noise = torch.Generator().manual_seed(seed)
    return {
        name: torch.randn(tensor.shape, generator=noise) / 8 if "lora_B" in name else tensor
        for name, tensor in state.items()
    }


@pytest.fixture
def base(tmp_path) -> Path:
    """The folder of a tiny base model."""
    return save_components(tiny_components(), tmp_path / "base")


@pytest.fixture
def rex(tmp_path, base) -> Path:
    """The folder of an adapter that was taught on it, with a word of two tokens."""
    components = load_components(base)
    vectors = torch.randn(2, 32, generator=torch.Generator().manual_seed(5))
    folder = tmp_path / "rex"
    folder.mkdir()
    save_adapter(Adapter(state_of(components), {0: {"wug": vectors}}), folder)
    subject = {"name": "rex", "class_noun": "dog", "identifier": "wug wug1"}
    card = subject | {"base": {"name": str(base), "fingerprint": components.fingerprint()}}
    (folder / "studiolo.json").write_text(json.dumps(card))
    return folder


def test_an_adapter_opens_on_its_base(rex, base, studiolo_home):
    registry.register(rex, "rex")
    expected = load_components(base)
    torch_words = read_words(rex)
    Adapter(state_of(expected), torch_words).put_on(expected)
    assert open_components("rex").fingerprint() == expected.fingerprint()
    assert native_size("rex") == native_size(base) == (32, 4)
    model = ImageModel.load("rex")
    assert (model.ref.kind, model.identifier) == ("subject", "wug wug1")


def read_words(folder):
    return {0: load_file(folder / "learned_embeds.safetensors")}


def test_an_adapter_that_leaves_no_layer_out_of_a_base_that_does(tmp_path):
    components = tiny_components().skipping(1)
    base = save_components(components, tmp_path / "base")
    save_adapter(Adapter(state_of(components)), tmp_path / "rex")
    card = {"name": "rex", "base": {"name": str(base)}, "recipe": {"clip_skip": 0}}
    (tmp_path / "rex" / "studiolo.json").write_text(json.dumps(card))
    assert open_components(base).family.clip_skip == 1
    assert open_components(tmp_path / "rex").family.clip_skip == 0


@pytest.mark.parametrize("family", TINY)
def test_sizes_are_known_without_the_weights(family, tmp_path):
    components = TINY[family]()
    folder = save_components(components, tmp_path / "model")
    assert native_size(folder) == (components.image_size, components.size_unit)


def test_an_adapter_on_another_base_than_its_own_is_refused(rex, base, tmp_path):
    save_components(tiny_components(seed=1), base)
    with pytest.raises(StudioloError, match="not the one that it was taught on") as caught:
        open_components(rex)
    assert "studiolo merge" in (caught.value.remedy or "")


def test_adapters_that_stand_on_themselves_end(rex):
    card = json.loads((rex / "studiolo.json").read_text())
    (rex / "studiolo.json").write_text(json.dumps(card | {"base": {"name": str(rex)}}))
    with pytest.raises(StudioloError, match="too often"):
        open_components(rex)


@pytest.mark.parametrize("dtype", [None, "float16", "bfloat16"])
def test_a_model_from_format_to_format_is_the_same(base, tmp_path, dtype):
    (file,) = studiolo.convert(base, tmp_path / "a.safetensors", dtype=dtype)
    (folder,) = studiolo.convert(file, tmp_path / "b")
    (again,) = studiolo.convert(folder, tmp_path / "c.safetensors")
    wanted = getattr(torch, dtype or "float32")
    expected = load_components(base).to(dtype=wanted).fingerprint()
    assert load_components(folder).fingerprint() == open_components(file).fingerprint() == expected
    assert {tensor.dtype for tensor in load_file(again).values()} == {wanted}
    assert again.read_bytes() == file.read_bytes()


def test_the_card_of_a_subject_goes_along(rex, tmp_path):
    (file,) = studiolo.convert(rex, tmp_path / "rex-whole.safetensors", format="single-file")
    ref = registry.resolve(file)
    assert (ref.kind, ref.name, ref.card["identifier"]) == ("subject", "rex", "wug wug1")
    assert (
        ref.card["fingerprint"] == open_components(file).fingerprint() == open_components(rex).fingerprint()
    )
    (folder,) = studiolo.convert(file, tmp_path / "whole")
    assert registry.resolve(folder).card == ref.card


@pytest.mark.parametrize("naming", ["peft", "kohya"])
def test_an_adapter_in_both_namings_with_its_words_beside(rex, base, tmp_path, naming):
    written = studiolo.convert(rex, tmp_path / "rex.safetensors", format=naming)
    assert [file.name for file in written] == ["rex.safetensors", "rex_wug.safetensors"]
    assert torch.equal(read_embedding(written[1]).words[0]["wug"], read_words(rex)[0]["wug"])
    ref = studiolo.merge([base, *written], tmp_path / "whole")
    assert open_components(ref).fingerprint() == open_components(rex).fingerprint()


def test_a_word_that_was_taught_in_a_file_of_its_own(rex, base, tmp_path):
    """Of a subject that is a word alone, and of one that has an adapter, too."""
    alone = tmp_path / "alone"
    alone.mkdir()
    save_adapter(Adapter({}, read_words(rex)), alone)
    (alone / "studiolo.json").write_bytes((rex / "studiolo.json").read_bytes())
    for subject in (rex, alone):
        (file,) = studiolo.convert(subject, tmp_path / f"{subject.name}.safetensors", format="embedding")
        pipe = StableDiffusionPipeline.from_pretrained(base, safety_checker=None)
        pipe.load_textual_inversion(file)
        ids = pipe.tokenizer("wug wug_1", add_special_tokens=False).input_ids
        assert torch.equal(pipe.text_encoder.get_input_embeddings().weight[ids], read_words(rex)[0]["wug"])
    two = tmp_path / "two"
    two.mkdir()
    save_adapter(Adapter({}, {0: {"wug": torch.ones(2, 32), "dax": torch.zeros(1, 32)}}), two)
    (two / "studiolo.json").write_bytes((rex / "studiolo.json").read_bytes())
    files = studiolo.convert(two, tmp_path / "two.safetensors", format="embedding")
    assert {file.name for file in files} == {"two_wug.safetensors", "two_dax.safetensors"}
    assert not (tmp_path / "two.safetensors").exists()
    with pytest.raises(StudioloError, match="cannot be written in the format kohya") as told:
        studiolo.convert(alone, tmp_path / "k.safetensors", format="kohya")
    assert told.value.remedy.startswith("Formats for it: embedding, diffusers, single-file")
    with pytest.raises(StudioloError, match="a word has no weight"):
        studiolo.merge([base, (alone, 0.5)], tmp_path / "half")


def test_pruning_leaves_what_draws(tmp_path):
    components = TINY["sd1"]()
    weights = load_file(write_single_file(components, tmp_path / "a.safetensors"))
    more = {"model_ema.decay": torch.ones(1), "betas": torch.ones(9), "loss.logvar": torch.ones(1)}
    ids = {"cond_stage_model.transformer.text_model.embeddings.position_ids": torch.arange(24)[None]}
    torch.save({"state_dict": weights | more | ids}, tmp_path / "b.ckpt")
    (kept,) = studiolo.convert(tmp_path / "b.ckpt", tmp_path / "kept.safetensors")
    assert load_file(kept).keys() == (weights | more | ids).keys()
    (pruned,) = studiolo.convert(tmp_path / "b.ckpt", tmp_path / "c.safetensors", prune=True, dtype="float16")
    found = load_file(pruned)
    assert found.keys() == (weights | ids).keys()
    assert all(torch.equal(found[name], tensor.half()) for name, tensor in weights.items())
    assert found[next(iter(ids))].dtype == torch.int64


def test_adapters_into_their_base_as_the_reference_fuses_them(base, tmp_path):
    components = load_components(base)
    states = [state_of(components, seed) for seed in (1, 2)]
    files = [
        write_adapter(state, tmp_path / f"{i}.safetensors", naming)
        for i, (state, naming) in enumerate(zip(states, ("peft", "kohya"), strict=True))
    ]
    ref = studiolo.merge([base, (files[0], 0.5), (files[1], -0.25)], tmp_path / "merged.safetensors")
    pipeline = StableDiffusionPipeline.from_pretrained(base, safety_checker=None)
    for i, file in enumerate(files):
        pipeline.load_lora_weights(str(tmp_path), weight_name=file.name, adapter_name=f"n{i}")
    pipeline.set_adapters(["n0", "n1"], [0.5, -0.25])
    pipeline.fuse_lora(adapter_names=["n0", "n1"])
    pipeline.unload_lora_weights()
    theirs = pipeline.unet.state_dict()
    for name, tensor in open_components(ref).denoiser.state_dict().items():
        torch.testing.assert_close(tensor, theirs[name], rtol=1e-5, atol=1e-6)
    told = ref.card["merged"]
    assert [one["weight"] for one in told] == [1.0, 0.5, -0.25]
    assert [one["kind"] for one in told] == ["model", "adapter", "adapter"]


def test_a_weighted_sum_of_models(tmp_path):
    one, two, three = (save_components(tiny_components(seed), tmp_path / str(seed)) for seed in range(3))
    weights = [load_components(folder).denoiser.state_dict() for folder in (one, two, three)]

    def check(ref, *factors):
        for name, tensor in open_components(ref).denoiser.state_dict().items():
            expected = sum(f * w[name].double() for f, w in zip(factors, weights, strict=True))
            torch.testing.assert_close(tensor.double(), expected, rtol=1e-6, atol=1e-6)

    check(studiolo.merge([(one, 0.7), (two, 0.3)], tmp_path / "a"), 0.7, 0.3, 0)
    check(studiolo.merge([one, two, three], tmp_path / "b"), 1 / 3, 1 / 3, 1 / 3)
    check(studiolo.merge([one, (two, 0.8)], tmp_path / "c", minus=three), 1, 0.8, -0.8)
    same = studiolo.merge([(one, 1.0), (two, 0.0)], tmp_path / "d.safetensors", name="first")
    assert open_components("first").fingerprint() == load_components(one).fingerprint()
    assert same.name == "first"


def test_whom_the_parts_know_the_whole_knows(rex, base, tmp_path):
    ref = studiolo.merge([base, (rex, 0.9)], tmp_path / "whole.safetensors")
    assert (ref.kind, ref.card["identifier"], ref.card["class_noun"]) == ("subject", "wug wug1", "dog")
    assert [subject["name"] for subject in ref.card["subjects"]] == ["rex"]


def test_each_of_several_subjects_keeps_its_name(base, tmp_path):
    images = lesson(tmp_path / "lesson")["images"]
    for name, word in {"rex": "wug", "tom": "blick"}.items():
        teach({"images": images, "base": base}, tmp_path / name, steps=1, adapter={"kind": "lora"},
              identifier=word)  # fmt: skip
    studiolo.merge([base, tmp_path / "rex" / "model", tmp_path / "tom" / "model"], tmp_path / "whole")
    model = ImageModel.load(tmp_path / "whole")
    assert model.identifiers == {"rex": "wug", "tom": "blick"}
    assert model.request("a [rex] fox and a [tom] fox").prompt == "a wug fox and a blick fox"


def test_two_adapters_with_one_word_are_refused(rex, base, tmp_path):
    with pytest.raises(StudioloError, match="learned the word 'wug'"):
        studiolo.merge([base, rex, rex], tmp_path / "whole")


@pytest.mark.parametrize(
    ("models", "options", "told"),
    [
        (["base"], {}, "what is to be merged"),
        (["rex", "base"], {}, "first must be a whole model"),
        (["base", "rex", "base"], {}, "another whole model"),
        ([("base", 0.5), "rex"], {}, "base has the weight 0.5"),
        ([("base", 0.5), ("base", 0.6)], {}, "make 1.1"),
        ([("base", 0.5), "base"], {}, "some have none"),
        ([("base", float("nan")), ("base", 0.5)], {}, "nan is no weight"),
        (["base", ("rex", float("inf"))], {}, "inf is no weight"),
        (["base", "base", "base"], {"minus": "base"}, "of whole models"),
        (["base", "rex"], {"minus": "base"}, "of whole models"),
        (["base", "base"], {"dtype": "float8"}, "no dtype 'float8'"),
        (["base", "gone"], {}, "no model of this name"),
        (["base", "xl"], {}, "cannot be summed: their weights"),
        (["base", "v"], {}, "predicts the noise"),
    ],
)
def test_what_cannot_be_merged_is_told(rex, base, tmp_path, models, options, told):
    if "xl" in models:
        save_components(TINY["sdxl"](), tmp_path / "xl")
    if "v" in models:
        save_components(tiny_components(prediction_type="v_prediction"), tmp_path / "v")

    def at(model):
        return (tmp_path / model[0], model[1]) if isinstance(model, tuple) else tmp_path / model

    options = options | ({"minus": base} if "minus" in options else {})
    with pytest.raises(StudioloError, match=told):
        studiolo.merge([at(model) for model in models], tmp_path / "out", **options)
    assert not (tmp_path / "out").exists()


@pytest.mark.parametrize(
    ("target", "options", "told"),
    [
        ("a.ckpt", {}, "only .safetensors"),
        ("a", {"format": "single-file"}, "only .safetensors"),
        ("a.safetensors", {"format": "diffusers"}, "is a folder"),
        ("a.safetensors", {"format": "kohya"}, "cannot be written in the format kohya"),
        ("a.safetensors", {"format": "zip"}, "no format 'zip'"),
        ("a.safetensors", {"dtype": "int8"}, "no dtype 'int8'"),
    ],
)
def test_what_cannot_be_converted_is_told(base, tmp_path, target, options, told):
    with pytest.raises(StudioloError, match=told):
        studiolo.convert(base, tmp_path / target, **options)
    assert not (tmp_path / target).exists()


def test_an_adapter_s_format_has_to_be_said(rex, tmp_path):
    with pytest.raises(StudioloError, match="in which format"):
        studiolo.convert(rex, tmp_path / "a.safetensors")
    (file, _) = studiolo.convert(rex, tmp_path / "pytorch_lora_weights.safetensors")
    assert any("lora_A" in name for name in read_adapter(file))


def test_a_file_that_is_nothing_is_told(tmp_path):
    save_file({"a": torch.ones(2), "b": torch.ones(2)}, tmp_path / "a.safetensors")
    with pytest.raises(StudioloError, match="neither a model nor an adapter nor an embedding"):
        studiolo.convert(tmp_path / "a.safetensors", tmp_path / "b")


def test_nothing_is_overwritten(base, tmp_path):
    (tmp_path / "a.safetensors").write_text("mine")
    for work in (
        lambda: studiolo.convert(base, tmp_path / "a.safetensors"),
        lambda: studiolo.merge([base, base], tmp_path / "a.safetensors"),
        lambda: studiolo.convert(base, base),
    ):
        with pytest.raises(ConflictError):
            work()
    assert (tmp_path / "a.safetensors").read_text() == "mine"


def test_the_commands(rex, base, tmp_path):
    run = CliRunner().invoke
    file = tmp_path / "rex-k.safetensors"
    done = run(app, ["convert", str(rex), str(file), "--format", "kohya", "--dtype", "float16"])
    assert done.exit_code == 0, done.output
    assert done.stdout.split() == [str(file), str(tmp_path / "rex-k_wug.safetensors")]
    done = run(app, ["merge", str(base), f"{file}:0.8", "--out", str(tmp_path / "whole"), "--name", "both"])
    assert done.exit_code == 0, done.output
    assert registry.resolve("both").path == tmp_path / "whole"


def test_a_weight_stands_behind_the_last_colon(tmp_path):
    assert _split("rex:0.8") == ("rex", 0.8)
    assert _split("a/b:c:-1") == ("a/b:c", -1.0)
    assert _split("rex") == ("rex", None)
    (tmp_path / "a:1").mkdir()
    assert _split(f"{tmp_path}/a:1") == (f"{tmp_path}/a:1", None)
    with pytest.raises(StudioloError, match="no weight"):
        _split("rex:much")

"""The Diffusers folder: bit-exact there and back, and readable by the reference library."""

from __future__ import annotations

import json
import shutil

import pytest
import torch
from diffusers import StableDiffusionPipeline, UNet2DConditionModel
from safetensors.torch import load_file, save_file

from studiolo.diffusion.conditioning import encode_prompts, lost_text, tokenize
from studiolo.diffusion.samplers import SamplerSettings
from studiolo.diffusion.sampling import generate
from studiolo.errors import StudioloError
from studiolo.formats.diffusers_folder import load_components, save_components
from tiny import tiny_components, tiny_folder

PROMPT = "a photo of zwx fox, on the MOON"


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    return tiny_folder(tmp_path_factory.mktemp("tiny"), prediction_type="v_prediction")


def test_round_trip_is_bit_exact(folder):
    ours, back = tiny_components(prediction_type="v_prediction"), load_components(folder)
    for part, module in ours.modules.items():
        weights = back.modules[part].state_dict()
        assert weights.keys() == module.state_dict().keys()
        assert all(torch.equal(weights[name], tensor) for name, tensor in module.state_dict().items())
        assert not back.modules[part].training
    assert back.scheduler_config == ours.scheduler_config
    assert back.fingerprint() == ours.fingerprint()
    assert torch.equal(*tokenize(back, [PROMPT]), *tokenize(ours, [PROMPT]))


def test_the_reference_pipeline_loads_it_and_draws_the_same(folder):
    pipeline = StableDiffusionPipeline.from_pretrained(folder, safety_checker=None)
    pipeline.set_progress_bar_config(disable=True)
    generator = torch.Generator().manual_seed(1)
    theirs = pipeline(
        PROMPT, num_inference_steps=3, guidance_scale=4.0, generator=generator, output_type="np"
    ).images
    ours = generate(load_components(folder), [PROMPT], [1], SamplerSettings(steps=3, guidance_scale=4.0))
    pixels = torch.tensor(list(ours[0].get_flattened_data())).view(32, 32, 3) / 255
    torch.testing.assert_close(pixels, torch.from_numpy(theirs[0]), rtol=0, atol=0.51 / 255)


def test_a_folder_of_the_reference_pipeline_loads(folder, tmp_path):
    StableDiffusionPipeline.from_pretrained(folder, safety_checker=None).save_pretrained(tmp_path / "theirs")
    assert load_components(tmp_path / "theirs").fingerprint() == load_components(folder).fingerprint()


def test_half_precision_is_stored_as_such_and_read_as_float32(tmp_path, capfd):
    components = tiny_components()
    save_components(components, tmp_path / "half", dtype=torch.float16)
    assert capfd.readouterr() == ("", "")
    assert components.dtype == torch.float32
    stored = load_file(tmp_path / "half" / "unet" / "diffusion_pytorch_model.safetensors")
    assert {tensor.dtype for tensor in stored.values()} == {torch.float16}
    back = load_components(tmp_path / "half")
    assert {module.dtype for module in back.modules.values()} == {torch.float32}
    assert back.fingerprint() == load_components(tmp_path / "half", dtype=torch.float16).fingerprint()
    assert back.fingerprint() != components.fingerprint()


def test_where_a_part_was_loaded_from_is_not_told(folder, tmp_path):
    saved = save_components(load_components(folder), tmp_path / "again")
    assert str(folder) not in "".join(file.read_text() for file in saved.rglob("*.json"))


def test_an_fp16_variant_is_found(tmp_path):
    folder = tiny_folder(tmp_path)
    expected = load_components(folder).fingerprint()
    for file in folder.glob("*/*.safetensors"):
        file.rename(file.with_name(file.name.replace(".safetensors", ".fp16.safetensors")))
    assert load_components(folder).fingerprint() == expected


def test_a_copy_has_its_own_weights():
    original = tiny_components()
    before, copy = original.fingerprint(), original.copy()
    assert copy.fingerprint() == before
    with torch.no_grad():
        next(copy.denoiser.parameters()).add_(1)
    copy.tokenizer.add_tokens(["<new>"])
    assert original.fingerprint() == before != copy.fingerprint()


def test_the_fingerprint_sees_the_schedule_and_the_vocabulary():
    prints = {tiny_components(prediction_type=kind).fingerprint() for kind in ("epsilon", "v_prediction")}
    longer = tiny_components()
    longer.tokenizer.add_tokens(["<new>"])
    assert len(prints | {longer.fingerprint()}) == 3


def test_tokens_are_padded_and_cut_as_the_model_wants():
    components = tiny_components()
    (ids,) = tokenize(components, ["a fox", "dog " * 40])
    end = components.tokenizer.eos_token_id
    assert ids.shape == (2, 24)
    assert ids[0, 3:].eq(end).all()
    assert ids[1, -1] == end
    assert encode_prompts(components, ["a fox", "a dog"]).tokens.shape == (2, 24, 32)
    assert lost_text(components, "a fox") == ""
    assert lost_text(components, "dog " * 22 + "moon snow") == "moon snow"


@pytest.mark.parametrize("part", ["unet/config.json", "tokenizer/tokenizer_config.json", "vae/config.json"])
def test_a_missing_part_is_named(tmp_path, part):
    folder = tiny_folder(tmp_path)
    (folder / part).unlink()
    with pytest.raises(StudioloError, match=part):
        load_components(folder)


def test_a_part_without_weights_is_told(tmp_path):
    folder = tiny_folder(tmp_path)
    weights = folder / "unet" / "diffusion_pytorch_model.safetensors"
    weights.rename(weights.with_suffix(".bin"))  # which it is not
    with pytest.raises(StudioloError, match="not a whole file of weights"):
        load_components(folder)
    weights.with_suffix(".bin").unlink()
    with pytest.raises(StudioloError, match=r"unet: no weights"):
        load_components(folder)


def test_damaged_weights_are_told(tmp_path):
    for name, damage in {"cut": lambda data: data[: len(data) // 2], "empty": lambda data: b""}.items():
        folder = tiny_folder(tmp_path / name)
        weights = folder / "vae" / "diffusion_pytorch_model.safetensors"
        weights.write_bytes(damage(weights.read_bytes()))
        with pytest.raises(StudioloError, match="cannot be read"):
            load_components(folder)


def test_weights_of_another_shape_are_told(tmp_path):
    folder = tiny_folder(tmp_path)
    config = folder / "unet" / "config.json"
    config.write_text(json.dumps(json.loads(config.read_text()) | {"block_out_channels": [32, 96]}))
    with pytest.raises(StudioloError, match="cannot be read"):
        load_components(folder)


def test_missing_weights_are_not_filled_with_noise(tmp_path):
    for part, name in (("text_encoder", "model"), ("unet", "diffusion_pytorch_model")):
        folder = tiny_folder(tmp_path / part)
        file = folder / part / f"{name}.safetensors"
        weights = load_file(file)
        weights.pop(sorted(weights)[-1])
        save_file(weights, file, metadata={"format": "pt"})
        with pytest.raises(StudioloError, match="cannot be read"):
            load_components(folder)


def test_a_folder_as_stable_diffusion_1_was_published(folder, tmp_path):
    """vocab.json, merges.txt and no tokenizer.json; weights named text_model.*, position ids too."""
    old = shutil.copytree(folder, tmp_path / "old")
    expected = load_components(folder)
    expected.tokenizer.backend_tokenizer.model.save(str(old / "tokenizer"))
    (old / "tokenizer" / "tokenizer.json").unlink()
    file = old / "text_encoder" / "model.safetensors"
    weights = {
        f"text_model.{name.removeprefix('text_model.')}": tensor for name, tensor in load_file(file).items()
    }
    save_file(
        weights | {"text_model.embeddings.position_ids": torch.arange(24)[None]},
        file,
        metadata={"format": "pt"},
    )
    back = load_components(old)
    assert back.fingerprint() == expected.fingerprint()
    prompts = [PROMPT, "", "été ♥ DOG's 3d", "dog " * 40]
    assert torch.equal(*tokenize(back, prompts), *tokenize(expected, prompts))


def test_parts_of_different_models_are_told(folder, tmp_path):
    mixed = shutil.copytree(folder, tmp_path / "mixed")
    config = json.loads((mixed / "tokenizer" / "tokenizer_config.json").read_text())
    (mixed / "tokenizer" / "tokenizer_config.json").write_text(json.dumps(config | {"model_max_length": 77}))
    with pytest.raises(StudioloError, match="longest text is 77, and 24 is wanted"):
        load_components(mixed)


def test_an_inpainting_unet_is_refused(tmp_path):
    components = tiny_components()
    components.denoiser = UNet2DConditionModel.from_config(components.denoiser.config, in_channels=9)
    save_components(components, tmp_path / "inpainting")
    with pytest.raises(StudioloError, match="a model for inpainting: its unet takes 9 channels"):
        load_components(tmp_path / "inpainting")

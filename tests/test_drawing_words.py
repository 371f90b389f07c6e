"""Files of textual inversion that are drawn with: their word is added, and spelled out in prompts."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from diffusers import DDIMScheduler, DiffusionPipeline
from safetensors.torch import save_file
from typer.testing import CliRunner

from studiolo.cli.main import app
from studiolo.drawing.model import load
from studiolo.drawing.prompts import spell_out
from studiolo.drawing.provenance import read_provenance
from studiolo.drawing.reproduction import reproduce
from studiolo.errors import StudioloError
from studiolo.formats.diffusers_folder import save_components
from studiolo.models.registry import register
from tiny_families import TINY


def vectors(n: int, width: int = 32) -> torch.Tensor:
    return 0.3 * torch.randn(n, width, generator=torch.Generator().manual_seed(n))


@pytest.fixture
def house(tmp_path, monkeypatch):
    """A folder with the models "sd1" and "sdxl", which are registered."""
    monkeypatch.setenv("STUDIOLO_HOME", str(tmp_path / "home"))
    monkeypatch.chdir(tmp_path)
    for name in ("sd1", "sdxl"):
        register(save_components(TINY[name](), tmp_path / name), name)
    return tmp_path


def automatic(n: int) -> dict:
    return {"string_to_token": {"*": 265}, "name": "rex", "string_to_param": {"*": vectors(n)}}


@pytest.mark.parametrize("n", [1, 3])
@pytest.mark.parametrize("kind", ["diffusers", "diffusers.bin", "automatic", "automatic.pt"])
def test_pictures_are_those_of_the_pipeline(house, kind, n):
    file = house / {"diffusers": "a.safetensors", "diffusers.bin": "a.bin"}.get(kind, "rex.safetensors")
    if kind == "diffusers":
        save_file({"rex": vectors(n)}, file)
    elif kind == "diffusers.bin":
        torch.save({"rex": vectors(n)}, file)
    elif kind == "automatic":
        save_file({"emb_params": vectors(n)}, file)
    else:
        file = file.with_suffix(".pt")
        torch.save(automatic(n), file)
    pipeline = DiffusionPipeline.from_pretrained(house / "sd1")
    pipeline.scheduler = DDIMScheduler.from_config(pipeline.scheduler.config)
    pipeline.load_textual_inversion(vectors(n), token="rex")
    settings = {"num_inference_steps": 2, "guidance_scale": 3.0, "output_type": "np"}
    generator = torch.Generator().manual_seed(1)
    theirs = pipeline("a photo of rex fox", negative_prompt="rex", generator=generator, **settings).images[0]
    model = load("sd1", adapters=[file])
    (ours,) = model.generate("a photo of rex fox", negative_prompt="rex", seed=1, steps=2, guidance_scale=3.0)
    np.testing.assert_allclose(np.asarray(ours.image) / 255, theirs, rtol=0, atol=0.6 / 255)
    assert model.request("a [V] fox") == model.request("a rex fox") == model.request(f"a [{file.stem}] fox")


def test_the_pair_of_xl_is_a_word_of_both_encoders(house):
    widths = [encoder.config.hidden_size for encoder in TINY["sdxl"]().text_encoders]
    save_file({"clip_l": vectors(2, widths[0]), "clip_g": vectors(2, widths[1])}, "rex.safetensors")
    model = load("sdxl", adapters=["rex.safetensors"])
    for tokenizer, encoder, width in zip(
        model.components.tokenizers, model.components.text_encoders, widths, strict=True
    ):
        rows = tokenizer(model.request("a rex fox").prompt).input_ids[2:4]
        assert torch.equal(encoder.get_input_embeddings().weight[rows], vectors(2, width))
    (with_it,), (without,) = (
        each.generate("a rex fox", sampler="euler", steps=2) for each in (model, load("sdxl"))
    )
    assert with_it.image.tobytes() != without.image.tobytes()


def test_from_the_command_line_and_again_from_its_record(house):
    torch.save(automatic(2), "rex.pt")

    def run(*arguments: str):
        return CliRunner().invoke(app, list(arguments))

    drawn = run("generate", "a rex fox", "--model", "sd1", "--adapter", "rex.pt", "--steps", "2")
    assert drawn.exit_code == 0, drawn.output
    record = read_provenance("pictures/000-seed0.png")
    assert record.request.prompt == "a rex rex1 fox"
    assert [(one.name, one.weight) for one in record.model.adapters] == [("rex", 1.0)]
    assert reproduce("pictures/000-seed0.png", adapters=["rex.pt"]).identical


def test_what_is_no_word_for_the_model_is_told(house):
    save_file({"rex": vectors(1)}, "rex.safetensors")
    save_file({"clip_l": vectors(2, 16), "clip_g": vectors(2, 24)}, "pair.safetensors")
    save_file({"rex": vectors(1, 20)}, "wide.safetensors")
    save_file({"a": vectors(1), "b": vectors(2)}, "other.safetensors")
    for model, file, told in (
        ("sd1", "pair.safetensors", "words for 2 text encoders"),
        ("sd1", "wide.safetensors", "'rex' has 20 numbers, and 32 are read"),
        ("sd1", "other.safetensors", "neither a model nor an adapter nor an embedding"),
        ("sdxl", "rex.safetensors", "this embedding is for 1 text encoder, and the model reads words by 2"),
    ):
        with pytest.raises(StudioloError, match=told) as error:
            load(model, adapters=[file])
        assert file in str(error.value)
    with pytest.raises(StudioloError, match=r"cannot count 0\.5 times"):
        load("sd1", adapters=[("rex.safetensors", 0.5)])


@pytest.mark.parametrize(
    ("prompt", "expected"),
    [
        ("a rex fox", "a rex rex1 fox"),
        ("a rex rex1 fox, Rex", "a rex rex1 fox, rex rex1"),
        ("a rexy trex rex1", "a rexy trex rex1"),
        ("<cat>, one <dog>", "<cat> <cat>1, one <dog>"),
    ],
)
def test_words_are_spelled_out_once(prompt, expected):
    assert spell_out(prompt, {"rex": "rex rex1", "<cat>": "<cat> <cat>1", "<dog>": "<dog>"}) == expected

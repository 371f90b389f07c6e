"""Files of textual inversion: those that others write are read, and diffusers reads ours."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from diffusers import DDIMScheduler, StableDiffusionPipeline, StableDiffusionXLPipeline
from safetensors.torch import load_file, save_file

from studiolo.diffusion.samplers import SamplerSettings
from studiolo.diffusion.sampling import generate
from studiolo.errors import StudioloError
from studiolo.formats.adapter_folder import Adapter
from studiolo.formats.diffusers_folder import save_components
from studiolo.formats.embeddings import read_embedding, single_words, write_embedding
from tiny_families import TINY

PROMPT = "a photo of <rex> fox"


def vectors(n: int, width: int = 32) -> torch.Tensor:
    return 0.3 * torch.randn(n, width, generator=torch.Generator().manual_seed(n))


def test_every_kind_of_file_is_read(tmp_path):
    table = vectors(2)
    save_file({"<rex>": table}, tmp_path / "learned_embeds.safetensors")
    save_file({"emb_params": table}, tmp_path / "a.safetensors")
    torch.save({"<rex>": table}, tmp_path / "learned_embeds.bin")
    automatic = {"string_to_token": {"*": 265}, "name": "rex", "step": 500, "sd_checkpoint": None}
    torch.save(automatic | {"string_to_param": {"*": table}}, tmp_path / "b.pt")
    old = torch.nn.ParameterDict({"*": torch.nn.Parameter(table)})
    torch.save(automatic | {"string_to_param": old}, tmp_path / "c.pt")
    found = {file.name: read_embedding(file).words for file in tmp_path.iterdir()}
    words = {name: next(iter(tables[0])) for name, tables in found.items()}
    assert words == {
        "learned_embeds.safetensors": "<rex>",
        "a.safetensors": "a",
        "learned_embeds.bin": "<rex>",
        "b.pt": "rex",
        "c.pt": "rex",
    }
    assert all(torch.equal(tables[0][words[name]], table) for name, tables in found.items())
    assert list(read_embedding(tmp_path / "a.safetensors", "zwx").words[0]) == ["zwx"]


def test_one_vector_alone_is_a_word_of_one_token(tmp_path):
    save_file({"<rex>": vectors(1)[0]}, tmp_path / "a.safetensors")
    assert read_embedding(tmp_path / "a.safetensors").words[0]["<rex>"].shape == (1, 32)


@pytest.mark.parametrize("places", [(0,), (0, 1)])
def test_ours_is_bit_exact_there_and_back(tmp_path, places):
    adapter = Adapter({}, {place: {"rex": vectors(3, 32 + place)} for place in places})
    file = write_embedding(adapter, tmp_path / "rex.safetensors")
    back = read_embedding(file).words
    assert all(torch.equal(back[place]["rex"], adapter.words[place]["rex"]) for place in places)
    assert set(load_file(file)) == ({"rex"} if places == (0,) else {"clip_l", "clip_g"})


def test_the_reference_pipeline_reads_ours_and_draws_the_same(tmp_path):
    components = TINY["sd1"]()
    folder = save_components(components, tmp_path / "base")
    file = write_embedding(Adapter({}, {0: {"<rex>": vectors(1)}}), tmp_path / "learned_embeds.safetensors")
    pipeline = StableDiffusionPipeline.from_pretrained(folder, safety_checker=None)
    pipeline.load_textual_inversion(str(tmp_path))
    read_embedding(file).put_on(components)
    compare(pipeline, components)


def test_the_reference_pipeline_reads_the_pair_of_xl(tmp_path):
    components = TINY["sdxl"]()
    folder = save_components(components, tmp_path / "base")
    widths = [encoder.config.hidden_size for encoder in components.text_encoders]
    words = {place: {"<rex>": vectors(1, width)} for place, width in enumerate(widths)}
    file = write_embedding(Adapter({}, words), tmp_path / "rex_emb.safetensors")
    pipeline = StableDiffusionXLPipeline.from_pretrained(folder)
    told = load_file(file)
    pipeline.load_textual_inversion(
        told["clip_l"], token="<rex>", text_encoder=pipeline.text_encoder, tokenizer=pipeline.tokenizer
    )
    pipeline.load_textual_inversion(
        told["clip_g"], token="<rex>", text_encoder=pipeline.text_encoder_2, tokenizer=pipeline.tokenizer_2
    )
    # An added token is larger than EOS: configs of old would pool at it.
    for encoder in (pipeline.text_encoder, pipeline.text_encoder_2):
        for part in (encoder, getattr(encoder, "text_model", encoder)):
            part.eos_token_id = pipeline.tokenizer.eos_token_id
    read_embedding(file, "<rex>").put_on(components)
    compare(pipeline, components)


def compare(pipeline, components):
    pipeline.scheduler = DDIMScheduler.from_config(pipeline.scheduler.config)
    pipeline.set_progress_bar_config(disable=True)
    told = {"num_inference_steps": 2, "guidance_scale": 3.0, "output_type": "np"}
    theirs = pipeline(PROMPT, generator=torch.Generator().manual_seed(1), **told).images[0]
    (ours,) = generate(components, [PROMPT], [1], SamplerSettings(steps=2, guidance_scale=3.0))
    np.testing.assert_allclose(np.asarray(ours) / 255, theirs, rtol=0, atol=0.6 / 255)


def test_several_words_take_a_file_each(tmp_path):
    adapter = Adapter({}, {0: {"rex": vectors(1), "tom": vectors(2)}})
    with pytest.raises(StudioloError, match="one word, and there are 2"):
        write_embedding(adapter, tmp_path / "a.safetensors")
    assert set(single_words(adapter)) == {"rex", "tom"}


@pytest.mark.parametrize(
    "content",
    [
        {"a": torch.ones(2, 2), "b": torch.ones(2, 2)},
        {"a": torch.ones(2, 2, 2)},
        {"string_to_param": 7},
        {"string_to_param": {"*": 7}},
        [torch.ones(2, 2)],
    ],
)
def test_what_is_no_embedding_is_told(tmp_path, content):
    torch.save(content, tmp_path / "a.pt")
    with pytest.raises(StudioloError, match="no embedding"):
        read_embedding(tmp_path / "a.pt")

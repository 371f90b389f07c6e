"""The files of an adapter: read back, put on a base, and read by diffusers."""

from __future__ import annotations

import pytest
import torch

from studiolo.diffusion.adapters import adapter_state
from studiolo.diffusion.conditioning import encode_prompts
from studiolo.errors import StudioloError
from studiolo.formats.adapter_folder import Adapter, embedded_words, load_adapter, save_adapter
from studiolo.formats.lora import fitted
from test_adapters import ALL, adapted, pipeline, says
from tiny import tiny_components


def learned(count: int) -> dict[str, torch.Tensor]:
    """A new word's vectors."""
    return {"blorp": torch.randn(count, 32, generator=torch.Generator().manual_seed(2))}


@pytest.mark.parametrize("kind", ["lora", "dora"])
def test_what_is_read_back_draws_the_same(kind, tmp_path):
    trained = adapted(kind, targets=ALL)
    save_adapter(Adapter(adapter_state(trained), {0: learned(2)}), tmp_path)
    read = load_adapter(tmp_path)
    assert torch.equal(read.words[0]["blorp"], learned(2)["blorp"])
    model = tiny_components()
    read.put_on(model)
    torch.testing.assert_close(says(model), says(trained), rtol=1e-4, atol=1e-5)
    assert embedded_words(model, {"blorp": 2})[0]["blorp"].equal(learned(2)["blorp"])


def test_diffusers_reads_the_words(tmp_path):
    save_adapter(Adapter({}, {0: learned(3)}), tmp_path)
    ours = tiny_components()
    load_adapter(tmp_path).put_on(ours)
    theirs = pipeline(tiny_components())
    theirs.load_textual_inversion(tmp_path / "learned_embeds.safetensors")
    expected = theirs.encode_prompt("a photo of blorp on the beach", "cpu", 1, False)[0]
    said = encode_prompts(ours, ["a photo of blorp blorp1 blorp2 on the beach"]).tokens
    torch.testing.assert_close(said, expected)


def test_rows_of_other_words_keep_their_bits(tmp_path):
    model, plain = tiny_components(), tiny_components()
    Adapter({}, {0: {"zwx": torch.ones(1, 32)}}).put_on(model)
    tables = [m.text_encoder.get_input_embeddings().weight for m in (model, plain)]
    changed = (tables[0] != tables[1]).any(1).nonzero().flatten().tolist()
    assert changed == [plain.tokenizer.convert_tokens_to_ids("zwx</w>")]


def test_half_precision_halves_the_file(tmp_path):
    state = adapter_state(adapted())
    (tmp_path / "half").mkdir()
    save_adapter(Adapter(state), tmp_path)
    save_adapter(Adapter(state), tmp_path / "half", torch.float16)
    sizes = [
        (folder / "pytorch_lora_weights.safetensors").stat().st_size
        for folder in (tmp_path, tmp_path / "half")
    ]
    assert sizes[1] < 0.75 * sizes[0]
    for name, tensor in fitted(load_adapter(tmp_path / "half").state, tiny_components()).items():
        torch.testing.assert_close(tensor, state[name], rtol=1e-3, atol=1e-4)


def test_what_is_wrong_is_told(tmp_path):
    with pytest.raises(StudioloError, match="no adapter"):
        load_adapter(tmp_path)
    (tmp_path / "learned_embeds.safetensors").write_bytes(b"nothing")
    with pytest.raises(StudioloError, match="cannot be read"):
        load_adapter(tmp_path)
    with pytest.raises(StudioloError, match="has 8 numbers, and 32 are read"):
        Adapter({}, {0: {"blorp": torch.ones(1, 8)}}).put_on(tiny_components())
    with pytest.raises(StudioloError, match="2 text encoders"):
        Adapter({}, {1: learned(1)}).put_on(tiny_components())

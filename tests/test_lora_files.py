"""Files of adapters: both namings bit-exact there and back, and drawn alike by the reference library."""

from __future__ import annotations

import json
import re

import numpy as np
import pytest
import torch
from diffusers import DDIMScheduler, StableDiffusionPipeline, StableDiffusionXLPipeline
from safetensors.torch import load_file, save_file

from studiolo.diffusion.adapters import AdapterSettings, adapter_state, inject, merge, remove
from studiolo.diffusion.samplers import SamplerSettings
from studiolo.diffusion.sampling import generate
from studiolo.errors import StudioloError
from studiolo.formats.diffusers_folder import save_components
from studiolo.formats.lora import fitted, read_adapter, write_adapter
from studiolo.formats.tensors import read_metadata, write_tensors
from tiny_families import TINY

PIPELINES = {"sd1": StableDiffusionPipeline, "sdxl": StableDiffusionXLPipeline}
PROMPT = "a photo of fox"


def adapter(components, seed=0, **settings):
    """A state of random numbers that show in a picture."""
    chosen = {"rank": 3, "text_rank": 2, "targets": ("attention", "feed_forward", "conv")}
    inject(components, AdapterSettings(**chosen | settings))
    state = adapter_state(components)
    remove(components)
    noise = torch.Generator().manual_seed(seed)
    return {
        name: tensor + 0.2 * torch.randn(tensor.shape, generator=noise) if "lora_B" in name else tensor
        for name, tensor in state.items()
    }


def same(one, two):
    return one.keys() == two.keys() and all(torch.equal(one[name], two[name]) for name in one)


def draw(components):
    settings = SamplerSettings(steps=2, guidance_scale=3.0)
    return np.asarray(generate(components, [PROMPT], [1], settings)[0]) / 255


@pytest.mark.parametrize("kind", ["lora", "dora"])
@pytest.mark.parametrize("naming", ["peft", "kohya"])
@pytest.mark.parametrize("family", PIPELINES)
def test_both_namings_are_bit_exact_there_and_back(tmp_path, family, naming, kind):
    components = TINY[family]()
    state = adapter(components, kind=kind)
    back = fitted(read_adapter(write_adapter(state, tmp_path / "a.safetensors", naming)), components)
    assert same(back, state)
    again = write_adapter(back, tmp_path / "b.safetensors", naming)
    assert again.read_bytes() == (tmp_path / "a.safetensors").read_bytes()


@pytest.mark.parametrize(
    ("family", "naming", "kind"),
    [
        ("sd1", "peft", "lora"),
        ("sd1", "kohya", "lora"),
        ("sd1", "peft", "dora"),  # diffusers leaves kohya's DoRA out
        ("sdxl", "peft", "lora"),
        ("sdxl", "kohya", "lora"),
    ],
)
def test_the_reference_pipeline_reads_it_and_draws_the_same(tmp_path, family, naming, kind):
    components = TINY[family]()
    state = adapter(components, kind=kind)
    file = write_adapter(state, tmp_path / "lora" / "pytorch_lora_weights.safetensors", naming)
    folder = save_components(components, tmp_path / "base")
    plain = draw(components)
    merge(components, fitted(read_adapter(file), components))
    ours = draw(components)
    assert np.abs(ours - plain).max() > 0.05
    pipeline = PIPELINES[family].from_pretrained(folder, **_no_checker(family))
    pipeline.scheduler = DDIMScheduler.from_config(pipeline.scheduler.config)
    pipeline.load_lora_weights(str(file.parent))
    pipeline.set_progress_bar_config(disable=True)
    theirs = pipeline(
        PROMPT,
        num_inference_steps=2,
        guidance_scale=3.0,
        generator=torch.Generator().manual_seed(1),
        output_type="np",
    ).images[0]
    np.testing.assert_allclose(ours, theirs, rtol=0, atol=0.6 / 255)


def _no_checker(family):
    return {"safety_checker": None} if family == "sd1" else {}


def test_kohya_s_formula_is_that_of_the_state(tmp_path):
    """As sd-scripts and ComfyUI read it: W + (alpha / rank) up down, rows brought to dora_scale."""
    components = TINY["sd1"]()
    state = adapter(components, kind="dora", text_rank=0)
    tensors = load_file(write_adapter(state, tmp_path / "a.safetensors", "kohya"))
    layer = "down_blocks.0.attentions.0.transformer_blocks.0.attn1.to_q"
    flat = f"lora_unet_{layer.replace('.', '_')}"
    down, up, alpha, lengths = (
        tensors[f"{flat}.{end}"] for end in ("lora_down.weight", "lora_up.weight", "alpha", "dora_scale")
    )
    weight = components.denoiser.get_submodule(layer).weight.detach().clone()
    added = weight + up @ down * alpha / down.shape[0]
    expected = added * (lengths / added.norm(dim=1, keepdim=True))
    merge(components, state)
    torch.testing.assert_close(components.denoiser.get_submodule(layer).weight.detach(), expected)
    assert lengths.shape == (len(weight), 1)


def test_alpha_of_a_foreign_file_is_heeded(tmp_path):
    """kohya's alpha per layer, and the alpha in the settings that PEFT keeps in the metadata."""
    name = "mid_block.attentions.0.transformer_blocks.0.attn1.to_q"
    down, up = torch.randn(4, 8), torch.randn(8, 4)
    flat = f"lora_unet_{name.replace('.', '_')}"
    weights = {
        f"{flat}.lora_down.weight": down,
        f"{flat}.lora_up.weight": up,
        f"{flat}.alpha": torch.tensor(2.0),
    }
    save_file(weights, tmp_path / "k.safetensors")
    assert torch.equal(read_adapter(tmp_path / "k.safetensors")[f"unet.{name}.lora_B.weight"], up / 2)
    settings = {"unet.r": 4, "unet.lora_alpha": 8, "unet.alpha_pattern": {"to_k": 3}}
    peft = {f"unet.{name}.lora_A.weight": down, f"unet.{name}.lora_B.weight": up}
    for told, scale in (
        (settings, 2),
        (settings | {"unet.use_rslora": True}, 4),
        (settings | {"unet.alpha_pattern": {"attn1.to_q": 1}}, 0.25),
    ):
        save_file(peft, tmp_path / "p.safetensors", {"lora_adapter_metadata": json.dumps(told)})
        assert torch.equal(read_adapter(tmp_path / "p.safetensors")[f"unet.{name}.lora_B.weight"], up * scale)


def test_layers_of_several_ranks_are_read_right_by_the_reference(tmp_path):
    """diffusers takes one alpha for a whole network unless it is told otherwise."""
    components = TINY["sd1"]()
    state = adapter(components, text_rank=0, targets=("attention",))
    ends = [name.removesuffix(".lora_A.weight") for name in state if "lora_A" in name][::2]
    for layer in ends:
        state[f"{layer}.lora_A.weight"] = state[f"{layer}.lora_A.weight"][:1].clone()
        state[f"{layer}.lora_B.weight"] = state[f"{layer}.lora_B.weight"][:, :1].clone()
    file = write_adapter(state, tmp_path / "pytorch_lora_weights.safetensors")
    assert "lora_adapter_metadata" in read_metadata(file)
    assert same(read_adapter(file), state)
    folder = save_components(components, tmp_path / "base")
    pipeline = StableDiffusionPipeline.from_pretrained(folder, safety_checker=None)
    pipeline.load_lora_weights(str(tmp_path))
    pipeline.fuse_lora()
    pipeline.unload_lora_weights()
    merge(components, state)
    theirs = pipeline.unet.state_dict()
    for name, tensor in components.denoiser.state_dict().items():
        torch.testing.assert_close(theirs[name], tensor, rtol=1e-5, atol=1e-6)


def test_text_encoders_are_named_as_everybody_reads_them(tmp_path):
    """transformers 5 has no "text_model." in some names; the keys of ComfyUI (comfy/lora.py) all have it."""
    components = TINY["sdxl"]()
    state = adapter(components, targets=("attention",))
    peft = load_file(write_adapter(state, tmp_path / "a.safetensors"))
    kohya = load_file(write_adapter(state, tmp_path / "b.safetensors", "kohya"))
    layer = "encoder.layers.0.self_attn.q_proj"
    for part, prefix in {"text_encoder": "lora_te1", "text_encoder_2": "lora_te2"}.items():
        assert f"{part}.text_model.{layer}.lora_A.weight" in peft
        assert f"{prefix}_text_model_{layer.replace('.', '_')}.lora_down.weight" in kohya
    assert not [name for name in peft if name.startswith("text") and "text_model." not in name]


# Names as sd-scripts writes them for SDXL, beside diffusers' names, from its conversion table
# (library/sdxl_model_util.py).
SDXL_NAMES = {
    "lora_unet_input_blocks_4_1_transformer_blocks_0_attn1_to_q": (
        "unet.down_blocks.1.attentions.0.transformer_blocks.0.attn1.to_q"
    ),
    "lora_unet_input_blocks_8_1_transformer_blocks_9_ff_net_0_proj": (
        "unet.down_blocks.2.attentions.1.transformer_blocks.9.ff.net.0.proj"
    ),
    "lora_unet_middle_block_1_proj_in": "unet.mid_block.attentions.0.proj_in",
    "lora_unet_middle_block_2_in_layers_2": "unet.mid_block.resnets.1.conv1",
    "lora_unet_output_blocks_5_1_transformer_blocks_1_attn2_to_out_0": (
        "unet.up_blocks.1.attentions.2.transformer_blocks.1.attn2.to_out.0"
    ),
    "lora_unet_input_blocks_3_0_op": "unet.down_blocks.0.downsamplers.0.conv",
    "lora_unet_output_blocks_2_2_conv": "unet.up_blocks.0.upsamplers.0.conv",
    "lora_unet_output_blocks_0_0_skip_connection": "unet.up_blocks.0.resnets.0.conv_shortcut",
    "lora_unet_input_blocks_1_0_emb_layers_1": "unet.down_blocks.0.resnets.0.time_emb_proj",
    "lora_unet_label_emb_0_2": "unet.add_embedding.linear_2",
    "lora_unet_out_2": "unet.conv_out",
    "lora_te1_text_model_encoder_layers_3_self_attn_out_proj": (
        "text_encoder.text_model.encoder.layers.3.self_attn.out_proj"
    ),
    "lora_te2_text_model_encoder_layers_31_mlp_fc1": "text_encoder_2.text_model.encoder.layers.31.mlp.fc1",
}


def test_names_of_sdxl_s_first_implementation_are_read(tmp_path):
    tensors = {}
    for name in SDXL_NAMES:
        tensors |= {f"{name}.lora_down.weight": torch.ones(1, 2), f"{name}.lora_up.weight": torch.ones(2, 1)}
    file = write_tensors(tmp_path / "xl.safetensors", tensors)
    assert {name for name in read_adapter(file) if "lora_A" in name} == {
        f"{name}.lora_A.weight" for name in SDXL_NAMES.values()
    }


@pytest.mark.parametrize(
    "name",
    [
        "unet.mid_block.attentions.0.transformer_blocks.0.attn1.processor.to_q_lora.{}.weight",
        "unet.mid_block.attentions.0.transformer_blocks.0.attn1.to_q.lora.{}.weight",
        "mid_block.attentions.0.transformer_blocks.0.attn1.processor.to_q_lora.{}.weight",
    ],
)
def test_older_names_of_diffusers_are_read(tmp_path, name):
    tensors = {name.format("down"): torch.ones(1, 2), name.format("up"): torch.ones(2, 1)}
    state = read_adapter(write_tensors(tmp_path / "old.safetensors", tensors))
    assert set(state) == {
        f"unet.mid_block.attentions.0.transformer_blocks.0.attn1.to_q.lora_{half}.weight" for half in "AB"
    }


@pytest.mark.parametrize(
    ("tensors", "told"),
    [
        ({"lora_unet_mid.hada_w1_a": 1}, "LoHa"),
        ({"lora_unet_mid.lokr_w1": 1}, "LoKr"),
        ({"lora_unet_mid.lora_mid.weight": 1, "lora_unet_mid.lora_down.weight": 1}, "Tucker"),
        ({"lora_te3_a.lora_down.weight": 1}, "T5"),
        ({"lora_unet_joint_blocks_0_x_block_attn_qkv.lora_down.weight": 1}, "Stable Diffusion 3 in kohya's"),
        ({"bundle_emb.x": 1, "lora_unet_mid.lora_down.weight": 1}, "embeddings in the same file"),
        ({"model.diffusion_model.out.2.bias": 1}, "no adapter"),
        ({"unet.mid.lora_A.weight": 1}, "do not fit together"),
        ({"lora_other_mid.lora_down.weight": 1}, "no part"),
        ({"lora_unet_mid.alpha": 1, "lora_unet_mid.lora_up.weight": 1}, "only a part"),
        ({"lora_unet_input_blocks.lora_down.weight": 1}, "no layer input_blocks"),
        ({"lora_unet_input_blocks_x_1_proj_in.lora_down.weight": 1}, "no layer input_blocks_x"),
        ({"lora_unet_middle_block_7_proj_in.lora_down.weight": 1}, "no layer middle_block_7"),
    ],
)
def test_other_adapters_are_refused_by_name(tmp_path, tensors, told):
    file = write_tensors(tmp_path / "a.safetensors", {name: torch.ones(1, 1) for name in tensors})
    with pytest.raises(StudioloError, match=re.escape(told)) as caught:
        read_adapter(file)
    assert caught.value.where == str(file)


def test_a_dora_that_measures_columns_is_refused(tmp_path):
    name = "lora_unet_mid_block_attentions_0_proj_in"
    tensors = {
        f"{name}.lora_down.weight": torch.ones(1, 3),
        f"{name}.lora_up.weight": torch.ones(3, 1),
        f"{name}.dora_scale": torch.ones(1, 3),
    }
    with pytest.raises(StudioloError, match="measures columns"):
        read_adapter(write_tensors(tmp_path / "a.safetensors", tensors))

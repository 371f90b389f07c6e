"""Single files: bit-exact there and back, known by their shapes, and read alike by the reference library."""

from __future__ import annotations

import json

import numpy as np
import pytest
import torch
from diffusers import (
    DDIMScheduler,
    SD3Transformer2DModel,
    StableDiffusion3Pipeline,
    StableDiffusionPipeline,
    StableDiffusionXLPipeline,
    UNet2DConditionModel,
)
from safetensors.torch import load_file, save_file

from studiolo.diffusion.conditioning import encode_prompts
from studiolo.diffusion.samplers import SamplerSettings
from studiolo.diffusion.sampling import generate
from studiolo.errors import StudioloError
from studiolo.formats.clip_vocabulary import clip_tokenizer, is_clip
from studiolo.formats.diffusers_folder import save_components
from studiolo.formats.opening import open_components
from studiolo.formats.single_file import read_single_file, write_single_file
from studiolo.formats.tensors import read_metadata, read_tensors, write_tensors
from studiolo.models import registry
from tiny import tiny_components
from tiny_families import tiny_sd3
from tinyfiles import MAKERS

PROMPT = "a photo of a cat"
PIPELINES = {
    "sd1": StableDiffusionPipeline,
    "sd2": StableDiffusionPipeline,
    "sdxl": StableDiffusionXLPipeline,
    "sd3": StableDiffusion3Pipeline,
}


@pytest.fixture(scope="module", params=MAKERS)
def written(request, tmp_path_factory):
    """The name of an architecture, a model of it, and its single file."""
    components = MAKERS[request.param]()
    file = tmp_path_factory.mktemp(request.param) / f"{request.param}.safetensors"
    return request.param, components, write_single_file(components, file)


def test_round_trip_is_bit_exact(written):
    _, components, file = written
    back = read_single_file(file)
    assert back.fingerprint() == components.fingerprint()
    assert back.scheduler_config == components.scheduler_config
    assert back.family == components.family
    for part, module in components.modules.items():
        found = back.modules[part].state_dict()
        assert found.keys() == module.state_dict().keys()
        assert all(torch.equal(found[name], tensor) for name, tensor in module.state_dict().items())
        assert not back.modules[part].training
    again = write_single_file(back, file.with_name("again.safetensors"))
    assert again.read_bytes() == file.read_bytes()


def test_the_reference_pipeline_reads_it_and_draws_the_same(written, tmp_path):
    name, components, file = written
    configs = save_components(components, tmp_path / "configs")
    for weights in configs.rglob("*.safetensors"):
        weights.unlink()
    without = {"text_encoder_3": None, "tokenizer_3": None} if name == "sd3" else {}
    pipeline = PIPELINES[name].from_single_file(
        str(file), config=str(configs), local_files_only=True, **without
    )
    sampler = "euler" if components.is_flow else "ddim"
    if not components.is_flow:
        pipeline.scheduler = DDIMScheduler.from_config(pipeline.scheduler.config)
    pipeline.set_progress_bar_config(disable=True)
    theirs = pipeline(
        PROMPT,
        num_inference_steps=2,
        guidance_scale=4.0,
        width=64,
        height=64,
        generator=torch.Generator().manual_seed(1),
        output_type="np",
    ).images
    scheduled = SamplerSettings(sampler, steps=2, guidance_scale=4.0)
    (ours,) = generate(read_single_file(file), [PROMPT], [1], scheduled, height=64, width=64)
    np.testing.assert_allclose(np.asarray(ours) / 255, theirs[0], rtol=0, atol=0.51 / 255)


def test_the_reference_converters_find_the_same_weights(written, tmp_path):
    """Without metadata too, tensor by tensor."""
    _, components, file = written
    config = save_components(components, tmp_path / "folder") / components.family.denoiser
    network = SD3Transformer2DModel if components.is_flow else UNet2DConditionModel
    theirs = network.from_single_file(str(file), config=str(config)).state_dict()
    ours = components.denoiser.state_dict()
    assert theirs.keys() == ours.keys()
    assert all(torch.equal(theirs[name], ours[name]) for name in ours)


def test_a_foreign_file_is_known_by_its_shapes(written, tmp_path):
    name, components, file = written
    said = {"modelspec.prediction_type": "v"} if name == "sd2" else {"format": "pt"}
    foreign = write_tensors(tmp_path / "foreign.safetensors", load_file(file), said)
    assert read_single_file(foreign).fingerprint() == components.fingerprint()


@pytest.mark.parametrize("blocks", [{}, {"dual_attention_layers": (), "qk_norm": None}, {"num_layers": 1}])
def test_both_versions_of_3_are_known_by_their_shapes(tmp_path, blocks):
    """3 has neither second attentions nor normalised queries, 3.5 large no second attentions."""
    components = MAKERS["sd3"](**{"dual_attention_layers": ()} | blocks)
    weights = load_file(write_single_file(components, tmp_path / "a.safetensors"))
    foreign = write_tensors(tmp_path / "b.safetensors", weights)
    assert read_single_file(foreign).fingerprint() == components.fingerprint()


def test_t5_comes_with_files_of_our_own_and_is_left_out_of_others(tmp_path):
    components = tiny_sd3()
    with pytest.warns(UserWarning, match="projection was trained"):
        file = write_single_file(components, tmp_path / "own.safetensors")
    back = read_single_file(file)
    assert back.fingerprint() == components.fingerprint()
    text = ["a photo of a fox, on the moon"]
    assert back.tokenizers[2](text).input_ids == components.tokenizers[2](text).input_ids
    one, other = encode_prompts(back, text), encode_prompts(components, text)
    torch.testing.assert_close(one.tokens, other.tokens)
    torch.testing.assert_close(one.pooled, other.pooled)

    without = MAKERS["sd3"]()
    weights = load_file(write_single_file(without, tmp_path / "a.safetensors"))
    t5 = components.text_encoders[2].state_dict()
    weights |= {f"text_encoders.t5xxl.transformer.{name}": tensor.clone() for name, tensor in t5.items()}
    weights["text_encoders.clip_l.transformer.text_projection.weight"] = torch.randn(
        64, 64
    )  # nobody reads it
    foreign = write_tensors(tmp_path / "b.safetensors", weights)
    with pytest.warns(UserWarning, match="T5 is left out"):
        assert read_single_file(foreign).fingerprint() == without.fingerprint()


def test_a_transformer_alone_is_no_model(tmp_path):
    weights = load_file(write_single_file(MAKERS["sd3"](), tmp_path / "a.safetensors"))
    alone = {name: tensor for name, tensor in weights.items() if not name.startswith("text_encoders")}
    with pytest.raises(StudioloError, match="transformer alone"):
        read_single_file(write_tensors(tmp_path / "b.safetensors", alone))


def test_what_trainers_leave_in_their_files_does_no_harm(tmp_path):
    """EMA weights, schedule tables, position ids, the last layer of OpenCLIP that version 2 does not use."""
    components = MAKERS["sd2"](prediction_type="epsilon")
    weights = load_file(write_single_file(components, tmp_path / "a.safetensors"))
    text = "cond_stage_model.model."
    weights |= {
        "model_ema.diffusion_modelinput_blocks00weight": torch.ones(3),
        "alphas_cumprod": torch.ones(1000),
        f"{text}logit_scale": torch.ones(()),
        f"{text}text_projection": torch.ones(64, 64),
    }
    foreign = write_tensors(tmp_path / "b.safetensors", weights)
    assert read_single_file(foreign).fingerprint() == components.fingerprint()


def test_a_config_beside_the_file_says_what_it_predicts(tmp_path):
    weights = load_file(write_single_file(MAKERS["sd2"](), tmp_path / "a.safetensors"))
    foreign = write_tensors(tmp_path / "b.safetensors", weights)
    assert read_single_file(foreign).schedule.prediction_type == "epsilon"
    foreign.with_suffix(".yaml").write_text("model: {params: {parameterization: v}}")
    assert read_single_file(foreign).schedule.prediction_type == "v_prediction"
    foreign.with_suffix(".yaml").write_text("- no\n- config")
    with pytest.raises(StudioloError, match="config of latent diffusion") as caught:
        read_single_file(foreign)
    assert caught.value.where == str(foreign.with_suffix(".yaml"))


def test_xl_says_that_it_predicts_v_by_a_weight_of_its_own(tmp_path):
    components = MAKERS["sdxl"](prediction_type="v_prediction")
    weights = load_file(write_single_file(components, tmp_path / "a.safetensors"))
    assert weights["v_pred"].numel() == 0
    foreign = write_tensors(tmp_path / "b.safetensors", weights)
    assert read_single_file(foreign).schedule.prediction_type == "v_prediction"


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16])
def test_half_precision_is_rounded_once_and_read_as_float32(tmp_path, dtype):
    components = tiny_components()
    file = write_single_file(components, tmp_path / "half.safetensors", dtype=dtype)
    assert {tensor.dtype for tensor in load_file(file).values()} == {dtype}
    back = read_single_file(file)
    assert back.dtype == components.dtype == torch.float32
    assert back.fingerprint() == components.copy().to(dtype=dtype).fingerprint()
    assert read_single_file(file, dtype=None).dtype == dtype


def test_a_model_with_its_own_vocabulary_keeps_it(tmp_path):
    components = tiny_components()
    components.tokenizer.add_tokens(["<rex>"])
    components.text_encoder.resize_token_embeddings(len(components.tokenizer))
    back = read_single_file(write_single_file(components, tmp_path / "own.safetensors"))
    assert back.fingerprint() == components.fingerprint()
    text = ["a photo of <rex> fox, on the MOON"]
    assert back.tokenizer(text).input_ids == components.tokenizer(text).input_ids


def test_a_checkpoint_of_a_pickle_is_read_alike(tmp_path):
    components = MAKERS["sd1"]()
    weights = load_file(write_single_file(components, tmp_path / "a.safetensors"))
    ids = {"cond_stage_model.transformer.text_model.embeddings.position_ids": torch.arange(77)[None]}
    torch.save({"state_dict": weights | ids, "global_step": 7}, tmp_path / "b.ckpt")
    assert read_single_file(tmp_path / "b.ckpt").fingerprint() == components.fingerprint()


def test_names_and_paths_lead_to_files(written, studiolo_home):
    name, components, file = written
    registry.register(file, name)
    assert open_components(name).fingerprint() == components.fingerprint()
    assert open_components(file).fingerprint() == components.fingerprint()
    assert (registry.resolve(name).kind, registry.resolve(name).path) == ("file", file)
    assert name in [ref.name for ref in registry.list_models()]


def test_the_card_of_a_subject_travels_in_the_file(tmp_path):
    card = {"name": "rex", "class_noun": "dog", "identifier": "sks"}
    file = write_single_file(tiny_components(), tmp_path / "rex.safetensors", card=card)
    ref = registry.resolve(file)
    assert (ref.name, ref.kind, ref.card) == ("rex", "subject", card)


def test_clip_s_vocabulary_is_that_of_the_published_tokenizer():
    """Ids as openai/clip-vit-large-patch14 has them."""
    tokenizer = clip_tokenizer()
    assert tokenizer(PROMPT).input_ids == [49406, 320, 1125, 539, 320, 2368, 49407]
    assert (len(tokenizer), tokenizer.model_max_length) == (49408, 77)
    assert is_clip(tokenizer)
    assert not is_clip(tiny_components().tokenizer)


def test_a_library_of_its_own_reads_what_we_write(tmp_path):
    """Byte for byte what `safetensors` itself would have written."""
    tensors = {
        "b": torch.arange(3, dtype=torch.int64),
        "a": torch.randn(2, 5),
        "ä": torch.randn(7).half(),
        "one": torch.tensor(1.5, dtype=torch.bfloat16),
        "none": torch.empty(0, 4),
        "view": torch.randn(4, 3).T,
    }
    ours = write_tensors(tmp_path / "ours.safetensors", tensors, {"format": "pt"})
    save_file({k: v.contiguous() for k, v in tensors.items()}, tmp_path / "t.safetensors", {"format": "pt"})
    assert ours.read_bytes() == (tmp_path / "t.safetensors").read_bytes()


@pytest.mark.parametrize(
    ("change", "told"),
    [
        (lambda w: {k: v for k, v in w.items() if not k.startswith("first_stage")}, "VAE is missing"),
        (lambda w: {k: v for k, v in w.items() if not k.startswith("cond_stage")}, "text encoder is missing"),
        (lambda w: {k: v for k, v in w.items() if not k.endswith("out.2.bias")}, "lacks 1 of its"),
        (lambda w: w | {"model.diffusion_model.control.weight": torch.ones(2)}, "1 weights more"),
        (
            lambda w: w | {"model.diffusion_model.time_embed.0.weight": torch.ones(2, 2)},
            "time_embedding.linear_1.weight is",
        ),
        (lambda w: {"lora_unet_mid.lora_down.weight": torch.ones(2, 2)}, "adapter"),
        (lambda w: {f"blocks.{n}.weight": torch.ones(2, 2) for n in range(9)}, "named like blocks"),
        (lambda w: {"model.diffusion_model.joint_blocks.0.x": torch.ones(1)}, "text encoder is missing"),
        (
            lambda w: w | {"model.diffusion_model.input_blocks.0.0.weight": torch.ones(32, 9, 3, 3)},
            "9",
        ),
    ],
)
def test_what_is_wrong_with_a_file_is_told(tmp_path, change, told):
    weights = load_file(write_single_file(MAKERS["sd1"](), tmp_path / "a.safetensors"))
    file = write_tensors(tmp_path / "b.safetensors", change(weights))
    with pytest.raises(StudioloError, match=told) as caught:
        open_components(file)
    assert caught.value.where == str(file)


POINTER = b"version https://git-lfs.github.com/spec/v1\noid sha256:00\nsize 4265380512\n"


@pytest.mark.parametrize("suffix", [".safetensors", ".ckpt"])
@pytest.mark.parametrize(
    ("content", "told"),
    [
        (b"", "empty"),
        (POINTER, "Git LFS"),
        (b"\n<!DOCTYPE html><html><body>401</body></html>", "web page"),
        (b"\xff" * 100, "not a whole"),
        (b'\x10\0\0\0\0\0\0\0{"a": [1, 2, 3]}', "not a whole"),
    ],
)
def test_what_is_no_weights_at_all_is_told(tmp_path, suffix, content, told):
    file = tmp_path / f"model{suffix}"
    file.write_bytes(content)
    with pytest.raises(StudioloError, match=told):
        read_tensors(file)


@pytest.mark.parametrize("suffix", [".safetensors", ".ckpt"])
def test_a_file_that_was_cut_is_told(tmp_path, suffix):
    file = tmp_path / f"model{suffix}"
    tensors = {"a": torch.randn(100, 100)}
    write_tensors(file, tensors) if suffix == ".safetensors" else torch.save(tensors, file)
    whole = file.read_bytes()
    for length in (4, 100, len(whole) // 2, len(whole) - 1):
        file.write_bytes(whole[:length])
        with pytest.raises(StudioloError, match="not a whole"):
            read_tensors(file)


def test_a_header_that_lies_is_told(tmp_path):
    for entry in ({"data_offsets": [0, 4]}, {"shape": [-1]}, {"dtype": None}, {"data_offsets": [-4, 0]}):
        head = json.dumps({"a": {"dtype": "F32", "shape": [2], "data_offsets": [0, 8]} | entry}).encode()
        (tmp_path / "a.safetensors").write_bytes(len(head).to_bytes(8, "little") + head + bytes(8))
        with pytest.raises(StudioloError, match="not a whole"):
            read_tensors(tmp_path / "a.safetensors")


@pytest.mark.parametrize(
    "change", [{"max_position_embeddings": 10**12}, {"num_hidden_layers": 10**6}, {"hidden_size": "wide"}]
)
def test_metadata_that_ask_for_too_much_are_told(tmp_path, change):
    file = write_single_file(tiny_components(), tmp_path / "a.safetensors")
    told = json.loads(read_metadata(file)["studiolo.model"])
    told["configs"]["text_encoder"] |= change
    bad = write_tensors(tmp_path / "b.safetensors", load_file(file), {"studiolo.model": json.dumps(told)})
    with pytest.raises(StudioloError) as caught:
        open_components(bad)
    assert caught.value.where == str(bad)


@pytest.mark.parametrize("change", [{"configs": []}, {"tokenizers": 7}, {"scheduler": None}, {"family": []}])
def test_metadata_of_another_form_are_told(tmp_path, change):
    file = write_single_file(tiny_components(), tmp_path / "a.safetensors")
    told = json.loads(read_metadata(file)["studiolo.model"]) | change
    bad = write_tensors(tmp_path / "b.safetensors", load_file(file), {"studiolo.model": json.dumps(told)})
    with pytest.raises(StudioloError) as caught:
        open_components(bad)
    assert caught.value.where == str(bad)


def test_a_killed_write_leaves_nothing(tmp_path):
    def stop(*progress: object) -> None:
        raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        write_single_file(tiny_components(), tmp_path / "a.safetensors", on_progress=stop)
    assert list(tmp_path.iterdir()) == []

"""What is fetched of a hub's repository, on listings as the published ones are."""

from __future__ import annotations

from pathlib import Path

import pytest
from huggingface_hub.utils import filter_repo_objects

from studiolo.models.diffusers_hub import fetch_diffusers

XL = [
    "model_index.json", "README.md", "sd_xl_base_1.0.safetensors", "comparison.png",
    "scheduler/scheduler_config.json", "tokenizer/vocab.json", "tokenizer_2/merges.txt",
    "text_encoder/config.json", "text_encoder/model.safetensors", "text_encoder/model.fp16.safetensors",
    "text_encoder/model.onnx", "text_encoder/flax_model.msgpack",
    "text_encoder_2/config.json", "text_encoder_2/model.safetensors", "text_encoder_2/model.fp16.safetensors",
    "unet/config.json", "unet/diffusion_pytorch_model.safetensors",
    "unet/diffusion_pytorch_model.fp16.safetensors", "unet/openvino_model.bin",
    "vae/config.json", "vae/diffusion_pytorch_model.safetensors", "vae_decoder/config.json",
    "vae_1_0/diffusion_pytorch_model.safetensors",
]  # fmt: skip
SD3 = [
    "model_index.json", "sd3.5_medium.safetensors", "text_encoders/t5xxl_fp16.safetensors",
    "scheduler/scheduler_config.json", "tokenizer_3/tokenizer.json", "tokenizer_3/spiece.model",
    "text_encoder_3/config.json", "text_encoder_3/model.safetensors.index.json",
    "text_encoder_3/model.safetensors.index.fp16.json",
    "text_encoder_3/model-00001-of-00002.safetensors", "text_encoder_3/model-00002-of-00002.safetensors",
    "text_encoder_3/model.fp16-00001-of-00002.safetensors",
    "transformer/config.json", "transformer/diffusion_pytorch_model.safetensors",
]  # fmt: skip
HALF = [
    "model_index.json", "unet/config.json", "unet/diffusion_pytorch_model.bin",
    "unet/diffusion_pytorch_model.fp16.safetensors", "unet/diffusion_pytorch_model.fp16.bin",
    "vae/config.json", "vae/diffusion_pytorch_model.safetensors",
    "vae/diffusion_pytorch_model.fp16.safetensors",
]  # fmt: skip


def fetched(repository: list[str], folder: Path, monkeypatch: pytest.MonkeyPatch) -> set[str]:
    def snapshot(hub_id: str, **patterns: list[str]) -> str:
        for name in filter_repo_objects(repository, **patterns):
            (folder / name).parent.mkdir(parents=True, exist_ok=True)
            (folder / name).touch()
        return str(folder)

    monkeypatch.setattr("huggingface_hub.snapshot_download", snapshot)
    fetch_diffusers("somebody/some-model")
    return {str(file.relative_to(folder)) for file in folder.rglob("*") if file.is_file()}


def test_of_sdxl_each_weight_comes_once(tmp_path, monkeypatch):
    assert fetched(XL, tmp_path, monkeypatch) == {
        "model_index.json", "scheduler/scheduler_config.json", "tokenizer/vocab.json",
        "tokenizer_2/merges.txt", "text_encoder/config.json", "text_encoder/model.safetensors",
        "text_encoder_2/config.json", "text_encoder_2/model.safetensors",
        "unet/config.json", "unet/diffusion_pytorch_model.safetensors",
        "vae/config.json", "vae/diffusion_pytorch_model.safetensors",
    }  # fmt: skip


def test_of_sd3_neither_the_encoders_for_other_programs_nor_half_shards_come(tmp_path, monkeypatch):
    assert fetched(SD3, tmp_path, monkeypatch) == {
        "model_index.json", "scheduler/scheduler_config.json", "tokenizer_3/tokenizer.json",
        "text_encoder_3/config.json", "text_encoder_3/model.safetensors.index.json",
        "text_encoder_3/model-00001-of-00002.safetensors", "text_encoder_3/model-00002-of-00002.safetensors",
        "transformer/config.json", "transformer/diffusion_pytorch_model.safetensors",
    }  # fmt: skip


def test_half_precision_comes_where_there_is_nothing_else(tmp_path, monkeypatch):
    assert fetched(HALF, tmp_path, monkeypatch) == {
        "model_index.json", "unet/config.json", "unet/diffusion_pytorch_model.fp16.safetensors",
        "vae/config.json", "vae/diffusion_pytorch_model.safetensors",
    }  # fmt: skip

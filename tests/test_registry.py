"""Names find their folders; wrong names get an answer that helps."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from studiolo.errors import StudioloError
from studiolo.models import registry


def folder(path: Path, **card: object) -> Path:
    path.mkdir(parents=True)
    (path / "model_index.json").write_text("{}")
    if card:
        (path / "studiolo.json").write_text(json.dumps(card))
    return path


@pytest.fixture
def rex(tmp_path: Path) -> Path:
    return folder(tmp_path / "run" / "model", name="rex", class_noun="dog", identifier="sks")


def test_a_registered_name_finds_its_folder_and_card(rex):
    assert registry.register(rex, "rex") == registry.resolve("rex")
    found = registry.resolve("rex")
    assert (found.path, found.kind, found.card["class_noun"]) == (rex, "subject", "dog")


def test_a_run_folder_stands_for_the_model_in_it(rex):
    assert registry.resolve(rex.parent).path == rex
    assert registry.register(rex.parent, "rex").path == rex


def test_a_folder_is_found_by_its_path_and_named_by_its_card(rex, tmp_path):
    plain = folder(tmp_path / "sd15")
    assert (registry.resolve(str(rex)).name, registry.resolve(rex).kind) == ("rex", "subject")
    assert (registry.resolve(plain).name, registry.resolve(plain).kind) == ("sd15", "folder")


def test_a_taken_name_is_refused_unless_it_may_be_replaced(rex, tmp_path):
    other = folder(tmp_path / "other")
    registry.register(rex, "rex")
    with pytest.raises(StudioloError, match="studiolo models remove rex"):
        registry.register(other, "rex")
    assert registry.resolve("rex").path == rex
    assert registry.register(other, "rex", replace=True).path == other


@pytest.mark.parametrize("name", ["", "../rex", "a/b", ".hidden", "two words", "x" * 65, registry.BASE_NAME])
def test_names_that_cannot_be_one_are_refused(rex, name):
    with pytest.raises(StudioloError):
        registry.register(rex, name)


def test_an_unknown_name_is_answered_with_the_nearest(rex):
    registry.register(rex, "my-fox")
    with pytest.raises(StudioloError, match=r"Did you mean my-fox\?"):
        registry.resolve("my-fx")


def test_a_folder_that_is_no_model_is_refused(tmp_path):
    with pytest.raises(StudioloError, match=r"model_index\.json") as caught:
        registry.resolve(tmp_path)
    assert caught.value.where == str(tmp_path)


def test_a_folder_that_has_gone_is_listed_and_says_so_when_used(rex):
    registry.register(rex, "rex")
    (rex / "model_index.json").unlink()
    assert "rex" in [ref.name for ref in registry.list_models()]
    with pytest.raises(StudioloError, match="gone"):
        registry.resolve("rex")


def test_removing_forgets_the_name_and_keeps_the_files(rex):
    registry.register(rex, "rex")
    assert registry.remove("rex").path == rex
    assert (rex / "model_index.json").exists()
    with pytest.raises(StudioloError, match="no model of this name"):
        registry.resolve("rex")
    with pytest.raises(StudioloError):
        registry.remove("rex")
    with pytest.raises(StudioloError):
        registry.remove(registry.BASE_NAME)


@pytest.mark.parametrize("text", ["{", "[]", "{}"])
def test_a_damaged_record_is_named(studiolo_home, text):
    file = studiolo_home / "models" / "rex.json"
    file.parent.mkdir()
    file.write_text(text)
    with pytest.raises(StudioloError) as caught:
        registry.resolve("rex")
    assert caught.value.where == str(file)


def test_a_hub_name_without_a_hub_is_a_clear_error(monkeypatch):
    def offline(*args: object, **kwargs: object) -> str:
        raise ConnectionError("no network")

    monkeypatch.setattr("huggingface_hub.snapshot_download", offline)
    with pytest.raises(StudioloError, match="network") as caught:
        registry.resolve("somebody/some-model")
    assert caught.value.where == "somebody/some-model"


def test_the_hub_is_asked_for_the_weights_once(monkeypatch, tmp_path):
    from huggingface_hub.utils import filter_repo_objects

    repository = [
        "model_index.json", "v1-5-pruned.ckpt", "v1-5-pruned.safetensors", "README.md",
        "unet/config.json", "unet/diffusion_pytorch_model.safetensors", "unet/diffusion_pytorch_model.bin",
        "unet/diffusion_pytorch_model.fp16.safetensors", "unet/diffusion_pytorch_model.non_ema.safetensors",
        "safety_checker/model.safetensors", "tokenizer/merges.txt",
    ]  # fmt: skip
    fetched: list[str] = []

    def snapshot(hub_id: str, **patterns: list[str]) -> str:
        fetched.extend(filter_repo_objects(repository, **patterns))
        return str(folder(tmp_path / "snapshot"))

    monkeypatch.setattr("huggingface_hub.snapshot_download", snapshot)
    assert registry.resolve("somebody/some-model").path == tmp_path / "snapshot"
    assert fetched == [
        "model_index.json", "unet/config.json", "unet/diffusion_pytorch_model.safetensors",
        "tokenizer/merges.txt",
    ]  # fmt: skip


def test_the_embedded_base_is_found_where_its_weights_are(monkeypatch, tmp_path):
    monkeypatch.setattr(registry, "_base_path", lambda: tmp_path / "weights")
    with pytest.raises(StudioloError, match="missing"):
        registry.resolve(registry.BASE_NAME)
    assert registry.list_models() == []
    folder(tmp_path / "weights", name="studiolo-base")
    assert registry.resolve(registry.BASE_NAME).kind == "base"
    assert [ref.name for ref in registry.list_models()] == [registry.BASE_NAME]

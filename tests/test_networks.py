"""Networks of folders: pickles of old, of which no code is run, and float types as they are stored."""

from __future__ import annotations

import os
import pickle
import shutil
from pathlib import Path

import pytest
import torch
from diffusers import DiffusionPipeline
from safetensors.torch import load_file
from typer.testing import CliRunner

from studiolo.cli.main import app
from studiolo.diffusion.components import Components
from studiolo.drawing.model import load
from studiolo.errors import StudioloError
from studiolo.formats.converting import convert
from studiolo.formats.diffusers_folder import load_components, save_components
from studiolo.formats.opening import open_components
from studiolo.formats.sources import find, stored_dtype
from tiny_families import TINY, tiny_sd1


def pickled(folder: Path, target: Path, **settings) -> Path:
    """The folder as diffusers' pipelines store it without safetensors; transformers 5 does not any more, so
    that its networks get the files and names that version 4 gave them."""
    without = (folder / "transformer").is_dir() and not (folder / "tokenizer_3").is_dir()
    absent = {"text_encoder_3": None, "tokenizer_3": None} if without else {}
    dtype = stored_dtype(find(folder).ref)
    pipeline = DiffusionPipeline.from_pretrained(folder, torch_dtype=dtype, **absent)
    pipeline.save_pretrained(target, safe_serialization=False, **settings)
    for file in sorted(target.rglob("*.safetensors")):
        t5 = file.parent.name == "text_encoder_3"
        names = {
            name
            if t5 or name.startswith(("text_model.", "text_projection"))
            else f"text_model.{name}": tensor
            for name, tensor in load_file(file).items()
        }
        if not t5:
            names["text_model.embeddings.position_ids"] = torch.arange(24)[None]
        torch.save(names, file.with_name(file.name.replace("model", "pytorch_model", 1)).with_suffix(".bin"))
        file.unlink()
    assert not list(target.rglob("*.safetensors"))
    return target


@pytest.mark.parametrize("name", TINY)
def test_a_folder_of_pickles_is_the_model_that_was_saved(name, tmp_path):
    folder = save_components(TINY[name](), tmp_path / "model")
    old = pickled(folder, tmp_path / "old")
    ours = load_components(old)
    assert ours.fingerprint() == load_components(folder).fingerprint()
    assert not any(module.training for module in ours.modules.values())


def test_half_precision_of_pickles_is_that_of_safetensors(tmp_path):
    for name in ("sdxl", "sd3"):
        folder = save_components(TINY[name](), tmp_path / name, dtype=torch.float16)
        old = pickled(folder, tmp_path / f"{name}-old")
        for dtype in (torch.float16, torch.float32):
            ours, theirs = load_components(old, dtype), load_components(folder, dtype)
            for part, module in theirs.modules.items():
                weights = ours.modules[part].state_dict()
                for key, tensor in module.state_dict().items():
                    assert weights[key].dtype == tensor.dtype, key
                    assert torch.equal(weights[key], tensor), key


def test_it_is_drawn_with_and_converted(tmp_path, monkeypatch):
    monkeypatch.setenv("STUDIOLO_HOME", str(tmp_path / "home"))
    monkeypatch.chdir(tmp_path)
    folder = save_components(tiny_sd1(), tmp_path / "model")
    old = pickled(folder, tmp_path / "old")
    (ours,), (theirs,) = (load(path).generate("a fox", steps=2) for path in (old, folder))
    assert ours.image.tobytes() == theirs.image.tobytes()
    done = CliRunner().invoke(app, ["convert", "old", "new", "--dtype", "float32"])
    assert done.exit_code == 0, done.output
    assert (tmp_path / "new/unet/diffusion_pytorch_model.safetensors").is_file()
    assert load_components(tmp_path / "new").fingerprint() == load_components(folder).fingerprint()


def test_its_float_type_and_hashes_are_those_of_its_pickles(tmp_path):
    folder = save_components(tiny_sd1(), tmp_path / "model", dtype=torch.float16)
    old = pickled(folder, tmp_path / "old")
    assert stored_dtype(find(old).ref) == torch.float16
    assert {Path(name).suffix for name in find(old).trace()["sha256"]} == {".bin"}
    convert(old, tmp_path / "one.safetensors")
    assert {tensor.dtype for tensor in load_file(tmp_path / "one.safetensors").values()} == {torch.float16}


def test_variants_and_shards_of_pickles(tmp_path):
    folder = save_components(tiny_sd1(), tmp_path / "model", dtype=torch.float16)
    halves = pickled(folder, tmp_path / "halves", variant="fp16")
    assert list(halves.rglob("*.fp16.bin"))
    assert load_components(halves).fingerprint() == load_components(folder).fingerprint()
    shards = pickled(folder, tmp_path / "shards", max_shard_size="40KB")
    assert len(list((shards / "unet").glob("*-of-*.bin"))) > 2
    assert load_components(shards).fingerprint() == load_components(folder).fingerprint()
    next((shards / "unet").glob("*-of-*.bin")).unlink()
    with pytest.raises(StudioloError, match="unet lacks"):
        load_components(shards)


def test_attention_as_it_was_called_before_is_read(tmp_path):
    folder = save_components(tiny_sd1(), tmp_path / "model")
    old = pickled(folder, tmp_path / "old")
    file = old / "vae/diffusion_pytorch_model.bin"
    weights = torch.load(file)
    former = {".to_q.": ".query.", ".to_k.": ".key.", ".to_v.": ".value.", ".to_out.0.": ".proj_attn."}
    for new, was in former.items():
        weights = {name.replace(new, was): tensor for name, tensor in weights.items()}
    assert any(".proj_attn." in name for name in weights)
    torch.save(weights, file)
    assert load_components(old).fingerprint() == load_components(folder).fingerprint()


class _Trap:
    def __init__(self, mark: Path) -> None:
        self.mark = mark

    def __reduce__(self):
        return os.mkdir, (str(self.mark),)


@pytest.mark.parametrize("part", ["unet/diffusion_pytorch_model.bin", "text_encoder/pytorch_model.bin"])
def test_a_trap_in_a_folder_is_named_and_not_run(tmp_path, part):
    old = pickled(save_components(tiny_sd1(), tmp_path / "model"), tmp_path / "old")
    mark = tmp_path / "ran"
    for write in (lambda trap, file: torch.save(trap, file), lambda t, f: f.write_bytes(pickle.dumps(t))):
        write({"weight": torch.zeros(1), "trap": _Trap(mark)}, old / part)
        with pytest.raises(StudioloError, match=r"mkdir|not a whole file"):
            load_components(old)
        assert not mark.exists()


def test_safetensors_go_before_pickles(tmp_path):
    folder = save_components(tiny_sd1(), tmp_path / "model")
    for file in list(folder.rglob("*.safetensors")):
        file.with_suffix(".bin").write_bytes(b"nonsense")
    assert load_components(folder).fingerprint() == tiny_sd1().fingerprint()
    shutil.rmtree(folder / "unet")
    with pytest.raises(StudioloError, match=r"unet/config\.json missing"):
        load_components(folder)


@pytest.mark.parametrize("stored", [torch.float16, torch.bfloat16, torch.float32])
@pytest.mark.parametrize("name", ["sd1", "sdxl", "sd3"])
def test_weights_may_stay_as_they_are_stored_and_come_out_the_same(name, stored, tmp_path):
    folder = save_components(TINY[name](), tmp_path / "model", dtype=stored)
    kept, full = open_components(folder, None), open_components(folder)
    assert kept.dtype == stored
    assert kept.fingerprint() == full.fingerprint()
    for dtype in (torch.float16, torch.bfloat16, torch.float32):
        ours, theirs = open_components(folder, None).to(dtype=dtype), open_components(folder).to(dtype=dtype)
        for part, module in theirs.modules.items():
            for key, tensor in module.state_dict().items():
                mine = ours.modules[part].state_dict()[key]
                assert mine.dtype == tensor.dtype, key
                assert torch.equal(mine, tensor), key


def test_a_model_in_half_precision_is_never_made_whole_to_be_drawn_with(tmp_path, monkeypatch):
    folder = save_components(tiny_sd1(), tmp_path / "model", dtype=torch.float16)
    single = convert(folder, tmp_path / "one.safetensors")[0]
    held, fingerprint = [], Components.fingerprint

    def seen(components: Components) -> str:
        held.append({module.dtype for module in components.modules.values()})
        return fingerprint(components)

    monkeypatch.setattr(Components, "fingerprint", seen)
    models = [load(path, device="cpu", dtype="float16") for path in (folder, single)]
    assert held == [{torch.float16}] * 2
    assert {model.fingerprint for model in models} == {fingerprint(load_components(folder))}

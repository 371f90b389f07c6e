"""Old files of weights: what is in them is read, and nothing in them is run."""

from __future__ import annotations

import os
import pickle
import subprocess
import zipfile
from pathlib import Path

import numpy as np
import pytest
import torch
from pytorch_lightning.callbacks import ModelCheckpoint

from studiolo.errors import StudioloError
from studiolo.formats.tensors import read_tensors
from studiolo.models import add


class Trap:
    """Pickled, it is the order to call `call` with `arguments`."""

    def __init__(self, call, *arguments):
        self.order = call, arguments

    def __reduce__(self):
        return self.order


@pytest.fixture
def mark(tmp_path) -> Path:
    """A file that is there if a trap was run."""
    return tmp_path / "run"


def traps(mark: Path) -> dict[str, Trap]:
    return {
        "system": Trap(os.system, f"touch {mark}"),
        "eval": Trap(eval, f"open({str(mark)!r}, 'w')"),
        "exec": Trap(exec, f"open({str(mark)!r}, 'w')"),
        "Popen": Trap(subprocess.Popen, ["touch", str(mark)]),
        "touch": Trap(Path.touch, mark),
        "_load_from_bytes": Trap(
            torch.storage._load_from_bytes, pickle.dumps(Trap(os.system, f"touch {mark}"))
        ),
    }


@pytest.mark.parametrize("name", ["system", "eval", "exec", "Popen", "touch", "_load_from_bytes"])
@pytest.mark.parametrize("zipped", [True, False])
def test_a_trap_in_a_checkpoint_is_not_run(tmp_path, mark, name, zipped):
    trap = traps(mark)[name]
    for content in ({"state_dict": {"a": torch.ones(2)}, "hidden": trap}, {"a": trap}, trap):
        torch.save(content, tmp_path / "a.ckpt", _use_new_zipfile_serialization=zipped)
        with pytest.raises(StudioloError) as caught:
            read_tensors(tmp_path / "a.ckpt")
        assert not mark.exists()
        assert caught.value.where == str(tmp_path / "a.ckpt")


@pytest.mark.parametrize("protocol", [0, 1, 2, 4, 5])
def test_a_bare_pickle_is_not_run(tmp_path, mark, protocol):
    (tmp_path / "a.pt").write_bytes(pickle.dumps(traps(mark)["system"], protocol))
    with pytest.raises(StudioloError):
        read_tensors(tmp_path / "a.pt")
    with pytest.raises(StudioloError):
        add(tmp_path / "a.pt", "trap")
    assert not mark.exists()


def test_the_traps_of_these_tests_work(tmp_path, mark):
    """Read as Python reads them, they are sprung: so the tests above can fail."""
    pickle.loads(pickle.dumps(traps(mark)["system"]))
    assert mark.exists()


def test_what_a_file_would_call_is_named(tmp_path, mark):
    torch.save({"a": traps(mark)["Popen"]}, tmp_path / "a.ckpt")
    with pytest.raises(StudioloError, match=r"would call \S*Popen") as caught:
        read_tensors(tmp_path / "a.ckpt")
    assert "safetensors" in (caught.value.remedy or "")


@pytest.mark.parametrize("zipped", [True, False])
def test_checkpoints_of_lightning_are_read_without_lightning(tmp_path, zipped):
    """Callbacks by class, NumPy's numbers: as Stable Diffusion 1 was published."""
    weights = {"a": torch.randn(3), "b": torch.randn(2, 2).half()}
    checkpoint = {
        "epoch": 3,
        "callbacks": {
            ModelCheckpoint: {"best": np.float64(0.5), "kind": np.dtype("float32"), "at": np.ones(3)}
        },
        "state_dict": weights,
        "optimizer_states": [{"state": {0: {"step": 1, "exp_avg": torch.ones(3)}}}],
    }
    torch.save(checkpoint, tmp_path / "a.ckpt", _use_new_zipfile_serialization=zipped)
    found = read_tensors(tmp_path / "a.ckpt")
    assert found.keys() == weights.keys()
    assert all(torch.equal(found[name], weights[name]) for name in weights)


def test_an_archive_that_would_fill_the_memory_is_refused(tmp_path):
    torch.save({"a": torch.zeros(1 << 20)}, tmp_path / "a.ckpt")
    with (
        zipfile.ZipFile(tmp_path / "a.ckpt") as whole,
        zipfile.ZipFile(tmp_path / "b.ckpt", "w", zipfile.ZIP_DEFLATED) as packed,
    ):
        for info in whole.infolist():
            packed.writestr(info.filename, whole.read(info))
    assert (tmp_path / "b.ckpt").stat().st_size < 1 << 16
    with pytest.raises(StudioloError, match="would grow"):
        read_tensors(tmp_path / "b.ckpt")


def test_a_file_without_tensors_is_told(tmp_path):
    for content in ({}, {"state_dict": {}}, [torch.ones(2)], 7, {"a": 1}):
        torch.save(content, tmp_path / "a.ckpt")
        with pytest.raises(StudioloError, match="no named tensors"):
            read_tensors(tmp_path / "a.ckpt")

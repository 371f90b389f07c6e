"""Files are whole or absent; hashes agree with the system's own tool; folders are where the platform says."""

from __future__ import annotations

import hashlib
import json
import os
import signal
import subprocess
import sys
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from studiolo.store import paths
from studiolo.store.files import atomic_dir, atomic_path, sha256_bytes, sha256_file, sha256_json


def test_a_written_file_takes_its_name_and_leaves_nothing_else(tmp_path):
    with atomic_path(tmp_path / "new" / "a.txt") as temporary:
        temporary.write_text("whole")
        assert temporary.suffix == ".txt"
        assert not (tmp_path / "new" / "a.txt").exists()
    assert [(file.name, file.read_text()) for file in (tmp_path / "new").iterdir()] == [("a.txt", "whole")]


def test_a_failed_write_leaves_the_old_file(tmp_path):
    final = tmp_path / "a.txt"
    final.write_text("old")
    with pytest.raises(UnicodeEncodeError), atomic_path(final) as temporary:
        temporary.write_text("half \ud800")
    assert [(file.name, file.read_text()) for file in tmp_path.iterdir()] == [("a.txt", "old")]


def test_a_folder_is_replaced_as_a_whole(tmp_path):
    final = tmp_path / "model"
    for name in ("one", "two"):
        with atomic_dir(final) as temporary:
            (temporary / "deep").mkdir()
            (temporary / "deep" / name).write_text(name)
    assert [str(file.relative_to(tmp_path)) for file in tmp_path.rglob("*") if file.is_file()] == [
        "model/deep/two"
    ]


def test_files_of_a_folder_are_as_readable_as_the_folder(tmp_path):
    with atomic_dir(tmp_path / "model") as folder:
        (folder / "weights").touch(mode=0o600)
    inside, around = ((tmp_path / name).stat().st_mode for name in ("model/weights", "model"))
    assert inside & 0o777 == around & 0o666


def test_a_failed_folder_leaves_the_old_one(tmp_path):
    final = tmp_path / "model"
    with atomic_dir(final) as temporary:
        (temporary / "a").write_text("old")
    with pytest.raises(UnicodeEncodeError), atomic_dir(final) as temporary:
        (temporary / "a").write_text("half \ud800")
    assert [str(file.relative_to(tmp_path)) for file in tmp_path.rglob("*")] == ["model", "model/a"]


_KILLED = """
import os, signal, sys
from studiolo.store.files import atomic_{kind} as atomic
with atomic(sys.argv[1]) as temporary:
    file = temporary / "weights" if {kind!r} == "dir" else temporary
    file.write_bytes(b"half")
    os.kill(os.getpid(), signal.SIGKILL)
"""


@pytest.mark.parametrize("kind", ["path", "dir"])
def test_a_killed_process_leaves_nothing_under_the_final_name(tmp_path, kind):
    final = tmp_path / "final"
    done = subprocess.run([sys.executable, "-c", _KILLED.format(kind=kind), str(final)], check=False)
    assert done.returncode == -signal.SIGKILL
    assert not final.exists()


@given(st.binary(max_size=4096))
def test_hashes_agree_with_hashlib(tmp_path_factory, data):
    file = tmp_path_factory.getbasetemp() / "hashed"
    file.write_bytes(data)
    assert sha256_file(file) == sha256_bytes(data) == hashlib.sha256(data).hexdigest()


_JSON = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats(allow_nan=False, allow_infinity=False) | st.text(),
    lambda inner: st.lists(inner, max_size=4) | st.dictionaries(st.text(), inner, max_size=4),
    max_leaves=12,
)


@given(st.dictionaries(st.text(), _JSON, max_size=6))
def test_the_hash_of_json_is_that_of_its_meaning(value):
    shuffled = dict(reversed(value.items()))
    assert sha256_json(value) == sha256_json(shuffled) == sha256_json(json.loads(json.dumps(value)))
    assert sha256_json(value) != sha256_json([value])


def test_json_has_no_nan():
    with pytest.raises(ValueError, match="JSON"):
        sha256_json({"loss": float("nan")})


def test_the_home_is_chosen_by_the_environment(studiolo_home):
    assert paths.home() == studiolo_home
    for made in (paths.models_dir(), paths.runs_dir(), paths.cache_dir("latents")):
        assert made.is_dir()
        assert studiolo_home in made.parents


@pytest.mark.skipif(sys.platform != "linux", reason="the XDG folders are those of Linux")
@pytest.mark.parametrize(
    ("xdg", "expected"),
    [("/data", "/data/studiolo"), ("", "~/.local/share/studiolo"), ("a/b", "~/.local/share/studiolo")],
)
def test_without_it_the_platform_decides(monkeypatch, xdg, expected):
    monkeypatch.delenv("STUDIOLO_HOME")
    monkeypatch.setenv("XDG_DATA_HOME", xdg)
    assert paths.home() == Path(os.path.expanduser(expected))  # noqa: PTH111 - the independent way

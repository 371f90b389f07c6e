"""What weights say of themselves agrees with the reference reader; what was added is never deleted."""

from __future__ import annotations

import json
import struct
from contextlib import suppress
from pathlib import Path

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from pulled import pulled
from studiolo import models
from studiolo.errors import StudioloError
from studiolo.models import facts, gguf, known, registry, weights
from studiolo.store import paths
from tinygguf import gguf as tiny
from tinygguf import text


@pytest.fixture
def speaker(tmp_path: Path) -> Path:
    file = tmp_path / "elsewhere" / "speaker.gguf"
    file.parent.mkdir()
    file.write_bytes(tiny())
    return file


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    """As transformers and safetensors write one."""
    import numpy
    from safetensors.numpy import save_file

    path = tmp_path / "folder"
    path.mkdir()
    save_file({"a": numpy.zeros((3, 5), "f4"), "b": numpy.zeros(7, "f2")}, path / "model.safetensors")
    config = {"architectures": ["Gemma3ForConditionalGeneration"], "text_config": {
        "max_position_embeddings": 1024, "hidden_size": 64, "vocab_size": 100}}  # fmt: skip
    (path / "config.json").write_text(json.dumps(config))
    (path / "chat_template.jinja").write_text("{{ messages }}")
    return path


# --- the header of GGUF files -----------------------------------------------------------------------------


def test_the_header_is_what_the_reference_package_writes_and_reads(tmp_path):
    reference = pytest.importorskip("gguf")
    import numpy

    file = tmp_path / "reference.gguf"
    writer = reference.GGUFWriter(file, "llama")
    writer.add_context_length(4096)
    writer.add_embedding_length(16)
    writer.add_file_type(reference.LlamaFileType.MOSTLY_Q4_K_M)
    writer.add_license("apache-2.0")
    writer.add_chat_template("{{ messages }}")
    writer.add_token_list(["a", "ß", "日本"])
    writer.add_token_scores([0.0, 1.0, 2.0])
    writer.add_array("nested", [[1, 2], [3]])
    writer.add_float64("double", 0.1)
    writer.add_bool("yes", True)
    writer.add_tensor("w", numpy.zeros((4, 6), numpy.float32))
    writer.add_tensor("v", numpy.zeros(10, numpy.float16))
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()
    read = reference.GGUFReader(file)
    header = gguf.read_header(file)
    assert header.parameters == sum(int(tensor.n_elements) for tensor in read.tensors) == 34
    for key, field in read.fields.items():
        if key.startswith("GGUF."):
            continue
        if field.types[0] != reference.GGUFValueType.ARRAY:
            assert header.values[key] == field.contents(), key
        elif key != "nested":
            assert header.values[key] == gguf.Items(len(field.data)), key
    assert header.values["nested"] == gguf.Items(2)
    found, purpose, licence = facts.read(file)
    assert found == facts.Facts(
        architecture="llama", quantisation="Q4_K_M", parameters=34, context=4096, width=16, vocabulary=3,
        chat_template=True,
    )  # fmt: skip
    assert (purpose, licence) == ("chat", "apache-2.0")


def test_file_types_have_the_names_that_llama_cpp_gives_them():
    reference = pytest.importorskip("gguf").LlamaFileType
    for number, name in gguf.FILE_TYPES.items():
        told = reference(number).name.removeprefix("MOSTLY_").removeprefix("ALL_")
        assert told.removesuffix("_MOE") == name


@settings(deadline=None)
@given(st.data())
def test_every_cut_and_every_flipped_header_byte_is_an_error_or_a_header(tmp_path_factory, data):
    whole = tiny()
    file = tmp_path_factory.getbasetemp() / "damaged.gguf"
    end = data.draw(st.integers(0, len(whole) - 1))
    file.write_bytes(whole[:end])
    if end < len(whole) - 128:  # into the header
        with pytest.raises(StudioloError):
            gguf.read_header(file)
    at, byte = data.draw(st.integers(0, len(whole) - 129)), data.draw(st.integers(0, 255))
    file.write_bytes(whole[:at] + bytes([byte]) + whole[at + 1 :])
    with suppress(StudioloError):  # and no other error
        gguf.read_header(file)


@pytest.mark.parametrize(
    ("head", "message"),
    [
        (b"", "not a whole GGUF"),
        (b"GGUF" + struct.pack("<IQQ", 1, 0, 0), "version is 1"),
        (b"GGUF" + struct.pack(">IQQ", 3, 0, 0), "little-endian"),
        (b"GGUF" + struct.pack("<IQQ", 3, 1 << 60, 0), "tensors"),
        (b"GGUF" + struct.pack("<IQQ", 3, 0, 1 << 60), "keys"),
        (b"GGUF" + struct.pack("<IQQQ", 3, 0, 1, 1 << 60), "bytes in a string"),
        (b"GGUF" + struct.pack("<IQQ", 3, 0, 1) + text("k") + struct.pack("<IIQ", 9, 4, 1 << 60), "items"),
        (
            b"GGUF"
            + struct.pack("<IQQ", 3, 0, 1)
            + text("k")
            + struct.pack("<I", 9)
            + struct.pack("<IQ", 9, 1) * 9,
            "unknown kind",
        ),
        (b"GGUF" + struct.pack("<IQQ", 3, 0, 1) + text("k") + struct.pack("<I", 99), "unknown kind 99"),
    ],
)
def test_headers_made_to_fill_the_memory_are_refused(tmp_path, head, message):
    file = tmp_path / "bad.gguf"
    file.write_bytes(head)
    with pytest.raises(StudioloError, match=message) as caught:
        gguf.read_header(file)
    assert caught.value.where == str(file)


@pytest.mark.parametrize("name", ["smollm2", "minilm"])
def test_known_facts_are_those_of_the_real_files(name):
    path, entry = pulled(name), known.table().weights[name]
    found, purpose, _ = facts.read(path)
    assert (found, purpose, facts.format_of(path)) == (entry.facts, entry.purpose, entry.format)


# --- folders of safetensors -------------------------------------------------------------------------------


def test_a_folder_says_what_it_holds(folder):
    found, purpose, _ = facts.read(folder)
    assert found == facts.Facts(
        architecture="Gemma3ForConditionalGeneration", quantisation="F32", parameters=22, context=1024,
        width=64, vocabulary=100, chat_template=True,
    )  # fmt: skip
    assert purpose == "chat"


def test_a_cut_safetensors_file_is_refused(folder):
    file = folder / "model.safetensors"
    file.write_bytes(file.read_bytes()[:-1])
    with pytest.raises(StudioloError, match="not a whole safetensors"):
        models.add(folder, "cut")


# --- names ------------------------------------------------------------------------------------------------


def test_what_was_added_is_never_deleted(speaker):
    added = models.add(speaker, "speaker")
    assert (added.path, added.pulled, added.size) == (speaker, False, len(tiny()))
    assert weights.find("speaker") == added
    assert models.remove("speaker") == added
    assert speaker.read_bytes() == tiny()
    assert weights.list_weights() == []
    with pytest.raises(StudioloError, match="no model of this name"):
        models.remove("speaker")


def test_a_folder_is_added_and_kept_too(folder):
    before = {file: file.read_bytes() for file in folder.iterdir()}
    assert models.add(folder, "words").format == "safetensors"
    models.remove("words")
    assert {file: file.read_bytes() for file in folder.iterdir()} == before


def test_a_diffusers_folder_is_added_to_draw_with(tmp_path):
    (tmp_path / "model_index.json").write_text("{}")
    assert models.add(tmp_path, "rex") == registry.resolve("rex")
    assert [one.name for one in models.list_models() if one.path == tmp_path] == ["rex"]


def test_files_that_have_gone_are_listed_and_told_when_used(speaker):
    models.add(speaker, "speaker")
    speaker.unlink()
    assert [one.name for one in weights.list_weights()] == ["speaker"]
    with pytest.raises(StudioloError, match="are gone"):
        weights.find("speaker")
    models.remove("speaker")


@pytest.mark.parametrize("name", ["", "../up", "a/b", ".hidden", "x" * 65, registry.BASE_NAME])
def test_names_that_cannot_be_one_are_refused(speaker, name):
    with pytest.raises(StudioloError):
        models.add(speaker, name)
    assert weights.list_weights() == []


def test_a_taken_name_is_refused(speaker):
    models.add(speaker, "speaker")
    with pytest.raises(StudioloError, match="exists"):
        models.add(speaker, "speaker")


@pytest.mark.parametrize("name", ["weights.bin", "weights.pt", "weights.ckpt"])
def test_pickles_are_refused(tmp_path, name):
    (tmp_path / "config.json").write_text("{}")
    (tmp_path / name).write_bytes(b"\x80\x04N.")
    for path in (tmp_path, tmp_path / name):
        with pytest.raises(StudioloError, match="pickled"):
            models.add(path, "pickled")


def test_a_damaged_record_is_named(speaker):
    models.add(speaker, "speaker")
    record = paths.weights_dir() / "speaker" / "weights.json"
    record.write_text("{}")
    with pytest.raises(StudioloError, match="damaged record") as caught:
        weights.find("speaker")
    assert caught.value.where == str(record)


def test_known_weights_that_are_not_here_say_how_to_fetch_them():
    with pytest.raises(StudioloError, match="studiolo models pull smollm2"):
        weights.find("smollm2")
    with pytest.raises(StudioloError, match=r"Did you mean minilm"):
        weights.find("mini-lm")


def test_the_data_folder_may_move(studiolo_home, speaker, monkeypatch):
    models.add(speaker, "speaker")
    record = paths.weights_dir() / "speaker" / "weights.json"
    said = json.loads(record.read_text()) | {"pulled": True, "path": "files/m.gguf"}
    record.write_text(json.dumps(said))
    (record.parent / "files").mkdir()
    (record.parent / "files" / "m.gguf").write_bytes(tiny())
    moved = studiolo_home.with_name("moved")
    studiolo_home.rename(moved)
    monkeypatch.setenv("STUDIOLO_HOME", str(moved))
    assert weights.find("speaker").path.read_bytes() == tiny()

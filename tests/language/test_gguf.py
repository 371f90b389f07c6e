"""GGUF metadata and vocabularies, compared with the package that defines the format."""

from __future__ import annotations

import itertools

import pytest
from tokenizers import decoders

from studiolo.errors import StudioloError
from studiolo.language.engines.gguf import Card, Vocabulary, read_metadata

gguf = pytest.importorskip("gguf")


@pytest.fixture(scope="module")
def card(smollm2):
    return Card(read_metadata(smollm2))


def _write(path, fill):
    writer = gguf.GGUFWriter(path, "llama")
    fill(writer)
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()
    return path


def test_values_of_all_kinds_come_back(tmp_path):
    values = {
        "add_uint8": 200, "add_int8": -7, "add_uint16": 65_000, "add_int16": -9, "add_uint32": 2**32 - 1,
        "add_int32": -(2**31), "add_uint64": 2**63, "add_int64": -(2**63), "add_float32": 0.5,
        "add_float64": 0.1, "add_bool": True, "add_string": "größe 👍",
        "add_array": ["a", "", "ü"],
    }  # fmt: skip

    def fill(writer):
        for method, value in values.items():
            getattr(writer, method)(method, value)
        writer.add_array("numbers", [1, 2, -3])
        writer.add_array("truths", [True, False])

    told = read_metadata(_write(tmp_path / "all.gguf", fill))
    assert {key: told[key] for key in values} == values
    assert (told["numbers"], told["truths"]) == ([1, 2, -3], [True, False])
    assert told["general.architecture"] == "llama"


@pytest.mark.parametrize("length", [0, 3, 23, 40, 90])
def test_a_file_that_is_cut_off_is_refused(tmp_path, length):
    whole = _write(tmp_path / "whole.gguf", lambda writer: writer.add_string("key", "value" * 9))
    cut = tmp_path / "cut.gguf"
    cut.write_bytes(whole.read_bytes()[:length])
    with pytest.raises(StudioloError, match="not a whole GGUF"):
        read_metadata(cut)


def test_other_files_and_none_are_refused(tmp_path):
    (tmp_path / "other").write_bytes(b"GGML" + bytes(100))
    for name in ("other", "none"):
        with pytest.raises(StudioloError, match=name):
            read_metadata(tmp_path / name)


def test_the_card_of_a_real_model(card):
    assert (card.architecture, card.context, card.pools) == ("llama", 8192, False)
    assert card.special_tokens == {
        "bos_token": "<|im_start|>",
        "eos_token": "<|im_end|>",
        "unk_token": "<|endoftext|>",
        "pad_token": "<|im_end|>",
    }
    assert "add_generation_prompt" in card.template
    assert card.spoken_control_tokens == []


def test_control_tokens_that_the_template_writes_are_spoken():
    card = Card(
        {
            "tokenizer.ggml.tokens": ["<eos>", "<|channel>", "word", "<|unused|>", "plain"],
            "tokenizer.ggml.token_type": [3, 3, 1, 3, 1],
            "tokenizer.ggml.eos_token_id": 0,
            "tokenizer.chat_template": "{{ '<|channel>' }} word plain <eos>",
        }
    )
    assert card.spoken_control_tokens == ["<|channel>"]
    assert (card.special_tokens, card.context, card.name) == ({"eos_token": "<eos>"}, None, None)


def test_byte_level_tokens_are_what_the_tokenizers_library_decodes(card):
    tokens, kinds = (card.metadata[f"tokenizer.ggml.{key}"] for key in ("tokens", "token_type"))
    decoder = decoders.ByteLevel()
    for token in range(0, len(tokens), 7):
        if kinds[token] == 1:
            decoded = card.vocabulary[token].decode("utf-8", "replace")
            assert decoded == decoder.decode([tokens[token]])


SENTENCEPIECE = {
    "tokenizer.ggml.model": "llama",
    "tokenizer.ggml.tokens": ["<s>", "▁the", "<0xE2>", "<0x82>", "<0xAC>", "€", "<turn>", "a"],
    "tokenizer.ggml.token_type": [3, 1, 6, 6, 6, 1, 4, 1],
}


def test_sentencepiece_tokens_are_their_bytes():
    vocabulary = Vocabulary(SENTENCEPIECE)
    assert [vocabulary[token] for token in (0, 1, 2, 5, 6)] == [
        b"<s>",
        b" the",
        b"\xe2",
        "€".encode(),
        b"<turn>",
    ]


@pytest.mark.parametrize(
    ("text", "count", "tokens"),
    [
        ("€", 1, (5,)),
        ("€", 3, (2, 3, 4)),
        ("€", 2, None),
        (" thea", 2, (1, 7)),
        ("", 0, ()),
        ("<s>", 1, None),
        ("z", 1, None),
    ],
)
def test_spelling_with_so_many_tokens(text, count, tokens):
    assert Vocabulary(SENTENCEPIECE).spell(text.encode(), count) == tokens


def test_every_spelling_has_the_bytes_and_the_number(card):
    text = "日本語 👩‍👩‍👧"
    for start, end in itertools.combinations(range(len(text.encode())), 2):
        data = text.encode()[start:end]
        tokens = card.vocabulary.spell(data, len(data))
        if tokens is not None:
            assert len(tokens) == len(data)
            assert b"".join(card.vocabulary[token] for token in tokens) == data

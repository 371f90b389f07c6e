"""What is found means little; what is added is one token everywhere and starts as its class."""

from __future__ import annotations

import diffusers
import pytest
import torch
from transformers import CLIPTextModel

from studiolo.diffusion.conditioning import encode_prompts, tokenize
from studiolo.dreambooth.identifier import add_identifier, find_identifier, take_identifier
from studiolo.errors import StudioloError
from studiolo.formats.diffusers_folder import load_components, save_components
from tiny import tiny_components


@pytest.fixture
def components():
    return tiny_components()


def is_one_token(tokenizer, text: str, token_id: int) -> bool:
    prompt = tokenizer(f"a {text} fox, {text}").input_ids
    return prompt.count(token_id) == 2 and tokenizer(text, add_special_tokens=False).input_ids == [token_id]


def mean_state(components, prompt: str) -> torch.Tensor:
    """The text encoder's state at the end of `prompt` by way of the padded prompt of the pipeline."""
    ids = tokenize(components, [prompt])[0][0].tolist()
    with torch.no_grad():
        return encode_prompts(components, [prompt]).tokens[0, ids.index(components.tokenizer.eos_token_id)]


def test_found_token_is_one_token_and_no_part_of_the_class(components):
    for noun in ("fox", "cat", "snow fox"):
        choice = find_identifier(components, noun)
        assert is_one_token(components.tokenizer, choice.token, choice.token_id)
        assert choice.token not in noun.split()
        assert 2 <= len(choice.token) <= 4
        assert not choice.added
        assert noun in choice.reason


def test_choice_is_a_function_of_model_and_noun(components):
    assert find_identifier(components, "fox") == find_identifier(tiny_components(), "fox")


def test_alternatives_are_ranked_and_explain_the_choice(components):
    choice = find_identifier(components, "fox")
    scores = [candidate.score for candidate in choice.alternatives]
    assert scores == sorted(scores)
    assert choice.alternatives[0].token == choice.token
    assert all(-1 <= c.likeness <= 1.0001 and c.shift >= 0 for c in choice.alternatives)


def test_shift_is_measured_in_the_padded_prompts_of_the_pipeline(components):
    """Against the definition, computed the long way: prompts as text, padded, one by one."""
    candidates = find_identifier(components, "fox", ["zwx", "sks", "hat"]).alternatives
    plain = mean_state(components, "a photo of a fox")

    def distance(word):
        moved = mean_state(components, f"a photo of a {word} fox")
        return 1 - torch.cosine_similarity(moved, plain, dim=0).item()

    vocabulary = components.tokenizer.get_vocab()
    pieces = [t.removesuffix("</w>") for t in vocabulary if t.endswith("</w>")]
    words = [w for w in pieces if w.isascii() and w.isalpha() and len(w) > 3]
    single = components.tokenizer(words, add_special_tokens=False).input_ids
    words = [w for w, ids in zip(words, single, strict=True) if ids == [vocabulary[w + "</w>"]]]
    typical = torch.tensor([distance(word) for word in words]).median().item()
    for candidate in candidates:
        assert candidate.shift == pytest.approx(distance(candidate.token) / typical, rel=1e-3)


def test_a_token_without_meaning_is_preferred_to_words(components):
    """Of four tokens, one says nothing to the text encoder: its embedding is zero."""
    rows = components.text_encoder.get_input_embeddings().weight
    token_id = components.tokenizer.convert_tokens_to_ids("zwx</w>")
    with torch.no_grad():
        rows *= 20  # words that differ strongly
        rows[token_id] *= 0
    choice = find_identifier(components, "fox", ["hat", "snow", "zwx", "red"])
    assert choice.token == "zwx"


def test_candidates_that_fall_apart_are_left_out(components):
    choice = find_identifier(components, "fox", ["qqqq", "zwx"])
    assert [c.token for c in choice.alternatives] == ["zwx"]
    with pytest.raises(StudioloError, match="single token"):
        find_identifier(components, "fox", ["qqqq"])


def test_a_known_token_is_taken_as_it_is(components):
    before = components.fingerprint()
    choice = take_identifier(components, " ZWX ", "fox")
    assert (choice.token, choice.added) == ("zwx", False)
    assert is_one_token(components.tokenizer, "zwx", choice.token_id)
    assert components.fingerprint() == before


def test_an_unknown_word_is_added(components):
    size = len(components.tokenizer)
    choice = take_identifier(components, "rexy", "fox")
    assert (choice.token, choice.added, choice.token_id) == ("rexy", True, size)
    assert "3 tokens (re x y)" in choice.reason
    assert is_one_token(components.tokenizer, "rexy", size)
    again = take_identifier(components, "rexy", "fox")
    assert (again.token_id, again.added) == (size, False)


def test_an_added_token_is_cut_out_of_no_longer_word(components):
    before = components.tokenizer("trex foxrex rexes rex2").input_ids
    token_id = add_identifier(components, "rex", "fox").token_id
    after = components.tokenizer("trex foxrex rexes rex2").input_ids
    assert after == before
    assert components.tokenizer("A REX, rex!").input_ids.count(token_id) == 2


@pytest.mark.parametrize("noun", ["fox", "snow fox", "zebra"])
def test_an_added_token_starts_as_the_class_and_moves_no_other(components, noun):
    old = components.text_encoder.get_input_embeddings().weight.clone()
    choice = add_identifier(components, "rex", noun)
    new = components.text_encoder.get_input_embeddings().weight
    assert torch.equal(new[: len(old)], old)
    pieces = components.tokenizer(noun, add_special_tokens=False).input_ids
    torch.testing.assert_close(new[choice.token_id], old[pieces].mean(dim=0))
    assert new.requires_grad
    prompt = "a photo of a cat"
    torch.testing.assert_close(
        encode_prompts(components, [prompt]).tokens, encode_prompts(tiny_components(), [prompt]).tokens
    )


@pytest.mark.parametrize("legacy", [True, False])
def test_pooling_stays_at_the_end_of_the_prompt(components, legacy):
    """An added id is larger than EOS: pooling by arg-max, as old configs ask for, would find it instead."""
    encoder = components.text_encoder
    if legacy:
        encoder.config.eos_token_id = encoder.eos_token_id = 2
    add_identifier(components, "rex", "fox")
    (ids,) = tokenize(components, ["a photo of a rex fox"])
    end = ids[0].tolist().index(components.tokenizer.eos_token_id)
    assert ids.argmax() != end
    with torch.no_grad():
        output = encoder(ids)
    assert torch.equal(output.pooler_output[0], output.last_hidden_state[0, end])


def test_an_added_token_survives_the_folder(components, tmp_path):
    choice = add_identifier(components, "rex", "fox")
    prompts = ["a photo of a rex fox", "a rex"]
    expected = encode_prompts(components, prompts).tokens
    path = save_components(components, tmp_path / "model")

    ours = load_components(path)
    assert torch.equal(encode_prompts(ours, prompts).tokens, expected)
    assert take_identifier(ours, "rex", "fox").token_id == choice.token_id
    assert (
        CLIPTextModel.from_pretrained(path / "text_encoder").config.eos_token_id
        == ours.tokenizer.eos_token_id
    )

    pipeline = diffusers.StableDiffusionPipeline.from_pretrained(path, safety_checker=None)
    theirs, _ = pipeline.encode_prompt(prompts, "cpu", 1, False)
    torch.testing.assert_close(theirs, expected)


@pytest.mark.parametrize("text", ["", "  ", "two words", "rex!", "<rex>", "réx", "x" * 33])
def test_what_cannot_be_an_identifier(components, text):
    for give in (take_identifier, add_identifier):
        with pytest.raises(StudioloError, match="cannot be an identifier") as caught:
            give(components, text, "fox")
        assert "zwx" in caught.value.remedy


def test_the_class_is_no_identifier_and_no_token_is_added_twice(components):
    with pytest.raises(StudioloError, match="'fox' is the class noun"):
        take_identifier(components, "Fox", "snow fox")
    with pytest.raises(StudioloError, match="'zwx' is a token already"):
        add_identifier(components, "zwx", "fox")

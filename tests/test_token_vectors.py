"""The vectors of a token against training the table's row itself."""

from __future__ import annotations

import torch

from studiolo.diffusion.conditioning import encode_prompts
from studiolo.diffusion.token_vectors import TokenVectors
from tiny import tiny_components

PROMPTS = ["a photo of zwx fox", "zwx sks", "a photo of a fox"]


def ids(components) -> list[int]:
    return [components.tokenizer.convert_tokens_to_ids(f"{word}</w>") for word in ("zwx", "sks")]


def test_they_are_read_in_place_of_their_rows():
    components, plain = tiny_components(), tiny_components()
    vectors = TokenVectors(components.text_encoder, ids(components))
    assert torch.equal(encode_prompts(components, PROMPTS).tokens, encode_prompts(plain, PROMPTS).tokens)
    with torch.no_grad():
        vectors.vectors += torch.randn(2, 32, generator=torch.Generator().manual_seed(0))
        plain.text_encoder.get_input_embeddings().weight[ids(plain)] = vectors.vectors
    assert torch.equal(encode_prompts(components, PROMPTS).tokens, encode_prompts(plain, PROMPTS).tokens)


def test_their_gradient_is_that_of_the_rows():
    components, plain = tiny_components(), tiny_components()
    vectors = TokenVectors(components.text_encoder, ids(components))
    for model in (components, plain):
        encode_prompts(model, PROMPTS).tokens.square().sum().backward()
    rows = plain.text_encoder.get_input_embeddings().weight.grad[ids(plain)]
    torch.testing.assert_close(vectors.vectors.grad, rows)


def test_writing_them_changes_their_rows_and_no_other_bit():
    components = tiny_components()
    table = components.text_encoder.get_input_embeddings().weight
    before = table.detach().clone()
    vectors = TokenVectors(components.text_encoder, ids(components))
    with torch.no_grad():
        vectors.vectors += 1
    assert torch.equal(table, before)
    vectors.write()
    assert (table != before).any(1).nonzero().flatten().tolist() == sorted(ids(components))
    said = encode_prompts(components, PROMPTS).tokens
    vectors.detach_hook()
    assert torch.equal(encode_prompts(components, PROMPTS).tokens, said)

"""MiniLM gives the vectors that its card describes."""

from __future__ import annotations

import asyncio
import runpy
from pathlib import Path

import numpy as np
import pytest

from pulled import pulled
from studiolo.errors import StudioloError
from studiolo.language.embedders import MiniLM

ROOT = Path(__file__).parent.parent.parent


@pytest.fixture(scope="module")
def minilm() -> Path:
    """The folder of all-MiniLM-L6-v2."""
    return pulled("minilm")


TEXTS = [
    "This is an example sentence",
    "Each sentence is converted",
    "A much longer sentence than the others, so that there is padding beside it in a batch.",
]


def reference(folder, texts):
    """The code of the model's card: https://huggingface.co/sentence-transformers/all-MiniLM-L6-v2."""
    import torch
    import torch.nn.functional as F
    from transformers import AutoModel, AutoTokenizer

    tokenizer, model = AutoTokenizer.from_pretrained(folder), AutoModel.from_pretrained(folder)
    encoded_input = tokenizer(texts, padding=True, truncation=True, return_tensors="pt")
    with torch.no_grad():
        token_embeddings = model(**encoded_input)[0]
    mask = encoded_input["attention_mask"].unsqueeze(-1).expand(token_embeddings.size()).float()
    pooled = torch.sum(token_embeddings * mask, 1) / torch.clamp(mask.sum(1), min=1e-9)
    return F.normalize(pooled, p=2, dim=1).numpy()


def test_vectors_are_those_of_the_models_card(minilm):
    embedder = MiniLM(minilm)
    vectors = asyncio.run(embedder.embed(TEXTS))
    np.testing.assert_allclose(vectors, reference(minilm, TEXTS), atol=2e-6)
    np.testing.assert_allclose(np.linalg.norm(vectors, axis=1), 1, atol=1e-6)
    alone = np.concatenate([embedder.embed_now([text]) for text in TEXTS])
    np.testing.assert_allclose(vectors, alone, atol=2e-6)
    assert embedder.embed_now([]).shape == (0, 384)


def test_what_it_does_not_read(minilm):
    embedder = MiniLM(minilm)
    texts = ["Hello, world!", "word " * 254, "word " * 255, "Was heißt das?", "a 🦊", "ꙮ"]
    assert [asyncio.run(embedder.reads(text)) for text in texts] == [True, True, False, True, False, False]


def test_missing_weights_are_named(tmp_path):
    with pytest.raises(StudioloError, match="no embedding model"):
        MiniLM(tmp_path).embed_now(["a"])


def test_the_tables_of_the_docs_are_those_of_the_benchmark(minilm):
    script = runpy.run_path(str(ROOT / "benchmarks" / "semantic_cache.py"))
    pairs = script["measured"](script["PAIRS"], MiniLM(minilm).embed_now)
    page = (ROOT / "docs" / "caching.md").read_text(encoding="utf-8")
    assert script["table"](pairs).splitlines()[2:] == page[page.index("| threshold |") :].splitlines()[:11]
    assert script["by_kind"](pairs) in page

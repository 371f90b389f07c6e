"""Texts as unit vectors, by a small model of their own."""

from __future__ import annotations

import asyncio
import math
import threading
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any, Protocol

import numpy as np
from numpy.typing import NDArray

from studiolo.errors import StudioloError
from studiolo.language.errors import UnsupportedError

Vectors = NDArray[np.float32]


class Embedder(Protocol):
    """Texts in, unit vectors out; texts that mean the same lie close together."""

    @property
    def name(self) -> str:
        """Which model this is: vectors of different names cannot be compared."""

    async def reads(self, text: str) -> bool:
        """Whether it sees all of the text: nothing cut off at its end, no characters unknown to it."""

    async def embed(self, texts: Sequence[str]) -> Vectors:
        """Unit vectors [N, D]."""


class MiniLM:
    """sentence-transformers/all-MiniLM-L6-v2, 384 dimensions, made for English (Apache-2.0).

    Reference: https://huggingface.co/sentence-transformers/all-MiniLM-L6-v2 (mean over the tokens, then unit
    length; texts are cut at 256 tokens).

    Args:
        folder: `config.json`, `tokenizer.json` and `model.safetensors`. They are opened when first needed.
    """

    name = "all-MiniLM-L6-v2"
    longest = 256

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self._opened: tuple[Any, Any] | None = None
        self._lock = threading.Lock()  # a fast tokenizer is for one thread at a time

    async def reads(self, text: str) -> bool:
        return await asyncio.to_thread(self._reads, text)

    async def count(self, text: str) -> int:
        """Tokens of a text, with the two marks around it."""
        return len(await asyncio.to_thread(self._tokens, text))

    async def embed(self, texts: Sequence[str]) -> Vectors:
        return await asyncio.to_thread(self.embed_now, texts)

    def embed_now(self, texts: Sequence[str], batch: int = 32) -> Vectors:
        """`embed`, in this thread. Texts of like length go together, `batch` at a time."""
        import torch

        by_length = sorted(range(len(texts)), key=lambda i: len(texts[i]))
        vectors = np.zeros((len(texts), 384), np.float32)
        with self._lock, torch.inference_mode():
            tokenizer, model = self._open()
            for start in range(0, len(texts), batch):
                rows = by_length[start : start + batch]
                inputs = tokenizer(
                    [texts[i] for i in rows],
                    padding=True, truncation=True, max_length=self.longest, return_tensors="pt",
                )  # fmt: skip
                mask = inputs["attention_mask"][..., None]
                states = (model(**inputs).last_hidden_state * mask).sum(1) / mask.sum(1)
                vectors[rows] = torch.nn.functional.normalize(states, dim=-1).numpy()
        return vectors

    def _reads(self, text: str) -> bool:
        ids = self._tokens(text)
        tokenizer, _ = self._open()
        return len(ids) <= self.longest and tokenizer.unk_token_id not in ids

    def _tokens(self, text: str) -> list[int]:
        with self._lock:
            tokenizer, _ = self._open()
            ids: list[int] = tokenizer(text)["input_ids"]
        return ids

    def _open(self) -> tuple[Any, Any]:
        if self._opened is None:
            from transformers import AutoModel, AutoTokenizer

            if not (self.folder / "model.safetensors").is_file():
                raise StudioloError(
                    "no embedding model in this folder",
                    where=self.folder,
                    remedy="studiolo models pull minilm",
                )
            tokenizer = AutoTokenizer.from_pretrained(self.folder, local_files_only=True)
            with _no_bar():
                model = AutoModel.from_pretrained(self.folder, local_files_only=True, use_safetensors=True)
            self._opened = tokenizer, model.eval()
        return self._opened


def cut(vector: Sequence[float], dimensions: int | None) -> list[float]:
    """The first `dimensions` numbers of a vector (None: all), made a unit vector again.

    Raises:
        UnsupportedError: it has not so many.
    """
    if dimensions is not None and not 0 < dimensions <= len(vector):
        raise UnsupportedError(
            f"this model's embeddings have {len(vector)} dimensions",
            where="dimensions",
            remedy="Ask for fewer.",
        )
    kept = list(vector[:dimensions])
    length = math.sqrt(math.fsum(value * value for value in kept)) or 1.0
    return [value / length for value in kept]


@contextmanager
def _no_bar() -> Iterator[None]:
    """Without the library's progress bar: these weights are read in less than a second."""
    from transformers.utils import logging

    shown = logging.is_progress_bar_enabled()
    logging.disable_progress_bar()
    try:
        yield
    finally:
        if shown:
            logging.enable_progress_bar()

"""The tokenizer that all published Stable Diffusion models share, so that a file of weights needs no other.

`clip_merges.txt.gz` holds the 48,894 merges of CLIP's byte-pair encoding, from `bpe_simple_vocab_16e6.txt` of
https://github.com/openai/CLIP (MIT licence, copyright 2021 OpenAI), in their order.
"""

from __future__ import annotations

import gzip
from functools import cache
from pathlib import Path
from typing import Any

from transformers import CLIPTokenizer

START, END = "<|startoftext|>", "<|endoftext|>"


def clip_tokenizer(**settings: Any) -> CLIPTokenizer:
    """CLIP's tokenizer, 49,408 tokens; texts of 77. `settings` as CLIPTokenizer takes them.

    Stable Diffusion 1 and SDXL's first encoder pad with the end token, OpenCLIP's with "!", whose id is 0.
    """
    merges = _merges()
    return CLIPTokenizer(vocab=_vocabulary(), merges=merges, **{"model_max_length": 77, **settings})


def is_clip(tokenizer: CLIPTokenizer) -> bool:
    """Whether it has CLIP's vocabulary, nothing added and nothing lacking."""
    return len(tokenizer) == 49408 and tokenizer.get_vocab() == _vocabulary()


@cache
def _merges() -> list[tuple[str, str]]:
    text = gzip.decompress((Path(__file__).parent / "clip_merges.txt.gz").read_bytes()).decode("utf-8")
    first_and_second = (line.split(" ") for line in text.splitlines())
    return [(first, second) for first, second in first_and_second]


@cache
def _vocabulary() -> dict[str, int]:
    symbols = _byte_symbols()
    merged = (first + second for first, second in _merges())
    tokens = [*symbols, *(symbol + "</w>" for symbol in symbols), *merged, START, END]
    return {token: index for index, token in enumerate(tokens)}


def _byte_symbols() -> list[str]:
    """A printable character for each byte: itself where it is one, in the order of GPT-2 and CLIP."""
    printable = [
        *range(ord("!"), ord("~") + 1),
        *range(ord("¡"), ord("¬") + 1),
        *range(ord("®"), ord("ÿ") + 1),
    ]
    others = 256 - len(printable)
    return [chr(byte) for byte in printable] + [chr(256 + n) for n in range(others)]

"""GGUF files of a few bytes, written by the format's page: https://github.com/ggml-org/ggml/blob/master/docs/gguf.md"""

from __future__ import annotations

import struct
from typing import Any


def text(value: str) -> bytes:
    return struct.pack("<Q", len(value.encode())) + value.encode()


def value(it: Any) -> bytes:
    if isinstance(it, bool):
        return struct.pack("<I?", 7, it)
    if isinstance(it, int):
        return struct.pack("<II", 4, it)
    if isinstance(it, str):
        return struct.pack("<I", 8) + text(it)
    return struct.pack("<IIQ", 9, 8, len(it)) + b"".join(map(text, it))


def gguf(values: dict[str, Any] | None = None, shape: tuple[int, ...] = (4, 8), fill: int = 0) -> bytes:
    """One F32 tensor; `values` are added to those of a small chat model. `fill` makes files differ."""
    values = {
        "general.architecture": "llama", "general.license": "apache-2.0", "general.file_type": 0,
        "llama.context_length": 512, "llama.embedding_length": 8,
        "tokenizer.ggml.tokens": ["a", "b", "ç"], "tokenizer.chat_template": "{{ messages }}",
    } | (values or {})  # fmt: skip
    head = b"GGUF" + struct.pack("<IQQ", 3, 1, len(values))
    head += b"".join(text(key) + value(it) for key, it in values.items())
    head += text("w") + struct.pack(f"<I{len(shape)}QIQ", len(shape), *shape, 0, 0)
    size = 4
    for length in shape:
        size *= length
    return head + b"\0" * (-len(head) % 32) + bytes([fill]) * size

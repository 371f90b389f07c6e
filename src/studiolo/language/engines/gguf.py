"""What a GGUF file says of itself: its metadata and its vocabulary, read without loading the weights.

The format: https://github.com/ggml-org/ggml/blob/master/docs/gguf.md
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any

from studiolo.models.gguf import read_header

# Kinds of tokens, as `tokenizer.ggml.token_type` numbers them.
_CONTROL, _USER_DEFINED, _BYTE = 3, 4, 6
_SPECIAL = {
    "bos_token": "bos",
    "eos_token": "eos",
    "unk_token": "unknown",
    "sep_token": "seperator",  # spelt so in the format
    "pad_token": "padding",
    "mask_token": "mask",
}


def read_metadata(path: str | Path) -> dict[str, Any]:
    """All keys and values before the tensors. Numbers, strings, booleans, and lists of them.

    Raises:
        StudioloError: as of `read_header`.
    """
    return read_header(Path(path), arrays=True).values


@dataclass(frozen=True)
class Card:
    """What an engine needs to know of a GGUF, from its metadata."""

    metadata: Mapping[str, Any]

    @property
    def architecture(self) -> str:
        return str(self.metadata.get("general.architecture", ""))

    @property
    def name(self) -> str | None:
        return self.metadata.get("general.name")

    @property
    def context(self) -> int | None:
        """Tokens that the model was trained to look back on."""
        return self.metadata.get(f"{self.architecture}.context_length")

    @property
    def pools(self) -> bool:
        """The model was made for embeddings: it says how a text's vectors become one."""
        return bool(self.metadata.get(f"{self.architecture}.pooling_type"))

    @property
    def template(self) -> str | None:
        return self.metadata.get("tokenizer.chat_template") or None

    @cached_property
    def special_tokens(self) -> dict[str, str]:
        """Texts of the tokens that the vocabulary gives a role, under the names that templates use."""
        tokens = self.metadata.get("tokenizer.ggml.tokens", [])
        ids = {role: self.metadata.get(f"tokenizer.ggml.{key}_token_id") for role, key in _SPECIAL.items()}
        return {
            role: tokens[token] for role, token in ids.items() if token is not None and token < len(tokens)
        }

    @cached_property
    def spoken_control_tokens(self) -> list[str]:
        """Control tokens without a role that the template writes: they open and close channels and calls."""
        tokens = self.metadata.get("tokenizer.ggml.tokens", [])
        kinds = self.metadata.get("tokenizer.ggml.token_type", [])
        template, roles = self.template or "", set(self.special_tokens.values())
        return [
            text
            for text, kind in zip(tokens, kinds, strict=False)
            if kind == _CONTROL and text and text not in roles and text in template
        ]

    @cached_property
    def vocabulary(self) -> Vocabulary:
        return Vocabulary(self.metadata)


class Vocabulary:
    """The bytes that each token stands for."""

    def __init__(self, metadata: Mapping[str, Any]) -> None:
        tokens = metadata.get("tokenizer.ggml.tokens", [])
        kinds = metadata.get("tokenizer.ggml.token_type", [1] * len(tokens))
        byte_level = metadata.get("tokenizer.ggml.model") == "gpt2"
        self._bytes = [_token_bytes(text, kind, byte_level) for text, kind in zip(tokens, kinds, strict=True)]
        self._ids: dict[bytes, int] = {}
        for token, (data, kind) in enumerate(zip(self._bytes, kinds, strict=True)):
            if data and kind != _CONTROL:
                self._ids.setdefault(data, token)
        self._longest = max(map(len, self._ids), default=0)

    def __len__(self) -> int:
        return len(self._bytes)

    def __getitem__(self, token: int) -> bytes:
        return self._bytes[token]

    def spell(self, data: bytes, count: int) -> tuple[int, ...] | None:
        """`count` tokens that stand for `data` together, long ones first; None if there are none."""
        if count == 0 or not data:
            return () if count == 0 and not data else None
        for length in range(min(len(data) - count + 1, self._longest), 0, -1):
            if (first := self._ids.get(data[:length])) is not None and (
                rest := self.spell(data[length:], count - 1)
            ) is not None:
                return first, *rest
        return None


def _token_bytes(text: str, kind: int, byte_level: bool) -> bytes:
    if kind == _BYTE:  # <0x0A>
        return bytes([int(text[3:5], 16)])
    if kind in (_CONTROL, _USER_DEFINED):
        return text.encode()
    if byte_level:
        return bytes(_BYTE_OF[char] for char in text if char in _BYTE_OF)
    return text.replace("▁", " ").encode()


def _byte_letters() -> dict[str, int]:
    """The letter that stands for each byte in byte-level vocabularies: printable Latin-1 for itself, the
    others from U+0100 on (Radford et al. 2019, `bytes_to_unicode` of GPT-2)."""
    printable = [*range(0x21, 0x7F), *range(0xA1, 0xAD), *range(0xAE, 0x100)]
    others = [byte for byte in range(256) if byte not in printable]
    return {chr(byte): byte for byte in printable} | {chr(256 + n): byte for n, byte in enumerate(others)}


_BYTE_OF = _byte_letters()

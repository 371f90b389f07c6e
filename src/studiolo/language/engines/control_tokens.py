"""Control tokens of a Hugging Face tokenizer, and which of them are part of what a model says."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import llguidance
import llguidance.hf


def silent(tokenizer: Any) -> frozenset[int]:
    """Ids of the control tokens that have no text: those with a role (beginning, end, padding, ...), and
    those that the chat template does not name. The others open and close channels and calls."""
    roles = {text for text in tokenizer.special_tokens_map.values() if isinstance(text, str)}
    template = tokenizer.chat_template if isinstance(tokenizer.chat_template, str) else ""
    return frozenset(
        token
        for token, text in zip(tokenizer.all_special_ids, tokenizer.all_special_tokens, strict=True)
        if text in roles or text not in template
    )


def guidance(tokenizer: Any, vocabulary: int, unheard: frozenset[int]) -> llguidance.LLTokenizer:
    """The tokenizer for llguidance, to which all control tokens but the silent ones are ordinary text: a
    grammar may ask for them by their text, as the calls of Gemma 4 have it.

    llguidance takes every added token in angle brackets for a control token, also those that are none
    (`<tool_call>` of Qwen); so the tokens are given to it one by one.

    Args:
        vocabulary: how many logits the model has.
        unheard: the `silent` tokens.
    """
    read = llguidance.hf.from_tokenizer(tokenizer, n_vocab=vocabulary)
    control = [token for token in range(read.vocab_size) if read.is_special_token(token)]
    added = set(tokenizer.added_tokens_decoder)
    spoken = {token for token in control if token in added and token not in unheard}
    if not spoken:
        return read
    tokens = _Tokens(
        eos_token_id=tokenizer.eos_token_id,
        bos_token_id=tokenizer.bos_token_id,
        tokens=[read.decode_bytes([token]) for token in range(read.vocab_size)],
        special_token_ids=[token for token in control if token not in spoken],
        encode=tokenizer.encode,
    )
    return llguidance.LLTokenizer(llguidance.TokenizerWrapper(tokens), n_vocab=vocabulary)


@dataclass(frozen=True)
class _Tokens:
    """What llguidance wants to know of a vocabulary; calling it makes tokens of a text."""

    eos_token_id: int
    bos_token_id: int | None
    tokens: list[bytes]
    special_token_ids: list[int]
    encode: Callable[..., list[int]]

    def __call__(self, text: str) -> list[int]:
        return self.encode(text, add_special_tokens=False)

"""Keeps llama.cpp from mixing up the vocabularies of several models in one process.

For constraints, llama.cpp sorts a model's vocabulary once and remembers the result in one static variable,
known by the address of the vocabulary (`llama_sampler_llg_new_tokenizer` in its common/llguidance.cpp). Two
things go wrong with that. When the model is freed and another one is put at the same address, the other one
gets the wrong vocabulary, and the process is ended by an assertion if their sizes differ. And two models that
begin constrained answers at the same time change the variable under each other's hands.

So here one model at a time begins constrained answers, and before the model that is remembered is freed, a
model of no use, some tens of kilobytes large, takes its place in that variable and stays until the next real
one does.
"""

from __future__ import annotations

import struct
import tempfile
import threading
from pathlib import Path
from typing import Any

_GRAMMAR = '%llguidance {}\nstart: "a"'


class VocabularyGuard:
    """One for the process: `guard`. Models are known by any object of their own, which is not kept alive by
    more than this."""

    def __init__(self) -> None:
        self._free = threading.Condition()
        self._remembered: object = None
        self._beginning = 0
        self._stand_in: Any = None

    def begin(self, model: object) -> None:
        """Waits until no other model is beginning a constrained answer. `begun` must follow."""
        with self._free:
            self._free.wait_for(lambda: not self._beginning or self._remembered is model)
            self._remembered = model
            self._beginning += 1

    def begun(self) -> None:
        """The vocabulary of the model that began is the one that is remembered now."""
        with self._free:
            self._beginning -= 1
            self._stand_in = None
            self._free.notify_all()

    def retire(self, model: object) -> None:
        """To be called before a model is freed, when nothing of it runs any more."""
        with self._free:
            self._free.wait_for(lambda: not self._beginning)
            if self._remembered is model:
                self._stand_in = self._remembered = _stand_in()


guard = VocabularyGuard()


def _stand_in() -> Any:
    """A server with the model of no use, which has begun a constrained answer."""
    import xllamacpp

    with tempfile.TemporaryDirectory(prefix="studiolo-", ignore_cleanup_errors=True) as folder:
        params = xllamacpp.CommonParams()
        params.model.path = f"{folder}/none.gguf"
        write_useless_model(Path(params.model.path))
        params.hostnames = [f"{folder}/none.sock"]
        params.ui = params.warmup = False
        params.verbosity = 0
        params.n_ctx, params.n_threads_http, params.cpuparams.n_threads = 64, 1, 1
        server = xllamacpp.Server(params)
        server.handle_completions({"prompt": [1], "max_tokens": 1, "grammar": _GRAMMAR})
    return server


def write_useless_model(path: Path, *, words: tuple[str, ...] = (), space_before: bool = False) -> None:
    """A GGUF file of one layer of zeros over a vocabulary of bytes and `words`.

    With `space_before`, texts are given a space before their first word, as Llama 2 does.

    The format: https://github.com/ggml-org/ggml/blob/master/docs/gguf.md
    """
    tokens = ["<unk>", "<s>", "</s>", *(f"<0x{byte:02X}>" for byte in range(256)), "▁", *words]
    kinds = [2, 3, 3, *[6] * 256, *[1] * (1 + len(words))]
    metadata = {
        "general.architecture": "llama",
        "llama.context_length": 64,
        "llama.embedding_length": 32,
        "llama.block_count": 1,
        "llama.feed_forward_length": 32,
        "llama.attention.head_count": 1,
        "llama.attention.layer_norm_rms_epsilon": 1e-5,
        "tokenizer.ggml.model": "llama",
        "tokenizer.ggml.tokens": tokens,
        "tokenizer.ggml.scores": [0.0] * len(tokens),
        "tokenizer.ggml.token_type": kinds,
        "tokenizer.ggml.add_space_prefix": space_before,
        "tokenizer.ggml.unknown_token_id": 0,
        "tokenizer.ggml.bos_token_id": 1,
        "tokenizer.ggml.eos_token_id": 2,
    }
    square, vector = (32, 32), (32,)
    shapes: dict[str, tuple[int, ...]] = {
        "token_embd.weight": (32, len(tokens)),
        "output_norm.weight": vector,
        **{f"blk.0.{name}_norm.weight": vector for name in ("attn", "ffn")},
        **{f"blk.0.attn_{name}.weight": square for name in ("q", "k", "v", "output")},
        **{f"blk.0.ffn_{name}.weight": square for name in ("gate", "up", "down")},
    }
    path.write_bytes(_gguf(metadata, shapes))


def _gguf(metadata: dict[str, Any], shapes: dict[str, tuple[int, ...]]) -> bytes:
    """A whole file; all numbers of all tensors are zero (F32)."""
    head = b"GGUF" + struct.pack("<IQQ", 3, len(shapes), len(metadata))
    head += b"".join(_string(key) + _typed(value) for key, value in metadata.items())
    offset = 0
    for name, shape in shapes.items():
        head += _string(name) + struct.pack(f"<I{len(shape)}QIQ", len(shape), *shape, 0, offset)
        offset += 4 * shape[0] * (shape[1] if len(shape) > 1 else 1)  # all are multiples of 32 bytes
    return head + bytes(-len(head) % 32) + bytes(offset)


def _string(text: str) -> bytes:
    data = text.encode()
    return struct.pack("<Q", len(data)) + data


def _typed(value: Any) -> bytes:
    match value:
        case str():
            return struct.pack("<I", 8) + _string(value)
        case bool():
            return struct.pack("<I?", 7, value)
        case int():
            return struct.pack("<II", 4, value)
        case float():
            return struct.pack("<If", 6, value)
        case [str(), *_]:
            return struct.pack("<IIQ", 9, 8, len(value)) + b"".join(map(_string, value))
        case [int(), *_]:
            return struct.pack(f"<IIQ{len(value)}i", 9, 5, len(value), *value)
        case _:
            return struct.pack(f"<IIQ{len(value)}f", 9, 6, len(value), *value)

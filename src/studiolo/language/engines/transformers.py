"""Safetensors folders by transformers: Gemma 3, Gemma 4, and any causal language model it knows.

One thread owns the model and runs the rounds in which all sequences go through it together (see `rounds`).
"""

from __future__ import annotations

import asyncio
import threading
from collections import deque
from collections.abc import AsyncGenerator, Mapping, Sequence
from pathlib import Path
from typing import Any

import torch
from transformers import AutoModelForCausalLM, AutoTokenizer

from studiolo.errors import StudioloError
from studiolo.language.engines.base import Capabilities
from studiolo.language.engines.completer import Completion, Piece, Tokens, check_bias
from studiolo.language.engines.control_tokens import guidance, silent
from studiolo.language.engines.masks import Guide
from studiolo.language.engines.rounds import Job, Rounds
from studiolo.language.engines.sampling import Sampler
from studiolo.language.engines.servable import why_not
from studiolo.language.engines.slots import Row
from studiolo.language.engines.text_stream import TextStream
from studiolo.language.errors import InvalidRequestError, OverloadedError, UnsupportedError, UpstreamError


class TransformersCompleter:
    """A `Completer` over a folder of safetensors weights with its tokenizer.

    Args:
        folder: as `save_pretrained` writes it. Pickled weights are refused.
        model: the name that answers give; None: the folder's.
        device: where the weights go.
        dtype: their float type; bfloat16 halves the memory.
        parallel: sequences in the model at once; more wait.
        queue: how many may wait; beyond, `OverloadedError`.
    """

    def __init__(
        self,
        folder: str | Path,
        model: str | None = None,
        *,
        device: str = "cpu",
        dtype: torch.dtype = torch.bfloat16,
        parallel: int = 16,
        queue: int = 256,
    ) -> None:
        folder = Path(folder)
        self._model, self._tokenizer = _loaded(folder, device, dtype)
        self.model = model or folder.name
        self._config = self._model.config.get_text_config()
        self._silent = silent(self._tokenizer)
        self._guidance = guidance(self._tokenizer, self._config.vocab_size, self._silent)
        self._parallel, self._most_waiting = parallel, queue
        self._waiting: deque[Job] = deque()
        self._wake = threading.Condition()
        self._closed = False
        self._worker = threading.Thread(target=self._work, name=f"studiolo-{self.model}", daemon=True)
        self._worker.start()

    @property
    def capabilities(self) -> Capabilities:
        return Capabilities(
            context=self._config.max_position_embeddings,
            grammar=True,
            logprobs=True,
            seed=True,
            bias=True,
            candidates=16,
        )

    @property
    def template(self) -> str | None:
        template = self._tokenizer.chat_template
        return template if isinstance(template, str) else None

    @property
    def special_tokens(self) -> Mapping[str, str]:
        return {k: str(v) for k, v in self._tokenizer.special_tokens_map.items() if isinstance(v, str)}

    @property
    def schema_keywords(self) -> frozenset[str] | None:
        return None

    def tokenize(self, text: str, *, special: bool = True) -> Tokens:
        encoded = self._tokenizer(text, add_special_tokens=False, split_special_tokens=not special)
        return tuple(encoded["input_ids"])

    def detokenize(self, tokens: Sequence[int]) -> str:
        return str(self._tokenizer.decode(list(tokens), clean_up_tokenization_spaces=False))

    def token_bytes(self, tokens: Sequence[int]) -> list[bytes]:
        return [self._guidance.decode_bytes([token]) for token in tokens]

    def complete(self, completion: Completion) -> AsyncGenerator[Piece]:
        return self._pieces(self._job(completion))

    async def embed(self, texts: Sequence[str]) -> list[list[float]]:
        raise UnsupportedError("this model makes no embeddings", where=self.model)

    async def close(self) -> None:
        with self._wake:
            self._closed = True
            self._wake.notify()
        await asyncio.to_thread(self._worker.join)
        del self._model

    def _job(self, completion: Completion) -> Job:
        check_bias(completion.sampling, self._config.vocab_size)
        context = self.capabilities.context
        if not completion.prompt or len(completion.prompt) >= context:
            raise InvalidRequestError(
                f"a prompt of {len(completion.prompt)} tokens for a context of {context}",
                where=self.model,
                remedy="Shorten it." if completion.prompt else "Give some text.",
            )
        loop = asyncio.get_running_loop()
        guide = Guide(self._guidance, completion.constraint) if completion.constraint else None
        row = Row(list(completion.prompt))
        text = TextStream(self._text, completion.stop)
        return Job(completion, row, Sampler(completion.sampling), guide, text, asyncio.Queue(), loop)

    def _text(self, tokens: Sequence[int]) -> str:
        """What is said by these tokens; control tokens that open or close something are."""
        said = [token for token in tokens if token not in self._silent]
        return str(self._tokenizer.decode(said, skip_special_tokens=False))

    async def _pieces(self, job: Job) -> AsyncGenerator[Piece]:
        with self._wake:
            if self._closed:
                raise UpstreamError("the engine is closed", where=self.model)
            if len(self._waiting) >= self._most_waiting:
                raise OverloadedError(f"{len(self._waiting)} requests wait already", where=self.model)
            self._waiting.append(job)
            self._wake.notify()
        try:
            while True:
                item = await job.out.get()
                if isinstance(item, Exception):
                    raise item
                yield item
                if item.end:
                    return
        finally:
            job.cancelled = True

    def _work(self) -> None:
        """The thread that owns the model."""
        rounds = Rounds(self._model, self._config, self._ends(), self.detokenize)
        while True:
            with self._wake:
                while not self._closed and not self._waiting and not rounds.active:
                    self._wake.wait()
                if self._closed:
                    break
                while self._waiting and len(rounds.active) < self._parallel:
                    rounds.admit(self._waiting.popleft())
            rounds.step()
        for job in [*rounds.active, *self._waiting]:
            job.give(UpstreamError("the engine was closed", where=self.model))

    def _ends(self) -> set[int]:
        """The tokens with which the model ends an answer."""
        ends = self._model.generation_config.eos_token_id
        found = {ends} if isinstance(ends, int) else set(ends or ())
        return found | {self._tokenizer.eos_token_id} - {None}


def _loaded(folder: Path, device: str, dtype: torch.dtype) -> tuple[Any, Any]:
    """Model and tokenizer, from safetensors only."""
    if not any(folder.glob("*.safetensors")):
        raise StudioloError(
            "no safetensors weights", where=folder, remedy="Convert them; pickles are never run."
        )
    try:
        model = AutoModelForCausalLM.from_pretrained(
            folder, dtype=dtype, use_safetensors=True, local_files_only=True, attn_implementation="sdpa"
        )
        tokenizer = AutoTokenizer.from_pretrained(folder, local_files_only=True)
    except (OSError, ValueError, KeyError, RuntimeError) as error:
        raise StudioloError(f"the model folder cannot be read: {error}", where=folder) from error
    if reason := why_not(model):
        raise UnsupportedError(
            f"this engine cannot serve a {type(model).__name__}: {reason}",
            where=str(folder),
            remedy="Serve a GGUF file of it, or put an OpenAI-compatible server before it.",
        )
    return model.to(device).eval(), tokenizer

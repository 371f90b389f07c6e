"""Safetensors folders by transformers: Gemma 3, Gemma 4, and any causal language model it knows.

One thread owns the model. In each round, the next tokens of all sequences (parts of prompts, the last
tokens of answers) go through the model as one row (see `slots`): short ones never wait for long ones, and
there is no padding.
"""

from __future__ import annotations

import asyncio
import threading
from collections import deque
from collections.abc import AsyncGenerator, Callable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Literal

import llguidance.hf
import torch
from torch import Tensor
from transformers import AutoModelForCausalLM, AutoTokenizer

from studiolo.errors import StudioloError
from studiolo.language.conversation import TokenLogprob
from studiolo.language.engines.base import Capabilities
from studiolo.language.engines.completer import Completion, Piece, Tokens
from studiolo.language.engines.masks import Guide
from studiolo.language.engines.sampling import Sampler
from studiolo.language.engines.slots import Row, Slots
from studiolo.language.engines.text_stream import TextStream
from studiolo.language.errors import InvalidRequestError, OverloadedError, UnsupportedError, UpstreamError

_CHUNK = 256
"""Tokens of prompts a round, so that running answers do not stand still while a long one is read."""
_KEPT_ROWS = 8
"""Ended sequences whose keys and values stay, for a next turn that begins as they did."""


@dataclass(eq=False)
class _Job:
    """A completion on its way."""

    wanted: Completion
    row: Row
    sampler: Sampler
    guide: Guide | None
    text: TextStream
    out: asyncio.Queue[Piece | Exception]
    loop: asyncio.AbstractEventLoop
    made: list[int] = field(default_factory=list)
    cached: int | None = None
    cancelled: bool = False

    def give(self, item: Piece | Exception) -> None:
        self.loop.call_soon_threadsafe(self.out.put_nowait, item)


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
        self._guidance = llguidance.hf.from_tokenizer(self._tokenizer, n_vocab=self._config.vocab_size)
        self._parallel, self._most_waiting = parallel, queue
        self._waiting: deque[_Job] = deque()
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

    def _job(self, completion: Completion) -> _Job:
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
        return _Job(completion, row, Sampler(completion.sampling), guide, text, asyncio.Queue(), loop)

    def _text(self, tokens: Sequence[int]) -> str:
        return str(self._tokenizer.decode(list(tokens), skip_special_tokens=True))

    async def _pieces(self, job: _Job) -> AsyncGenerator[Piece]:
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
        rounds = _Rounds(self._model, self._config, self._ends(), self.detokenize)
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


class _Rounds:
    """The sequences in the model, and what happens in one round."""

    def __init__(
        self, model: Any, config: Any, ends: set[int], detokenize: Callable[[Sequence[int]], str]
    ) -> None:
        self._model, self._config, self._ends = model, config, ends
        self._detokenize = detokenize
        self.active: list[_Job] = []
        self._kept: deque[Row] = deque()
        self._slots = Slots()

    def admit(self, job: _Job) -> None:
        job.cached = self._slots.add(job.row)
        self.active.append(job)

    def step(self) -> None:
        """One pass of the model, and one more token for every sequence whose prompt has been read."""
        for job in [job for job in self.active if job.cancelled]:
            self._leave(job)
        parts = self._parts()
        if not parts:
            return
        try:
            logits = self._forward([(job.row, count) for job, count in parts])
            ready = [(job, row) for (job, _), row in zip(parts, logits, strict=True) if not job.row.waiting]
            for job, row in ready:
                self._next(job, row)
        except Exception as error:  # the thread must live on; everyone under way is told
            for job in list(self.active):
                job.give(UpstreamError(f"the model failed: {error}"))
                self._leave(job)

    def _parts(self) -> list[tuple[_Job, int]]:
        """How many tokens of each sequence go through now: answers first, then prompts as far as there is
        room."""
        room, parts = _CHUNK, []
        for job in sorted(self.active, key=lambda job: not job.made):
            count = min(job.row.waiting, room if not job.made else 1)
            if count:
                parts.append((job, count))
                room -= 0 if job.made else count
        return parts

    @torch.inference_mode()
    def _forward(self, parts: list[tuple[Row, int]]) -> Tensor:
        """The logits after the last token of each part, float32 [parts, V]."""
        ids, positions, behind = self._slots.place(parts)
        last = torch.tensor([count for _, count in parts]).cumsum(0) - 1
        device = self._model.device
        output = self._model(
            input_ids=ids.to(device),
            position_ids=positions.to(device),
            attention_mask=self._masks(behind),
            past_key_values=self._slots.cache,
            use_cache=True,
            logits_to_keep=last.to(device),
        )
        return output.logits[0].float().cpu()

    def _masks(self, behind: Tensor) -> Any:
        """Additive masks [1, 1, T, slots] for each kind of attention layer that the model has."""
        kinds = set(getattr(self._config, "layer_types", None) or ())
        if not kinds & {"sliding_attention"}:
            return self._additive(behind >= 0)
        window = self._config.sliding_window
        near = (behind >= 0) & (behind < window)
        return {"full_attention": self._additive(behind >= 0), "sliding_attention": self._additive(near)}

    def _additive(self, seen: Tensor) -> Tensor:
        dtype, device = self._model.dtype, self._model.device
        mask = torch.zeros(seen.shape, dtype=dtype).masked_fill(~seen, torch.finfo(dtype).min)
        return mask[None, None].to(device)

    def _next(self, job: _Job, logits: Tensor) -> None:
        """Draws a token and gives out what text is certain with it."""
        allowed = job.guide.allowed(len(logits)) if job.guide else None
        token = job.sampler.draw(logits, job.made, allowed)
        if token in self._ends:
            self._end(job, "eos", job.text.end(), (), ())
            return
        job.made.append(token)
        job.row.tokens.append(token)
        if job.guide:
            job.guide.take(token)
        text = job.text.add(token)
        told = (self._logprob(job, token, logits),) if job.wanted.logprobs is not None else ()
        full = len(job.row.tokens) >= self._config.max_position_embeddings
        if job.text.stopped is not None:
            self._end(job, "stop", text, (token,), told)
        elif job.guide and job.guide.ended:
            self._end(job, "eos", text + job.text.end(), (token,), told)
        elif len(job.made) >= job.wanted.max_tokens or full:
            self._end(job, "length", text + job.text.end(), (token,), told)
        else:
            job.give(Piece(text, (token,), told, cached=self._cached_once(job)))

    def _end(
        self,
        job: _Job,
        end: Literal["eos", "stop", "length"],
        text: str,
        tokens: Tokens,
        told: tuple[TokenLogprob, ...],
    ) -> None:
        if job.text.stopped is not None:
            end = "stop"
        job.give(Piece(text, tokens, told, end, job.text.stopped, self._cached_once(job)))
        self._leave(job)

    @staticmethod
    def _cached_once(job: _Job) -> int | None:
        cached, job.cached = job.cached, None
        return cached

    def _leave(self, job: _Job) -> None:
        """The sequence is done; its keys and values stay until as many others have ended."""
        self.active.remove(job)
        self._kept.append(job.row)
        while len(self._kept) > _KEPT_ROWS:
            self._slots.remove(self._kept.popleft())

    def _logprob(self, job: _Job, token: int, logits: Tensor) -> TokenLogprob:
        """Of the model itself, before temperature, constraint and penalties."""
        logprobs = logits.log_softmax(-1)
        best = logprobs.topk(job.wanted.logprobs or 0).indices.tolist()
        chosen, *others = (self._told(index, logprobs) for index in [token, *best])
        return chosen.model_copy(update={"top": tuple(others)})

    def _told(self, token: int, logprobs: Tensor) -> TokenLogprob:
        text = self._detokenize([token])
        return TokenLogprob(token=text, bytes=tuple(text.encode()), logprob=float(logprobs[token]), id=token)


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
    return model.to(device).eval(), tokenizer

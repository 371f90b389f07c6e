"""The continuous-batching loop of the transformers engine: which tokens go through the model when.

A round is one pass of the model. Into it go the last token of every answer under way and, after these, the
next tokens of prompts, up to a fixed number: a long prompt is read over several rounds, while the answers
beside it go on. A sequence enters between two rounds and leaves in the round in which its answer ends; no
one waits for a batch to fill or to finish. All tokens of a round lie in one row without padding, and a mask
says which of them see which (see `slots`).

`Rounds` belongs to one thread, which admits jobs and calls `step` for as long as there are any. What a job
gives out reaches its asyncio loop by `Job.give`, the one way from that thread back.
"""

from __future__ import annotations

import asyncio
from collections import deque
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from typing import Any, Literal

import torch
from torch import Tensor

from studiolo.language.conversation import TokenLogprob
from studiolo.language.engines.completer import Completion, Piece, Tokens
from studiolo.language.engines.masks import Guide
from studiolo.language.engines.sampling import Sampler
from studiolo.language.engines.slots import Row, Slots
from studiolo.language.engines.text_stream import TextStream
from studiolo.language.errors import UpstreamError

_CHUNK = 256
"""Tokens of prompts a round, so that running answers do not stand still while a long one is read."""
_KEPT_ROWS = 8
"""Ended sequences whose keys and values stay, for a next turn that begins as they did."""


@dataclass(eq=False)
class Job:
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


class Rounds:
    """The sequences in the model, and what happens in one round."""

    def __init__(
        self, model: Any, config: Any, ends: set[int], detokenize: Callable[[Sequence[int]], str]
    ) -> None:
        self._model, self._config, self._ends = model, config, ends
        self._detokenize = detokenize
        self.active: list[Job] = []
        self._kept: deque[Row] = deque()
        self._slots = Slots()

    def admit(self, job: Job) -> None:
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
            for (job, _), row in zip(parts, logits, strict=True):
                if job.row.waiting:
                    job.give(Piece(cached=self._cached_once(job), read=len(job.row.slots)))
                else:
                    self._next(job, row)
        except Exception as error:  # the thread must live on; everyone under way is told
            for job in list(self.active):
                job.give(UpstreamError(f"the model failed: {error}"))
                self._leave(job)

    def _parts(self) -> list[tuple[Job, int]]:
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
        window = getattr(self._config, "sliding_window", None)
        if kinds == {"full_attention"} or window is None:
            return self._additive(behind >= 0)
        near = (behind >= 0) & (behind < window)
        if not kinds:  # all layers are alike (Mistral)
            return self._additive(near)
        return {"full_attention": self._additive(behind >= 0), "sliding_attention": self._additive(near)}

    def _additive(self, seen: Tensor) -> Tensor:
        dtype, device = self._model.dtype, self._model.device
        mask = torch.zeros(seen.shape, dtype=dtype).masked_fill(~seen, torch.finfo(dtype).min)
        return mask[None, None].to(device)

    def _next(self, job: Job, logits: Tensor) -> None:
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
        job: Job,
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
    def _cached_once(job: Job) -> int | None:
        cached, job.cached = job.cached, None
        return cached

    def _leave(self, job: Job) -> None:
        """The sequence is done; its keys and values stay until as many others have ended."""
        self.active.remove(job)
        self._kept.append(job.row)
        while len(self._kept) > _KEPT_ROWS:
            self._slots.remove(self._kept.popleft())

    def _logprob(self, job: Job, token: int, logits: Tensor) -> TokenLogprob:
        """Of the model itself, before temperature, constraint and penalties."""
        logprobs = logits.log_softmax(-1)
        best = logprobs.topk(job.wanted.logprobs or 0).indices.tolist()
        chosen, *others = (self._told(index, logprobs) for index in [token, *best])
        return chosen.model_copy(update={"top": tuple(others)})

    def _told(self, token: int, logprobs: Tensor) -> TokenLogprob:
        text = self._detokenize([token])
        return TokenLogprob(token=text, bytes=tuple(text.encode()), logprob=float(logprobs[token]), id=token)

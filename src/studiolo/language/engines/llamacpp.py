"""Weights in a GGUF file, run by llama.cpp's server engine inside this process (package `xllamacpp`).

What is particular about it:

- **Constraints** are enforced by llguidance, which xllamacpp contains: JSON Schema, choices, regular
  expressions, Lark. GBNF is enforced by llama.cpp itself, which costs more. llama.cpp goes on
  without a constraint that llguidance refuses; so each is tried here first, and the answer is watched.
- **Stop texts** are found here and not by the server, which loses a text that it holds back when the answer
  ends by length.
- **Token ids** come from the server's `__verbose` field. For a character that is spread over several tokens
  it names the last of them alone; the others are spelt from the vocabulary: as many, of the same bytes,
  though not surely the same ids, and without log-probabilities. A character that `max_tokens` cuts in two
  is left out, and its tokens are counted without ids.
- The token that **ends a turn** is neither text nor counted.
- **Cancelling** takes effect when the server next reports: after each token, and while the prompt is read
  after each batch of `BATCH` tokens. The server may have begun one more batch by then.
- **Log-probabilities** are the model's own, before temperature and constraint.
- The server insists on listening. It does so on a socket in a folder that only this user can enter, with a
  random key (where there are no such sockets: on a free port of the loopback device, with that key). It is
  used for what the package has no function for: tokenizing.
"""

from __future__ import annotations

import asyncio
import secrets
import tempfile
import weakref
from collections.abc import AsyncGenerator, Mapping, Sequence
from pathlib import Path
from typing import Any

from studiolo.language.engines.base import Capabilities
from studiolo.language.engines.completer import Completion, Piece, Tokens, check_bias
from studiolo.language.engines.gguf import Card, read_metadata
from studiolo.language.engines.line import Line
from studiolo.language.engines.llamacpp_body import LLGUIDANCE, body_of, grammar_of
from studiolo.language.engines.llamacpp_desk import Desk
from studiolo.language.engines.llamacpp_errors import error_of
from studiolo.language.engines.llamacpp_run import Run, end_all
from studiolo.language.engines.llamacpp_server import BATCH, embed_with, give_memory_back, params_of, start
from studiolo.language.engines.llamacpp_stream import Reading
from studiolo.language.engines.vocabulary_guard import guard
from studiolo.language.errors import InvalidRequestError, TooLongError, UnsupportedError

__all__ = ["BATCH", "DEFAULT_CONTEXT", "LlamaCpp"]

DEFAULT_CONTEXT = 8192


class LlamaCpp:
    """A `Completer`. Loading takes seconds: call `LlamaCpp.open` from asynchronous code.

    Args:
        path: the GGUF file (the first one of a split model).
        model: its name in answers; by default the file's own.
        context: tokens that one request may have, prompt and answer together. By default what the model was
            trained for, but at most 8192, since memory for it is taken at once.
        slots: requests that are computed at the same time.
        pool: tokens of all running requests together; a request waits until its prompt and the longest answer
            that it may get fit in. By default twice `context`. An answer whose length nobody states gets half
            of a slot's share (`capabilities.max_output`), so that all slots can work.
        queue: requests that may wait beyond those that run.
        threads: CPU threads; by default as many as the machine has cores.
        embedding: load for embeddings; then it completes nothing. By default if the model says that it was
            made for that.

    Raises:
        StudioloError: the file is missing, damaged or of an architecture that llama.cpp does not know.
    """

    def __init__(
        self,
        path: str | Path,
        *,
        model: str | None = None,
        context: int | None = None,
        slots: int = 4,
        pool: int | None = None,
        queue: int = 64,
        threads: int | None = None,
        embedding: bool | None = None,
    ) -> None:
        self._card = Card(read_metadata(path))
        trained = self._card.context
        context = min(context or DEFAULT_CONTEXT, trained or context or DEFAULT_CONTEXT)
        pool = max(pool or 2 * context, context)
        self._model = model or self._card.name or Path(path).stem
        self._embedding = self._card.pools if embedding is None else embedding
        self._line = Line(places=slots, tokens=pool, waiting=queue)
        self._running: set[Run] = set()
        self._identity = object()
        self._folder = tempfile.TemporaryDirectory(prefix="studiolo-")
        key = secrets.token_urlsafe(24)
        params = params_of(path, self._folder.name, key, context, slots, pool, threads)
        if self._embedding:
            embed_with(params, self._card, context)
        self._server: Any = None
        try:
            self._server = start(params, path)
        finally:
            if self._server is None:
                self._folder.cleanup()
        # Left open: the interpreter must not end under a thread that is about to tell it something.
        self._at_exit = weakref.finalize(self, end_all, self._running)
        self._desk = Desk(self._server.listening_address, key)
        self._guided = not self._embedding and self._warm_up()
        self._capabilities = Capabilities(
            context=context,
            max_output=min(context, max(1, pool // (2 * slots))),
            grammar=self._guided,
            logprobs=not self._embedding,
            seed=not self._embedding,
            bias=not self._embedding,
            embeddings=self._embedding,
        )

    @classmethod
    async def open(cls, path: str | Path, **options: Any) -> LlamaCpp:
        """The same, without holding up the event loop while it loads."""
        return await asyncio.to_thread(cls, path, **options)

    @property
    def model(self) -> str:
        return self._model

    @property
    def capabilities(self) -> Capabilities:
        return self._capabilities

    @property
    def template(self) -> str | None:
        return self._card.template

    @property
    def special_tokens(self) -> Mapping[str, str]:
        return self._card.special_tokens

    @property
    def schema_keywords(self) -> frozenset[str] | None:
        return None

    def tokenize(self, text: str, *, special: bool = True) -> Tokens:
        body = {"content": text, "add_special": False, "parse_special": special}
        return tuple(self._desk.ask("/tokenize", body)["tokens"])

    def detokenize(self, tokens: Sequence[int]) -> str:
        return str(self._desk.ask("/detokenize", {"tokens": list(tokens)})["content"])

    def token_bytes(self, tokens: Sequence[int]) -> list[bytes]:
        return [self._card.vocabulary[token] for token in tokens]

    async def complete(self, completion: Completion) -> AsyncGenerator[Piece]:
        grammar = self._check(completion)
        room = self._capabilities.context - len(completion.prompt)
        # One token more under a constraint: it tells an answer that just fits from one that is cut off.
        wanted = min(completion.max_tokens + (grammar is not None), room)
        body = body_of(completion, wanted, grammar, self._card.spoken_control_tokens)
        reading = Reading(completion, grammar, lambda: self._card.vocabulary)
        tokens = len(completion.prompt) + wanted
        await self._line.enter(tokens)
        run = Run(reading, guarded=self._identity if grammar is not None else None)
        self._running.add(run)
        run.start(self._server.handle_completions, body, done=lambda: self._finished(run, tokens))
        try:
            while (piece := await run.next()) is not None:
                yield piece
        finally:
            run.cancel()

    async def embed(self, texts: Sequence[str]) -> list[list[float]]:
        """One unit vector a text."""
        if not self._embedding:
            raise UnsupportedError(
                "this model was not loaded for embeddings",
                where=self._model,
                remedy="Use a model that was made for them.",
            )
        if not texts:
            return []
        tokens = min(self._capabilities.context, sum(len(text.encode()) for text in texts))
        await self._line.enter(tokens)
        try:
            answer = await asyncio.to_thread(self._server.handle_embeddings, {"input": list(texts)})
        finally:
            self._line.leave(tokens)
        if "data" not in answer:
            raise error_of(answer.get("error", answer))
        return [entry["embedding"] for entry in sorted(answer["data"], key=lambda entry: entry["index"])]

    async def close(self) -> None:
        """Cancels what runs and frees the memory; a second call does nothing."""
        self._line.close()
        await asyncio.to_thread(self._release)

    def _release(self) -> None:
        end_all(self._running)
        self._at_exit.detach()
        try:
            guard.retire(self._identity)
        finally:
            self._server = None  # the last reference: its main loop ends and the weights go
            self._folder.cleanup()
            give_memory_back()

    def _finished(self, run: Run, tokens: int) -> None:
        self._running.discard(run)
        self._line.leave(tokens)

    def _check(self, completion: Completion) -> str | None:
        """Refuses what cannot be done; returns the grammar of the constraint."""
        if self._embedding:
            raise UnsupportedError("this model makes embeddings and answers nothing", where=self._model)
        context = self._capabilities.context
        if not completion.prompt:
            raise InvalidRequestError("the prompt is empty")
        if len(completion.prompt) >= context:
            raise TooLongError(
                f"the prompt has {len(completion.prompt)} tokens, and the context {context}, answer included",
                remedy="Shorten it, or set STUDIOLO_CONTEXT to more tokens.",
            )
        if "" in completion.stop:
            raise InvalidRequestError("an empty stop text ends every answer before it begins")
        if completion.sampling.bias:
            check_bias(completion.sampling, len(self._card.vocabulary))
        if completion.constraint is None:
            return None
        if not self._guided and completion.constraint.kind != "gbnf":
            raise UnsupportedError(
                "constraints cannot be enforced with this model's vocabulary",
                where=self._model,
                remedy="Use another model, or a grammar in GBNF.",
            )
        return grammar_of(completion.constraint)

    def _warm_up(self) -> bool:
        """Does once what the first request would wait for: memory is touched, and llguidance sorts the
        vocabulary. Returns whether it can read it.

        It cannot where words begin with a space that is no part of the text (Llama 2, Mistral 7B): llama.cpp
        gives it those tokens without their spaces.
        """
        prompt = self.tokenize("a", special=False) or (0,)
        body = {"prompt": list(prompt), "max_tokens": 12, "grammar": LLGUIDANCE + 'start: "a b 1"'}
        guard.begin(self._identity)
        try:
            answer = self._server.handle_completions(body)
        finally:
            guard.begun()
        if "error" in answer:
            raise error_of(answer["error"])
        return bool(answer["choices"][0]["text"] == "a b 1")

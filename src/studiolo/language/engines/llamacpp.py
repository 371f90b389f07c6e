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
import ctypes
import http.client
import json
import secrets
import socket
import sys
import tempfile
import threading
import weakref
from collections.abc import AsyncGenerator, Callable, Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

from studiolo.errors import StudioloError
from studiolo.language.conversation import TokenLogprob
from studiolo.language.engines import constraints
from studiolo.language.engines.base import Capabilities
from studiolo.language.engines.completer import Completion, Constraint, Piece, Sampling, Tokens, check_bias
from studiolo.language.engines.gguf import Card, Vocabulary, read_metadata
from studiolo.language.engines.line import Line
from studiolo.language.engines.native import xllamacpp
from studiolo.language.engines.pieces import StopFilter
from studiolo.language.engines.vocabulary_guard import guard
from studiolo.language.errors import (
    InvalidRequestError,
    LanguageError,
    OverloadedError,
    TooLongError,
    UnsupportedError,
    UpstreamError,
)

BATCH = 512
"""Tokens of prompts that are read between two looks at who was cancelled and who waits for a next token."""

DEFAULT_CONTEXT = 8192
_RANDOM_SEED = 2**32 - 1
_PREFIX_CACHE_MIB = 256


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
        self._running: set[_Run] = set()
        self._identity = object()
        self._folder = tempfile.TemporaryDirectory(prefix="studiolo-")
        key = secrets.token_urlsafe(24)
        params = _params(path, self._folder.name, key, context, slots, pool, threads)
        if self._embedding:
            _embed_with(params, self._card, context)
        self._server: Any = None
        try:
            self._server = _start(params, path)
        finally:
            if self._server is None:
                self._folder.cleanup()
        # Left open: the interpreter must not end under a thread that is about to tell it something.
        self._at_exit = weakref.finalize(self, _end, self._running)
        self._desk = _Desk(self._server.listening_address, key)
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

    async def complete(self, completion: Completion) -> AsyncGenerator[Piece]:
        grammar = self._check(completion)
        room = self._capabilities.context - len(completion.prompt)
        # One token more under a constraint: it tells an answer that just fits from one that is cut off.
        wanted = min(completion.max_tokens + (grammar is not None), room)
        body = _body(completion, wanted, grammar, self._card.spoken_control_tokens)
        reading = _Reading(completion, grammar, lambda: self._card.vocabulary)
        tokens = len(completion.prompt) + wanted
        await self._line.enter(tokens)
        run = _Run(reading, guarded=self._identity if grammar is not None else None)
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
            raise _error(answer.get("error", answer))
        return [entry["embedding"] for entry in sorted(answer["data"], key=lambda entry: entry["index"])]

    async def close(self) -> None:
        """Cancels what runs and frees the memory; a second call does nothing."""
        self._line.close()
        await asyncio.to_thread(self._release)

    def _release(self) -> None:
        _end(self._running)
        self._at_exit.detach()
        try:
            guard.retire(self._identity)
        finally:
            self._server = None  # the last reference: its main loop ends and the weights go
            self._folder.cleanup()
            _give_memory_back()

    def _finished(self, run: _Run, tokens: int) -> None:
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
        return _grammar(completion.constraint)

    def _warm_up(self) -> bool:
        """Does once what the first request would wait for: memory is touched, and llguidance sorts the
        vocabulary. Returns whether it can read it.

        It cannot where words begin with a space that is no part of the text (Llama 2, Mistral 7B): llama.cpp
        gives it those tokens without their spaces.
        """
        prompt = self.tokenize("a", special=False) or (0,)
        body = {"prompt": list(prompt), "max_tokens": 12, "grammar": _LLGUIDANCE + 'start: "a b 1"'}
        guard.begin(self._identity)
        try:
            answer = self._server.handle_completions(body)
        finally:
            guard.begun()
        if "error" in answer:
            raise _error(answer["error"])
        return bool(answer["choices"][0]["text"] == "a b 1")


# --- what is asked of the server --------------------------------------------------------------------------

_LLGUIDANCE = "%llguidance {}\n"


def _grammar(constraint: Constraint) -> str:
    """What llama.cpp's `grammar` field takes: GBNF, or a grammar of llguidance under its heading."""
    if constraint.kind != "gbnf":
        return _LLGUIDANCE + constraints.lark(constraint)
    if not constraint.rule.strip() or constraint.rule.lstrip().startswith("%"):
        raise InvalidRequestError("this is no grammar in GBNF", remedy='It has rules such as root ::= "a".')
    return str(constraint.rule)


def _body(completion: Completion, wanted: int, grammar: str | None, spoken: list[str]) -> dict[str, Any]:
    body: dict[str, Any] = {
        "prompt": list(completion.prompt),
        "max_tokens": wanted,
        "stream": True,
        "cache_prompt": True,
        "return_progress": True,
        "return_tokens": True,
        "verbose": True,  # else this endpoint tells no token ids
    }
    if completion.logprobs is not None:
        body["n_probs"] = max(completion.logprobs, 1)
    if grammar is not None:
        body["grammar"] = grammar
    if spoken:
        body["preserved_tokens"] = spoken
    return body | _sampling(completion.sampling, wanted)


def _sampling(sampling: Sampling, wanted: int) -> dict[str, Any]:
    fields: dict[str, Any] = {
        "temperature": sampling.temperature,
        "top_p": sampling.top_p,
        "top_k": sampling.top_k,
        "seed": None if sampling.seed is None else sampling.seed % _RANDOM_SEED,
        "presence_penalty": sampling.presence_penalty,
        "frequency_penalty": sampling.frequency_penalty,
        "logit_bias": [list(pair) for pair in sampling.bias] or None,
    }
    if sampling.presence_penalty or sampling.frequency_penalty:
        fields["repeat_last_n"] = wanted  # the whole answer; llama.cpp looks at 64 tokens by itself
    return {name: value for name, value in fields.items() if value is not None}


_KINDS: dict[str, type[LanguageError]] = {
    "invalid_request_error": InvalidRequestError,
    "exceed_context_size_error": TooLongError,
    "not_supported_error": UnsupportedError,
    "unavailable_error": OverloadedError,
}


def _error(told: Mapping[str, Any]) -> LanguageError:
    """The server's {"code", "message", "type"} as one of our kinds."""
    message = str(told.get("message", told))
    if "too large to process" in message:  # a text to embed; called a server error
        return TooLongError(f"a text is longer than the context: {message}", remedy="Shorten it.")
    if "failed to parse grammar" in message:
        return UnsupportedError("this grammar cannot be read", remedy="See llama.cpp's grammars/README.md.")
    return _KINDS.get(str(told.get("type")), UpstreamError)(f"the engine refused or failed: {message}")


# --- what the server tells --------------------------------------------------------------------------------


class _Reading:
    """Makes pieces of what the server tells of one completion, chunk by chunk."""

    def __init__(
        self, completion: Completion, grammar: str | None, vocabulary: Callable[[], Vocabulary]
    ) -> None:
        self._completion, self._vocabulary = completion, vocabulary
        self._stops = StopFilter(completion.stop)
        watched = completion.constraint is not None and completion.constraint.kind != "gbnf"
        self._watch = constraints.Watch(grammar.removeprefix(_LLGUIDANCE)) if grammar and watched else None
        self._counted = 0  # tokens that the server made so far ...
        self._told = 0  # ... and of these, those in pieces that were given out
        self._begun = False  # to read the prompt
        # A token may be the one that ends the turn as long as it has no text or is one too many.
        self._pending: Piece | None = None

    def read(self, chunk: Mapping[str, Any]) -> list[Piece]:
        """The pieces that this chunk completes. The last one has `end`.

        Raises:
            LanguageError: the server told an error, or the constraint was not kept.
        """
        if "error" in chunk:
            raise _error(chunk["error"])
        if (progress := chunk.get("prompt_progress")) is not None:
            cached = None if self._begun else progress["cache"]
            self._begun = True
            return [Piece(cached=cached, read=progress["processed"])]
        choice, told = chunk["choices"][0], chunk["__verbose"]
        if choice["finish_reason"] is not None:
            return self._ended(choice["finish_reason"], told["tokens_predicted"])
        return self._went_on(choice, told)

    def _went_on(self, choice: Mapping[str, Any], told: Mapping[str, Any]) -> list[Piece]:
        text, counted = choice["text"], told["tokens_predicted"]
        piece = Piece(
            text,
            tokens=self._ids(text, told["tokens"][-1], counted - self._counted),
            logprobs=self._logprobs(choice["logprobs"]),
        )
        self._counted = counted
        before, self._pending = self._pending, None
        pieces = [] if before is None else [self._given(before)]
        if not text or counted > self._completion.max_tokens:
            self._pending = piece
        elif not pieces or pieces[-1].end is None:
            pieces.append(self._given(piece))
        return pieces

    def _given(self, piece: Piece) -> Piece:
        if self._watch is not None:
            self._watch.feed(piece.text)
        text = self._stops.feed(piece.text)
        return self._piece(text, piece, end=None if self._stops.met is None else "stop")

    def _ended(self, reason: str, made: int) -> list[Piece]:
        """The last piece; `made` tokens were made in all, the one that ends a turn among them."""
        if reason == "stop":
            if self._watch is not None and not self._watch.complete:
                raise UpstreamError("the engine ended an answer that its constraint does not let end")
            return [self._piece(self._stops.flush(), Piece(lost=max(0, made - 1 - self._told)), end="eos")]
        rest = self._pending if self._counted <= self._completion.max_tokens else None
        text = self._stops.feed(rest.text) if rest is not None else ""
        rest = rest or Piece()
        rest = replace(rest, lost=min(made, self._completion.max_tokens) - self._told - len(rest.tokens))
        return [self._piece(text + self._stops.flush(), rest, end="length")]

    def _piece(self, text: str, source: Piece, *, end: Any) -> Piece:
        self._told += len(source.tokens)
        return replace(source, text=text, end=end, stop=self._stops.met)

    def _ids(self, text: str, last: int, count: int) -> Tokens:
        """The ids of `count` tokens that are `text` together, of which the server named the last."""
        if count == 1:
            return (last,)
        vocabulary, data = self._vocabulary(), text.encode()
        before = data.removesuffix(vocabulary[last])
        return *(vocabulary.spell(before, count - 1) or ()), last

    def _logprobs(self, told: Mapping[str, Any] | None) -> tuple[TokenLogprob, ...]:
        if told is None:
            return ()
        return tuple(self._logprob(entry) for entry in told["content"])

    def _logprob(self, entry: Mapping[str, Any], *, top: bool = True) -> TokenLogprob:
        data = self._vocabulary()[entry["id"]]
        others = entry.get("top_logprobs", []) if top else []
        return TokenLogprob(
            token=data.decode("utf-8", "replace"),
            bytes=tuple(data),
            logprob=entry["logprob"],
            id=entry["id"],
            top=tuple(self._logprob(other, top=False) for other in others[: self._completion.logprobs]),
        )


class _Run:
    """One completion under way: a thread that sits in the server's call, and the pieces on their way from it
    to the event loop."""

    def __init__(self, reading: _Reading, *, guarded: object | None) -> None:
        self._reading, self._guarded = reading, guarded
        self._loop = asyncio.get_running_loop()
        self._pieces: asyncio.Queue[Piece | BaseException | None] = asyncio.Queue()
        self._cancelled = threading.Event()
        self._thread: threading.Thread | None = None

    def start(self, handle: Callable[..., Any], body: dict[str, Any], *, done: Callable[[], None]) -> None:
        """Calls `handle(body, callback)` in the thread. No reference to it is kept: it holds the weights."""
        # A daemon: the server's call cannot be interrupted when the interpreter ends.
        self._thread = threading.Thread(
            target=self._work, args=(handle, body, done), name="studiolo-llamacpp", daemon=True
        )
        self._thread.start()

    async def next(self) -> Piece | None:
        """The next piece; None after the last one."""
        piece = await self._pieces.get()
        if isinstance(piece, BaseException):
            raise piece
        return piece

    def cancel(self) -> None:
        self._cancelled.set()

    def join(self) -> None:
        if self._thread is not None:
            self._thread.join()

    def _work(self, handle: Callable[..., Any], body: dict[str, Any], done: Callable[[], None]) -> None:
        if self._guarded is not None:
            guard.begin(self._guarded)
        try:
            handle(body, self._hear)
        except Exception as error:  # whatever it is, who reads the pieces must not wait for ever
            self._send(UpstreamError(f"the engine failed: {error}"))
        finally:
            self._begun()
            done()
            self._send(None)

    def _begun(self) -> None:
        """The server has said something: the constraint is set up."""
        if self._guarded is not None:
            self._guarded = None
            guard.begun()

    def _hear(self, chunk: dict[str, Any]) -> bool:
        """The server's callback: True makes it drop the completion and free its slot."""
        self._begun()
        if self._cancelled.is_set():
            return True
        try:
            for piece in self._reading.read(chunk):
                self._send(piece)
                if piece.end is not None:
                    self._cancelled.set()
        except Exception as error:  # nothing may be raised into the server's frames
            self._send(error if isinstance(error, LanguageError) else UpstreamError(f"unreadable: {error!r}"))
            self._cancelled.set()
        return self._cancelled.is_set()

    def _send(self, piece: Piece | BaseException | None) -> None:
        try:
            self._loop.call_soon_threadsafe(self._pieces.put_nowait, piece)
        except RuntimeError:  # the event loop has ended: nobody reads on
            self._cancelled.set()


def _end(running: set[_Run]) -> None:
    """Cancels all of them and waits until the server has let go of them."""
    runs = list(running)
    for run in runs:
        run.cancel()
    for run in runs:
        run.join()


# --- starting the server ----------------------------------------------------------------------------------


def _params(
    path: str | Path, folder: str, key: str, context: int, slots: int, pool: int, threads: int | None
) -> Any:
    params = xllamacpp().CommonParams()
    params.model.path = str(path)
    params.hostnames = [f"{folder}/engine.sock" if hasattr(socket, "AF_UNIX") else "127.0.0.1"]
    params.api_keys = [key]
    params.ui = False
    params.endpoint_metrics = True  # counts what it computes
    params.verbosity = 0
    params.n_ctx = pool
    params.n_parallel = slots
    params.kv_unified = True  # else every slot has its n-th of the pool and no more
    params.n_batch = params.n_ubatch = BATCH
    # Prefixes stay in their slots; what has to leave one is kept aside, within bounds.
    params.cache_idle_slots = False
    params.cache_ram_mib = _PREFIX_CACHE_MIB
    if threads is not None:
        params.cpuparams.n_threads = params.cpuparams_batch.n_threads = threads
    return params


def _give_memory_back() -> None:
    """glibc keeps what its threads freed; this hands it to the system."""
    if sys.platform == "linux" and (trim := getattr(ctypes.CDLL(None), "malloc_trim", None)):
        trim(0)


def _embed_with(params: Any, card: Card, context: int) -> None:
    params.embedding = True
    params.n_batch = params.n_ubatch = context  # a text must fit in one batch
    if not card.pools:
        params.pooling_type = xllamacpp().llama_pooling_type.LLAMA_POOLING_TYPE_MEAN


def _start(params: Any, path: str | Path) -> Any:
    try:
        return xllamacpp().Server(params)
    except RuntimeError as error:
        raise StudioloError(
            "llama.cpp could not load these weights",
            where=path,
            remedy="The file may be damaged or of an unknown kind, or the memory too small for the context.",
        ) from error


class _Desk:
    """The server's HTTP side, for short questions."""

    def __init__(self, address: str, key: str) -> None:
        self._address, self._key = address, key

    def ask(self, path: str, body: Mapping[str, Any]) -> dict[str, Any]:
        connection = self._connection()
        headers = {"Authorization": f"Bearer {self._key}", "Content-Type": "application/json"}
        try:
            connection.request("POST", path, json.dumps(body), headers)
            answer = json.loads(connection.getresponse().read())
        except (OSError, http.client.HTTPException, ValueError) as error:
            raise LanguageError("the model was closed, or its engine has failed") from error
        finally:
            connection.close()
        if "error" in answer:
            raise _error(answer["error"])
        return dict(answer)

    def _connection(self) -> http.client.HTTPConnection:
        if self._address.startswith("unix://"):
            return _UnixConnection(self._address.removeprefix("unix://"))
        return http.client.HTTPConnection(self._address.removeprefix("http://"))


class _UnixConnection(http.client.HTTPConnection):
    def __init__(self, path: str) -> None:
        super().__init__("localhost")
        self._path = path

    def connect(self) -> None:
        self.sock = socket.socket(socket.AF_UNIX, socket.SOCK_STREAM)
        self.sock.connect(self._path)

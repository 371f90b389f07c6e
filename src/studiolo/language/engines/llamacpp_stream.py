"""What llama.cpp's server tells of a completion, as pieces."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import replace
from typing import Any

from studiolo.language.conversation import TokenLogprob
from studiolo.language.engines import constraints
from studiolo.language.engines.completer import Completion, Piece, Tokens
from studiolo.language.engines.gguf import Vocabulary
from studiolo.language.engines.llamacpp_body import LLGUIDANCE
from studiolo.language.engines.llamacpp_errors import error_of
from studiolo.language.engines.pieces import StopFilter
from studiolo.language.errors import UpstreamError


class Reading:
    """Makes pieces of what the server tells of one completion, chunk by chunk."""

    def __init__(
        self, completion: Completion, grammar: str | None, vocabulary: Callable[[], Vocabulary]
    ) -> None:
        self._completion, self._vocabulary = completion, vocabulary
        self._stops = StopFilter(completion.stop)
        watched = completion.constraint is not None and completion.constraint.kind != "gbnf"
        self._watch = constraints.Watch(grammar.removeprefix(LLGUIDANCE)) if grammar and watched else None
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
            raise error_of(chunk["error"])
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

"""What an engine with weights of its own must offer; answers, tools, thoughts are built on it in `decoding`.

A completer knows tokens and constraints and nothing of conversations, except how its model's template
writes one down.
"""

from __future__ import annotations

from collections.abc import AsyncGenerator, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, Literal, Protocol

from studiolo.language.conversation import TokenLogprob
from studiolo.language.engines.base import Capabilities
from studiolo.language.errors import InvalidRequestError

Tokens = tuple[int, ...]


@dataclass(frozen=True)
class Constraint:
    """What a completion must look like from its first character to its last.

    `rule` is a JSON Schema as a dict or True (any JSON) for "json"; a tuple of strings for "choice"; a
    regular expression for "regex"; the text of a grammar for "lark" and "gbnf".
    """

    kind: Literal["json", "choice", "regex", "lark", "gbnf"]
    rule: Any


@dataclass(frozen=True)
class Sampling:
    """How the next token is drawn; None leaves it to the model's default. `bias` is added to logits, by token
    id."""

    temperature: float | None = None
    top_p: float | None = None
    top_k: int | None = None
    seed: int | None = None
    presence_penalty: float | None = None
    frequency_penalty: float | None = None
    bias: tuple[tuple[int, float], ...] = ()


def check_bias(sampling: Sampling, vocabulary: int) -> None:
    """
    Raises:
        InvalidRequestError: a bias of a token that the vocabulary of that many does not have.
    """
    for token, _ in sampling.bias:
        if token >= vocabulary:
            raise InvalidRequestError(
                f"the model has no token {token}",
                where="config.bias",
                remedy=f"Its last one is {vocabulary - 1}.",
            )


@dataclass(frozen=True)
class Completion:
    """One continuation that is wanted.

    Attributes:
        prompt: token ids.
        max_tokens: at most this many are made.
        stop: texts at which it ends; they are not part of it, and no part of one is ever given out.
        constraint: what it must match, or None.
        logprobs: alternatives a token to tell, or None for no log-probabilities.
    """

    prompt: Tokens
    max_tokens: int
    sampling: Sampling = field(default_factory=Sampling)
    stop: tuple[str, ...] = ()
    constraint: Constraint | None = None
    logprobs: int | None = None


@dataclass(frozen=True)
class Piece:
    """Some more of a continuation. `text` ends between characters, never within one.

    Attributes:
        text: what to add; may be empty.
        tokens: ids made since the last piece (each is in exactly one piece; their text may come later).
        logprobs: of these tokens, if asked for.
        end: None while it goes on; "eos" the model ended it, or the constraint left nothing to add; "stop"
            a stop text was met (named by `stop`); "length" `max_tokens` or the context was full.
        stop: the stop text that was met.
        cached: in the first piece, how many tokens of the prompt were there already.
        read: in pieces with nothing else, which may come while a long prompt is read, how many of its tokens
            have been read by then, those in the cache among them.
        lost: how many more tokens were made since the last piece, whose ids the engine does not tell: those
            of a character that the end cut in two. They are no part of the text.
    """

    text: str = ""
    tokens: Tokens = ()
    logprobs: tuple[TokenLogprob, ...] = ()
    end: Literal["eos", "stop", "length"] | None = None
    stop: str | None = None
    cached: int | None = None
    lost: int = 0
    read: int = 0

    @property
    def made(self) -> int:
        """Tokens that were made since the last piece."""
        return len(self.tokens) + self.lost


class Completer(Protocol):
    """Weights in memory, many completions at a time."""

    @property
    def model(self) -> str: ...

    @property
    def capabilities(self) -> Capabilities: ...

    @property
    def template(self) -> str | None:
        """The model's own chat template (Jinja, as in `tokenizer_config.json`), or None for base models."""

    @property
    def special_tokens(self) -> Mapping[str, str]:
        """What a template's `bos_token`, `eos_token` and the like print, where the vocabulary has them."""

    @property
    def schema_keywords(self) -> frozenset[str] | None:
        """Keywords of JSON Schema that its "json" constraint enforces; None: all that llguidance does.

        Annotations (title, description, ...) need not be named.
        """

    def tokenize(self, text: str, *, special: bool = True) -> Tokens:
        """Token ids; `special` reads texts such as <|im_end|> as the one token that they name.

        No begin-of-text token is added: the template writes it.
        """

    def detokenize(self, tokens: Sequence[int]) -> str: ...

    def token_bytes(self, tokens: Sequence[int]) -> list[bytes]:
        """What each of these tokens stands for, by itself; it may be a part of a character."""

    def complete(self, completion: Completion) -> AsyncGenerator[Piece]:
        """The continuation in pieces; the last one has `end`. Closing the generator frees the slot at once.

        Raises:
            UnsupportedError: the constraint cannot be enforced here; says which part of it.
            InvalidRequestError: the prompt is longer than the context; a bias of no token.
            OverloadedError: the queue is full.
        """

    async def embed(self, texts: Sequence[str]) -> list[list[float]]: ...

    async def close(self) -> None: ...

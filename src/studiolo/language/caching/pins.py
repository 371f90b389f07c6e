"""What an engine may offer so that a context is there before it is used."""

from __future__ import annotations

import itertools
from collections.abc import Callable
from contextlib import aclosing
from dataclasses import dataclass
from typing import Protocol, runtime_checkable

from studiolo.language.caching.contexts import Prefix
from studiolo.language.conversation import Request, user
from studiolo.language.engines.completer import Completer, Completion, Tokens


@runtime_checkable
class Pins(Protocol):
    """Offered by engines that can compute a prefix ahead of the requests that begin with it."""

    async def pin(self, name: str, model: str, prefix: Prefix) -> int:
        """Computes the prefix unless it is still there; says how many tokens it has.

        Called when a context is created and again after a restart. `name` is the context's: an engine that
        saves the state of a prefix calls it so.
        """

    async def unpin(self, name: str) -> None:
        """The prefix is no longer wanted; a name that is not pinned is no error."""


@dataclass(frozen=True)
class Warming:
    """Pins by reading: the prefix goes through the completer once, and lies in its own prefix cache then.

    It stays there until other prompts need the room (llama.cpp: the least recently used slot); the next
    request that begins with it brings it back, at the price of reading it once more.

    Attributes:
        prompt: the engine's way to write down a request as tokens.
    """

    completer: Completer
    prompt: Callable[[Request], Tokens]

    async def pin(self, name: str, model: str, prefix: Prefix) -> int:
        tokens = self._tokens(model, prefix)
        async with aclosing(self.completer.complete(Completion(prompt=tokens, max_tokens=1))) as pieces:
            async for _ in pieces:
                pass
        return len(tokens)

    async def unpin(self, name: str) -> None:
        """Nothing is held."""

    def _tokens(self, model: str, prefix: Prefix) -> Tokens:
        """What the prompts of all requests with this prefix have in common.

        Two that differ from the first character of their own show where that ends: a template may write
        things after the prefix, and a tokenizer may join its last characters with the first that follow.
        """
        one, other = (
            self.prompt(prefix.before(Request(model=model, contents=(user(text),)))) for text in ("a", "7")
        )
        pairs = itertools.takewhile(lambda pair: pair[0] == pair[1], zip(one, other, strict=False))
        return tuple(token for token, _ in pairs)

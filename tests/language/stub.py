"""A completer and an engine that say what they are told to: deterministic, without weights, without sleeping.

`StubCompleter` has a vocabulary of 256 bytes, the control tokens of the families, and whatever words a test
adds. A script is a text (what the model would like to say), or `Noise` (random tokens from a seed), or a
failure. Under a constraint it says the script as far as llguidance allows and something allowed where not, as
a real masked model does. Time is the test's: `pause` is awaited before each token.
"""

from __future__ import annotations

import asyncio
import random
from collections.abc import AsyncGenerator, Awaitable, Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

from studiolo.language.conversation import Delta, FinishReason, Request, Text, TokenLogprob, Usage
from studiolo.language.engines.base import Capabilities, Token
from studiolo.language.engines.completer import Completion, Piece, Tokens
from studiolo.language.engines.constraints import matcher

CONTROL = (
    "<|im_start|>",
    "<|im_end|>",
    "<bos>",
    "<start_of_turn>",
    "<end_of_turn>",
    "<think>",
    "</think>",
    "<tool_call>",
    "</tool_call>",
)
EOS = "<|im_end|>"

CHATML = (
    "{% for message in messages %}"
    "{{ '<|im_start|>' + message['role'] + '\n' + message['content'] + '<|im_end|>\n' }}"
    "{% endfor %}{% if add_generation_prompt %}{{ '<|im_start|>assistant\n' }}{% endif %}"
)
"""The plainest template: no tools, no thoughts."""

Pause = Callable[[], Awaitable[None]]


async def at_once() -> None:
    """No delay, but others may run."""
    await asyncio.sleep(0)


@dataclass(frozen=True)
class Noise:
    """Random tokens: `eos` is the chance per token that the turn ends, `tokens` what to draw from."""

    seed: int
    eos: float = 0.0
    tokens: tuple[str, ...] = ()


@dataclass(frozen=True)
class Say:
    """A script. `then` is raised behind the text (a fault), and `ends` says whether the turn ends there; a
    script that does not end goes on with dots."""

    text: str = ""
    then: Exception | None = None
    ends: bool = True


Script = str | Say | Noise


@dataclass
class Seen:
    """What became of one completion."""

    completion: Completion
    tokens: list[int] = field(default_factory=list)
    end: str | None = None
    cancelled: bool = False


class StubCompleter:
    """A scripted `Completer`.

    Args:
        scripts: one for each completion, in the order they begin, or a function that finds it. When they have
            run out, the turn ends at once.
        words: more tokens of several bytes each, the longest that fits is taken.
        control: texts that are one token where control tokens count.
        pause: awaited before each token.

    Attributes:
        seen: the completions so far.
    """

    def __init__(
        self,
        scripts: Iterable[Script] | Callable[[Completion], Script] = (),
        *,
        template: str | None = CHATML,
        words: Sequence[str] = (),
        control: Sequence[str] = CONTROL,
        context: int = 4096,
        pause: Pause = at_once,
        keywords: frozenset[str] | None = None,
        capabilities: Mapping[str, Any] | None = None,
    ) -> None:
        self._find = scripts if callable(scripts) else _one_by_one(scripts)
        self._vocabulary: list[bytes] = [bytes([value]) for value in range(256)]
        self._vocabulary += [text.encode() for text in (*control, *words)]
        self._ids = {token: index for index, token in enumerate(self._vocabulary)}
        self._control = {text.encode() for text in control}
        self._template, self._pause, self._keywords = template, pause, keywords
        self._capabilities = Capabilities(
            **{"context": context, "grammar": True, "logprobs": True, "seed": True, "embeddings": True}
            | dict(capabilities or {})
        )
        self._cache: list[Tokens] = []
        self.seen: list[Seen] = []
        self.closed = False

    model = "stub"
    special_tokens: Mapping[str, str] = {"bos_token": "<bos>", "eos_token": EOS}

    @property
    def capabilities(self) -> Capabilities:
        return self._capabilities

    @property
    def template(self) -> str | None:
        return self._template

    @property
    def schema_keywords(self) -> frozenset[str] | None:
        return self._keywords

    @property
    def made(self) -> int:
        """Tokens made in all completions."""
        return sum(len(seen.tokens) for seen in self.seen)

    def tokenize(self, text: str, *, special: bool = True) -> Tokens:
        data, ids = text.encode(), []
        while data:
            token = self._longest(data, special)
            ids.append(self._ids[token])
            data = data[len(token) :]
        return tuple(ids)

    def detokenize(self, tokens: Sequence[int]) -> str:
        return b"".join(self.token_bytes(tokens)).decode(errors="replace")

    def token_bytes(self, tokens: Sequence[int]) -> list[bytes]:
        return [self._vocabulary[token] for token in tokens]

    async def embed(self, texts: Sequence[str]) -> list[list[float]]:
        """Counts of letters; texts that are alike have like vectors."""
        return [[float(text.lower().count(letter)) for letter in "aehiorstu "] for text in texts]

    async def close(self) -> None:
        self.closed = True

    async def complete(self, completion: Completion) -> AsyncGenerator[Piece]:
        seen = Seen(completion)
        self.seen.append(seen)
        script = self._find(completion)
        try:
            async for piece in self._pieces(completion, script, seen):
                yield piece
        except GeneratorExit:
            seen.cancelled = True
            raise
        except asyncio.CancelledError:
            seen.cancelled = True
            raise

    async def _pieces(self, completion: Completion, script: Script, seen: Seen) -> AsyncGenerator[Piece]:
        cached: int | None = self._cached(completion.prompt)
        given, tokens = "", self._tokens(completion, script)
        while seen.end is None:
            await self._pause()
            token = next(tokens, None)
            if token is not None:
                seen.tokens.append(token)
            text = self._text(seen.tokens)
            stop = _earliest(text, completion.stop)
            if stop is not None:
                seen.end, text = "stop", text[: text.index(stop)]
            elif token is None:
                seen.end = "eos"
            elif len(seen.tokens) >= completion.max_tokens or self._full(completion, seen):
                seen.end = "length"
            if seen.end is None:
                text = _without_partial(text, completion.stop)
            made = (token,) if token is not None else ()
            yield Piece(
                text=text[len(given) :],
                tokens=made,
                logprobs=self._logprobs(completion, made),
                end=seen.end,  # type: ignore[arg-type]
                stop=stop,
                cached=cached,
            )
            given, cached = text, None
        self._cache.append(completion.prompt + tuple(seen.tokens))

    def _tokens(self, completion: Completion, script: Script) -> Iterable[int]:
        wish = self._noise(script) if isinstance(script, Noise) else self._spoken(script)
        return iter(self._masked(completion, wish) if completion.constraint else wish)

    def _spoken(self, script: str | Say) -> Iterable[int]:
        say = script if isinstance(script, Say) else Say(script)
        yield from self.tokenize(say.text)
        if say.then is not None:
            raise say.then
        while not say.ends:
            yield self._ids[b"."]

    def _noise(self, noise: Noise) -> Iterable[int]:
        generator = random.Random(noise.seed)
        choice = [token for text in noise.tokens for token in self.tokenize(text)]
        while generator.random() >= noise.eos:
            yield generator.choice(choice or range(len(self._vocabulary)))

    def _masked(self, completion: Completion, wish: Iterable[int]) -> Iterable[int]:
        """The wished tokens as far as the constraint allows; else an allowed byte, ends preferred."""
        rule = completion.constraint
        assert rule is not None
        state, wishes = matcher(rule), iter(wish)
        wanted = next(wishes, None)
        while not state.is_stopped():
            data = list(self._vocabulary[wanted]) if wanted is not None else []
            if data and _takes(state, data):
                yield wanted
                wanted = next(wishes, None)
            elif wanted is None and state.is_accepting():
                return
            else:
                if wanted is not None:
                    wanted = next(wishes, None)
                yield _allowed(state)

    def _cached(self, prompt: Tokens) -> int:
        return max((_common(prompt, old) for old in self._cache), default=0)

    def _full(self, completion: Completion, seen: Seen) -> bool:
        return len(completion.prompt) + len(seen.tokens) >= self._capabilities.context

    def _longest(self, data: bytes, special: bool) -> bytes:
        fits = [
            token
            for token in self._vocabulary[256:]
            if data.startswith(token) and (special or token not in self._control)
        ]
        return max(fits, key=len, default=data[:1])

    def _text(self, tokens: Sequence[int]) -> str:
        """What there is of whole characters."""
        data = b"".join(self._vocabulary[token] for token in tokens)
        text = data.decode(errors="ignore")
        return text if text.encode() == data[: len(text.encode())] else data.decode(errors="replace")

    def _logprobs(self, completion: Completion, made: Tokens) -> tuple[TokenLogprob, ...]:
        if completion.logprobs is None:
            return ()
        return tuple(
            TokenLogprob(
                token=self.detokenize([token]), bytes=tuple(self._vocabulary[token]), logprob=-0.5, id=token
            )
            for token in made
        )


def _one_by_one(scripts: Iterable[Script]) -> Callable[[Completion], Script]:
    rest = iter(scripts)
    return lambda _: next(rest, "")


def _earliest(text: str, stops: Sequence[str]) -> str | None:
    met = [stop for stop in stops if stop in text]
    return min(met, key=text.index, default=None)


def _without_partial(text: str, stops: Sequence[str]) -> str:
    """Without an end that may become a stop text."""
    length = max(
        (size for stop in stops for size in range(1, len(stop)) if text.endswith(stop[:size])), default=0
    )
    return text[: len(text) - length]


def _takes(state: Any, data: list[int]) -> bool:
    taken = state.try_consume_tokens(data)
    if taken < len(data):
        state.rollback(taken)
    return bool(taken == len(data))


def _allowed(state: Any) -> int:
    """Some byte that may come; what closes something first, so that it comes to an end."""
    for byte in [*b'"}],:0ae.', *range(32, 127), 10, *range(128, 256)]:
        if _takes(state, [byte]):
            return byte
    raise AssertionError("the constraint leaves nothing")


def _common(one: Tokens, other: Tokens) -> int:
    length = 0
    for left, right in zip(one, other, strict=False):
        if left != right:
            break
        length += 1
    return length


# --- an engine ---------------------------------------------------------------------------------------------


@dataclass(frozen=True)
class Reply:
    """One answer: its pieces, and a fault that comes behind `fault_after` of them (None: behind all)."""

    pieces: tuple[str, ...] = ("Hello", " there.")
    fault: Exception | None = None
    fault_after: int | None = None
    finish: FinishReason = FinishReason.STOP
    usage: Usage | None = None


class StubEngine:
    """A scripted `Engine`.

    Args:
        replies: one for each request, in the order they begin, or a function that finds it; then the default
            reply.
        pause: awaited before each piece.

    Attributes:
        requests: those that began; `cancelled`: those closed before their end; `running`, `most`: under way
            now, and the most that were at once.
    """

    def __init__(
        self,
        replies: Iterable[Reply] | Callable[[Request], Reply] = (),
        *,
        model: str = "stub",
        pause: Pause = at_once,
        capabilities: Capabilities | None = None,
    ) -> None:
        rest = iter(()) if callable(replies) else iter(replies)
        self._find = replies if callable(replies) else lambda _: next(rest, Reply())
        self._pause = pause
        self.model = model
        self.capabilities = capabilities or Capabilities(context=4096, tools=True, grammar=True)
        self.requests: list[Request] = []
        self.cancelled: list[Request] = []
        self.running = self.most = 0
        self.closed = False

    async def generate(self, request: Request) -> AsyncGenerator[Delta]:
        self.requests.append(request)
        reply = self._find(request)
        self.running += 1
        self.most = max(self.most, self.running)
        try:
            for index, piece in enumerate(reply.pieces):
                if reply.fault and index == reply.fault_after:
                    raise reply.fault
                await self._pause()
                yield Delta(part=Text(text=piece), model=self.model)
            if reply.fault:
                raise reply.fault
            yield Delta(finish=reply.finish, usage=reply.usage or _counted(request, reply), model=self.model)
        except (GeneratorExit, asyncio.CancelledError):
            self.cancelled.append(request)
            raise
        finally:
            self.running -= 1

    async def count_tokens(self, request: Request) -> int:
        """Words, for the stub."""
        return sum(len(content.text.split()) for content in request.contents)

    async def tokenize(self, texts: Sequence[str]) -> list[list[Token]]:
        """Letters, for the stub."""
        return [[Token(ord(letter), letter.encode()) for letter in text] for text in texts]

    async def embed(self, texts: Sequence[str], *, dimensions: int | None = None) -> list[list[float]]:
        return [[1.0] + [0.0] * ((dimensions or 4) - 1) for _ in texts]

    async def close(self) -> None:
        self.closed = True


def _counted(request: Request, reply: Reply) -> Usage:
    words = sum(len(content.text.split()) for content in request.contents)
    return Usage(prompt=words, answer=len(reply.pieces))
